//! §2.3: silence and pauses, shorter and longer than the failure timeout.

use super::{ALERT, Asker, connect, echoes};
use crate::beginnings::{UNBOUNDED_LAG, loaded_linked_pair, loaded_pair};
use hypervisor::program::site::cluster::PATIENCE;
use std::thread;
use std::time::{Duration, Instant};
use tests::client::Load;
use tests::link::{Direction, Link};
use tests::programs;
use tests::stage::{Node, Pair, Stage, pause, wait_until, wake};

const PATIENT: [&str; 2] = ["--failure-timeout-ms", "4000"];

const PATIENT_TIMEOUT: Duration = Duration::from_millis(4000);

#[test]
fn an_idle_guest_stays_protected_and_keeps_its_connection() {
    /// Four times the failure timeout.
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
    let (stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
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

/// A primary that was stopped while it held outputs whose acknowledgements are in its socket. Its
/// backup has gone live.
struct Sleeper {
    stage: Stage,
    primary: Node,
    /// The backup that has gone live.
    owner: Node,
    load: Load,
    /// When the primary was stopped.
    since: Instant,
    /// The number of outputs that it may have released before it was stopped.
    allowed: usize,
    /// The number of outputs that the acknowledgements in its socket cover.
    acknowledged: usize,
    _link: Link,
}

fn sleeping_primary(timeout: &[&str]) -> Sleeper {
    let (stage, Pair { primary, backup: mut owner }, link, load) =
        loaded_linked_pair(&[timeout, &UNBOUNDED_LAG[..]].concat(), &ALERT);
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
    /// Resumes the primary, which ends fenced; returns the number of outputs that it released.
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
    // The new owner takes a backup before the old primary has ended.
    let mut next = sleeper.stage.joined_backup();
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
    // With a timeout this long it doesn't notice the pause, and acts on the acknowledgements.
    let mut sleeper = sleeping_primary(&["--failure-timeout-ms", "60000"]);
    let let_out = sleeper.wake();
    assert_eq!(let_out, sleeper.acknowledged, "it should have put out what the LAN is to refuse");
    sleeper.load.goes_on();
    sleeper.load.lost_nothing();
}

#[test]
fn a_backup_resumed_after_its_timeout_never_goes_live() {
    let (stage, Pair { mut primary, mut backup }, load) = loaded_pair(&ALERT, &ALERT);
    pause(&backup);
    primary.comes_to_own(2);
    load.goes_on();
    let mut next = stage.joined_backup();
    primary.kill();
    assert_eq!(next.told_number("live", "generation"), 3);
    load.goes_on();
    // Its primary is dead, but by now it belonged to another pair.
    wake(&backup);
    backup.ends_fenced();
    backup.has_put_nothing_out();
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn of_two_sides_resumed_after_a_pause_exactly_one_goes_on() {
    let (_stage, Pair { mut primary, mut backup }, load) = loaded_pair(&ALERT, &ALERT);
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
