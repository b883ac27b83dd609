//! Every promise of VMware FT's paper, every question that it raises, and the test that answers it.
//!
//! Source: Scales, Nelson, Venkitachalam, "The Design of a Practical System for Fault-Tolerant
//! Virtual Machines" (2010).
//!
//! | § | promise or question | test |
//! |---|---|---|
//! | 2.1 | replay repeats the recording exactly, clock, timer and input included | `recording/programs::echo_under_clients_replays_to_the_same_console_outputs_and_digests` |
//! | 2.1 | virtual lockstep: both sides have the same state at the same instruction | `lockstep::state_is_equal_at_every_digest_while_clients_hammer_the_guest` |
//! | 2.1 | a backup whose state differs is found, and never goes live | `lockstep::flipped_bit_on_the_backup_is_found_at_the_next_digest_and_never_goes_live` |
//! | 2.1 | the backup never runs past the log that it has | `paper::the_backup_replays_no_further_than_its_log` |
//! | 2.2 | the Output Rule; the guest is not stopped by it | `output_rule::output_waits_for_its_acknowledgement_while_the_guest_runs_on` |
//! | 2.2 | an acknowledgement lets out what it covers and nothing more | `output_rule::every_acknowledgement_lets_out_what_it_covers_and_nothing_more` |
//! | 2.2 | the backup's outputs are dropped as long as it is a backup | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.2 | output made just before the crash, its entry acknowledged, the acknowledgement not heard | `paper::an_output_that_was_logged_and_not_released_comes_once_from_the_new_primary` |
//! | 2.2 | input logged, and the entry never arrived: the sender's packet was lost with the primary | `paper::an_input_whose_entry_was_lost_is_delivered_to_the_new_primary_again` |
//! | 2.2 | output let out just before the crash: the new primary can't know, and makes it again | `paper::an_output_released_just_before_the_crash_reaches_clients_once` |
//! | 2.2 | the backup acknowledges what it receives, not what it has replayed | `paper::a_backup_that_is_behind_replays_its_whole_log_before_it_goes_live` |
//! | 2.3 | a killed primary is followed by its backup | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.3 | a killed backup leaves its primary alone | `backup_loss::primary_whose_backup_is_killed_goes_on_alone_as_the_next_generation` |
//! | 2.3 | silence of the network: heartbeats and log stop, both sides live | `partition::silent_cut_that_the_backup_notices_first_fences_the_primary` |
//! | 2.3 | an idle guest sends no log to speak of, and is neither lost nor forgotten | `paper::an_idle_guest_stays_protected_and_keeps_its_connection` |
//! | 2.3 | a pause shorter than the timeout is no failure | `paper::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 2.3 | no split brain: both claim, the test-and-set lets one | `partition::a_silent_cut_leaves_exactly_one_live_side` |
//! | 2.3 | the old primary wakes after a pause: it has found out, and puts out nothing | `paper::a_primary_resumed_after_its_timeout_releases_nothing` |
//! | 2.3 | ... it has not found out: nobody hears what it puts out | `paper::outputs_of_a_primary_resumed_before_its_timeout_are_dropped_by_the_lan` |
//! | 2.3 | the old backup wakes after a pause | `paper::a_backup_resumed_after_its_timeout_never_goes_live` |
//! | 2.3 | both wake after a pause | `paper::of_two_sides_resumed_after_a_pause_exactly_one_goes_on` |
//! | 2.3 | shared storage is unreachable: nobody goes on until it is back | `arbiter_outage::sides_that_lose_each_other_both_wait_and_exactly_one_goes_on` |
//! | 2.3 | the backup dies while it claims: nobody goes on | `paper::a_vm_whose_backup_dies_before_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | ... after its claim was recorded: the flag stays its own | `paper::a_vm_whose_backup_dies_after_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | both claim, and one dies: the other goes on | `paper::the_surviving_one_of_two_claimers_goes_on` |
//! | 2.3 | redundancy is restored, again and again | `rejoin::any_number_of_losses_of_either_side_is_survived` |
//! | 2.3 | the client that closed meanwhile, and the one that came meanwhile | `paper::connections_opened_and_closed_during_an_outage_reach_the_new_primary` |
//! | 3.1 | a backup is started for a running guest, without disturbing it | `rejoin::a_backup_joins_a_guest_that_ran_unprotected_and_outlives_its_primary` |
//! | 3.1 | what dies while the new backup is started costs nothing | `rejoin::a_backup_that_dies_while_it_joins_costs_the_guest_nothing` |
//! | 3.2 | a slow backup slows its primary | `lag::a_backup_ten_times_slower_slows_its_primary_and_the_lag_stays_bounded` |
//! | 3.2 | a backup that reads nothing for a while holds its primary up, and nothing stays stuck | `paper::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 3.3 | a guest that powers off is no failover | `operation/lifecycle::guest_that_powers_off_ends_both_sides_without_a_failover` |
//! | 3.5 | clients find the guest where it went, on a network that knows nothing of fault tolerance | `tap::a_kernels_tcp_connection_survives_the_kill_of_the_primary` |
//!
//! §3.4, §4.1 and §4.2 are of disks, which the machine hasn't got; §3.5's batching of interrupts is
//! a matter of its host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use hypervisor::arbiter;
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::{Generation, LogSeq};
use logchannel::message::Message;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use std::{fs, thread};
use tests::client::Load;
use tests::link::{Direction, Link};
use tests::programs;
use tests::stage::{Node, Pair, Stage, pause, wait_until, wake};
use vm::InstructionCount;

/// How long to look for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The link holds back reports of what is replayed, or the backup is slow: that must not slow the
/// guest here.
const UNBOUNDED: [&str; 2] = ["--lag-bound-ms", "60000"];

/// Failure timeouts: long enough that a busy host causes no loss, and far enough apart that one
/// side notices first.
const ALERT: [&str; 2] = ["--failure-timeout-ms", "1000"];
const PATIENT: [&str; 2] = ["--failure-timeout-ms", "4000"];
const PATIENT_TIMEOUT: Duration = Duration::from_millis(4000);

/// A client whose every answer is looked at, by datagrams: nobody sends one again, and one that is
/// doubled is seen.
struct Asker(UdpSocket);

impl Asker {
    /// The LAN and the guest know each other's addresses from here on: an answer is one packet.
    fn of(stage: &Stage) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(stage.site.service).unwrap();
        let asker = Self(socket);
        asker.ask("hello");
        asker.has_answer("hello");
        asker
    }

    fn ask(&self, request: &str) {
        self.0.send(request.as_bytes()).unwrap();
    }

    /// The next answer is the one to `request`.
    #[track_caller]
    fn has_answer(&self, request: &str) {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 100];
        let length = self.0.recv(&mut answer).unwrap_or_else(|error| panic!("no answer to {request:?}: {error}"));
        assert_eq!(String::from_utf8_lossy(&answer[..length]), request);
    }

    #[track_caller]
    fn has_no_answer(&self) {
        self.0.set_read_timeout(Some(SILENCE)).unwrap();
        let mut answer = [0; 100];
        let error = match self.0.recv(&mut answer) {
            Ok(length) => panic!("an answer: {:?}", String::from_utf8_lossy(&answer[..length])),
            Err(error) => error,
        };
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
}

/// A connection to the guest.
fn connect(stage: &Stage) -> TcpStream {
    let client = TcpStream::connect(stage.site.service).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// The guest answers `request` on this connection.
#[track_caller]
fn echoes(mut client: &TcpStream, request: &str) {
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; request.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), request);
}

/// A new backup, which finds the VM's owner through the arbiter, has joined.
#[track_caller]
fn joined_backup(stage: &Stage) -> Node {
    let mut backup = stage.node("ft-backup", &[]);
    backup.told("protected");
    backup
}

/// How many outputs the LAN has dropped because it had carried them before. Ends the LAN.
fn duplicates(stage: &mut Stage) -> u64 {
    let lan = &mut stage.site.lan;
    assert_eq!(lan.interrupt().unwrap(), Some(0));
    let last = lan.reports().iter().rfind(|report| report["event"] == "dropped").unwrap();
    last["duplicates"].as_u64().unwrap()
}

#[test]
fn every_answer_of_the_table_is_a_test() {
    let named = include_str!("paper.rs").lines().filter_map(|line| line.strip_prefix("//! | ")?.rsplit('`').nth(1));
    let mut rows = 0;
    for (file, name) in named.filter_map(|test| test.split_once("::")) {
        let file = if file.contains('/') { file.to_owned() } else { format!("failover/{file}") };
        let source = fs::read_to_string(format!("{}/tests/{file}.rs", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(source.contains(&format!("#[test]\nfn {name}()")), "{file}.rs has no test {name}");
        rows += 1;
    }
    assert!(rows > 30, "{rows} rows of the table were found");
}

#[test]
fn the_backup_replays_no_further_than_its_log() {
    /// Steps that the primary is ahead, when it could be seen that the backup had run on.
    const STEPS: u64 = 20_000_000;
    let stage = Stage::new(programs!());
    let (_pair, link) = stage.linked_pair(&[&["--guest", "counter"], &UNBOUNDED[..]].concat(), &[]);
    link.hold(Direction::ToBackup);
    let known = link.passed_entries();
    let last = known.last().unwrap().count;
    // A guest that computes and waits for nothing.
    link.wait_for_entry(LogSeq(0), |entry| entry.count > InstructionCount(last.0 + STEPS));
    for message in link.seen(Direction::ToPrimary) {
        if let Message::Consumed { consumed, count } = message {
            assert!(consumed.0 <= known.len() as u64 && count <= last, "replayed to {count}, the log went to {last}");
        }
    }
    link.release(Direction::ToBackup);
    let is_beyond = |message: &Message| matches!(message, Message::Consumed { count, .. } if *count > last);
    wait_until("replay of what was held", || link.seen(Direction::ToPrimary).iter().any(is_beyond));
}

#[test]
fn an_output_that_was_logged_and_not_released_comes_once_from_the_new_primary() {
    let mut stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED, &[]);
    let (asker, connection) = (Asker::of(&stage), connect(&stage));
    echoes(&connection, "connected");
    link.hold(Direction::ToPrimary);
    let requests = ["request one", "request two", "request three"];
    for request in requests {
        asker.ask(request);
        let [_, output] = link.wait_for_answer(request.as_bytes());
        link.wait_for_ack(output);
    }
    asker.has_no_answer();
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    assert!(backup.told_number("live", "tail_outputs") >= requests.len() as u64);
    for request in requests {
        asker.has_answer(request);
    }
    asker.has_no_answer();
    echoes(&connection, "the same connection");
    assert_eq!(duplicates(&mut stage), 0, "none of them had left before");
}

#[test]
fn an_input_whose_entry_was_lost_is_delivered_to_the_new_primary_again() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED, &[]);
    let asker = Asker::of(&stage);
    link.hold(Direction::ToBackup);
    let requests = ["request one", "request two", "request three"];
    // The primary's guest has had them and answered them, and nobody else knows.
    let places = requests.map(|request| {
        asker.ask(request);
        link.wait_for_answer(request.as_bytes())
    });
    asker.has_no_answer();
    primary.kill();
    link.cut();
    assert_eq!(backup.told_number("live", "generation"), 2);
    let [first_packet, _] = places[0];
    assert!(backup.told_number("live", "entries") <= first_packet.0, "the backup has had none of them");
    for request in requests {
        asker.has_answer(request);
    }
    asker.has_no_answer();
}

#[test]
fn an_output_released_just_before_the_crash_reaches_clients_once() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED, &[]);
    let asker = Asker::of(&stage);
    link.hold(Direction::ToBackup);
    let requests = ["request one", "request two", "request three"];
    let places = requests.map(|request| {
        asker.ask(request);
        link.wait_for_answer(request.as_bytes())
    });
    // The word that they have left follows the last of them, and never arrives.
    let [_, last] = places[requests.len() - 1];
    link.pass_entry(last);
    for request in requests {
        asker.has_answer(request);
    }
    primary.kill();
    link.cut();
    assert_eq!(backup.told_number("live", "generation"), 2);
    let unsent = backup.told_number("live", "tail_outputs");
    assert!(unsent >= requests.len() as u64, "{unsent} outputs are made again");
    asker.ask("and on");
    asker.has_answer("and on");
    asker.has_no_answer();
}

#[test]
fn a_backup_that_is_behind_replays_its_whole_log_before_it_goes_live() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED, &["--inject-slowdown", "20"]);
    // Answered while replay falls behind: acknowledgements don't wait for it.
    let load = Load::on(stage.site.service);
    let said = link.seen(Direction::ToPrimary);
    let consumed =
        |message: &Message| if let Message::Consumed { consumed, .. } = message { Some(*consumed) } else { None };
    let replayed = said.iter().rev().find_map(consumed).unwrap_or(LogSeq(0));
    let received = link.entries().len() as u64;
    assert!(replayed.0 < received / 2, "{replayed} of {received} entries are replayed, which is not behind");
    primary.kill();
    assert_eq!(backup.told_number("live", "entries"), link.entries().len() as u64);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn an_idle_guest_stays_protected_and_keeps_its_connection() {
    /// Several times the failure timeout.
    const IDLE: Duration = Duration::from_secs(4);
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&ALERT, &ALERT);
    let connection = connect(&stage);
    echoes(&connection, "before");
    let before = link.outputs_covered(&link.seen(Direction::ToPrimary));
    thread::sleep(IDLE);
    let outputs = link.outputs_covered(&link.seen(Direction::ToPrimary)) - before;
    assert!(outputs < 10, "{outputs} outputs of an idle guest");
    assert!(!primary.has_told("backup_lost") && !backup.has_told("primary_lost"));
    echoes(&connection, "between");
    thread::sleep(IDLE);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    echoes(&connection, "after");
    echoes(&connect(&stage), "somebody else");
}

#[test]
fn a_pause_shorter_than_the_timeout_is_no_failure() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let load = Load::on(stage.site.service);
    let asker = Asker::of(&stage);
    for (side, request) in [(&backup, "while the backup sleeps"), (&primary, "while the primary sleeps")] {
        pause(side);
        asker.ask(request);
        asker.has_no_answer();
        wake(side);
        asker.has_answer(request);
        load.goes_on();
    }
    asker.has_no_answer();
    load.lost_nothing();
    assert!(!primary.has_told("backup_lost") && !backup.has_told("primary_lost"));
    assert_eq!(primary.owned(), [1]);
}

/// A primary that was stopped while outputs were held, and has their acknowledgements in its
/// socket. Its backup has gone live.
struct Sleeper {
    stage: Stage,
    primary: Node,
    /// What was its backup.
    owner: Node,
    load: Load,
    /// Since then it sleeps.
    since: Instant,
    /// How many outputs it may have let out before, and how many the acknowledgements in its socket
    /// would let out too.
    allowed: usize,
    acknowledged: usize,
    _link: Link,
}

fn sleeping_primary(timeout: &[&str]) -> Sleeper {
    let stage = Stage::new(programs!());
    let (Pair { primary, backup: mut owner }, link) = stage.linked_pair(&[timeout, &UNBOUNDED[..]].concat(), &ALERT);
    let load = Load::on(stage.site.service);
    link.hold(Direction::ToPrimary);
    let allowed = link.outputs_covered(&link.passed(Direction::ToPrimary));
    let waiting = || link.outputs_covered(&link.seen(Direction::ToPrimary)) > allowed;
    wait_until("acknowledgements of held outputs", waiting);
    pause(&primary);
    let since = Instant::now();
    link.release(Direction::ToPrimary);
    assert_eq!(owner.told_number("live", "generation"), 2);
    let acknowledged = link.outputs_covered(&link.passed(Direction::ToPrimary));
    load.goes_on();
    Sleeper { stage, primary, owner, load, since, allowed, acknowledged, _link: link }
}

impl Sleeper {
    /// Wakes the primary, which finds itself fenced; gives how many outputs it has let out.
    #[track_caller]
    fn wake(&mut self) -> usize {
        wake(&self.primary);
        self.primary.ends_fenced();
        assert_eq!(self.primary.owned(), [1]);
        let fenced = self.stage.site.lan.wait_for("fenced", PATIENCE).unwrap();
        assert_eq!([&fenced["generation"], &fenced["by"]], [1, 2], "{fenced}");
        let samples = self.primary.told("figures")["hold_time"]["samples"].as_u64().unwrap();
        samples.try_into().unwrap()
    }
}

#[test]
fn a_primary_resumed_after_its_timeout_releases_nothing() {
    let mut sleeper = sleeping_primary(&PATIENT);
    // The new owner's next backup doesn't wait for the old primary's end.
    let mut next = joined_backup(&sleeper.stage);
    sleeper.load.goes_on();
    thread::sleep(PATIENT_TIMEOUT.saturating_sub(sleeper.since.elapsed()));
    let let_out = sleeper.wake();
    assert!(let_out <= sleeper.allowed, "{let_out} outputs left, of {} acknowledged in time", sleeper.allowed);
    sleeper.load.goes_on();
    sleeper.owner.kill();
    assert_eq!(next.told_number("live", "generation"), 3);
    sleeper.load.goes_on();
    sleeper.load.lost_nothing();
}

#[test]
fn outputs_of_a_primary_resumed_before_its_timeout_are_dropped_by_the_lan() {
    // Nothing tells it that it slept: it takes the acknowledgements for what they were.
    let mut sleeper = sleeping_primary(&["--failure-timeout-ms", "60000"]);
    let let_out = sleeper.wake();
    assert_eq!(let_out, sleeper.acknowledged, "it should have put out what the LAN is to refuse");
    sleeper.load.goes_on();
    sleeper.load.lost_nothing();
}

#[test]
fn a_backup_resumed_after_its_timeout_never_goes_live() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&ALERT, &ALERT);
    let load = Load::on(stage.site.service);
    pause(&backup);
    primary.comes_to_own(2);
    load.goes_on();
    let mut next = joined_backup(&stage);
    primary.kill();
    assert_eq!(next.told_number("live", "generation"), 3);
    load.goes_on();
    // Its primary is dead indeed, but it wasn't its primary any more.
    wake(&backup);
    backup.ends_fenced();
    backup.has_put_nothing_out();
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn of_two_sides_resumed_after_a_pause_exactly_one_goes_on() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&ALERT, &ALERT);
    let load = Load::on(stage.site.service);
    pause(&primary);
    pause(&backup);
    // Longer than the failure timeout.
    thread::sleep(Duration::from_millis(1500));
    wake(&primary);
    wake(&backup);
    wait_until("one side's end", || primary.has_told("end") || backup.has_told("end"));
    if primary.has_told("end") {
        primary.ends_fenced();
        assert_eq!(primary.owned(), [1]);
        backup.comes_to_own(2);
    } else {
        backup.ends_fenced();
        backup.has_put_nothing_out();
        primary.comes_to_own(2);
    }
    load.goes_on();
    load.lost_nothing();
}

/// Neither side lives and the VM is owned as `generation`: it starts when the operator says so, as
/// the next.
#[track_caller]
fn nobody_owns_it_but_the_dead(stage: &Stage, generation: u64) {
    let mut again = stage.node("ft-primary", &[]);
    let ended = again.end();
    assert_eq!(ended.code, Some(1), "{}", ended.reason);
    for words in ["is owned by node", &format!("as generation {generation}"), "--force-new"] {
        assert!(ended.reason.contains(words), "{words:?} is not in {:?}", ended.reason);
    }
    assert!(!again.has_told("owner"));
    let Pair { mut primary, backup: _backup } = stage.pair(&["--force-new"], &[]);
    assert_eq!(primary.owned(), [generation + 1]);
    echoes(&connect(stage), "a new machine");
}

#[test]
fn a_vm_whose_backup_dies_before_its_claim_is_recorded_has_no_live_side() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    backup.kill();
    stage.restart_arbiter();
    nobody_owns_it_but_the_dead(&stage, 1);
    assert!(!backup.has_told("live"));
}

#[test]
fn a_vm_whose_backup_dies_after_its_claim_is_recorded_has_no_live_side() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    // The arbiter gets the claim, and answers when nobody hears it any more.
    pause(&stage.site.arbiter);
    primary.kill();
    backup.told("arbiter_unreachable");
    backup.kill();
    wake(&stage.site.arbiter);
    let arbiter = arbiter::open(&format!("tcp:{}", stage.site.arbiter_address()), PATIENCE).unwrap();
    let claimed = || arbiter.latest(&"vm0".parse().unwrap()).unwrap().is_some_and(|(flag, _)| flag == Generation(1));
    wait_until("the claim's record", claimed);
    nobody_owns_it_but_the_dead(&stage, 2);
    assert!(!backup.has_told("live"));
}

#[test]
fn the_surviving_one_of_two_claimers_goes_on() {
    for primary_dies in [true, false] {
        let mut stage = Stage::new(programs!());
        let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&ALERT, &ALERT);
        let load = Load::on(stage.site.service);
        stage.kill_arbiter();
        link.silence();
        primary.told("arbiter_unreachable");
        backup.told("arbiter_unreachable");
        let (dies, lives) = if primary_dies { (&mut primary, &mut backup) } else { (&mut backup, &mut primary) };
        dies.kill();
        stage.restart_arbiter();
        lives.comes_to_own(2);
        assert!(!dies.owned().contains(&2));
        load.goes_on();
        load.lost_nothing();
    }
}

#[test]
fn connections_opened_and_closed_during_an_outage_reach_the_new_primary() {
    /// Connections that the echo guest takes at once.
    const CONNECTIONS: usize = 64;
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let [closes, resets, ends, stays] = [(); 4].map(|()| connect(&stage));
    for client in [&closes, &resets, &ends, &stays] {
        echoes(client, "before");
    }
    // Nobody serves until the arbiter is back.
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    drop(closes);
    setsockopt(&resets, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(resets);
    (&ends).write_all(b"last words").unwrap();
    ends.shutdown(Shutdown::Write).unwrap();
    let comes = connect(&stage);
    assert!(!backup.has_told("live"));
    stage.restart_arbiter();
    assert_eq!(backup.told_number("live", "generation"), 2);

    let mut answer = String::new();
    (&ends).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "last words");
    for client in [&stays, &comes] {
        echoes(client, "after");
    }
    wait_until("the guest's word of the three that left", || backup.console().matches("echo: closed").count() == 3);
    // Their sockets are free again: the guest takes as many connections as ever.
    let crowd: Vec<_> = (2..CONNECTIONS).map(|_| connect(&stage)).collect();
    for client in crowd.iter().chain([&stays, &comes]) {
        echoes(client, "in a crowd");
    }
}
