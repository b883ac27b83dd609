//! The arbiters as a node uses them: a directory, a server over the network, and the program, with
//! nodes that claim at the same time.

use ft::claim::{Claim, ClaimKind, Verdict};
use hypervisor::arbiter;
use hypervisor::arbiter::{Arbiter, ArbiterError, FileArbiter, TcpArbiter};
use logchannel::entry::Generation;
use logchannel::frame::{FrameKind, append_frame};
use logchannel::session::{NodeId, VmId};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

/// Long enough for a busy host; no test waits until it has passed.
const TIMEOUT: Duration = Duration::from_secs(30);

fn vm() -> VmId {
    VmId::new("alpha").unwrap()
}

fn claim(node: u128) -> Claim {
    Claim { node: NodeId(node), kind: ClaimKind::Owner, address: Some(format!("10.0.0.{node}:7200")) }
}

/// An `ft-arbiter` process, killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(directory: &Path) -> Self {
        Self::start_at("127.0.0.1:0", directory)
    }

    fn start_at(listen: &str, directory: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ft-arbiter"))
            .args(["--json", "--listen", listen, "--dir"])
            .arg(directory)
            .env("FT_LOG", "off")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["event"], "listening", "{line}");
        let address = event["listen"].as_str().unwrap().parse().unwrap();
        // The rest of its output is read, so that it doesn't fill the pipe.
        thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self { process, address }
    }

    fn client(&self) -> TcpArbiter {
        TcpArbiter::new(self.address.to_string(), TIMEOUT)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The node that has the flag, by the verdict that `node` got.
fn winner(verdict: &Verdict, node: NodeId) -> NodeId {
    match verdict {
        Verdict::Won => node,
        Verdict::Lost(holder) => holder.node,
        Verdict::NotSuccessor(_) => panic!("{verdict:?}"),
    }
}

/// Makes every arbiter's node claim the same generations at the same moment. Each must be won once,
/// and all losers must get the winner's name.
fn race(arbiters: &[Box<dyn Arbiter>]) {
    const GENERATIONS: u64 = 20;
    let barrier = Barrier::new(arbiters.len());
    let verdicts: Vec<Vec<Verdict>> = thread::scope(|scope| {
        let racers: Vec<_> = (1..)
            .zip(arbiters)
            .map(|(node, arbiter)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let claim = claim(node);
                    let mut predecessor = None;
                    let ask = |generation| {
                        barrier.wait();
                        let verdict = arbiter.test_and_set(&vm(), Generation(generation), &claim, predecessor).unwrap();
                        predecessor = Some(winner(&verdict, claim.node));
                        verdict
                    };
                    (0..GENERATIONS).map(ask).collect()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    for generation in 0..usize::try_from(GENERATIONS).unwrap() {
        let winners: Vec<u128> = (1..)
            .zip(&verdicts)
            .filter(|(_, verdicts)| verdicts[generation] == Verdict::Won)
            .map(|(node, _)| node)
            .collect();
        let &[winner] = winners.as_slice() else {
            panic!("generation {generation} was won by {winners:?}");
        };
        let lost = Verdict::Lost(claim(winner));
        let losers = verdicts.iter().filter(|verdicts| verdicts[generation] == lost).count();
        assert_eq!(losers, arbiters.len() - 1, "generation {generation}: not all losers name node {winner}");
    }
    let (latest, holder) = arbiters[0].latest(&vm()).unwrap().unwrap();
    assert_eq!(latest, Generation(GENERATIONS - 1));
    assert_eq!(arbiters[0].test_and_set(&vm(), latest, &claim(999), None).unwrap(), Verdict::Lost(holder));
}

#[test]
fn one_of_many_threads_wins() {
    let directory = tempfile::tempdir().unwrap();
    let arbiters: Vec<Box<dyn Arbiter>> =
        (0..8).map(|_| Box::new(FileArbiter::open(directory.path()).unwrap()) as Box<dyn Arbiter>).collect();
    race(&arbiters);
}

#[test]
fn one_of_many_processes_wins() {
    let directory = tempfile::tempdir().unwrap();
    let servers: Vec<Server> = (0..3).map(|_| Server::start(directory.path())).collect();
    let mut arbiters: Vec<Box<dyn Arbiter>> =
        servers.iter().chain(&servers).map(|server| Box::new(server.client()) as Box<dyn Arbiter>).collect();
    arbiters.push(Box::new(FileArbiter::open(directory.path()).unwrap()));
    race(&arbiters);
}

fn asking_again_changes_nothing(arbiter: &dyn Arbiter) {
    assert_eq!(arbiter.latest(&vm()).unwrap(), None);
    let generation = Generation(0);
    for _ in 0..3 {
        assert_eq!(arbiter.test_and_set(&vm(), generation, &claim(1), None).unwrap(), Verdict::Won);
        assert_eq!(arbiter.test_and_set(&vm(), generation, &claim(2), None).unwrap(), Verdict::Lost(claim(1)));
    }
    let moved = Claim { address: None, ..claim(1) };
    assert_eq!(arbiter.test_and_set(&vm(), generation, &moved, None).unwrap(), Verdict::Won, "it is the same node");
    assert_eq!(arbiter.latest(&vm()).unwrap(), Some((generation, claim(1))), "a claim stays as it was made");

    let end = Claim { kind: ClaimKind::Ended, address: None, ..claim(1) };
    for generation in 1..10 {
        let won = arbiter.test_and_set(&vm(), Generation(generation), &claim(1), Some(NodeId(1)));
        assert_eq!(won.unwrap(), Verdict::Won);
    }
    assert_eq!(arbiter.test_and_set(&vm(), Generation(10), &end, Some(NodeId(1))).unwrap(), Verdict::Won);
    assert_eq!(arbiter.latest(&vm()).unwrap(), Some((Generation(10), end)), "10 is behind 9");
    assert_eq!(arbiter.latest(&VmId::new("beta").unwrap()).unwrap(), None, "another VM");
}

#[test]
fn asking_again_changes_nothing_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    asking_again_changes_nothing(&FileArbiter::open(directory.path()).unwrap());
}

#[test]
fn asking_again_changes_nothing_over_the_network() {
    let directory = tempfile::tempdir().unwrap();
    asking_again_changes_nothing(&Server::start(directory.path()).client());
}

/// DESIGN "Predecessor": two arbiters that agree on a number, but not on the node, have two
/// histories.
fn a_flag_is_granted_only_behind_its_predecessor(arbiter: &dyn Arbiter) {
    let flag = |flag, node, predecessor: Option<u128>| {
        arbiter.test_and_set(&vm(), Generation(flag), &claim(node), predecessor.map(NodeId)).unwrap()
    };
    assert_eq!(flag(1, 2, Some(1)), Verdict::NotSuccessor(None), "the flag before is free");
    assert_eq!(flag(1, 2, None), Verdict::NotSuccessor(None), "who names nobody follows nobody");
    assert_eq!(arbiter.latest(&vm()).unwrap(), None, "nothing is written of a claim that is refused");
    assert_eq!(flag(0, 1, None), Verdict::Won);
    assert_eq!(flag(1, 2, Some(9)), Verdict::NotSuccessor(Some(claim(1))), "the flag before is another node's");
    assert_eq!(flag(1, 2, None), Verdict::NotSuccessor(Some(claim(1))));
    assert_eq!(flag(7, 2, Some(1)), Verdict::NotSuccessor(None), "there is a gap before it");
    assert_eq!(arbiter.latest(&vm()).unwrap(), Some((Generation(0), claim(1))));
    assert_eq!(flag(1, 2, Some(1)), Verdict::Won);
    for predecessor in [Some(1), Some(9), None] {
        assert_eq!(flag(1, 2, predecessor), Verdict::Won, "its holder may have been told nothing: {predecessor:?}");
        assert_eq!(flag(1, 3, predecessor), Verdict::Lost(claim(2)), "{predecessor:?}");
    }
    assert_eq!(arbiter.latest(&vm()).unwrap(), Some((Generation(1), claim(2))));
}

#[test]
fn a_flag_is_granted_only_behind_its_predecessor_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    a_flag_is_granted_only_behind_its_predecessor(&FileArbiter::open(directory.path()).unwrap());
}

#[test]
fn a_flag_is_granted_only_behind_its_predecessor_over_the_network() {
    let directory = tempfile::tempdir().unwrap();
    a_flag_is_granted_only_behind_its_predecessor(&Server::start(directory.path()).client());
}

#[test]
fn claims_outlive_the_server_and_clients_find_its_successor() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let client = server.client();
    assert_eq!(client.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    let address = server.address.to_string();
    drop(server);

    let error = client.latest(&vm()).unwrap_err();
    assert!(error.is_unreachable(), "{error}");

    let _server = Server::start_at(&address, directory.path());
    assert_eq!(client.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap(), Verdict::Lost(claim(1)));
    let file = FileArbiter::open(directory.path()).unwrap();
    assert_eq!(file.latest(&vm()).unwrap(), Some((Generation(0), claim(1))), "both kinds know the same claims");
}

#[test]
fn a_claim_is_a_file_that_a_person_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::open(directory.path()).unwrap();
    arbiter.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap();
    arbiter.test_and_set(&vm(), Generation(1), &claim(3), Some(NodeId(2))).unwrap();
    let names: Vec<_> = std::fs::read_dir(directory.path().join("alpha")).unwrap().collect();
    assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
    let text = std::fs::read_to_string(directory.path().join("alpha/1.claim")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "version": 2, "vm": "alpha", "flag": 1, "node": "00000000000000000000000000000003",
        "kind": "owner", "address": "10.0.0.3:7200"
    });
    assert_eq!(record, expected);
}

#[test]
fn a_claim_of_version_1_is_still_one() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::open(directory.path()).unwrap();
    arbiter.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap();
    let path = directory.path().join("alpha/0.claim");
    let text = std::fs::read_to_string(&path).unwrap();
    let before = text.replace("\"version\": 2", "\"version\": 1").replace("\"flag\"", "\"generation\"");
    assert_ne!(before, text);
    std::fs::write(&path, before).unwrap();
    assert_eq!(arbiter.latest(&vm()).unwrap(), Some((Generation(0), claim(2))));
    assert_eq!(arbiter.test_and_set(&vm(), Generation(1), &claim(3), Some(NodeId(2))).unwrap(), Verdict::Won);
}

#[test]
fn an_unreadable_claim_is_neither_passed_over_nor_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let file = FileArbiter::open(directory.path()).unwrap();
    let claims = directory.path().join("alpha");
    std::fs::create_dir(&claims).unwrap();
    std::fs::write(claims.join(".0123.tmp"), "half a cl").unwrap();
    std::fs::write(claims.join("007.claim"), "no generation has this name").unwrap();
    assert_eq!(file.latest(&vm()).unwrap(), None, "what is no claim says nothing");
    let newer = br#"{"version":3,"vm":"alpha","flag":0,"node":"0","kind":"owner","address":null}"#;
    for bad in [&b""[..], b"{", &[b'x'; 10_000], newer] {
        std::fs::write(claims.join("0.claim"), bad).unwrap();
        for arbiter in [&file as &dyn Arbiter, &server.client()] {
            let error = arbiter.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap_err();
            assert!(matches!(error, ArbiterError::BadClaim { .. } | ArbiterError::Failed { .. }), "{error}");
            assert!(error.to_string().contains("0.claim is unreadable"), "{error}");
            assert!(!error.is_unreachable());
            assert!(arbiter.latest(&vm()).is_err());
        }
    }
}

#[test]
fn a_closed_port_is_unreachable_and_another_server_is_no_arbiter() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let silent = TcpArbiter::new(address.to_string(), Duration::from_millis(20));
    let error = silent.latest(&vm()).unwrap_err();
    assert!(error.is_unreachable(), "a server that doesn't answer: {error}");

    let web_server = thread::spawn(move || {
        // The first connection is that of the client that gave up.
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            // Unread bytes would make the close a reset, which may overtake the answer.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let error = TcpArbiter::new(address.to_string(), TIMEOUT).latest(&vm()).unwrap_err();
    assert!(matches!(error, ArbiterError::Protocol { .. }), "{error}");
    web_server.join().unwrap();

    let error = TcpArbiter::new(address.to_string(), TIMEOUT).latest(&vm()).unwrap_err();
    assert!(error.is_unreachable(), "a closed port: {error}");
}

#[test]
fn hostile_bytes_cost_their_own_connection_only() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let client = server.client();
    assert_eq!(client.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    let mut unknown_kind = Vec::new();
    append_frame(FrameKind(65), &[2, 0, 0], &mut unknown_kind);
    let mut bad_body = Vec::new();
    append_frame(FrameKind(64), &[2, 0, 0xff, 0xff], &mut bad_body);
    let mut escape = Vec::new();
    append_frame(FrameKind(64), b"\x02\x00\x01\x08../alpha", &mut escape);
    for hostile in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &[0; 9], &unknown_kind, &bad_body, &escape] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(hostile).unwrap();
        let mut answer = Vec::new();
        // The connection is closed, in order or by a reset, without an answer.
        match stream.read_to_end(&mut answer) {
            Ok(_) => assert!(answer.is_empty(), "{hostile:02x?} was answered {answer:02x?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{hostile:02x?}"),
        }
    }
    assert_eq!(client.latest(&vm()).unwrap(), Some((Generation(0), claim(1))));
}

#[test]
fn silent_connections_make_room_for_one_that_asks() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let client = server.client();
    assert_eq!(client.latest(&vm()).unwrap(), None);
    let mut silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    // On a new connection, because the first one was evicted too.
    assert_eq!(client.latest(&vm()).unwrap(), None);
    assert_eq!(server.client().latest(&vm()).unwrap(), None);
    silent[0].set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(silent[0].read(&mut [0; 1]).unwrap(), 0, "the oldest was closed");
}

#[test]
fn a_directory_that_went_away_is_unreachable_and_not_made_anew() {
    let site = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (site.path().join("claims"), site.path().join("elsewhere"));
    let arbiter = FileArbiter::open(&path).unwrap();
    assert_eq!(arbiter.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    std::fs::rename(&path, &elsewhere).unwrap();
    for mounted_over in [false, true] {
        // As after an unmount: nothing is there, or the empty mount point.
        if mounted_over {
            std::fs::create_dir(&path).unwrap();
        }
        assert!(arbiter.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap_err().is_unreachable());
        assert!(arbiter.latest(&vm()).unwrap_err().is_unreachable());
        assert_eq!(path.exists(), mounted_over);
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&elsewhere, &path).unwrap();
    assert_eq!(arbiter.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap(), Verdict::Lost(claim(1)));
}

#[test]
fn specs_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let open_nested = || arbiter::open(&format!("file:{}", directory.path().join("a/b").display()), TIMEOUT);
    let error = open_nested().unwrap_err();
    assert!(matches!(error, ArbiterError::Directory { .. }), "{error}");
    assert!(error.to_string().contains("mount its file system"), "{error}");
    std::fs::create_dir(directory.path().join("a")).unwrap();
    assert_eq!(open_nested().unwrap().test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    assert!(arbiter::open("tcp:[::1]:7100", TIMEOUT).is_ok());
    for bad in ["", "file", "file:", "tcp:", "tcp:host", "tcp::7100", "tcp:host:0", "tcp:host:70000", "http://host"] {
        let error = arbiter::open(bad, TIMEOUT).unwrap_err();
        assert!(matches!(error, ArbiterError::BadSpec { .. }), "{bad}: {error}");
        assert!(!error.is_unreachable());
    }
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = arbiter::open(&format!("file:{}/file", directory.path().display()), TIMEOUT).unwrap_err();
    assert!(matches!(error, ArbiterError::Directory { .. }), "{error}");
}

#[test]
fn an_address_too_long_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let long = Claim { address: Some("x".repeat(257)), ..claim(1) };
    for arbiter in [&server.client() as &dyn Arbiter, &FileArbiter::open(directory.path()).unwrap()] {
        let error = arbiter.test_and_set(&vm(), Generation(0), &long, None).unwrap_err();
        assert!(matches!(error, ArbiterError::AddressTooLong { bytes: 257 }), "{error}");
        assert_eq!(arbiter.latest(&vm()).unwrap(), None);
    }
}

#[test]
fn the_program_says_how_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path());
    let second = Command::new(env!("CARGO_BIN_EXE_ft-arbiter"))
        .args(["--listen", &server.address.to_string(), "--dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("can't listen at") && text.contains("choose another port"), "{text}");

    let id = nix::unistd::Pid::from_raw(server.process.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}

/// A claim's file is a FIFO: reading it blocks, as reading a disk that hangs does.
#[test]
fn a_hanging_disk_is_reported_costs_few_threads_and_does_not_keep_the_server_from_ending() {
    const CLIENTS: usize = 12;
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path());
    std::fs::create_dir(directory.path().join(vm().as_str())).unwrap();
    let fifo = directory.path().join(vm().as_str()).join("3.claim");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let ask = || {
        let asked: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let client = server.client();
                thread::spawn(move || client.latest(&vm()).unwrap_err())
            })
            .collect();
        for answer in asked {
            let error = answer.join().unwrap();
            assert!(error.is_unreachable() && error.to_string().contains("disk has not answered"), "{error}");
        }
    };
    ask();
    let tasks = format!("/proc/{}/task", server.process.id());
    let threads = || std::fs::read_dir(&tasks).unwrap().count();
    let after_some = threads();
    ask();
    assert_eq!(threads(), after_some);
    let id = nix::unistd::Pid::from_raw(server.process.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}
