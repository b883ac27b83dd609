//! The guest's clock: a failover doesn't delay it, and it stands while the VM is paused.

use crate::pair::Pair;
use crate::world::MS;
use ft::guest_clock::{GuestClock, PAUSE_NS};
use ft::output_gate::GATE_BYTES_MAX;
use ft::role::BackupAction;
use logchannel::entry::EntryBody;
use logchannel::message::Message;
use vm::{OutputId, OutputOperation};

const NS_PER_TICK: u64 = 100;

/// A protected pair whose guest's clock runs, and the time at which it read 0.
fn pair_with_clock() -> (Pair, u64) {
    let mut pair = Pair::protected();
    let zero_ns = pair.now_ns;
    pair.primary.handle_clock(GuestClock::running(0, zero_ns));
    pair.pass(5 * MS);
    pair.exchange();
    (pair, zero_ns)
}

/// The ticks with which the backup would go live now.
fn taken_over(pair: &mut Pair, last_ticks: u64) -> u64 {
    pair.backup.take_over_clock(pair.now_ns, last_ticks).ticks(pair.now_ns)
}

fn clocks(messages: &[Message]) -> usize {
    messages.iter().filter(|message| matches!(message, Message::Clock { .. })).count()
}

/// Found in trials: a guest that sleeps for 10 s logs nothing, and woke 8 s late.
#[test]
fn a_failover_costs_the_clock_of_a_guest_that_sleeps_nothing() {
    let (mut pair, zero_ns) = pair_with_clock();
    for _ in 0..800 {
        pair.pass(10 * MS);
        pair.exchange();
    }
    pair.backup_actions.clear();
    pair.primary_lost();
    let request = pair.backup_claim().unwrap();
    for _ in 0..60 {
        pair.pass(5 * MS);
    }
    pair.answer_backup(request);
    assert!(matches!(pair.backup_actions.pop_front(), Some(BackupAction::GoLive(_))));
    let passed = (pair.now_ns - zero_ns) / NS_PER_TICK;
    let ticks = taken_over(&mut pair, 5);
    assert!(ticks <= passed && ticks + MS / NS_PER_TICK >= passed, "{ticks} of {passed} ticks");
}

#[test]
fn the_new_owners_clock_is_never_below_the_last_logged_value() {
    let (mut pair, _) = pair_with_clock();
    assert_eq!(taken_over(&mut pair, u64::MAX / 2), u64::MAX / 2);
}

#[test]
fn a_backup_that_is_told_it_protects_the_vm_knows_the_guests_clock() {
    let mut pair = Pair::alone();
    pair.primary.handle_clock(GuestClock::running(1_000_000, pair.now_ns));
    pair.become_protected();
    assert_eq!(taken_over(&mut pair, 0), 1_000_000);
}

#[test]
fn the_clock_is_told_under_load_too_and_at_once_when_it_changes_its_course() {
    let (mut pair, _) = pair_with_clock();
    let mut told = 0;
    for _ in 0..1_000 {
        pair.output();
        pair.pass(5 * MS);
        let messages = pair.to_backup.deliver(usize::MAX);
        told += clocks(&messages);
        pair.backup.handle_message(pair.now_ns, Message::Heartbeat);
        let received = pair.primary.appended();
        pair.backup_says(Message::Ack { received });
    }
    assert!((4..=6).contains(&told), "five seconds, told {told} times");
    pair.primary.handle_clock(GuestClock::running(5, pair.now_ns));
    pair.output();
    pair.pass(MS);
    assert_eq!(clocks(&pair.to_backup.deliver(usize::MAX)), 1);
}

#[test]
fn a_wait_for_the_arbiter_is_a_pause_and_an_ordinary_failover_is_none() {
    let (mut pair, zero_ns) = pair_with_clock();
    pair.arbiter.borrow_mut().is_unreachable = true;
    pair.backup_actions.clear();
    pair.primary_lost();
    for _ in 0..2_000 {
        if let Some(request) = pair.backup_claim() {
            pair.answer_backup(request);
        }
        pair.pass(5 * MS);
    }
    let passed = (pair.now_ns - zero_ns) / NS_PER_TICK;
    let (ticks, pause) = (taken_over(&mut pair, 0), PAUSE_NS / NS_PER_TICK);
    assert!(ticks >= pause && ticks < pause + 50 * MS / NS_PER_TICK, "{ticks} of {passed} ticks");
}

#[test]
fn the_clock_of_a_guest_that_has_not_started_stands() {
    let mut pair = Pair::new();
    assert!(pair.primary.clock_stands(pair.now_ns) && !pair.primary.may_run());
    pair.become_protected();
    assert!(!pair.primary.clock_stands(pair.now_ns));
}

/// A full gate isn't a pause, unless it is full because the arbiter doesn't answer.
#[test]
fn the_clock_stands_only_when_a_guest_waits_for_the_arbiter_and_may_not_run() {
    let (mut pair, _) = pair_with_clock();
    let fill = |pair: &mut Pair| {
        let big = OutputOperation::Packet(vec![0; GATE_BYTES_MAX / 2]);
        for _ in 0..2 {
            let id = OutputId(pair.history.iter().filter(|(_, output)| output.is_some()).count() as u64);
            let body = EntryBody::Output { id, digest: big.digest() };
            pair.log(body, Some((id, big.clone())));
        }
    };
    pair.arbiter.borrow_mut().is_unreachable = true;
    pair.backup_lost();
    pair.primary_claim().unwrap();
    pair.pass(MS);
    pair.pass(10 * PAUSE_NS);
    assert!(
        pair.primary.may_run() && !pair.primary.clock_stands(pair.now_ns),
        "a guest that runs has a clock that runs"
    );
    fill(&mut pair);
    assert!(!pair.primary.may_run() && pair.primary.clock_stands(pair.now_ns));

    let (mut pair, _) = pair_with_clock();
    fill(&mut pair);
    pair.pass(MS);
    assert!(!pair.primary.may_run() && !pair.primary.clock_stands(pair.now_ns), "its backup is slow");
    pair.backup_lost();
    pair.pass(MS);
    pair.pass(PAUSE_NS / 2);
    assert!(!pair.primary.clock_stands(pair.now_ns), "any failover takes some time");
    pair.pass(PAUSE_NS);
    assert!(pair.primary.clock_stands(pair.now_ns));
}
