//! A lock service and a key/value store without replication of their own through failovers: each
//! call is executed once, and the clients see one copy of the service.
//!
//! This is the first lab of the courses, and its hard question: the primary dies just after it has
//! told its backup of a call.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use crate::beginnings::UNBOUNDED_LAG;
use hypervisor::program::client::Client;
use hypervisor::program::client::history::{Answer, Call, History, check};
use hypervisor::program::client::rpc::{NetworkFaults, RpcClient};
use hypervisor::program::client::torture::{Target, Torture, ask};
use hypervisor::program::site::cluster::{Cluster, ClusterOptions, PATIENCE};
use services::kv::{STORE_BYTES_MAX, VALUE_BYTES_MAX};
use services::rpc::server::SESSIONS_MAX;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use tests::link::{Direction, Link};
use tests::programs;
use tests::random::{self, Random};
use tests::stage::{Pair, Stage};

/// Clients that call at once.
const CLIENTS: u32 = 6;

/// Kills that they live through.
const KILLS: u32 = 4;

/// Answers that each has between two kills.
const ANSWERS: u64 = 200;

fn open(service: SocketAddr) -> RpcClient {
    RpcClient::open(service, PATIENCE, NetworkFaults::default(), Random::new(random::seed())).unwrap()
}

fn key() -> String {
    "of the test".into()
}

fn get() -> Call {
    Call::Get { key: key() }
}

fn append(value: &str) -> Call {
    Call::Append { key: key(), value: value.into() }
}

fn value(text: &str) -> Answer {
    Answer::Value(Some(text.into()))
}

/// A service under a primary and its backup with a link between them, and one client.
struct Scene {
    rpc: RpcClient,
    pair: Pair,
    link: Link,
    _stage: Stage,
}

impl Scene {
    fn of(guest: &str) -> Self {
        let stage = Stage::new(programs!());
        let (pair, link) = stage.linked_pair(&[&["--guest", guest], &UNBOUNDED_LAG[..]].concat(), &[]);
        let rpc = open(stage.site.service);
        Self { rpc, pair, link, _stage: stage }
    }

    #[track_caller]
    fn ask(&mut self, call: &Call) -> Answer {
        ask(&mut self.rpc, call).unwrap()
    }

    /// Makes `call` while the link holds back what goes in `direction`, kills the primary once
    /// `until` has returned, and gives the answer, which can only be the backup's.
    #[track_caller]
    fn ask_while_the_primary_dies(&mut self, call: &Call, direction: Direction, until: impl FnOnce(&Link)) -> Answer {
        self.link.hold(direction);
        let rpc = &mut self.rpc;
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(rpc, call));
            until(&self.link);
            assert!(!asking.is_finished(), "an answer left before the backup had acknowledged its entry");
            self.pair.primary.kill();
            // The bytes that the link holds back are lost with the primary.
            self.link.cut();
            asking.join().unwrap().unwrap()
        });
        assert_eq!(self.pair.backup.told_number("live", "generation"), 2);
        answer
    }
}

/// The backup has the call and its answer in its log, and the primary doesn't hear of that.
fn backup_has_logged(link: &Link, request: &str) {
    let [_, answer] = link.wait_for_answer(request.as_bytes());
    link.wait_for_ack(answer);
}

/// The primary has executed the call, and the backup doesn't hear of it.
fn primary_has_executed(link: &Link, request: &str) {
    link.wait_for_answer(request.as_bytes());
}

#[test]
fn a_primary_that_dies_just_after_it_has_told_its_backup_of_an_append_has_appended_once() {
    let mut scene = Scene::of("kv");
    assert_eq!(scene.ask(&append("one ")), Answer::Yes);
    let until = |link: &Link| backup_has_logged(link, "two ");
    assert_eq!(scene.ask_while_the_primary_dies(&append("two "), Direction::ToPrimary, until), Answer::Yes);
    assert_eq!(scene.ask(&get()), value("one two "));
}

#[test]
fn a_primary_that_dies_before_it_has_told_its_backup_of_an_append_has_not_appended() {
    let mut scene = Scene::of("kv");
    assert_eq!(scene.ask(&append("one ")), Answer::Yes);
    // The call reaches the backup as the client's next copy of it.
    let until = |link: &Link| primary_has_executed(link, "two ");
    assert_eq!(scene.ask_while_the_primary_dies(&append("two "), Direction::ToBackup, until), Answer::Yes);
    assert_eq!(scene.ask(&get()), value("one two "));
}

#[test]
fn a_lock_that_is_taken_as_the_primary_dies_is_taken_once_and_its_client_knows() {
    for (direction, until) in [
        (Direction::ToPrimary, backup_has_logged as fn(&Link, &str)),
        (Direction::ToBackup, primary_has_executed as fn(&Link, &str)),
    ] {
        let mut scene = Scene::of("lock");
        let lock = Call::Lock { key: key() };
        let taken = scene.ask_while_the_primary_dies(&lock, direction, |link| until(link, "of the test"));
        // Executed a second time it would be found taken.
        assert_eq!(taken, Answer::Yes);
        assert_eq!(scene.ask(&lock), Answer::No);
        let unlock = Call::Unlock { key: key() };
        assert_eq!([scene.ask(&unlock), scene.ask(&unlock)], [Answer::Yes, Answer::No]);
    }
}

/// Checks the clients' history of a service whose primaries are killed, over a network that loses
/// and doubles datagrams.
fn clients_see_one_copy(guest: &str, target: Target) {
    let directory = tempfile::tempdir().unwrap();
    let options = ClusterOptions { guest: ["--guest", guest].map(String::from).into(), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&programs!(), directory.path(), &options).unwrap();
    let faults = NetworkFaults { lost_percent: 2, doubled_percent: 5 };
    let torture = Torture { target, keys: 4, calls: u64::MAX, faults, seed: random::seed() };
    let history = History::default();
    let start = |number| torture.start(cluster.service, number, history.clone()).unwrap();
    let clients: Vec<_> = (1..=CLIENTS).map(start).collect();
    let go_on = |when: &str| {
        for client in &clients {
            let goes_on = client.wait_for_replies(ANSWERS, PATIENCE);
            assert!(goes_on, "{when}: a client has {} answers, {:?}", client.received(), client.error());
        }
    };
    for kill in 1..=KILLS {
        go_on("before a kill");
        cluster.primary.kill().unwrap();
        let live = cluster.backup().wait_for("live", PATIENCE).unwrap();
        assert_eq!(live["generation"], u64::from(kill) + 1);
        go_on("after a kill");
        cluster.succeed();
        cluster.restore_redundancy().unwrap();
    }
    for result in clients.into_iter().map(Client::finish) {
        assert!(result.is_perfect(), "{result:?}");
    }
    let history = history.take();
    let calls = usize::try_from(u64::from(CLIENTS) * u64::from(KILLS) * 2 * ANSWERS).unwrap();
    assert!(history.len() >= calls, "{} calls", history.len());
    if let Err(unexplained) = check(&history) {
        panic!("{}: {:?}", unexplained.key, unexplained.call());
    }
}

#[test]
fn clients_of_a_store_see_one_copy_of_it_through_kills() {
    clients_see_one_copy("kv", Target::Kv);
}

#[test]
fn clients_of_a_lock_service_see_one_copy_of_it_through_kills() {
    clients_see_one_copy("lock", Target::Lock);
}

#[test]
fn datagrams_that_are_no_calls_cost_a_service_nothing() {
    let stage = Stage::new(programs!());
    let _pair = stage.pair(&["--guest", "kv"], &[]);
    let mut rpc = open(stage.site.service);
    assert_eq!(ask(&mut rpc, &append("one")).unwrap(), Answer::Yes);
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = Random::new(random::seed());
    for round in 0..500 {
        let mut datagram: Vec<u8> = (0..random.below(1_400)).map(|_| random.next_u64().to_le_bytes()[0]).collect();
        // Half of them begin as a call does.
        datagram.splice(0..datagram.len().min(2), if round % 2 == 0 { vec![0xf7, 1] } else { vec![] });
        // The host's buffers may be full; that loses noise.
        let _ = noise.send_to(&datagram, stage.site.service);
    }
    assert_eq!(ask(&mut rpc, &get()).unwrap(), value("one"));
}

#[test]
fn a_service_that_clients_fill_refuses_more_and_serves_on() {
    let stage = Stage::new(programs!());
    let _pair = stage.pair(&["--guest", "kv"], &[]);
    let mut rpc = open(stage.site.service);
    let put = |number: usize| Call::Put { key: number.to_string(), value: "v".repeat(VALUE_BYTES_MAX) };
    let puts =
        (0..=STORE_BYTES_MAX / VALUE_BYTES_MAX).find(|number| ask(&mut rpc, &put(*number)).unwrap() != Answer::Yes);
    let puts = puts.expect("the store is full before its values alone have its size");
    assert!(puts > STORE_BYTES_MAX / VALUE_BYTES_MAX / 2, "full after {puts}");
    // The reply that the server keeps for each session is a long one.
    let get = Call::Get { key: "0".into() };
    for _ in 0..SESSIONS_MAX + 10 {
        assert_eq!(ask(&mut open(stage.site.service), &get).unwrap(), value(&"v".repeat(VALUE_BYTES_MAX)));
    }
    let mut rpc = open(stage.site.service);
    assert_eq!(ask(&mut rpc, &put(puts)).unwrap(), Answer::Full);
    assert_eq!(ask(&mut rpc, &Call::Put { key: "0".into(), value: "short".into() }).unwrap(), Answer::Yes);
    assert_eq!(ask(&mut rpc, &get).unwrap(), value("short"));
}

fn run(service: SocketAddr, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command: Command = programs!().command("ft-client");
    let output = command.args(["--service", &service.to_string()]).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.code(), text)
}

#[test]
fn ft_client_says_yes_and_no_by_its_exit_code() {
    let stage = Stage::new(programs!());
    let _pair = stage.pair(&["--guest", "kv"], &[]);
    let kv = |arguments: &[&str]| run(stage.site.service, arguments);
    let (yes, no) = (Some(0), Some(7));
    assert_eq!(kv(&["get", "a"]), (no, String::new()));
    assert_eq!(kv(&["put", "a", "one"]), (yes, String::new()));
    assert_eq!(kv(&["append", "a", " two"]), (yes, String::new()));
    assert_eq!(kv(&["get", "a"]), (yes, "one two\n".into()));
    assert_eq!(kv(&["cas", "a", "three"]), (no, "one two\n".into()));
    assert_eq!(kv(&["cas", "a", "--old", "one two", "three"]), (yes, String::new()));
    assert_eq!(kv(&["get", "a", "--json"]), (yes, "{\"value\":\"three\"}\n".into()));
    let (code, text) = kv(&["lock", "a"]);
    assert_eq!((code, text.starts_with("ft-client: the server refuses")), (Some(1), true), "{text}");
    let (code, text) = kv(&["put", "a", &"v".repeat(601)]);
    assert_eq!((code, text.contains("too long")), (Some(1), true), "{text}");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, text) = run(nobody, &["--patience", "1", "get", "a"]);
    assert_eq!((code, text.contains("no answer from 127.0.0.1")), (Some(1), true), "{text}");
}

#[test]
fn ft_client_tortures_a_service_and_keeps_a_history_that_can_be_checked_again() {
    let stage = Stage::new(programs!());
    let _pair = stage.pair(&["--guest", "lock"], &[]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (history, picture) = (file("right.history"), file("wrong.svg"));
    let torture = ["torture", "lock", "--clients", "4", "--calls", "200", "--keys", "2", "--history", &history];
    let (code, text) = run(stage.site.service, &torture);
    assert_eq!((code, text.ends_with("LINEARIZABLE\n")), (Some(0), true), "{text}");
    let (code, text) = run(stage.site.service, &["check", &history]);
    assert_eq!((code, text.ends_with("calls: linearizable\n")), (Some(0), true), "{text}");

    // One more client that gets a lock which another has.
    let last =
        "{\"client\":9,\"call\":\"lock\",\"key\":\"x\",\"answer\":\"yes\",\"began_ns\":BEGAN,\"ended_ns\":ENDED}\n";
    let two = [1, 3].map(|at| last.replace("BEGAN", &at.to_string()).replace("ENDED", &(at + 1).to_string()));
    let wrong = file("wrong.history");
    std::fs::write(&wrong, std::fs::read_to_string(&history).unwrap() + &two.concat()).unwrap();
    let (code, text) = run(stage.site.service, &["check", &wrong, "--draw", &picture]);
    assert_eq!((code, text.starts_with("NOT linearizable: of 2 calls of x")), (Some(1), true), "{text}");
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    std::fs::write(&wrong, "noise\n").unwrap();
    let (code, text) = run(stage.site.service, &["check", &wrong]);
    assert_eq!((code, text.contains("line 1: not a call of a history")), (Some(1), true), "{text}");
}
