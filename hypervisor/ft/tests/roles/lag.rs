//! A backup that falls behind slows its primary, and nothing gets stuck. Source: Scales et al.
//! 2010, §3.2.

use crate::pair::Pair;
use crate::world::MS;
use ft::role::{BackupAction, FULL_SHARE, LossReason, Timing};
use logchannel::entry::EntryBody;
use logchannel::message::Message;

/// The interval of ticks, as in production.
const TICK_NS: u64 = 5 * MS;

/// Lets time pass, in which the guest logs `entries` a tick, if it may run, and the backup consumes
/// `consumed` of them.
fn run(pair: &mut Pair, ms: u64, entries: usize, consumed: usize) {
    for _ in 0..ms * MS / TICK_NS {
        for _ in 0..entries {
            if pair.primary.may_run() {
                pair.log(EntryBody::Progress, None);
            }
        }
        pair.flush();
        pair.pass(TICK_NS);
        pair.exchange();
        pair.replay_some(consumed);
        pair.exchange();
    }
}

#[test]
fn a_backup_that_keeps_up_costs_nothing() {
    let mut pair = Pair::protected();
    run(&mut pair, 2000, 4, 4);
    assert_eq!(pair.primary.share(), FULL_SHARE);
    let (_, lag_max_ns) = pair.primary.lag_ns();
    assert!(lag_max_ns < Timing::default().lag_bound_ns, "{lag_max_ns}");
}

/// A sleeping guest logs nothing, and its backup has nothing to report.
#[test]
fn a_guest_that_sleeps_is_not_ahead_of_its_backup() {
    let mut just_joined = Pair::alone();
    just_joined.log(EntryBody::Progress, None);
    just_joined.become_protected();
    let mut caught_up = Pair::protected();
    run(&mut caught_up, 300, 1, 1);
    for mut pair in [just_joined, caught_up] {
        run(&mut pair, 100, 0, usize::MAX);
        assert_eq!(pair.backup.cursors().1, pair.primary.appended());
        run(&mut pair, 3000, 0, 0);
        assert_eq!(pair.primary.share(), FULL_SHARE, "{:?}", pair.primary.lag_ns());
        assert!(pair.primary.may_run(), "it wakes up and may not run: {:?}", pair.primary.lag_ns());
    }
}

#[test]
fn a_backup_that_falls_behind_slows_the_guest_and_one_that_catches_up_lets_it_run_again() {
    let mut pair = Pair::protected();
    run(&mut pair, 300, 4, 2);
    let slowed = pair.primary.share();
    assert!(slowed < FULL_SHARE, "{:?}", pair.primary.lag_ns());
    assert!(pair.primary.may_run(), "slowed, not stopped");
    run(&mut pair, 2000, 4, 400);
    assert_eq!(pair.primary.share(), FULL_SHARE, "after {slowed}");
}

#[test]
fn a_backup_that_stands_still_stops_the_guest_until_it_goes_on() {
    let mut pair = Pair::protected();
    run(&mut pair, 600, 4, 0);
    assert!(!pair.primary.may_run());
    let held = pair.primary.gate().held();
    let (lag_ns, lag_max_ns) = pair.primary.lag_ns();
    assert!(lag_ns > Timing::default().lag_bound_ns && lag_ns <= lag_max_ns, "{lag_ns} of {lag_max_ns}");
    run(&mut pair, 100, 4, usize::MAX);
    assert!(pair.primary.may_run());
    assert_eq!(held, 0);
}

#[test]
fn a_lost_backup_does_not_slow_the_primary() {
    let mut pair = Pair::protected();
    run(&mut pair, 600, 4, 0);
    assert!(!pair.primary.may_run() && pair.primary.share() < FULL_SHARE);
    pair.backup_lost();
    assert!(pair.primary.may_run());
    assert_eq!(pair.primary.share(), FULL_SHARE);
}

/// A joining backup protects nothing yet, so it may take its time to restore the machine.
#[test]
fn a_joining_backup_does_not_slow_the_primary() {
    let mut pair = Pair::alone();
    pair.connect();
    pair.copy();
    for _ in 0..200 {
        assert!(pair.primary.may_run());
        assert_eq!(pair.primary.share(), FULL_SHARE);
        pair.log(EntryBody::Progress, None);
        pair.pass(TICK_NS);
        pair.deliver_to_backup();
        pair.deliver_to_primary();
    }
    pair.restore();
    pair.exchange();
    assert!(pair.primary.is_protected());
    pair.replay();
    run(&mut pair, 100, 4, 400);
    assert_eq!(pair.primary.share(), FULL_SHARE);
}

/// A backup whose replaying thread hangs, because of a disk for example, acknowledges entries and
/// stops the guest.
#[test]
fn a_backup_that_lives_and_replays_nothing_is_lost_in_the_end() {
    let mut pair = Pair::protected();
    run(&mut pair, 20_000, 4, 0);
    assert!(!pair.primary.may_run() && pair.primary.is_protected(), "it may be slow");
    pair.replay_some(1);
    pair.exchange();
    run(&mut pair, 19_000, 4, 0);
    assert!(!pair.primary.may_run() && pair.primary.is_protected(), "it has got on since");
    run(&mut pair, 2_000, 4, 0);
    assert!(!pair.primary.is_protected());
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert!(pair.primary.may_run());
}

/// The guest stops with held outputs, whose acknowledgement doesn't depend on it.
#[test]
fn a_stopped_guest_with_outputs_held_goes_on() {
    let mut pair = Pair::protected();
    run(&mut pair, 600, 4, 0);
    assert!(!pair.primary.may_run());
    // The step that it had begun when it was stopped.
    let id = pair.output();
    assert_eq!(pair.primary.gate().held(), 1);
    pair.exchange();
    assert_eq!(pair.out, [id.0], "acknowledgements don't wait for replay");
    assert!(!pair.primary.may_run());
    for _ in 0..1000 {
        if pair.primary.may_run() {
            return;
        }
        pair.pass(TICK_NS);
        pair.exchange();
        pair.replay_some(10);
    }
    panic!("stopped for ever: {:?}", pair.primary.lag_ns());
}

/// A live backup that acknowledges nothing would hold outputs for ever.
#[test]
fn a_backup_that_lives_and_acknowledges_nothing_is_lost_in_the_end() {
    let mut pair = Pair::protected();
    let half_ns = Timing::default().failure_timeout_ns / 2;
    for _ in 0..100 {
        pair.pass(half_ns);
        pair.backup_says(Message::Heartbeat);
    }
    assert!(pair.primary.is_protected(), "it has nothing to acknowledge");
    pair.output();
    for _ in 0..39 {
        pair.pass(half_ns);
        pair.backup_says(Message::Heartbeat);
    }
    assert!(pair.primary.is_protected(), "its log buffer may be full");
    pair.pass(half_ns);
    assert!(!pair.primary.is_protected());
    assert!(pair.primary_claim().is_some());
}

#[test]
fn a_primary_that_reads_nothing_does_not_fill_its_backups_memory() {
    let mut pair = Pair::protected();
    let mut now_ns = 0;
    for _ in 0..2_000_000 {
        // The backup's bytes are never sent.
        pair.backup.handle_message(now_ns, Message::Heartbeat);
        pair.backup.handle_tick(now_ns);
        now_ns += Timing::default().heartbeat_ns;
        if let Some(BackupAction::Lost { reason }) = pair.backup.poll_action() {
            assert_eq!(reason, LossReason::ReadsNothing);
            return;
        }
    }
    panic!("it goes on for ever");
}
