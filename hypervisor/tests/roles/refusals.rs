//! Sides that don't fit together, and peers that break the protocol.

use crate::pair::{BACKUP, G, IMAGE, Pair, owner_claim, session, vm_id};
use hypervisor::role::{BackupEnd, Expectation, PrimaryRole, Timing};
use logchannel::entry::{Generation, LogSeq};
use logchannel::message::{EntryBatch, Message};
use logchannel::session::{ImageDigest, SessionHeader, VmId, image_chunks};
use vm::{InstructionCount, MachineConfig, OutputId};

/// The reason with which the backup refuses `messages`, which it must also tell the primary.
fn refusal(pair: &mut Pair, messages: impl IntoIterator<Item = Message>) -> String {
    for message in messages {
        pair.primary_says(message);
    }
    let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("not refused") };
    let told = pair.to_primary.deliver(usize::MAX).pop();
    assert_eq!(told, Some(Message::Refused { reason: reason.clone() }));
    assert!(pair.backup_claim().is_none());
    reason
}

fn image_messages(image: &[u8]) -> impl Iterator<Item = Message> {
    image_chunks(image).map(|chunk| Message::ImageChunk(chunk.to_vec()))
}

#[test]
fn another_vm_is_refused_by_name() {
    let header = SessionHeader { vm: VmId::new("other").unwrap(), ..session() };
    let reason = refusal(&mut Pair::new(), [Message::Session(header)]);
    assert!(reason.contains("vm0") && reason.contains("other"), "{reason}");
}

#[test]
fn another_image_is_refused_by_name_before_it_is_sent() {
    let header = SessionHeader::new(vm_id(), G, MachineConfig::default(), "different", b"different").unwrap();
    let digest = header.image_digest.to_string();
    let reason = refusal(&mut Pair::new(), [Message::Session(header)]);
    assert!(reason.contains("different") && reason.contains(&digest), "{reason}");
}

#[test]
fn a_backup_without_expectation_takes_any_image_of_its_vm() {
    let expectation = Expectation { vm: vm_id(), image: None };
    let mut pair = Pair::with(PrimaryRole::awaiting_backup(session(), Timing::default()), expectation);
    pair.connect();
    pair.exchange();
    assert!(pair.primary.is_protected());
}

#[test]
fn an_image_that_is_not_what_the_header_says_is_refused() {
    let changed = IMAGE.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    let reason =
        refusal(&mut Pair::new(), std::iter::once(Message::Session(session())).chain(image_messages(&changed)));
    assert!(reason.contains(&ImageDigest::of(&changed).to_string()), "{reason}");

    let longer = [IMAGE, b"!"].concat();
    let reason = refusal(&mut Pair::new(), std::iter::once(Message::Session(session())).chain(image_messages(&longer)));
    assert!(reason.contains("longer"), "{reason}");
}

#[test]
fn messages_at_the_wrong_time_are_refused_by_the_backup() {
    let batch = || EntryBatch { first_seq: LogSeq(0), bytes: vec![0] };
    let early = [
        Message::ImageChunk(vec![1]),
        Message::Entries(batch()),
        Message::Protected { generation: G },
        Message::Released { next_output: OutputId(0) },
        Message::Accepted { node: BACKUP },
        Message::Ack { received: LogSeq(0) },
        Message::Consumed { consumed: LogSeq(0), count: InstructionCount(0) },
    ];
    for message in early {
        let reason = refusal(&mut Pair::new(), [message.clone()]);
        assert!(reason.contains("protocol"), "{message:?}: {reason}");
    }
    for message in [Message::Entries(batch()), Message::Protected { generation: G }, Message::Session(session())] {
        refusal(&mut Pair::new(), [Message::Session(session()), message]);
    }
    for message in [Message::Session(session()), Message::ImageChunk(vec![1]), Message::Ack { received: LogSeq(0) }] {
        refusal(&mut Pair::protected(), [message]);
    }
}

#[test]
fn a_generation_that_is_not_the_sessions_is_refused() {
    for generation in [Generation(G.0 + 1), Generation(u64::MAX)] {
        let mut pair = Pair::new();
        pair.connect();
        pair.deliver_to_backup();
        refusal(&mut pair, [Message::Protected { generation }]);
    }
    // The winner of the last generation that there is couldn't be of the next one.
    let header = SessionHeader { generation: Generation(u64::MAX), ..session() };
    refusal(&mut Pair::new(), [Message::Session(header)]);
}

#[test]
fn a_primary_that_refuses_is_told_to_the_operator() {
    let mut pair = Pair::new();
    pair.primary_says(Message::Refused { reason: "has one".into() });
    let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("not refused") };
    assert!(reason.contains("has one"), "{reason}");
}

#[test]
fn a_machine_that_cannot_be_built_is_refused() {
    let mut pair = Pair::new();
    pair.primary_says(Message::Session(session()));
    pair.backup.build_failed("no memory");
    pair.collect();
    assert!(matches!(pair.backup_end(), Some(BackupEnd::Refused { reason }) if reason.contains("no memory")));
}

#[test]
fn a_backup_that_refuses_leaves_its_place_to_the_next() {
    let mut pair = Pair::with(
        PrimaryRole::awaiting_backup(session(), Timing::default()),
        Expectation { vm: VmId::new("other").unwrap(), image: None },
    );
    pair.connect();
    pair.exchange();
    assert!(!pair.primary.is_protected());
    assert_eq!(pair.primary_claim(), None);
    assert_eq!(pair.primary.can_take_backup(), Ok(()));
}

#[test]
fn a_second_backup_is_not_taken() {
    let mut pair = Pair::protected();
    assert!(pair.primary.can_take_backup().is_err());
    pair.connect();
    assert_eq!(pair.to_backup.len(), 0, "the pair isn't disturbed");
    assert!(pair.primary.is_protected());
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
        assert_eq!(pair.primary_claim(), Some(owner_claim()));
    }
}

#[test]
fn acknowledgements_of_what_was_appended_but_not_sent_are_refused() {
    let mut pair = Pair::protected();
    let entry = logchannel::entry::LogEntry {
        count: InstructionCount(1),
        body: logchannel::entry::EntryBody::Output { id: OutputId(0), digest: 0 },
    };
    pair.primary.append(pair.now_ns, &entry, Some((OutputId(0), crate::pair::operation(OutputId(0)))));
    pair.backup_says(Message::Ack { received: LogSeq(1) });
    assert_eq!(pair.out, [0_u64; 0]);
    assert_eq!(pair.primary_claim(), Some(owner_claim()));
}

#[test]
fn messages_at_the_wrong_time_are_a_loss_for_the_primary() {
    let wrong = [
        Message::Session(session()),
        Message::ImageChunk(vec![1]),
        Message::Accepted { node: BACKUP },
        Message::Protected { generation: G },
        Message::Released { next_output: OutputId(9) },
        Message::Refused { reason: "late".into() },
    ];
    for message in wrong {
        let mut pair = Pair::protected();
        pair.backup_says(message.clone());
        assert_eq!(pair.primary_claim(), Some(owner_claim()), "{message:?}");
    }
    let mut pair = Pair::new();
    pair.connect();
    pair.backup_says(Message::Ack { received: LogSeq(0) });
    assert_eq!(pair.primary_claim(), None);
    assert_eq!(pair.primary.can_take_backup(), Ok(()));
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
        assert_eq!(request, owner_claim());
        pair.answer_backup(request);
        pair.replay();
        assert_eq!(pair.backup.cursors(), (LogSeq(1), LogSeq(1)));
        assert_eq!(pair.tail(), [0]);
    }
}

#[test]
fn cursors_at_the_end_of_their_range_break_nothing() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.primary_says(Message::Released { next_output: OutputId(u64::MAX) });
    pair.replay();
    pair.backup_says(Message::Consumed { consumed: LogSeq(u64::MAX), count: InstructionCount(u64::MAX) });
    assert!(pair.primary.is_protected());
    pair.primary_lost();
    assert_eq!(pair.tail(), [0_u64; 0]);
}
