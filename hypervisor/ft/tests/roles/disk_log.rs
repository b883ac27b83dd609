//! The roles with a log on disk, and with one that has no segment yet.

use crate::pair::Pair;
use crate::world::{G, MS, NEXT, PRIMARY, expectation, operation, session, vm_id};
use ft::guest_clock::GuestClock;
use ft::role::{BackupAction, BackupEnd, DiskLogState, Inheritance, PrimaryAction, PrimaryEnd, PrimaryRole, Timing};
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use logchannel::session::NodeId;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// The state after a predecessor with nine entries and four outputs.
const fn inheritance(unsent: VecDeque<(OutputId, OutputOperation)>, disk_log: DiskLogState) -> Inheritance {
    Inheritance { clock: GuestClock::standing(0), first: LogSeq(9), next_output: OutputId(4), unsent, disk_log }
}

/// A primary without backup whose log on disk has no segment yet.
fn promised() -> Pair {
    let role = PrimaryRole::alone(PRIMARY, session(), Timing::default()).with_disk_log(DiskLogState::Promised);
    Pair::with(role, expectation())
}

#[test]
fn nothing_leaves_on_the_strength_of_a_promise() {
    let mut pair = promised();
    pair.output();
    pair.output();
    pair.pass(10_000 * MS);
    assert_eq!(pair.out, [0_u64; 0], "the death of this side would leave only refused logs");
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(LogSeq(1)));
    pair.collect();
    assert_eq!(pair.out, [0]);
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(LogSeq(u64::MAX)));
    pair.collect();
    assert_eq!(pair.out, [0, 1], "with --log-wait no, only the first segment is waited for");
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(LogSeq(2)));
    pair.output();
    assert_eq!(pair.out, [0, 1, 2], "a state that comes late takes nothing back");
}

#[test]
fn a_protected_primary_releases_nothing_on_a_promise_either() {
    let mut pair = promised();
    pair.become_protected();
    pair.output();
    pair.exchange();
    assert_eq!(pair.out, [0_u64; 0]);
    pair.primary.handle_disk_log(0, DiskLogState::Failed);
    pair.collect();
    assert_eq!(pair.out, [0], "it is told that the VM goes on without a log");
}

#[test]
fn what_a_predecessor_may_not_have_sent_waits_for_the_log_too() {
    let unsent: VecDeque<_> = [(OutputId(3), operation(PRIMARY, OutputId(3)))].into();
    let live = |log| {
        let mut role = PrimaryRole::gone_live(PRIMARY, session(), Timing::default(), inheritance(unsent.clone(), log));
        let released = std::iter::from_fn(|| role.poll_released()).count();
        (role, released)
    };
    assert_eq!(live(DiskLogState::None).1, 1);
    assert_eq!(live(DiskLogState::Failed).1, 1);
    assert_eq!(live(DiskLogState::Promised).1, 0);
    let (mut role, released) = live(DiskLogState::UpTo(LogSeq(8)));
    assert_eq!(
        (released, role.gate().next_to_leave()),
        (0, OutputId(3)),
        "the last entry it depends on is not on disk"
    );
    role.handle_disk_log(0, DiskLogState::UpTo(LogSeq(9)));
    assert_eq!(role.poll_released().map(|released| released.id), Some(OutputId(3)));
}

#[test]
fn a_backup_is_accepted_when_its_log_is_whole() {
    for (state, is_accepted) in [
        (DiskLogState::None, true),
        (DiskLogState::Promised, false),
        (DiskLogState::UpTo(LogSeq(0)), true),
        (DiskLogState::Failed, true),
    ] {
        let mut pair = Pair::alone();
        pair.backup = pair.backup.with_disk_log(DiskLogState::Promised);
        pair.connect();
        pair.exchange();
        assert!(pair.backup.waits_for_disk() && !pair.primary.is_protected());
        let held = pair.output();
        assert_eq!(pair.out, [held.0], "until then the primary is alone");
        pair.exchange();
        if state == DiskLogState::None {
            continue;
        }
        let now_ns = pair.now_ns;
        pair.backup.handle_disk_log(now_ns, state);
        pair.exchange();
        assert_eq!(pair.primary.is_protected(), is_accepted, "{state:?}");
        assert_eq!(pair.backup.waits_for_disk(), !is_accepted);
        if is_accepted {
            pair.replay();
            pair.backup_goes_live(NEXT, NodeId(3));
        }
    }
}

#[test]
fn a_backup_that_waits_for_its_disk_gets_on_as_long_as_the_disk_does() {
    let mut pair = Pair::alone();
    pair.backup = pair.backup.with_disk_log(DiskLogState::Promised);
    pair.connect();
    pair.exchange();
    let step_ns = Timing::default().heartbeat_ns;
    let patience = 3 * 20 * Timing::default().failure_timeout_ns / step_ns;
    // Much longer than a backup without progress may take.
    let mut written = 0;
    for step in 0..3 * patience {
        pair.pass(step_ns);
        written += u64::from(step % (patience / 2) == 0);
        let now_ns = pair.now_ns;
        pair.backup.handle_disk_wait(now_ns, written);
        pair.exchange();
        assert!(pair.primary.can_take_backup(&vm_id()).is_err(), "given up at step {step}");
    }
    assert!(pair.backup_actions.iter().all(|action| !matches!(action, BackupAction::End(_))));
    // A disk without progress.
    let mut end = None;
    for _ in 0..=patience {
        pair.pass(step_ns);
        let now_ns = pair.now_ns;
        pair.backup.handle_disk_wait(now_ns, written);
        pair.exchange();
        end = pair.backup_actions.iter().find(|action| matches!(action, BackupAction::End(_))).cloned().or(end);
    }
    let Some(BackupAction::End(BackupEnd::Refused { reason })) = end else { panic!("it waits for ever") };
    assert!(reason.contains("--log"), "{reason}");
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()), "its place is free");
    assert_eq!(pair.primary.generation(), G);
}

#[test]
fn storing_is_a_message_of_joining_backups_only() {
    let mut pair = Pair::protected();
    pair.backup_says(Message::Storing);
    assert!(!pair.primary.is_protected());
}

#[test]
fn a_restart_that_is_interrupted_before_it_has_a_log_leaves_no_end_mark() {
    let left = inheritance(VecDeque::new(), DiskLogState::Promised);
    let resumed = || PrimaryRole::resumed(PRIMARY, session(), Timing::default(), left.clone());
    let actions = |mut role: PrimaryRole| {
        role.handle_retire(0);
        std::iter::from_fn(|| role.poll_action()).collect::<Vec<_>>()
    };
    assert_eq!(actions(resumed()), [PrimaryAction::End(PrimaryEnd::Interrupted)]);
    for state in [DiskLogState::UpTo(LogSeq(9)), DiskLogState::Failed] {
        let mut role = resumed();
        role.handle_disk_log(0, state);
        assert!(matches!(*actions(role), [PrimaryAction::Claim(_)]), "{state:?}: it runs, and is ended in order");
    }
}
