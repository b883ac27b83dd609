//! The Output Rule, and the cursors that follow from it. Source: Scales et al. 2010, §2.2.

use crate::pair::Pair;
use crate::world::{G, MS};
use ft::output_gate::GATE_BYTES_MAX;
use ft::role::DiskLogState;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::message::{Left, Message};
use vm::{InstructionCount, OutputId, OutputOperation};

#[test]
fn nothing_leaves_before_its_entry_is_acknowledged_and_the_guest_runs_on() {
    let mut pair = Pair::protected();
    for _ in 0..100 {
        pair.output();
        assert!(pair.primary.may_run());
    }
    pair.deliver_to_backup();
    assert_eq!(pair.out, [0_u64; 0], "the acknowledgements are still under way");
    pair.deliver_to_primary();
    assert_eq!(pair.out, (0..100).collect::<Vec<_>>(), "in order, each once");
}

#[test]
fn an_acknowledgement_releases_exactly_the_outputs_of_the_entries_below_it() {
    let mut pair = Pair::protected();
    for _ in 0..4 {
        pair.output();
    }
    pair.backup_says(Message::Ack { received: LogSeq(0) });
    assert_eq!(pair.out, [0_u64; 0]);
    pair.backup_says(Message::Ack { received: LogSeq(2) });
    assert_eq!(pair.out, [0, 1], "entry 2 itself is not below the cursor 2");
    pair.backup_says(Message::Ack { received: LogSeq(2) });
    assert_eq!(pair.out, [0, 1], "the same acknowledgement again releases nothing");
    pair.backup_says(Message::Ack { received: LogSeq(4) });
    assert_eq!(pair.out, [0, 1, 2, 3]);
}

#[test]
fn the_acknowledgement_does_not_wait_for_replay() {
    let mut pair = Pair::protected();
    let id = pair.output();
    pair.exchange();
    assert_eq!(pair.out, [id.0]);
    assert_eq!(pair.backup.cursors(), (LogSeq(1), LogSeq(0)), "received, but not consumed");
}

#[test]
fn outputs_are_held_before_the_backup_is_told_that_it_may_claim() {
    let mut pair = Pair::new();
    pair.connect();
    pair.copy();
    pair.deliver_to_backup();
    pair.restore();
    assert!(!pair.primary.may_run(), "nothing can come out before the pair is complete");
    pair.deliver_to_primary();
    // The primary has sent `Protected`; it hasn't arrived.
    assert!(pair.primary.is_protected() && pair.to_backup.len() > 0);
    assert!(pair.backup_actions.is_empty());
    pair.output();
    assert_eq!(pair.out, [0_u64; 0], "held already");
    pair.exchange();
    assert_eq!(pair.out, [0]);
}

#[test]
fn a_primary_without_backup_sends_at_once() {
    let mut pair = Pair::alone();
    pair.output();
    assert_eq!(pair.out, [0]);
}

#[test]
fn a_full_gate_stops_the_guest_until_its_outputs_leave() {
    for protected in [false, true] {
        let mut pair = if protected { Pair::protected() } else { Pair::alone() };
        let big = 16 << 20;
        for seq in 0..(GATE_BYTES_MAX / big) as u64 {
            assert!(pair.primary.may_run());
            let entry =
                LogEntry { count: InstructionCount(seq), body: EntryBody::Output { id: OutputId(seq), digest: 0 } };
            pair.primary.handle_entry(
                pair.now_ns,
                &entry,
                Some((OutputId(seq), OutputOperation::Packet(vec![0; big]))),
            );
        }
        assert!(!pair.primary.may_run(), "protected: {protected}");
        if protected {
            pair.primary.handle_flush(pair.now_ns);
            pair.primary.handle_message(pair.now_ns, Message::Ack { received: LogSeq(1) });
        }
        assert!(!pair.primary.may_run(), "released outputs that the host hasn't taken count too");
        assert_eq!(pair.primary.poll_released().map(|released| released.id), Some(OutputId(0)));
        assert!(pair.primary.may_run());
    }
}

#[test]
fn a_log_that_the_channel_does_not_take_stops_the_guest() {
    let mut pair = Pair::protected();
    let mut appended = 0_u64;
    // No bytes are sent: the socket is full.
    while pair.primary.may_run() {
        let body = EntryBody::Event(vm::Event::Packet { number: appended + 1, packet: vec![7; 1500] });
        pair.primary.handle_entry(pair.now_ns, &LogEntry { count: InstructionCount(appended), body }, None);
        appended += 1;
        assert!(appended < 100_000, "150 MB of log are waiting in memory");
    }
    let mut bytes = Vec::new();
    pair.primary.poll_outgoing(&mut bytes);
    assert!(pair.primary.may_run());
}

#[test]
fn the_backup_keeps_the_outputs_that_the_primary_has_not_sent_and_no_others() {
    let mut pair = Pair::protected();
    for _ in 0..4 {
        pair.output();
    }
    pair.deliver_to_backup();
    pair.replay();
    pair.primary_says(Message::Released(Left::all_below(OutputId(2))));
    pair.primary_lost();
    assert_eq!(pair.unsent(), [2, 3]);
}

#[test]
fn outputs_that_were_sent_before_the_backup_replays_them_are_not_sent_again() {
    let mut pair = Pair::protected();
    for _ in 0..4 {
        pair.output();
    }
    pair.deliver_to_backup();
    // The primary's message arrives while replay lags behind.
    pair.primary_says(Message::Released(Left::all_below(OutputId(3))));
    pair.replay();
    pair.primary_lost();
    assert_eq!(pair.unsent(), [3]);
}

#[test]
fn an_output_counts_as_sent_only_when_it_has_left_the_host() {
    let mut pair = Pair::protected();
    pair.output();
    pair.deliver_to_backup();
    pair.replay();
    // The acknowledgement arrives. The host takes the output to send it, and blocks in that.
    for message in pair.to_primary.deliver(usize::MAX) {
        pair.primary.handle_message(pair.now_ns, message);
    }
    assert_eq!(pair.primary.poll_released().map(|released| released.id), Some(OutputId(0)));
    for _ in 0..10 {
        pair.pass(50 * MS);
        pair.exchange();
    }
    pair.primary_lost();
    assert_eq!(pair.unsent(), [0], "the successor sends what may be lost");
}

#[test]
fn a_busy_primary_tells_what_has_left_too() {
    let mut pair = Pair::protected();
    for _ in 0..1000 {
        pair.output();
        pair.exchange();
        pair.replay();
        pair.pass(5 * MS);
    }
    pair.exchange();
    let kept = pair.unsent().len();
    assert!(kept <= 20, "{kept} outputs kept, though the last 50 ms had 10");
    assert_eq!(pair.out.len(), 1000);
}

#[test]
fn the_pair_is_of_the_generation_in_the_session() {
    let pair = Pair::protected();
    assert_eq!(pair.primary.generation(), G);
}

/// Outputs wait for a log on disk as for a second backup.
#[test]
fn outputs_wait_for_the_log_on_disk_too_if_one_is_kept() {
    let mut pair = Pair::protected();
    let next = pair.primary.appended();
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(next));
    pair.output();
    pair.output();
    pair.exchange();
    assert_eq!(pair.out, [0_u64; 0], "the backup has them, the disk has not");
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(next.next()));
    pair.collect();
    assert_eq!(pair.out, [0], "what the disk has, the backup has too");
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(LogSeq(next.0 + 100)));
    pair.output();
    pair.collect();
    assert_eq!(pair.out, [0, 1], "the disk alone is not enough");
    pair.exchange();
    assert_eq!(pair.out, [0, 1, 2]);
}

#[test]
fn a_primary_alone_waits_for_the_log_on_disk_until_none_is_kept_any_more() {
    let mut pair = Pair::alone();
    let next = pair.primary.appended();
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(next));
    pair.output();
    pair.output();
    assert_eq!(pair.out, [0_u64; 0]);
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(next.next()));
    pair.collect();
    assert_eq!(pair.out, [0]);
    // The disk has failed: the VM goes on without its log.
    pair.primary.handle_disk_log(0, DiskLogState::Failed);
    pair.collect();
    assert_eq!(pair.out, [0, 1]);
}
