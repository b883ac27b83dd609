//! Sides that don't fit together, and peers that break the protocol.

use crate::pair::{Pair, owner_claim};
use crate::world::{BACKUP, G, NEXT, PRIMARY, config, guest_image, machine, session, vm_id};
use ft::role::{BackupEnd, ClaimRequest, Expectation, LossReason, PrimaryAction, PrimaryRole, Timing};
use logchannel::entry::{Generation, LogSeq};
use logchannel::message::{EntryBatch, Left, Message};
use logchannel::session::{ImageDigest, SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot, UnsentOutput};
use vm::{BehaviourVersion, InstructionCount, MachineConfig, OutputId, OutputOperation, PAGE_BYTES, StateDigest};

/// The reason with which the backup refuses `messages`; the primary must get it too.
fn refusal(pair: &mut Pair, messages: impl IntoIterator<Item = Message>) -> String {
    for message in messages {
        pair.primary_says(message);
    }
    let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("not refused") };
    assert_eq!(pair.to_primary.last(), Some(Message::Refused { reason: reason.clone() }));
    assert!(pair.backup_claim().is_none());
    reason
}

fn pages() -> Message {
    Message::Pages(Pages { first: 1, bytes: vec![1; PAGE_BYTES] })
}

fn unsent(id: u64) -> Message {
    Message::UnsentOutput(UnsentOutput { id: OutputId(id), operation: OutputOperation::Packet(vec![7; 60]) })
}

/// The end of a snapshot of a guest at its reset, without its pages.
fn snapshot() -> Snapshot {
    let mut machine = machine(&guest_image());
    Snapshot { seq: LogSeq(0), digest: machine.digest(), state: machine.state() }
}

fn batch() -> Message {
    Message::Entries(EntryBatch { first_seq: LogSeq(0), bytes: vec![8, 0] })
}

#[test]
fn another_vm_is_refused_by_name() {
    let header = SessionHeader { vm: VmId::new("other").unwrap(), ..session() };
    let reason = refusal(&mut Pair::new(), [Message::Session { header, owner: PRIMARY }]);
    assert!(reason.contains("vm0") && reason.contains("other"), "{reason}");
}

#[test]
fn another_image_is_refused_by_name_before_it_is_sent() {
    let header = SessionHeader::new(vm_id(), G, config(), "different", b"different").unwrap();
    let digest = header.image_digest.to_string();
    let reason = refusal(&mut Pair::new(), [Message::Session { header, owner: PRIMARY }]);
    assert!(reason.contains("different") && reason.contains(&digest), "{reason}");
}

#[test]
fn a_machine_of_another_behaviour_is_refused_by_name() {
    let own = BehaviourVersion::CURRENT;
    for (behaviour, releases) in [(own.0 - 1, "release 0.1.0"), (own.0 + 1, "a later release")] {
        let header = SessionHeader { behaviour: BehaviourVersion(behaviour), ..session() };
        let reason = refusal(&mut Pair::new(), [Message::Session { header, owner: PRIMARY }]);
        for words in [&format!("version {behaviour}"), releases, &format!("this build has version {own}")] {
            assert!(reason.contains(words), "{words} is not in {reason}");
        }
    }
}

#[test]
fn a_backup_without_expectation_takes_any_image_of_its_vm() {
    let expectation = Expectation { vm: vm_id(), image: None };
    let mut pair = Pair::with(PrimaryRole::awaiting_backup(PRIMARY, session(), Timing::default()), expectation);
    pair.connect();
    pair.exchange();
    assert!(pair.primary.is_protected());
}

#[test]
fn a_backup_of_another_vm_is_refused_by_the_primary() {
    let expectation = Expectation { vm: VmId::new("other").unwrap(), image: None };
    let mut pair = Pair::with(PrimaryRole::alone(PRIMARY, session(), Timing::default()), expectation);
    pair.connect();
    assert_eq!(pair.primary_claim(), None);
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()), "its place is free");
    let Some(Message::Refused { reason }) = pair.to_backup.last() else { panic!("not refused") };
    assert!(reason.contains("vm0") && reason.contains("other"), "{reason}");
    pair.primary_says(Message::Refused { reason });
    assert!(matches!(pair.backup_end(), Some(BackupEnd::Refused { reason }) if reason.contains("other")));
}

#[test]
fn messages_at_the_wrong_time_are_refused_by_the_backup() {
    let join = || Message::Join { vm: vm_id(), node: BACKUP };
    let session = || Message::Session { header: session(), owner: PRIMARY };
    let protected = || Message::Protected { generation: G };
    let ack = || Message::Ack { received: LogSeq(0) };
    let consumed = || Message::Consumed { consumed: LogSeq(0), count: InstructionCount(0) };
    let released = || Message::Released(Left::all_below(OutputId(0)));
    let refused = || Message::Refused { reason: "late".into() };
    let snapshot = || Message::Snapshot(snapshot());
    let stages: [(&[Message], Vec<Message>); 3] = [
        // Connecting.
        (
            &[],
            vec![
                join(),
                pages(),
                unsent(0),
                snapshot(),
                batch(),
                protected(),
                released(),
                Message::Accepted,
                ack(),
                consumed(),
            ],
        ),
        // Receiving.
        (
            &[session()],
            vec![join(), session(), batch(), protected(), released(), Message::Accepted, ack(), consumed(), refused()],
        ),
        // Restoring.
        (
            &[session(), snapshot()],
            vec![
                join(),
                session(),
                pages(),
                unsent(0),
                snapshot(),
                protected(),
                Message::Accepted,
                ack(),
                consumed(),
                refused(),
            ],
        ),
    ];
    for (before, wrong) in stages {
        for message in wrong {
            let reason = refusal(&mut Pair::new(), before.iter().cloned().chain([message.clone()]));
            assert!(reason.contains("protocol"), "{message:?} after {} messages: {reason}", before.len());
        }
    }
    // Following.
    for message in [join(), session(), pages(), unsent(0), snapshot(), Message::Accepted, ack(), consumed(), refused()]
    {
        refusal(&mut Pair::protected(), [message]);
    }
}

#[test]
fn unsent_outputs_out_of_order_are_refused() {
    for ids in [&[3, 3][..], &[3, 2], &[1 << 40, 0]] {
        let messages = std::iter::once(Message::Session { header: session(), owner: PRIMARY })
            .chain(ids.iter().map(|id| unsent(*id)));
        let reason = refusal(&mut Pair::new(), messages);
        assert!(reason.contains("unsent output"), "{ids:?}: {reason}");
    }
}

#[test]
fn a_machine_whose_next_output_is_before_the_unsent_is_refused() {
    for id in [0, 5, 1 << 40] {
        let mut pair = Pair::new();
        // A whole snapshot of a guest that has sent nothing, with an output that it never sent.
        pair.connect();
        pair.copy();
        for (at, message) in pair.to_backup.deliver(usize::MAX).into_iter().enumerate() {
            pair.primary_says(message);
            if at == 0 {
                pair.primary_says(unsent(id));
            }
        }
        pair.restore();
        let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("{id}: not refused") };
        assert!(reason.contains("output 0 next"), "{reason}");
        assert!(matches!(pair.to_primary.last(), Some(Message::Refused { .. })), "never accepted");
    }
}

/// From such numbers on a VM could overflow 64 bits.
#[test]
fn positions_and_outputs_that_no_vm_reaches_are_refused() {
    let begin = || Message::Session { header: session(), owner: PRIMARY };
    for seq in [u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX] {
        let snapshot = Snapshot { seq: LogSeq(seq), ..snapshot() };
        let reason = refusal(&mut Pair::new(), [begin(), Message::Snapshot(snapshot)]);
        assert!(reason.contains("which no log has"), "{reason}");
        let reason = refusal(&mut Pair::new(), [begin(), unsent(seq)]);
        assert!(reason.contains("which no VM has"), "{reason}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_restored_is_refused() {
    let good = snapshot();
    let begin = || Message::Session { header: session(), owner: PRIMARY };
    let small = SessionHeader { config: MachineConfig { ram_bytes: 5, ..config() }, ..session() };
    let huge = SessionHeader { config: MachineConfig { ram_bytes: u64::MAX, ..config() }, ..session() };
    let outside = |first| Message::Pages(Pages { first, bytes: vec![1; PAGE_BYTES] });
    let mut cut = good.clone();
    cut.state.pop();
    let flipped = Snapshot { digest: StateDigest(good.digest.0 ^ 1), ..good.clone() };
    let nonsense = Snapshot { state: vec![0xff; good.state.len()], ..good };
    let cases: [(&str, Vec<Message>); 8] = [
        ("a machine without memory", vec![Message::Session { header: small, owner: PRIMARY }]),
        ("a machine of all memory", vec![Message::Session { header: huge, owner: PRIMARY }]),
        ("a page behind the last", vec![begin(), outside(1024)]),
        ("a page at the end of all numbers", vec![begin(), outside(u64::MAX)]),
        ("a state cut short", vec![begin(), Message::Snapshot(cut)]),
        ("a state without sense", vec![begin(), Message::Snapshot(nonsense)]),
        ("another digest", vec![begin(), Message::Snapshot(flipped)]),
        ("pages that never came", vec![begin(), Message::Snapshot(snapshot())]),
    ];
    for (what, messages) in cases {
        let mut pair = Pair::new();
        messages.into_iter().for_each(|message| pair.primary_says(message));
        pair.restore();
        let end = pair.backup_end();
        assert!(matches!(&end, Some(BackupEnd::Refused { reason }) if reason.contains("restored")), "{what}: {end:?}");
        assert!(matches!(pair.to_primary.last(), Some(Message::Refused { .. })), "{what}");
        // Later messages are ignored.
        pair.primary_says(batch());
        pair.primary_says(Message::Protected { generation: G });
        assert!(pair.backup_claim().is_none() && pair.to_primary.len() == 0, "{what}");
    }
}

#[test]
fn a_generation_that_is_not_the_sessions_is_refused() {
    for generation in [G.next(), Generation(u64::MAX)] {
        let mut pair = Pair::new();
        pair.connect();
        pair.copy();
        pair.deliver_to_backup();
        pair.restore();
        refusal(&mut pair, [Message::Protected { generation }]);
    }
    // The winner of the last possible generation would own one that doesn't exist.
    let header = SessionHeader { generation: Generation(u64::MAX), ..session() };
    refusal(&mut Pair::new(), [Message::Session { header, owner: PRIMARY }]);
}

#[test]
fn a_primary_that_refuses_is_told_to_the_operator() {
    let mut pair = Pair::new();
    pair.primary_says(Message::Refused { reason: "has one".into() });
    let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("not refused") };
    assert!(reason.contains("has one"), "{reason}");
}

#[test]
fn a_restoration_that_fails_after_the_end_is_no_second_end() {
    let mut pair = Pair::new();
    pair.connect();
    pair.copy();
    pair.deliver_to_backup();
    pair.primary_lost();
    assert!(matches!(pair.backup_end(), Some(BackupEnd::Unprotected { .. })));
    pair.backup.handle_restore_failure("too late");
    assert!(pair.backup.poll_action().is_none() && !pair.backup.has_outgoing());
}

#[test]
fn a_backup_that_refuses_leaves_its_place_to_the_next() {
    let image = Some(("other".into(), ImageDigest::of(b"other")));
    let expectation = Expectation { vm: vm_id(), image };
    let mut pair = Pair::with(PrimaryRole::awaiting_backup(PRIMARY, session(), Timing::default()), expectation);
    pair.connect();
    pair.exchange();
    assert!(!pair.primary.is_protected());
    assert_eq!(pair.primary_claim(), None);
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()));
}

#[test]
fn a_second_backup_is_not_taken() {
    // While the first backup joins, in each stage, and when it has joined.
    let mut joining = Pair::alone();
    joining.connect();
    let mut restoring = Pair::alone();
    restoring.connect();
    restoring.copy();
    for mut pair in [joining, restoring, Pair::protected()] {
        let before = pair.to_backup.len();
        let refused = pair.primary.handle_join(pair.now_ns, &vm_id()).unwrap_err();
        assert!(refused.contains("has a backup already"), "{refused}");
        pair.collect();
        assert_eq!(pair.to_backup.len(), before, "the first isn't disturbed");
        pair.exchange();
        assert!(pair.primary.is_protected());
    }
}

#[test]
fn a_primary_that_is_not_sure_of_its_vm_takes_no_backup() {
    let mut pair = Pair::protected();
    pair.backup_lost();
    assert!(pair.primary.handle_join(pair.now_ns, &vm_id()).unwrap_err().contains("try again"));
    let claim = pair.primary_claim().unwrap();
    pair.arbiter.borrow_mut().ask(ClaimRequest { node: BACKUP, ..claim });
    pair.answer_primary(claim);
    assert!(pair.primary.handle_join(pair.now_ns, &vm_id()).unwrap_err().contains("has ended"));
    assert!(!pair.primary.has_outgoing());
}

#[test]
fn acknowledgements_that_cannot_be_are_a_loss_and_release_nothing() {
    for (first, second) in [(None, 3), (None, u64::MAX), (Some(2), 1)] {
        let mut pair = Pair::protected();
        pair.output();
        pair.output();
        if let Some(received) = first {
            pair.backup_says(Message::Ack { received: LogSeq(received) });
        }
        let out = pair.out.len();
        pair.backup_says(Message::Ack { received: LogSeq(second) });
        assert_eq!(pair.out.len(), out, "ack {second} after {first:?}");
        assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
    }
}

#[test]
fn acknowledgements_of_what_was_appended_but_not_sent_are_refused() {
    let mut pair = Pair::protected();
    pair.unflushed_output();
    pair.backup_says(Message::Ack { received: LogSeq(1) });
    assert_eq!(pair.out, [0_u64; 0]);
    assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)));
}

#[test]
fn messages_at_the_wrong_time_are_a_loss_for_the_primary() {
    let wrong = [
        Message::Join { vm: vm_id(), node: BACKUP },
        Message::Session { header: session(), owner: PRIMARY },
        pages(),
        unsent(0),
        Message::Snapshot(snapshot()),
        batch(),
        Message::Accepted,
        Message::Protected { generation: G },
        Message::Released(Left::all_below(OutputId(9))),
        Message::Refused { reason: "late".into() },
    ];
    for message in &wrong {
        let mut pair = Pair::protected();
        pair.backup_says(message.clone());
        assert_eq!(pair.primary_claim(), Some(owner_claim(PRIMARY)), "{message:?}");
    }
    // A joining backup that breaks the protocol is given up, without other effects. `Accepted` is
    // valid only after the snapshot.
    for is_copied in [false, true] {
        let ack = Message::Ack { received: LogSeq(u64::MAX) };
        let given_up = |message: &&Message| !is_copied || **message != Message::Accepted;
        for message in wrong.iter().filter(given_up).chain([&ack]) {
            let mut pair = Pair::alone();
            pair.connect();
            if is_copied {
                pair.copy();
            }
            pair.backup_says(message.clone());
            assert_eq!(pair.primary_actions.len(), 1, "{message:?}: {:?}", pair.primary_actions);
            assert_eq!(pair.primary_claim(), None, "{message:?}");
            assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()), "{message:?}");
            assert_eq!((pair.primary.generation(), pair.primary.may_run()), (G, true), "{message:?}");
        }
    }
}

#[test]
fn late_messages_of_a_lost_backup_have_no_effect() {
    let mut pair = Pair::protected();
    pair.primary_goes_on(NEXT);
    for message in
        [Message::Accepted, Message::Ack { received: LogSeq(9) }, Message::Goodbye { reason: "".into() }, batch()]
    {
        pair.backup_says(message.clone());
        assert!(pair.primary_actions.is_empty() && !pair.primary.is_protected(), "{message:?}");
    }
}

#[test]
fn a_log_with_gaps_repeats_or_nonsense_is_a_loss_and_what_came_before_counts() {
    let batches = [
        EntryBatch { first_seq: LogSeq(2), bytes: vec![8, 0] },
        EntryBatch { first_seq: LogSeq(0), bytes: vec![8, 0] },
        EntryBatch { first_seq: LogSeq(u64::MAX), bytes: vec![8, 0] },
        EntryBatch { first_seq: LogSeq(1), bytes: vec![0xff; 30] },
        EntryBatch { first_seq: LogSeq(1), bytes: vec![] },
    ];
    for batch in batches {
        let mut pair = Pair::protected();
        pair.output();
        pair.deliver_to_backup();
        let before = pair.to_primary.len();
        pair.primary_says(Message::Entries(batch.clone()));
        assert_eq!(pair.to_primary.len(), before, "not acknowledged: {batch:?}");
        let request = pair.backup_claim().unwrap();
        assert_eq!(request, owner_claim(BACKUP));
        pair.answer_backup(request);
        pair.replay();
        assert_eq!(pair.backup.cursors(), (LogSeq(1), LogSeq(1)));
        assert_eq!(pair.unsent(), [0]);
    }
}

#[test]
fn cursors_at_the_end_of_their_range_break_nothing() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.primary_says(Message::Released(Left::all_below(OutputId(u64::MAX))));
    pair.replay();
    pair.primary_lost();
    assert_eq!(pair.unsent(), [0_u64; 0]);
}

#[test]
fn a_backup_that_has_consumed_what_it_has_not_acknowledged_or_takes_it_back_is_lost() {
    let consumed = |consumed| Message::Consumed { consumed: LogSeq(consumed), count: InstructionCount(0) };
    for (reports, is_good) in
        [(vec![0, 1, 2], true), (vec![2, 2], true), (vec![3], false), (vec![u64::MAX], false), (vec![2, 1], false)]
    {
        let mut pair = Pair::protected();
        pair.output();
        pair.output();
        pair.exchange();
        // The third is in flight.
        pair.output();
        for &report in &reports {
            pair.backup_says(consumed(report));
        }
        assert_eq!(pair.primary.is_protected(), is_good, "{reports:?}");
        let is_told =
            |action: &PrimaryAction| matches!(action, PrimaryAction::CloseChannel { reason: LossReason::BadLog(_) });
        assert_eq!(pair.primary_actions.iter().any(is_told), !is_good, "{reports:?}");
    }
}
