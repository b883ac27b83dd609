//! `ft-lan` and `ft-arbiter` among strangers: clients that come in crowds, too early or with nonsense are told of, and fill no log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cluster::PATIENCE;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use tests::programs;
use tests::stage::{Node, Stage, wait_until};

/// An `ft-lan` with a forward for TCP and UDP to the same port of a guest, and where it is.
fn start_lan(stage: &Stage) -> (Node, String) {
    let mut lan = stage.program("ft-lan", &["--listen", "127.0.0.1:0", "--forward", "127.0.0.1:0=10.0.2.15:7"]);
    let forward = lan.told("listening")["forwards"][0]["listen"].as_str().unwrap().to_owned();
    (lan, forward)
}

fn datagram_from_a_new_port(to: &str) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"hello", to).unwrap();
    client
}

/// Says `bytes` on a connection of its own, and waits until the other side has closed it.
fn say(to: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may have closed before all is written, and with bytes unread.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read_to_end(&mut Vec::new());
}

/// How many lines with `text` there are, of which the first comes at once and the others every five seconds at most.
fn assert_few_lines(node: &Node, text: &str, since: Instant) {
    let stderr = node.stderr();
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains(text)).collect();
    let most = since.elapsed().as_secs() / 5 + 1;
    assert!((1..=most).contains(&(lines.len() as u64)), "{} lines in {:?}:\n{stderr}", lines.len(), since.elapsed());
}

#[test]
fn clients_that_wait_for_their_guest_are_told_of_once_for_each_protocol() {
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let datagrams: Vec<_> = (0..5).map(|_| datagram_from_a_new_port(&forward)).collect();
    lan.told("client_waits");
    let connections: Vec<_> = (0..5).map(|_| TcpStream::connect(&forward).unwrap()).collect();
    wait_until("both protocols", || lan.count("client_waits") == 2);
    let waiting = lan.reports().iter().filter(|report| report["event"] == "client_waits");
    let told = waiting.map(|report| {
        assert_eq!((&report["listen"], &report["guest"]), (&forward.as_str().into(), &"10.0.2.15:7".into()));
        assert_eq!(report["has_vm"], false);
        report["protocol"].as_str().unwrap().to_owned()
    });
    assert_eq!(told.collect::<Vec<_>>(), ["udp", "tcp"]);
    drop((datagrams, connections));
}

#[test]
fn flows_that_make_room_are_counted_and_told_rarely() {
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let since = Instant::now();
    let mut clients = Vec::new();
    // The counters are told once a second.
    while lan.reports().iter().all(|report| report["replaced_flows"].as_u64() < Some(3)) {
        assert!(since.elapsed() < PATIENCE, "no flow makes room");
        clients.push(datagram_from_a_new_port(&forward));
        thread::sleep(Duration::from_millis(5));
    }
    assert!(clients.len() > 192, "{}", clients.len());
    assert_few_lines(&lan, "a UDP flow makes room for another: the limit of 192 of one address is reached", since);
}

#[test]
fn strangers_with_nonsense_do_not_fill_the_log_of_the_lan() {
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let listen = lan.told_text("listening", "listen");
    let since = Instant::now();
    (0..50).for_each(|_| say(&listen, b"GET / HTTP/1.1\r\n\r\n"));
    assert_few_lines(&lan, "connection closed: ", since);
    let since = Instant::now();
    let crowd: Vec<_> = (0..250).map(|_| TcpStream::connect(&forward)).collect();
    wait_until("refused clients", || lan.reports().iter().any(|report| report["refused_clients"].as_u64() >= Some(50)));
    assert_few_lines(&lan, "a client is refused: the limit of 192 of one address is reached", since);
    drop(crowd);
}

#[test]
fn strangers_with_nonsense_do_not_fill_the_log_of_the_arbiter() {
    let stage = Stage::new(programs!());
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("claims");
    let mut arbiter = stage.program("ft-arbiter", &["--listen", "127.0.0.1:0", "--dir", directory.to_str().unwrap()]);
    let listen = arbiter.told_text("listening", "listen");
    let since = Instant::now();
    (0..50).for_each(|_| say(&listen, &[0xff; 64]));
    wait_until("a line", || arbiter.stderr().contains("connection closed"));
    assert_few_lines(&arbiter, "connection closed", since);
}
