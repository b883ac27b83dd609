//! `ft-lan` and `ft-arbiter` with bad clients: many, early or malformed connections are reported at
//! a limited rate. A VM whose host doesn't read, and a restart of `ft-lan`, don't affect other VMs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::lan::Attachment;
use hypervisor::lan::client::{Attached, FromLan, attach};
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use tests::client::Load;
use tests::programs;
use tests::stage::{Node, Stage, wait_until};
use vm::{OutputId, PACKET_BYTES_MAX};

/// An `ft-lan` with a forward of TCP and UDP to the echo port, and its address.
fn start_lan(stage: &Stage) -> (Node, String) {
    let ports = ["--listen", "127.0.0.1:0", "--qemu", "127.0.0.1:0", "--forward", "127.0.0.1:0=10.0.2.15:7"];
    let mut lan = stage.program("ft-lan", &ports);
    let forward = lan.told("listening")["forwards"][0]["listen"].as_str().unwrap().to_owned();
    (lan, forward)
}

/// A VM with the echo guest, attached to the LAN at `lan` instead of the stage's.
fn start_echo_vm(stage: &Stage, lan: &str) -> Node {
    let arbiter = format!("tcp:{}", stage.site.arbiter_address());
    let options = ["--unprotected", "--lan", lan, "--arbiter", &arbiter, "--listen", "127.0.0.1:0"];
    let mut vm = stage.program("ft-primary", &options);
    vm.told("lan_attached");
    vm
}

/// The Ethernet address of a VM whose host doesn't read.
const SLOW_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// Attaches a VM whose host is this test.
fn attach_slow_vm(lan: &str) -> Attached {
    let attachment = Attachment {
        vm: "slow".parse().unwrap(),
        node: NodeId(7),
        generation: Generation(0),
        mac: SLOW_MAC,
        next_output: OutputId(0),
        output_end: OutputId(u64::MAX),
        last_packet: 0,
        booted: Generation(0),
    };
    attach(lan.parse().unwrap(), &attachment, PATIENCE).unwrap()
}

/// The peak memory of a process, in KiB.
fn peak_memory_kib(process: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn datagram_from_a_new_port(to: &str) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"hello", to).unwrap();
    client
}

/// Sends `bytes` on a new connection, and waits until the other side has closed it.
fn say(to: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may close before all is written, or with unread bytes.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Checks that lines with `text` are rate-limited: one at once, then at most one every five
/// seconds.
fn assert_few_lines(node: &Node, text: &str, since: Instant) {
    let stderr = node.stderr();
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains(text)).collect();
    let most = since.elapsed().as_secs() / 5 + 1;
    assert!((1..=most).contains(&(lines.len() as u64)), "{} lines in {:?}:\n{stderr}", lines.len(), since.elapsed());
}

#[test]
fn clients_that_wait_for_their_guest_are_reported_once_for_each_protocol() {
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
fn evicted_flows_are_counted_and_reported_rarely() {
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let since = Instant::now();
    let mut clients = Vec::new();
    // The counters are reported at the same rate as the lines.
    while lan.reports().iter().all(|report| report["replaced_flows"].as_u64() < Some(3)) {
        assert!(since.elapsed() < PATIENCE, "no flow makes room");
        clients.push(datagram_from_a_new_port(&forward));
        thread::sleep(Duration::from_millis(5));
    }
    assert!(clients.len() > 192, "{}", clients.len());
    let most = since.elapsed().as_secs() / 5 + 1;
    assert!(lan.count("dropped") as u64 <= most, "{:?}", lan.reports());
    assert_few_lines(&lan, "a UDP flow makes room for another: the limit of 192 of one address is reached", since);
}

#[test]
fn malformed_connections_do_not_fill_the_log_of_the_lan() {
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
fn malformed_connections_do_not_fill_the_log_of_the_arbiter() {
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

/// The VM's host reads nothing, and is sent eight times as many packets as the LAN keeps for it.
#[test]
fn a_vm_whose_host_does_not_read_costs_bounded_memory_and_no_other_vm_anything() {
    const KEPT_MIB: u64 = 8;
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let listen = lan.told_text("listening", "listen");
    let _other = start_echo_vm(&stage, &listen);
    let mut slow = attach_slow_vm(&listen);
    let load = Load::on(forward.parse().unwrap());
    load.goes_on();

    let memory_before_kib = peak_memory_kib(&lan);
    let mut qemu = TcpStream::connect(lan.told_text("listening", "qemu")).unwrap();
    let packets = 8 * (KEPT_MIB << 20) / PACKET_BYTES_MAX as u64;
    for number in 0..packets {
        let mut message = u32::try_from(PACKET_BYTES_MAX).unwrap().to_be_bytes().to_vec();
        message.extend([&SLOW_MAC[..], &[2, 9, 9, 9, 9, 9], &[0x88, 0xb5], &number.to_be_bytes()].concat());
        message.resize(4 + PACKET_BYTES_MAX, 0);
        qemu.write_all(&message).unwrap();
        if number % 100 == 0 {
            slow.sender.send_heartbeat().unwrap();
        }
    }
    load.goes_on();

    // The packets that are left end with the last one that was sent.
    slow.receiver.excuse().unwrap();
    let mut received = 0;
    let delivered = loop {
        match slow.receiver.receive().unwrap() {
            FromLan::Packet { number, packet } => {
                received += 1;
                if packet[12..14] == [0x88, 0xb5] && packet[14..22] == (packets - 1).to_be_bytes() {
                    break number;
                }
            }
            FromLan::HeartbeatDue => slow.sender.send_heartbeat().unwrap(),
            FromLan::Carried { .. } => {}
        }
    };
    load.lost_nothing();
    let grown_mib = (peak_memory_kib(&lan) - memory_before_kib) >> 10;
    assert!(grown_mib < 3 * KEPT_MIB, "for one VM {grown_mib} MiB");
    lan.interrupt();
    let dropped = lan.reports().iter().rfind(|report| report["event"] == "dropped").cloned().unwrap();
    let overflowed = dropped["vm_overflow"].as_u64().unwrap();
    assert!(overflowed > packets / 2, "{dropped}");
    assert_eq!(received + overflowed, delivered, "each frame is delivered or counted");
}

/// smoltcp's pause after an unanswered ARP request once cost a client a second after each restart,
/// though the guest was attached again after 50 ms.
#[test]
fn a_client_is_served_soon_after_the_lan_was_started_again() {
    const SOON: Duration = Duration::from_millis(800);
    let stage = Stage::new(programs!());
    let (mut lan, forward) = start_lan(&stage);
    let listen = lan.told_text("listening", "listen");
    let _vm = start_echo_vm(&stage, &listen);
    let arguments = ["--listen", &listen, "--forward", &format!("{forward}=10.0.2.15:7")];
    let mut waited = Vec::new();
    for _ in 0..5 {
        // Three restarts in quick succession, each with a client.
        let mut client = None;
        let mut came = Instant::now();
        for _ in 0..3 {
            lan.kill();
            lan = stage.program("ft-lan", &arguments);
            lan.told("listening");
            came = Instant::now();
            client = Some(TcpStream::connect(&forward).unwrap());
        }
        let mut client = client.unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        waited.push(came.elapsed());
    }
    assert!(waited.iter().any(|&waited| waited < SOON), "{waited:?}");
}
