//! Logs of every format version so far still read, to the entry.

mod common;

use common::header;
use logchannel::entry::{EntryBody, Generation, LogEntry};
use logchannel::file::{Ending, LogReader, LogWriter};
use vm::{Event, HaltReason, InstructionCount, OutputId, StateDigest, StopReason};

const VERSION_1: &[u8] = include_bytes!("../testdata/version-1.ftlog.bin");

const IMAGE: &[u8] = b"\x13\x00\x00\x00";

/// One entry of each kind, and of each encoding.
fn entries() -> Vec<LogEntry> {
    let stops = [
        StopReason::Halt(HaltReason::DoubleTrap { pc: 0x8000_0000, cause: 12 }),
        StopReason::Halt(HaltReason::BadDescriptorRing { queue: 1, descriptor: 300 }),
        StopReason::Reboot,
        StopReason::PowerOff { code: 0 },
    ];
    let mut bodies = vec![
        EntryBody::Generation(Generation(3)),
        EntryBody::Event(Event::ClockRead { ticks: 100_000 }),
        EntryBody::Event(Event::Entropy { bits: 0xbeef }),
        EntryBody::Event(Event::TimerInterrupt),
        EntryBody::Event(Event::Packet { number: 1, frame: b"a frame".to_vec() }),
        EntryBody::Event(Event::Packet { number: 1000, frame: b"another".to_vec() }),
        EntryBody::Event(Event::ConsoleInput { bytes: b"ls\n".to_vec() }),
        EntryBody::Output { id: OutputId(0), digest: 0x0123_4567_89ab_cdef },
        EntryBody::Output { id: OutputId(7), digest: u64::MAX },
        EntryBody::Progress,
        EntryBody::Digest(StateDigest(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
    ];
    bodies.extend(stops.map(EntryBody::Stopped));
    let counts = [0, 100, 100, 20_000, 3_000_000, 3_000_000, 5_000_000_000].into_iter().chain(5_000_000_001..);
    counts.zip(bodies).map(|(count, body)| LogEntry { count: InstructionCount(count), body }).collect()
}

#[test]
fn version_1_still_reads() {
    let mut reader = LogReader::open(VERSION_1).unwrap();
    assert_eq!(reader.header(), &header(IMAGE));
    assert_eq!(reader.image(), IMAGE);
    for entry in entries() {
        assert_eq!(reader.next_entry().unwrap(), Some(entry));
    }
    assert_eq!(reader.next_entry().unwrap(), None);
    assert_eq!(reader.ending(), Some(&Ending::Finished));
}

/// A change of the bytes is a change of the format: it needs a new version and a new golden log.
/// `FT_GOLDEN_OUT=FILE` writes the log of this build there.
#[test]
fn this_build_writes_version_1() {
    let mut writer = LogWriter::create(Vec::new(), &header(IMAGE), IMAGE).unwrap();
    for entry in entries() {
        writer.append(&entry).unwrap();
    }
    let bytes = writer.finish().unwrap();
    if let Some(path) = std::env::var_os("FT_GOLDEN_OUT") {
        std::fs::write(path, &bytes).unwrap();
    }
    assert!(bytes == VERSION_1, "the format has changed without a new version");
}
