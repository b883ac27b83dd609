//! The stream's two ends against each other.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{entries, seed};
use logchannel::codec::CodecError;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::frame::{FRAME_HEADER_BYTES, FrameDecoder};
use logchannel::message::{BATCH_BYTES_MAX, EntryBatch, Message};
use logchannel::stream::{ChannelError, LogReceiver, LogSender};
use std::collections::VecDeque;

fn batches(frames: &[u8]) -> Vec<EntryBatch> {
    let mut decoder = FrameDecoder::new();
    decoder.push(frames);
    let mut batches = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        let message = Message::decode(frame).unwrap();
        let Message::Entries(batch) = message else {
            panic!("{message:?} among entries");
        };
        batches.push(batch);
    }
    batches
}

/// Sends `entries` in frames of `group` entries each.
fn sent_in_groups(sender: &mut LogSender, entries: &[LogEntry], group: usize) -> Vec<EntryBatch> {
    let mut frames = Vec::new();
    for group in entries.chunks(group) {
        for entry in group {
            sender.append(entry);
        }
        while sender.take_frame(&mut frames) {}
    }
    batches(&frames)
}

#[test]
fn what_is_sent_is_received_in_order() {
    let seed = seed(5);
    let written = entries(seed, 3000);
    for group in [1, 7, 3000] {
        let first = LogSeq(41);
        let mut sender = LogSender::new(first);
        let mut receiver = LogReceiver::new(first);
        let mut received = VecDeque::new();
        for batch in sent_in_groups(&mut sender, &written, group) {
            assert!(batch.bytes.len() <= BATCH_BYTES_MAX);
            let cursor = receiver.receive(&batch, &mut received).unwrap();
            sender.acknowledge(cursor).unwrap();
            assert_eq!(sender.acked(), cursor);
        }
        assert_eq!(received, written);
        assert_eq!((sender.appended(), sender.sent(), sender.acked()), (LogSeq(3041), LogSeq(3041), LogSeq(3041)));
    }
}

#[test]
fn cursors_tell_appended_from_sent_from_acknowledged() {
    let mut sender = LogSender::new(LogSeq(0));
    let mut frames = Vec::new();
    assert!(!sender.take_frame(&mut frames), "nothing waits");
    let written = entries(6, 3);
    assert_eq!(sender.append(&written[0]), LogSeq(0));
    assert_eq!(sender.append(&written[1]), LogSeq(1));
    let pending = sender.pending_bytes();
    assert!(pending > 0);
    assert!(sender.take_frame(&mut frames));
    assert_eq!(frames.len(), FRAME_HEADER_BYTES + 1 + pending);
    assert_eq!(sender.pending_bytes(), 0);
    sender.append(&written[2]);
    assert_eq!((sender.appended(), sender.sent(), sender.acked()), (LogSeq(3), LogSeq(2), LogSeq(0)));

    let ahead = ChannelError::AckAhead { received: LogSeq(3), sent: LogSeq(2) };
    assert_eq!(sender.acknowledge(LogSeq(3)), Err(ahead), "entry 2 was never sent");
    sender.acknowledge(LogSeq(1)).unwrap();
    sender.acknowledge(LogSeq(1)).unwrap();
    let backwards = ChannelError::AckBackwards { received: LogSeq(0), acked: LogSeq(1) };
    assert_eq!(sender.acknowledge(LogSeq(0)), Err(backwards));
    assert_eq!(sender.acked(), LogSeq(1));
}

#[test]
fn a_batch_that_is_not_the_next_is_named() {
    let written = entries(8, 30);
    let batches = sent_in_groups(&mut LogSender::new(LogSeq(0)), &written, 10);
    let mut receiver = LogReceiver::new(LogSeq(0));
    let mut received = VecDeque::new();
    let gap = ChannelError::Gap { expected: LogSeq(0), found: LogSeq(10) };
    assert_eq!(receiver.receive(&batches[1], &mut received), Err(gap));
    assert_eq!(receiver.receive(&batches[0], &mut received), Ok(LogSeq(10)));
    let overlap = ChannelError::Overlap { expected: LogSeq(10), found: LogSeq(0) };
    assert_eq!(receiver.receive(&batches[0], &mut received), Err(overlap));
    assert_eq!(receiver.receive(&batches[1], &mut received), Ok(LogSeq(20)));
    assert_eq!(receiver.receive(&batches[2], &mut received), Ok(LogSeq(30)));
    assert_eq!(received, written);
}

#[test]
fn a_bad_batch_changes_nothing() {
    let written = entries(9, 30);
    let batches = sent_in_groups(&mut LogSender::new(LogSeq(0)), &written, 15);
    let mut receiver = LogReceiver::new(LogSeq(0));
    let mut received = VecDeque::new();
    receiver.receive(&batches[0], &mut received).unwrap();

    let mut cut = batches[1].clone();
    cut.bytes.pop();
    let error = receiver.receive(&cut, &mut received).unwrap_err();
    assert_eq!(error, ChannelError::BadEntry { seq: LogSeq(29), source: CodecError::Truncated });
    let empty = EntryBatch { first_seq: LogSeq(15), bytes: Vec::new() };
    assert_eq!(receiver.receive(&empty, &mut received), Err(ChannelError::EmptyBatch { at: LogSeq(15) }));
    assert_eq!((received.len(), receiver.received()), (15, LogSeq(15)));

    assert_eq!(receiver.receive(&batches[1], &mut received), Ok(LogSeq(30)), "the decoder had not moved");
    assert_eq!(received, written);
}

#[test]
fn sequence_numbers_do_not_wrap() {
    let batch = sent_in_groups(&mut LogSender::new(LogSeq(0)), &entries(10, 2), 2).remove(0);
    let batch = EntryBatch { first_seq: LogSeq(u64::MAX - 1), ..batch };
    let mut receiver = LogReceiver::new(LogSeq(u64::MAX - 1));
    let mut received = VecDeque::new();
    assert_eq!(receiver.receive(&batch, &mut received), Err(ChannelError::SeqOverflow));
    assert!(received.is_empty());
}
