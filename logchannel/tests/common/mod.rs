//! Seeded entries and a session for them.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{LogWriter, SnapshotWriter};
use logchannel::session::{SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot, UnsentOutput};
use vm::{
    Event, HaltReason, InstructionCount, MachineConfig, OutputId, OutputOperation, PAGE_BYTES, PageRange, StateDigest,
    StopReason,
};

/// The seed of this run: `FT_SEED` if set, else `default`. Printed, so that a failed run tells how
/// to run it again.
pub(crate) fn seed(default: u64) -> u64 {
    let seed = std::env::var("FT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    println!("seed {seed}; again with FT_SEED={seed} cargo test -p logchannel");
    seed
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Small numbers mostly, and now and then a large one.
    pub(crate) fn delta(&mut self) -> u64 {
        let bits = self.below(40);
        self.next() & ((1 << bits) - 1)
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Entries as an execution makes them: counts and clock never go back, packet numbers and output
/// ids go forward.
pub(crate) struct Entries {
    random: Random,
    count: u64,
    ticks: u64,
    wall_ns: u64,
    packet: u64,
    output: u64,
}

impl Entries {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed), count: 0, ticks: 0, wall_ns: 0, packet: 0, output: 0 }
    }

    fn body(&mut self) -> EntryBody {
        match self.random.below(17) {
            0 | 1 => {
                self.ticks += self.random.delta();
                EntryBody::Event(Event::ClockRead { ticks: self.ticks })
            }
            2 => EntryBody::Event(Event::Entropy { bits: self.random.next().to_le_bytes()[0].into() }),
            3 => EntryBody::Event(Event::TimerInterrupt),
            4 | 5 => {
                self.packet += 1 + if self.random.below(4) == 0 { self.random.delta() } else { 0 };
                let length = self.random.below(1515);
                EntryBody::Event(Event::Packet { number: self.packet, packet: self.random.bytes(length) })
            }
            6 => {
                let length = self.random.below(300);
                EntryBody::Event(Event::ConsoleInput { bytes: self.random.bytes(length) })
            }
            7 | 8 => {
                self.output += if self.random.below(4) == 0 { self.random.delta() } else { 0 };
                let id = OutputId(self.output);
                self.output += 1;
                EntryBody::Output { id, digest: self.random.next() }
            }
            9 => EntryBody::Digest(StateDigest(u128::from(self.random.next()) << 64 | u128::from(self.random.next()))),
            12 => EntryBody::PartDigest {
                pages: PageRange { first: self.random.delta(), end: u64::MAX - self.random.delta() },
                digest: StateDigest(u128::from(self.random.next())),
            },
            13 => {
                self.wall_ns += self.random.delta();
                EntryBody::Event(Event::WallClock { ns: self.wall_ns })
            }
            14 => EntryBody::Event(Event::Alarm),
            15 => {
                let length = self.random.below(257);
                EntryBody::Event(Event::RandomBytes { bytes: self.random.bytes(length) })
            }
            10 => EntryBody::Generation(Generation(self.random.delta())),
            11 => EntryBody::Stopped(self.stop()),
            _ => EntryBody::Progress,
        }
    }

    fn stop(&mut self) -> StopReason {
        match self.random.below(5) {
            0 => StopReason::PowerOff { code: 7 },
            1 => StopReason::Reboot,
            2 => StopReason::Halt(HaltReason::DoubleTrap { pc: self.random.next(), cause: 12, first: None }),
            3 => StopReason::Halt(HaltReason::BadDiskRing { descriptor: u16::MAX }),
            _ => StopReason::Halt(HaltReason::BadDescriptorRing { queue: 1, descriptor: 255 }),
        }
    }
}

impl Iterator for Entries {
    type Item = LogEntry;

    fn next(&mut self) -> Option<LogEntry> {
        self.count += self.random.delta();
        Some(LogEntry { count: InstructionCount(self.count), body: self.body() })
    }
}

pub(crate) fn entries(seed: u64, number: usize) -> Vec<LogEntry> {
    Entries::new(seed).take(number).collect()
}

pub(crate) fn header(image: &[u8]) -> SessionHeader {
    let config = MachineConfig { bootargs: "peers=2".into(), rng_seed: [9; 32], ..MachineConfig::default() };
    SessionHeader::new(VmId::new("alpha").unwrap(), Generation(3), config, "echo", image).unwrap()
}

/// A whole log.
pub(crate) fn log(image: &[u8], entries: &[LogEntry]) -> Vec<u8> {
    let mut writer = LogWriter::create(Vec::new(), &header(image), image).unwrap();
    for entry in entries {
        writer.append(entry).unwrap();
    }
    writer.finish().unwrap()
}

/// What a log may begin with instead of an image.
pub(crate) struct Parts {
    pub(crate) pages: Vec<Pages>,
    pub(crate) unsent: Vec<UnsentOutput>,
    pub(crate) snapshot: Snapshot,
}

/// A snapshot of a few pages and outputs, whose log goes on at `seq`.
pub(crate) fn parts(seed: u64, seq: LogSeq) -> Parts {
    let mut random = Random(seed);
    let mut pages = |first, count| Pages { first, bytes: random.bytes(count * PAGE_BYTES as u64) };
    let pages = vec![pages(0, 2), pages(1000, 1), pages(1, 1)];
    let unsent = vec![
        UnsentOutput { id: OutputId(5), operation: OutputOperation::Packet(random.bytes(60)) },
        UnsentOutput { id: OutputId(6), operation: OutputOperation::Console(random.bytes(10)) },
        UnsentOutput { id: OutputId(9), operation: OutputOperation::Packet(random.bytes(1514)) },
    ];
    let snapshot = Snapshot { seq, digest: StateDigest(u128::from(random.next())), state: random.bytes(300) };
    Parts { pages, unsent, snapshot }
}

/// A whole log that begins with a snapshot.
pub(crate) fn log_from_snapshot(parts: &Parts, entries: &[LogEntry]) -> Vec<u8> {
    let mut writer = SnapshotWriter::create(Vec::new(), &header(b"image")).unwrap();
    for pages in &parts.pages {
        writer.pages(pages.first, &pages.bytes).unwrap();
    }
    for output in &parts.unsent {
        writer.unsent(output.id, &output.operation).unwrap();
    }
    let mut writer = writer.finish(&parts.snapshot).unwrap();
    for entry in entries {
        writer.append(entry).unwrap();
    }
    writer.finish().unwrap()
}
