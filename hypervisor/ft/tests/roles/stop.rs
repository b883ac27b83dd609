//! Ends that are no failures: the guest's own, and the operator's.

use crate::pair::{Pair, end_claim, owner_claim};
use crate::world::{BACKUP, G, MS, NEXT, PRIMARY, vm_id};
use ft::claim::{Claim, ClaimKind};
use ft::role::{BackupAction, BackupEnd, DiskLogState, PrimaryAction, PrimaryEnd, Timing};
use logchannel::entry::LogSeq;

#[test]
fn the_end_mark_is_set_only_when_the_backup_knows_the_end() {
    let mut pair = Pair::protected();
    pair.output();
    let reason = pair.guest_stops();
    pair.pass(MS);
    pair.deliver_to_backup();
    assert_eq!(pair.primary_claim(), None, "not acknowledged yet");
    pair.deliver_to_primary();
    assert_eq!(pair.out, [0]);
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, end_claim(G, PRIMARY));
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
    assert_eq!(pair.arbiter.borrow_mut().claims[&G.0].kind, ClaimKind::Ended);
}

/// A backup that finds the end mark sends nothing: without it the last outputs would still be sent,
/// so the mark waits for them.
#[test]
fn the_end_mark_waits_for_the_last_outputs_but_not_for_ever() {
    let step_ns = Timing::default().failure_timeout_ns / 20;
    for is_carried in [true, false] {
        let mut pair = Pair::protected();
        pair.lan_is_silent = true;
        pair.output();
        pair.guest_stops();
        for _ in 0..19 {
            pair.exchange();
            pair.pass(step_ns);
            assert_eq!(pair.primary_claim(), None, "its backup may have to send it");
            assert_eq!(pair.out, [0]);
        }
        if is_carried {
            pair.lan_tells();
            pair.pass(1);
        } else {
            pair.exchange();
            pair.pass(step_ns);
        }
        assert_eq!(pair.primary_claim(), Some(end_claim(G, PRIMARY)));
        assert!(!pair.to_primary.is_cut);
    }
}

#[test]
fn a_guest_that_ends_by_itself_is_no_failover() {
    let mut pair = Pair::protected();
    let reason = pair.guest_stops();
    pair.exchange();
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
    pair.primary_lost();
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    assert!(pair.backup_actions.is_empty(), "it has yet to replay the end");
    pair.replay();
    assert_eq!(pair.backup_actions, [BackupAction::End(BackupEnd::GuestStopped(reason))]);
}

#[test]
fn a_primary_that_dies_before_it_marks_the_guests_end_is_succeeded() {
    let mut pair = Pair::protected();
    pair.output();
    pair.guest_stops();
    pair.exchange();
    pair.primary_lost();
    pair.replay();
    let request = pair.backup_claim().unwrap();
    assert_eq!(request, owner_claim(BACKUP));
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions, [BackupAction::GoLive(NEXT)], "somebody has to set the end mark");
    assert_eq!(pair.unsent(), [0], "and to send the guest's last outputs");
}

#[test]
fn a_primary_that_loses_its_backup_at_the_guests_end_leaves_the_end_mark_by_itself() {
    let mut pair = Pair::protected();
    pair.output();
    let reason = pair.guest_stops();
    pair.backup_lost();
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, end_claim(G, PRIMARY));
    assert_eq!(pair.out, [0_u64; 0]);
    pair.answer_primary(request);
    assert_eq!(pair.out, [0], "the last outputs of the guest");
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
}

#[test]
fn a_guest_that_ends_while_its_primary_asks_for_the_flag_ends_after_the_answer() {
    let mut pair = Pair::protected();
    pair.backup_lost();
    let request = pair.primary_claim().unwrap();
    let reason = pair.guest_stops();
    assert_eq!(pair.primary_claim(), None, "one question at a time");
    pair.answer_primary(request);
    assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::Owner(NEXT)));
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, end_claim(NEXT, PRIMARY));
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
}

#[test]
fn a_guest_without_backup_leaves_the_end_mark() {
    let mut pair = Pair::alone();
    let reason = pair.guest_stops();
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, end_claim(G, PRIMARY));
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
}

#[test]
fn a_retired_protected_primary_hands_over() {
    let mut pair = Pair::protected();
    pair.output();
    pair.primary.handle_retire(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_actions, [PrimaryAction::HandOver]);
    assert!(!pair.primary.may_run());
    pair.exchange();
    assert_eq!(pair.out, [0_u64; 0], "what it held is its successor's to send, though the acknowledgement came");
    pair.replay();
    let request = pair.backup_claim().unwrap();
    assert_eq!(request, owner_claim(BACKUP));
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions, [BackupAction::GoLive(NEXT)]);
    assert_eq!(pair.unsent(), [0]);
}

#[test]
fn a_retired_primary_without_backup_ends_the_vm_and_its_guest_does_not_run_meanwhile() {
    let awaiting = Pair::new();
    let mut pairing = Pair::new();
    pairing.connect();
    let alone = Pair::alone();
    for mut pair in [awaiting, pairing, alone] {
        pair.primary.handle_retire(pair.now_ns);
        pair.collect();
        let request = pair.primary_claim().unwrap();
        assert_eq!(request, end_claim(G, PRIMARY));
        assert!(!pair.primary.may_run(), "a guest that is to end must not start");
        assert!(pair.primary.can_take_backup(&vm_id()).is_err());
        pair.arbiter.borrow_mut().is_unreachable = true;
        pair.answer_primary(request);
        pair.pass(Timing::default().claim_retry_ns);
        pair.arbiter.borrow_mut().is_unreachable = false;
        let request = pair.primary_claim().unwrap();
        assert_eq!(request, end_claim(G, PRIMARY));
        pair.answer_primary(request);
        assert_eq!(pair.primary_actions, [PrimaryAction::End(PrimaryEnd::Retired)]);
    }
}

#[test]
fn a_backup_left_by_a_primary_that_is_retired_before_the_pair_is_complete_does_not_claim() {
    let mut pair = Pair::new();
    pair.connect();
    pair.primary.handle_retire(pair.now_ns);
    pair.exchange();
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.primary_actions, [PrimaryAction::End(PrimaryEnd::Retired)]);
    pair.primary_lost();
    assert!(matches!(pair.backup_end(), Some(BackupEnd::Unprotected { .. })));
}

#[test]
fn a_retired_primary_that_was_replaced_by_force_is_fenced() {
    let mut pair = Pair::alone();
    let holder = Claim { node: BACKUP, kind: ClaimKind::Owner, address: None };
    pair.arbiter.borrow_mut().claims.insert(G.0, holder.clone());
    pair.primary.handle_retire(pair.now_ns);
    pair.collect();
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder }));
}

#[test]
fn retiring_a_primary_whose_guest_has_just_ended_still_leaves_the_end_mark() {
    let mut pair = Pair::protected();
    pair.output();
    let reason = pair.guest_stops();
    pair.primary.handle_retire(pair.now_ns);
    pair.exchange();
    assert_eq!(pair.out, [0]);
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, end_claim(G, PRIMARY), "it knows the end already");
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::GuestStopped(reason)));
}

#[test]
fn retiring_twice_asks_once() {
    let mut pair = Pair::protected();
    pair.backup_lost();
    pair.primary.handle_retire(pair.now_ns);
    pair.primary.handle_retire(pair.now_ns);
    pair.collect();
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, owner_claim(PRIMARY));
    assert_eq!(pair.primary_claim(), None);
    pair.answer_primary(request);
    assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::Owner(NEXT)));
    assert_eq!(pair.primary_claim(), Some(end_claim(NEXT, PRIMARY)));
}

/// SIGHUP, for example: the end of a terminal must not end the VM.
#[test]
fn a_primary_that_is_left_keeps_the_claim_of_a_vm_whose_log_is_on_disk() {
    let mut pair = Pair::alone();
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(0)));
    pair.output();
    assert_eq!(pair.out, [0_u64; 0], "the log on disk hasn't got it yet");
    pair.primary.handle_leave(pair.now_ns);
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(5)));
    pair.collect();
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Left));
    assert!(pair.arbiter.borrow().claims.values().all(|claim| claim.kind == ClaimKind::Owner), "no end mark");
    assert_eq!(pair.out, [0_u64; 0], "what is held comes when the VM is resumed");
    assert!(!pair.primary.may_run());
    // The same while the backup may have won: a claim in progress isn't changed.
    let mut pair = Pair::protected();
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(9)));
    pair.backup_lost();
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
    pair.primary.handle_leave(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Left));
}

#[test]
fn a_primary_that_is_left_hands_over_or_ends_a_vm_that_could_not_be_resumed() {
    let mut pair = Pair::protected();
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(0)));
    pair.primary.handle_leave(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::HandOver));
    let mut pair = Pair::alone();
    pair.primary.handle_leave(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_claim(), Some(end_claim(G, PRIMARY)));
    // A guest that has never run has nothing to resume.
    let mut pair = Pair::new();
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(0)));
    pair.primary.handle_leave(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_claim(), Some(end_claim(G, PRIMARY)));
    // A guest that has ended by itself retains its end mark.
    let mut pair = Pair::alone();
    pair.primary.handle_disk_log(pair.now_ns, DiskLogState::UpTo(LogSeq(9)));
    pair.guest_stops();
    pair.primary.handle_leave(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_claim(), Some(end_claim(G, PRIMARY)));
}
