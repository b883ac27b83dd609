//! Losing the other side, and the test-and-set that decides. Source: Scales et al. 2010, §2.3.

use crate::pair::{Pair, end_claim, owner_claim};
use crate::world::{BACKUP, G, MS, NEXT, PRIMARY, operation, session, vm_id};
use ft::claim::{Claim, ClaimKind};
use ft::role::{
    BackupAction, BackupEnd, DiskLogState, Inheritance, LossReason, PrimaryAction, PrimaryEnd, PrimaryRole, Timing,
};
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::message::{Left, Message};
use logchannel::session::NodeId;
use vm::{InstructionCount, OutputId};

fn claim_of(node: NodeId) -> Claim {
    Claim { node, kind: ClaimKind::Owner, address: None }
}

#[test]
fn primary_that_wins_releases_what_it_holds_and_goes_on_alone() {
    let mut pair = Pair::protected();
    pair.output();
    pair.output();
    pair.backup_lost();
    assert_eq!(pair.out, [0_u64; 0], "held until the arbiter has decided");
    assert!(pair.primary.may_run());
    pair.output();
    let request = pair.primary_claim().unwrap();
    assert_eq!(request, owner_claim(PRIMARY));
    pair.answer_primary(request);
    assert_eq!(pair.out, [0, 1, 2], "also what the guest sent meanwhile");
    assert_eq!(pair.primary_actions, [PrimaryAction::Owner(NEXT)]);
    assert_eq!(pair.primary.generation(), NEXT);
    pair.output();
    assert_eq!(pair.out, [0, 1, 2, 3]);
}

#[test]
fn primary_that_loses_is_fenced_and_nothing_comes_out_ever_after() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.output();
    pair.backup_lost();
    pair.arbiter.borrow_mut().claims.insert(G.0, claim_of(BACKUP));
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder: claim_of(BACKUP) }));
    // The acknowledgement of output 0 is still in flight.
    assert!(pair.to_primary.len() > 0);
    pair.deliver_to_primary();
    pair.backup_says(Message::Ack { received: LogSeq(2) });
    pair.output();
    pair.primary.handle_claim(pair.now_ns, ft::role::ClaimAnswer::Unreachable);
    pair.primary.handle_retire(pair.now_ns);
    pair.pass(10_000 * MS);
    assert_eq!(pair.out, [0_u64; 0]);
    assert!(!pair.primary.may_run());
    assert!(pair.primary_actions.is_empty());
}

#[test]
fn acknowledged_outputs_that_have_not_left_stay_in_a_fenced_primary() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    for message in pair.to_primary.deliver(usize::MAX) {
        pair.primary.handle_message(pair.now_ns, message);
    }
    pair.primary.handle_disconnect("killed");
    pair.primary.handle_claim(pair.now_ns, ft::role::ClaimAnswer::Decided(ft::claim::Verdict::Lost(claim_of(BACKUP))));
    pair.collect();
    assert_eq!(pair.out, [0_u64; 0]);
}

#[test]
fn late_acknowledgements_release_nothing_while_the_flag_is_asked_for() {
    let mut pair = Pair::protected();
    pair.output();
    pair.backup_lost();
    pair.backup_says(Message::Ack { received: LogSeq(1) });
    assert_eq!(pair.out, [0_u64; 0]);
}

#[test]
fn a_primary_that_slept_through_the_timeout_asks_before_it_lets_anything_out() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.now_ns += Timing::default().failure_timeout_ns;
    // The receiving thread runs first and finds the acknowledgement in the socket.
    pair.deliver_to_primary();
    assert_eq!(pair.out, [0_u64; 0], "the backup may have gone live long ago");
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
}

#[test]
fn a_primary_that_wakes_up_after_its_successor_went_live_puts_nothing_out() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.replay();
    // The acknowledgement of output 0 is in the socket of the suspended primary, and its backup
    // goes live.
    let mut next = pair.backup_goes_live(NEXT, NodeId(3));
    assert_eq!(next.out, [0]);
    pair.now_ns += 3600 * 1000 * MS;
    // Of its threads the vCPU's wakes first, then the receiver, then the timers.
    pair.output();
    pair.deliver_to_primary();
    pair.pass(0);
    assert_eq!(pair.out, [0_u64; 0]);
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder: claim_of(BACKUP) }));
    assert_eq!(pair.out, [0_u64; 0]);
    next.output();
    assert_eq!(pair.lan.borrow().carried.len(), 2);
}

#[test]
fn primary_with_an_unreachable_arbiter_holds_its_outputs_and_asks_again_with_the_same_kind() {
    let mut pair = Pair::protected();
    pair.output();
    pair.backup_lost();
    pair.arbiter.borrow_mut().is_unreachable = true;
    let retry_ns = Timing::default().claim_retry_ns;
    for _ in 0..5 {
        let request = pair.primary_claim().unwrap();
        assert_eq!(request, owner_claim(PRIMARY));
        pair.answer_primary(request);
        pair.pass(retry_ns - 1);
        assert_eq!(pair.primary_claim(), None, "not before it is time");
        // The claim that was asked for stays the same, because it may have been recorded.
        pair.primary.handle_retire(pair.now_ns);
        pair.pass(1);
        assert_eq!(pair.out, [0_u64; 0]);
    }
    pair.arbiter.borrow_mut().is_unreachable = false;
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert_eq!(pair.out, [0]);
    assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::Owner(NEXT)));
    assert_eq!(pair.primary_claim(), Some(end_claim(NEXT, PRIMARY)), "now the operator's word is followed");
}

#[test]
fn a_lost_reply_strands_neither_side() {
    let mut pair = Pair::protected();
    pair.output();
    pair.cut();
    pair.arbiter.borrow_mut().lost_replies = 1;
    pair.backup_lost();
    let request = pair.primary_claim().unwrap();
    pair.answer_primary(request);
    assert!(pair.arbiter.borrow_mut().claims.contains_key(&G.0), "recorded");
    // The backup's claim arrives between the two requests, and gets the right answer.
    pair.primary_lost();
    let its_request = pair.backup_claim().unwrap();
    pair.answer_backup(its_request);
    assert_eq!(pair.backup_end(), Some(BackupEnd::Fenced { holder: claim_of(PRIMARY) }));
    pair.pass(Timing::default().claim_retry_ns);
    let again = pair.primary_claim().unwrap();
    assert_eq!(again, request);
    pair.answer_primary(again);
    assert_eq!(pair.out, [0]);

    let mut pair = Pair::protected();
    pair.primary_lost();
    pair.arbiter.borrow_mut().lost_replies = 1;
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    pair.pass(Timing::default().claim_retry_ns);
    let again = pair.backup_claim().unwrap();
    assert_eq!(again, request);
    pair.answer_backup(again);
    assert_eq!(pair.backup_actions, [BackupAction::GoLive(NEXT)]);
}

#[test]
fn a_backup_not_yet_told_never_claims() {
    // In each stage of joining: connected, receiving, restoring.
    for bytes in [0, 60, 200, 5000, usize::MAX] {
        let mut pair = Pair::new();
        pair.connect();
        pair.copy();
        pair.deliver_some_to_backup(bytes);
        pair.primary_lost();
        assert_eq!(
            pair.backup_end(),
            Some(BackupEnd::Unprotected { reason: LossReason::Disconnected("killed".into()) }),
            "{bytes} bytes"
        );
        pair.restore();
        pair.pass(10_000 * MS);
        assert!(pair.backup_actions.is_empty());
    }
    // Following, but `Protected` is lost.
    let mut pair = Pair::new();
    pair.connect();
    pair.copy();
    pair.deliver_to_backup();
    pair.restore();
    pair.deliver_to_primary();
    assert!(pair.primary.is_protected());
    pair.primary_lost();
    assert_eq!(pair.backup_end(), Some(BackupEnd::Unprotected { reason: LossReason::Disconnected("killed".into()) }));
}

#[test]
fn losing_a_backup_that_cannot_claim_yet_costs_the_primary_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    pair.backup_lost();
    assert_eq!(pair.primary_claim(), None, "nobody needs to be asked");
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()));
    let silent = Pair::new();
    let mut pair = silent;
    pair.connect();
    pair.pass(100 * Timing::default().failure_timeout_ns);
    assert_eq!(pair.primary_claim(), None);
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()), "a backup that never answers doesn't block the place");
}

#[test]
fn silence_beyond_the_timeout_is_a_loss_on_both_sides() {
    let timeout_ns = Timing::default().failure_timeout_ns;
    let mut pair = Pair::protected();
    pair.pass(timeout_ns - 1);
    assert!(pair.primary_claim().is_none() && pair.backup_claim().is_none());
    pair.pass(1);
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
    assert_eq!(pair.backup_claim(), Some(owner_claim(BACKUP)));
}

#[test]
fn heartbeats_keep_an_idle_pair_together() {
    let mut pair = Pair::protected();
    for _ in 0..2000 {
        pair.pass(5 * MS);
        pair.exchange();
    }
    assert!(pair.primary.is_protected());
    assert!(pair.primary_actions.is_empty() && pair.backup_actions.is_empty());
    // Each direction alone: the side that receives nothing acts.
    while !pair.to_primary.is_cut {
        pair.pass(5 * MS);
        pair.deliver_to_backup();
        let _ = pair.to_primary.deliver(usize::MAX);
    }
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
    assert_eq!(pair.backup_claim(), None, "it was spoken to until the channel was closed");
}

#[test]
fn a_clock_that_goes_back_loses_neither_side() {
    let mut pair = Pair::protected();
    pair.now_ns -= 500 * MS;
    for _ in 0..100 {
        pair.pass(5 * MS);
        pair.exchange();
    }
    assert!(pair.primary.is_protected() && pair.backup_actions.is_empty());
}

#[test]
fn a_backup_that_does_not_listen_does_not_take_the_primary_for_silent() {
    let mut pair = Pair::protected();
    for _ in 0..100 {
        pair.now_ns += 100 * MS;
        pair.backup.handle_not_listening(pair.now_ns);
        pair.backup.handle_tick(pair.now_ns);
        pair.collect();
    }
    assert_eq!(pair.backup_claim(), None);
}

#[test]
fn the_backup_consumes_all_that_it_received_before_it_goes_live() {
    for answered_before_drain in [true, false] {
        let mut pair = Pair::protected();
        for _ in 0..3 {
            pair.output();
        }
        pair.deliver_to_backup();
        pair.primary_lost();
        let request = pair.backup_claim().unwrap();
        assert_eq!(request, owner_claim(BACKUP));
        if answered_before_drain {
            pair.answer_backup(request);
            pair.replay_some(2);
            assert!(pair.backup_actions.is_empty(), "an entry is left");
            pair.replay();
        } else {
            pair.replay();
            assert!(pair.backup_actions.is_empty(), "drained, but the flag isn't won");
            pair.answer_backup(request);
        }
        assert_eq!(pair.backup_actions, [BackupAction::GoLive(NEXT)]);
        assert_eq!(pair.unsent(), [0, 1, 2]);
    }
}

#[test]
fn a_backup_that_loses_is_fenced_and_does_not_go_live() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.primary_lost();
    pair.arbiter.borrow_mut().claims.insert(G.0, claim_of(PRIMARY));
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    assert_eq!(pair.backup_end(), Some(BackupEnd::Fenced { holder: claim_of(PRIMARY) }));
    pair.replay();
    pair.pass(10_000 * MS);
    assert!(pair.backup_actions.is_empty());
}

#[test]
fn a_backup_without_arbiter_waits_and_asks_again() {
    let mut pair = Pair::protected();
    pair.primary_lost();
    pair.arbiter.borrow_mut().is_unreachable = true;
    for _ in 0..5 {
        let request = pair.backup_claim().unwrap();
        assert_eq!(request, owner_claim(BACKUP));
        pair.answer_backup(request);
        assert_eq!(pair.backup_claim(), None);
        pair.pass(Timing::default().claim_retry_ns);
    }
}

#[test]
fn entries_after_the_loss_are_neither_acknowledged_nor_consumed() {
    let mut pair = Pair::protected();
    pair.output();
    assert!(pair.to_backup.len() > 0, "under way when the primary is given up");
    pair.pass(0);
    pair.primary_lost();
    let before = pair.to_primary.len();
    pair.deliver_to_backup();
    assert_eq!(pair.to_primary.len(), before);
    assert_eq!(pair.backup.cursors(), (LogSeq(0), LogSeq(0)));
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions, [BackupAction::GoLive(NEXT)]);
    assert_eq!(pair.unsent(), [0_u64; 0], "it never left the primary either");
    assert_eq!(pair.out, [0_u64; 0]);
}

#[test]
fn a_successor_sends_unsent_outputs_first_and_in_order() {
    let mut pair = Pair::protected();
    for _ in 0..3 {
        pair.output();
    }
    pair.deliver_to_backup();
    pair.replay();
    pair.primary_says(Message::Released(Left::all_below(OutputId(1))));
    pair.primary_lost();
    let (received, _) = pair.backup.cursors();
    let (unsent, next) = (pair.backup.take_unsent(), pair.backup.next_output());
    assert_eq!(next, OutputId(3));
    let clock = pair.backup.take_over_clock(pair.now_ns, 0);
    let inheritance = Inheritance { clock, first: received, next_output: next, unsent, disk_log: DiskLogState::None };
    let mut successor = PrimaryRole::gone_live(PRIMARY, session(), Timing::default(), inheritance);
    assert_eq!(successor.gate().next_to_leave(), OutputId(1));
    let entry = LogEntry { count: InstructionCount(99), body: EntryBody::Output { id: OutputId(3), digest: 0 } };
    successor.handle_entry(0, &entry, Some((OutputId(3), operation(BACKUP, OutputId(3)))));
    let sent: Vec<_> = std::iter::from_fn(|| successor.poll_released()).map(|released| released.id.0).collect();
    assert_eq!(sent, [1, 2, 3]);
    assert_eq!(successor.appended(), LogSeq(4), "the log's numbering runs on");
    assert!(successor.may_run());
}

#[test]
fn a_diverged_backup_says_goodbye_and_never_claims() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.backup.handle_divergence(pair.now_ns, "flipped");
    // The primary is lost at the same time.
    pair.backup.handle_disconnect(pair.now_ns, "killed");
    pair.collect();
    assert_eq!(pair.backup_end(), Some(BackupEnd::Diverged));
    assert!(pair.backup_actions.is_empty());
    pair.pass(10_000 * MS);
    assert!(pair.backup_actions.is_empty());
    let last = pair.to_primary.deliver(usize::MAX).pop();
    assert_eq!(last, Some(Message::Goodbye { reason: "flipped".into() }));
}

#[test]
fn a_backup_that_diverges_while_it_asks_does_not_go_live_though_it_wins() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.primary_lost();
    let request = pair.backup_claim().unwrap();
    pair.backup.handle_divergence(pair.now_ns, "flipped");
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions, [BackupAction::End(BackupEnd::Diverged)]);
}

#[test]
fn the_goodbye_of_a_diverged_backup_is_a_loss_for_the_primary() {
    let mut pair = Pair::protected();
    pair.backup.handle_divergence(pair.now_ns, "flipped");
    pair.exchange();
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
}
