//! Logs of every format version so far still read, to the entry.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::header;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{Ending, LogHead, LogStart, LogWriter, SnapshotWriter};
use logchannel::session::SessionHeader;
use logchannel::snapshot::{Pages, Snapshot, UnsentOutput};
use std::path::Path;
use vm::{
    BehaviourVersion, BootMode, Event, FirstTrap, HaltReason, InstructionCount, Lack, OutputId, OutputOperation,
    PAGE_BYTES, StateDigest, StopReason,
};

const VERSION_1: &[u8] = include_bytes!("../testdata/version-1.ftlog.bin");
const VERSION_2_IMAGE: &[u8] = include_bytes!("../testdata/version-2-image.ftlog.bin");
const VERSION_2_SNAPSHOT: &[u8] = include_bytes!("../testdata/version-2-snapshot.ftlog.bin");
const VERSION_3_IMAGE: &[u8] = include_bytes!("../testdata/version-3-image.ftlog.bin");
const VERSION_3_SNAPSHOT: &[u8] = include_bytes!("../testdata/version-3-snapshot.ftlog.bin");
const VERSION_4_IMAGE: &[u8] = include_bytes!("../testdata/version-4-image.ftlog.bin");
const VERSION_4_SNAPSHOT: &[u8] = include_bytes!("../testdata/version-4-snapshot.ftlog.bin");

const IMAGE: &[u8] = b"\x13\x00\x00\x00";

/// One entry of each kind, and of each encoding.
fn entries() -> Vec<LogEntry> {
    let stops = [
        StopReason::Halt(HaltReason::DoubleTrap { pc: 0x8000_0000, cause: 12, first: None }),
        StopReason::Halt(HaltReason::BadDescriptorRing { queue: 1, descriptor: 300 }),
        StopReason::Reboot,
        StopReason::PowerOff { code: 0 },
    ];
    let mut bodies = vec![
        EntryBody::Generation(Generation(3)),
        EntryBody::Event(Event::ClockRead { ticks: 100_000 }),
        EntryBody::Event(Event::Entropy { bits: 0xbeef }),
        EntryBody::Event(Event::TimerInterrupt),
        EntryBody::Event(Event::Packet { number: 1, packet: b"a frame".to_vec() }),
        EntryBody::Event(Event::Packet { number: 1000, packet: b"another".to_vec() }),
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

/// One page, and one that comes again.
fn pages() -> Vec<Pages> {
    let page = |byte| vec![byte; PAGE_BYTES];
    vec![
        Pages { first: 7, bytes: page(0xa5) },
        Pages { first: 300, bytes: page(1) },
        Pages { first: 7, bytes: page(0) },
    ]
}

fn unsent() -> Vec<UnsentOutput> {
    vec![
        UnsentOutput { id: OutputId(3), operation: OutputOperation::Packet(b"a frame".to_vec()) },
        UnsentOutput { id: OutputId(200), operation: OutputOperation::Console(b"hello\n".to_vec()) },
    ]
}

fn snapshot() -> Snapshot {
    let digest = StateDigest(0xffee_ddcc_bbaa_9988_7766_5544_3322_1100);
    Snapshot { seq: LogSeq(1_000_000), digest, state: b"registers and devices".to_vec() }
}

/// Every entry of a log, which must end in order, behind its start.
fn read(bytes: &[u8]) -> (SessionHeader, Vec<Pages>, LogStart, Vec<LogEntry>) {
    let mut head = LogHead::read(bytes).unwrap();
    let mut pages = Vec::new();
    while let Some(piece) = head.next_pages().unwrap() {
        pages.push(piece);
    }
    let (start, mut log) = head.into_log().unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = log.next_entry().unwrap() {
        entries.push(entry);
    }
    assert_eq!(log.ending(), Some(&Ending::Finished));
    (log.header().clone(), pages, start, entries)
}

#[test]
fn version_1_still_reads() {
    assert_eq!(read(VERSION_1), (header_of(0), Vec::new(), LogStart::Image(IMAGE.to_vec()), entries()));
}

#[test]
fn version_2_from_an_image_still_reads() {
    assert_eq!(read(VERSION_2_IMAGE), (header_of(0), Vec::new(), LogStart::Image(IMAGE.to_vec()), entries()));
}

#[test]
fn version_2_from_a_snapshot_still_reads() {
    let start = LogStart::Snapshot { snapshot: snapshot(), unsent: unsent() };
    assert_eq!(read(VERSION_2_SNAPSHOT), (header_of(0), pages(), start, entries()));
}

/// And what version 3 added.
fn entries_3() -> Vec<LogEntry> {
    let mut entries = entries();
    let body = EntryBody::Stopped(StopReason::Halt(HaltReason::BadDiskRing { descriptor: 300 }));
    entries.push(LogEntry { count: InstructionCount(6_000_000_000), body });
    entries
}

/// And what version 4 added.
fn entries_4() -> Vec<LogEntry> {
    let mut entries = entries_3();
    let traps = [(0x7c0 << 20 | 0x0000_1073, Some(Lack::Csr(0x7c0))), (0, Some(Lack::Address)), (0x13, None)];
    let reasons = traps.map(|(instruction, lacks)| {
        let first = FirstTrap { cause: 2, epc: 0x8000_0010, tval: u64::MAX, instruction, lacks };
        HaltReason::DoubleTrap { pc: 4, cause: 1, first: Some(first) }
    });
    let bodies = reasons.map(|reason| EntryBody::Stopped(StopReason::Halt(reason)));
    entries.extend(bodies.map(|body| LogEntry { count: InstructionCount(7_000_000_000), body }));
    let events = [
        Event::WallClock { ns: 1_795_914_123_456_789_012 },
        Event::Alarm,
        Event::WallClock { ns: 1_795_914_124_000_000_000 },
        Event::RandomBytes { bytes: b"at random".to_vec() },
    ];
    let bodies = events.map(EntryBody::Event);
    entries.extend(bodies.map(|body| LogEntry { count: InstructionCount(8_000_000_000), body }));
    entries
}

/// The session of a log whose version says which behaviour its machine has.
fn header_of(behaviour: u32) -> SessionHeader {
    SessionHeader { behaviour: BehaviourVersion(behaviour), ..header(IMAGE) }
}

/// As of version 3, the machine of a log may have nobody there before its image.
fn bare_header_of(behaviour: u32) -> SessionHeader {
    let mut header = header_of(behaviour);
    header.config.boot = BootMode::Bare;
    header.config.disk_bytes = 300 << 20;
    header
}

#[test]
fn version_3_from_an_image_still_reads() {
    assert_eq!(read(VERSION_3_IMAGE), (bare_header_of(1), Vec::new(), LogStart::Image(IMAGE.to_vec()), entries_3()));
}

#[test]
fn version_3_from_a_snapshot_still_reads() {
    let start = LogStart::Snapshot { snapshot: snapshot(), unsent: unsent() };
    assert_eq!(read(VERSION_3_SNAPSHOT), (header_of(1), pages(), start, entries_3()));
}

/// The behaviour of the machine of the golden logs of version 4, which needn't be that of this
/// build.
const BEHAVIOUR_4: u32 = 2;

#[test]
fn version_4_from_an_image_reads() {
    assert_eq!(
        read(VERSION_4_IMAGE),
        (bare_header_of(BEHAVIOUR_4), Vec::new(), LogStart::Image(IMAGE.to_vec()), entries_4())
    );
}

#[test]
fn version_4_from_a_snapshot_reads() {
    let start = LogStart::Snapshot { snapshot: snapshot(), unsent: unsent() };
    assert_eq!(read(VERSION_4_SNAPSHOT), (header_of(BEHAVIOUR_4), pages(), start, entries_4()));
}

#[test]
fn logs_tell_their_versions() {
    let logs = [
        VERSION_1,
        VERSION_2_IMAGE,
        VERSION_2_SNAPSHOT,
        VERSION_3_IMAGE,
        VERSION_3_SNAPSHOT,
        VERSION_4_IMAGE,
        VERSION_4_SNAPSHOT,
    ];
    assert_eq!(logs.map(|log| LogHead::read(log).unwrap().version()), [1, 2, 2, 3, 3, 4, 4]);
}

/// A change of the bytes is a change of the format: it needs a new version and new golden logs.
/// `FT_GOLDEN_OUT=testdata cargo test -p logchannel --test golden` writes the logs of this build
/// there.
#[test]
fn this_build_writes_version_4() {
    let mut from_image = LogWriter::create(Vec::new(), &bare_header_of(BEHAVIOUR_4), IMAGE).unwrap();
    let mut snapshot_writer = SnapshotWriter::create(Vec::new(), &header_of(BEHAVIOUR_4)).unwrap();
    for piece in pages() {
        snapshot_writer.pages(piece.first, &piece.bytes).unwrap();
    }
    for output in unsent() {
        snapshot_writer.unsent(output.id, &output.operation).unwrap();
    }
    let mut from_snapshot = snapshot_writer.finish(&snapshot()).unwrap();
    for entry in entries_4() {
        from_image.append(&entry).unwrap();
        from_snapshot.append(&entry).unwrap();
    }
    let logs = [from_image.finish().unwrap(), from_snapshot.finish().unwrap()];
    if let Some(directory) = std::env::var_os("FT_GOLDEN_OUT") {
        let directory = Path::new(&directory);
        std::fs::write(directory.join("version-4-image.ftlog.bin"), &logs[0]).unwrap();
        std::fs::write(directory.join("version-4-snapshot.ftlog.bin"), &logs[1]).unwrap();
    }
    assert!(logs[0] == VERSION_4_IMAGE, "the format has changed without a new version");
    assert!(logs[1] == VERSION_4_SNAPSHOT, "the format has changed without a new version");
}
