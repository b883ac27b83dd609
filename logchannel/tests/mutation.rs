//! Valid streams, batches and logs with a few bytes changed, and with their checksums put right
//! again: what pure noise never comes to. Decoders refuse or understand, never panic, and take no
//! second encoding for a value.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Random, entries, header, log, log_from_snapshot, parts, seed};
use logchannel::codec::EntryEncoder;
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::file::{LogFileError, LogReader};
use logchannel::frame::{FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameError, FrameKind, append_frame};
use logchannel::message::{EntryBatch, Left, Message};
use logchannel::session::{NodeId, VmId};
use logchannel::stream::{LogReceiver, LogSender};
use std::collections::VecDeque;
use vm::{InstructionCount, OutputId};

/// Changes a few bytes: values that mean something to one of the decoders, and lengths.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
        let rest = bytes.len() - at;
        match random.below(7) {
            0 if rest > 0 => bytes[at] ^= 1 << random.below(8),
            1 if rest > 0 => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 250, 251, 252, 253][usize::try_from(random.below(9)).unwrap()];
            }
            2 if rest > 0 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.next().to_le_bytes()[0]),
            // The greatest varint, and bincode's longer forms of a short number.
            4 => drop(bytes.splice(at..at, [[0xff; 9].as_slice(), &[1]].concat())),
            5 if rest > 0 => {
                let value = bytes[at];
                let longer = match random.below(3) {
                    0 => vec![251, value, 0],
                    1 => vec![252, value, 0, 0, 0],
                    _ => vec![253, value, 0, 0, 0, 0, 0, 0, 0],
                };
                drop(bytes.splice(at..=at, longer));
            }
            _ => bytes.truncate(at),
        }
    }
}

/// A number at one end of the range or the other.
fn far(random: &mut Random) -> u64 {
    if random.below(2) == 0 { random.delta() } else { u64::MAX - random.below(3) }
}

fn messages(random: &mut Random) -> Vec<Message> {
    let mut messages = vec![
        Message::Session { header: header(b"image"), owner: NodeId(u128::from(random.next())) },
        Message::AskOwner { vm: VmId::new("alpha").unwrap() },
        Message::Owner { node: NodeId(u128::from(random.next())), generation: Generation(far(random)) },
        Message::Join { vm: VmId::new("alpha").unwrap(), node: NodeId(u128::from(random.next())) },
        Message::Accepted,
        Message::Refused { reason: "not you".into() },
        Message::Ack { received: LogSeq(far(random)) },
        Message::Consumed { consumed: LogSeq(far(random)), count: InstructionCount(far(random)) },
        Message::Protected { generation: Generation(far(random)) },
        Message::Released(Left { packets: OutputId(far(random)), console: OutputId(far(random)) }),
        Message::Storing,
        Message::Heartbeat,
        Message::Clock { ticks: far(random), runs: false },
        Message::Goodbye { reason: "done".into() },
    ];
    let mut bytes = Vec::new();
    let mut encoder = EntryEncoder::new();
    entries(random.next(), 5).iter().for_each(|entry| encoder.encode(entry, &mut bytes));
    messages.push(Message::Entries(EntryBatch { first_seq: LogSeq(far(random)), bytes }));
    let parts = parts(random.next(), LogSeq(far(random)));
    messages.extend(parts.unsent.into_iter().map(Message::UnsentOutput));
    messages.push(Message::Snapshot(parts.snapshot));
    messages
}

#[test]
fn a_changed_message_is_refused_or_is_the_one_encoding_of_what_it_says() {
    let mut random = Random(seed(40));
    let mut understood = 0;
    for _ in 0..3000 {
        for message in messages(&mut random) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let (kind, mut body) = (bytes[8], bytes.split_off(FRAME_HEADER_BYTES));
            mutate(&mut random, &mut body);
            if let Ok(decoded) = Message::decode(Frame { kind: FrameKind(kind), body: &body }) {
                let mut again = Vec::new();
                decoded.encode(&mut again);
                assert!(again[FRAME_HEADER_BYTES..] == body, "{decoded:?}");
                understood += 1;
            }
        }
    }
    assert!(understood > 1000, "{understood} changed messages were understood");
}

#[test]
fn a_changed_batch_moves_nothing_or_is_the_one_encoding_of_its_entries() {
    let mut random = Random(seed(41));
    let mut understood = 0;
    for round in 0..3000 {
        let written = entries(random.next(), 12);
        let mut encoder = EntryEncoder::new();
        let mut bytes = Vec::new();
        written.iter().for_each(|entry| encoder.encode(entry, &mut bytes));
        mutate(&mut random, &mut bytes);
        let first_seq = if round % 10 == 0 { LogSeq(u64::MAX - random.below(14)) } else { LogSeq(random.delta()) };
        let mut receiver = LogReceiver::new(first_seq);
        let mut out = VecDeque::from(vec![written[0].clone()]);
        match receiver.receive(&EntryBatch { first_seq, bytes: bytes.clone() }, &mut out) {
            Ok(received) => {
                out.pop_front();
                assert_eq!(received.0 - first_seq.0, out.len() as u64);
                let (mut encoder, mut again) = (EntryEncoder::new(), Vec::new());
                out.iter().for_each(|entry| encoder.encode(entry, &mut again));
                assert!(again == bytes, "round {round}: {} entries", out.len());
                understood += 1;
            }
            Err(_) => assert_eq!((receiver.received(), out.len()), (first_seq, 1), "a refused batch changes nothing"),
        }
    }
    assert!(understood > 300, "{understood} changed batches were understood");
}

/// Kinds and bodies, the error behind them, and where the decoder stands.
type Read = (Vec<(u8, Vec<u8>)>, Option<FrameError>, u64);

/// All frames of `bytes`, that come in pieces of `piece` bytes, and how it ends.
fn frames(bytes: &[u8], piece: usize) -> Read {
    let mut decoder = FrameDecoder::with_body_limit(1 << 15);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            let due = decoder.missing() == 0;
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push((frame.kind.0, frame.body.to_vec())),
                Ok(None) => {
                    assert!(!due, "nothing was missing, and nothing came");
                    break;
                }
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "the decoder stays where it is");
                    return (frames, Some(error), decoder.offset());
                }
            }
        }
    }
    (frames, None, decoder.offset())
}

#[test]
fn frames_are_the_same_in_pieces_of_any_size_also_when_they_are_damaged() {
    let mut random = Random(seed(42));
    for round in 0..300 {
        let mut sender = LogSender::new(LogSeq(0));
        entries(random.next(), 40).iter().for_each(|entry| _ = sender.append(entry));
        let mut bytes = Vec::new();
        while sender.take_frame(&mut bytes) {}
        messages(&mut random).iter().for_each(|message| message.encode(&mut bytes));
        if round % 3 > 0 {
            mutate(&mut random, &mut bytes);
        }
        let whole = frames(&bytes, bytes.len().max(1));
        let piece = usize::try_from(1 + random.below(100)).unwrap();
        assert_eq!(frames(&bytes, 1), whole);
        assert_eq!(frames(&bytes, piece), whole, "pieces of {piece}");
    }
}

fn read(bytes: &[u8]) -> (Vec<LogEntry>, Option<LogFileError>) {
    let mut reader = match LogReader::open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, None),
            Err(error) => return (entries, Some(error)),
        }
    }
}

#[test]
fn a_changed_log_gives_a_beginning_of_its_entries() {
    let mut random = Random(seed(43));
    for _ in 0..400 {
        let written = entries(random.next(), 100);
        let mut bytes = if random.below(2) == 0 {
            log(b"image", &written)
        } else {
            log_from_snapshot(&parts(random.next(), LogSeq(random.delta())), &written)
        };
        mutate(&mut random, &mut bytes);
        let (read, _) = read(&bytes);
        assert!(written.starts_with(&read), "{} entries that were never written", read.len());
    }
}

#[test]
fn a_log_whose_frames_are_wrong_but_whole_never_panics() {
    const PREAMBLE: usize = 12;
    let mut random = Random(seed(44));
    let mut errors = 0;
    for _ in 0..400 {
        let entries = entries(random.next(), 60);
        let bytes = if random.below(2) == 0 {
            log(b"image", &entries)
        } else {
            log_from_snapshot(&parts(random.next(), LogSeq(random.delta())), &entries)
        };
        let (mut all, _, _) = frames(&bytes[PREAMBLE..], usize::MAX);
        let victim = usize::try_from(random.below(all.len() as u64)).unwrap();
        match random.below(6) {
            0 => drop(all.remove(victim)),
            1 => all.insert(victim, all[victim].clone()),
            2 => all[victim].0 = u8::try_from(random.below(18)).unwrap(),
            _ => mutate(&mut random, &mut all[victim].1),
        }
        let mut forged = bytes[..PREAMBLE].to_vec();
        all.iter().for_each(|(kind, body)| append_frame(FrameKind(*kind), body, &mut forged));
        errors += usize::from(read(&forged).1.is_some());
    }
    assert!(errors > 200, "{errors} errors");
}
