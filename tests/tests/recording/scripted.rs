//! Recordings of each built-in guest, in one process: a seeded script acts as the host, and each
//! log replays to the same outputs, digests and state, from memory, from a file, and from a file
//! that was cut anywhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ft::divergence::entry_name;
use ft::event_source::EventSource;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::replay::{Consumed, Replayer};
use hypervisor::program::guest::Guest;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{Ending, LogFileError, LogReader, LogWriter};
use logchannel::session::{SessionHeader, VmId};
use std::collections::BTreeMap;
use std::convert::Infallible;
use tests::random::{Random, seed};
use vm::{
    Event, InstructionCount, Machine, MachineConfig, OutputId, OutputOperation, StateDigest, StopReason, TIMEBASE_HZ,
};

/// Addresses of the script's host on the guest's LAN.
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const HOST_IP: [u8; 4] = [10, 0, 2, 2];
const GUEST_IP: [u8; 4] = [10, 0, 2, 15];

/// The least memory that the built-in guests need, so that digests are cheap.
pub(super) fn config() -> MachineConfig {
    MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() }
}

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// A host whose clock, network, console and entropy depend on a seed and on the calls only.
struct Script {
    random: Random,
    now_ns: u64,
    packets: u64,
}

impl Script {
    const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), now_ns: 0, packets: 0 }
    }

    /// Advances the clock, to the guest's timer if it has set one.
    fn sleep(&mut self, timer_deadline: Option<u64>) {
        self.now_ns =
            self.now_ns.max(timer_deadline.unwrap_or(0) * NS_PER_TICK) + u64::from(self.random.below(100_000));
    }

    fn packet(&mut self) -> Event {
        self.packets += 1;
        let frame = match self.packets {
            // The guest learns the host's address from the request.
            1 => arp_request(),
            _ if self.random.one_in(4) => (0..14 + self.random.below(1501)).map(|_| self.byte()).collect(),
            _ => {
                let text: Vec<u8> = (0..1 + self.random.below(1000)).map(|_| self.byte()).collect();
                datagram(&text)
            }
        };
        // Numbers increase, but not always by one.
        Event::Packet { number: 3 * self.packets + u64::from(self.random.below(3)), packet: frame }
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.random.below(256)).unwrap()
    }
}

impl EventSource for Script {
    fn now_ns(&mut self) -> u64 {
        self.now_ns += u64::from(self.random.below(200_000));
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.now_ns() / NS_PER_TICK
    }

    fn wall_ns(&mut self) -> u64 {
        self.now_ns()
    }

    fn entropy(&mut self) -> u16 {
        u16::try_from(self.random.below(1 << 16)).unwrap()
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        match self.random.below(8) {
            0 if machine.can_receive_packet() => Some(self.packet()),
            1 if machine.console_room() > 0 => {
                let length = 1 + self.random.index(machine.console_room().min(40));
                Some(Event::ConsoleInput { bytes: (0..length).map(|_| self.byte()).collect() })
            }
            2..=4 if machine.timer_deadline().is_some_and(|deadline| deadline <= self.now_ns / NS_PER_TICK) => {
                Some(Event::TimerInterrupt)
            }
            _ => None,
        }
    }
}

fn arp_request() -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6], &HOST_MAC[..], &[8, 6], &head, &HOST_MAC, &HOST_IP, &[0; 6], &GUEST_IP].concat()
}

/// A datagram to the guest's service, without a checksum, as UDP allows.
fn datagram(text: &[u8]) -> Vec<u8> {
    let udp_bytes = u16::try_from(8 + text.len()).unwrap();
    let udp = [&[0x9c, 0x40, 0, 7], &udp_bytes.to_be_bytes()[..], &[0, 0], text].concat();
    let total = (20 + udp_bytes).to_be_bytes();
    let mut ip = [&[0x45, 0], &total[..], &[0, 1, 0, 0, 64, 17, 0, 0], &HOST_IP, &GUEST_IP].concat();
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&MachineConfig::default().mac, &HOST_MAC[..], &[8, 0], &ip, &udp].concat()
}

/// The entries and outputs of one run, and its last digest.
#[derive(Default)]
pub(super) struct Recording {
    pub(super) entries: Vec<LogEntry>,
    outputs: Vec<(OutputId, OutputOperation)>,
    end: StateDigest,
}

impl LogSink for Recording {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        self.entries.push(entry.clone());
        self.outputs.extend(output);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Recording {
    /// Runs a guest for about `steps` steps, in slices of `slice`.
    pub(super) fn of(image: &[u8], seed: u64, slice: u64, steps: u64) -> Self {
        let mut recording = Self::default();
        let machine = Machine::new(&config(), image).unwrap();
        let intervals = Intervals { digest_steps: steps / 10, digest_ns: 50_000_000, progress_ns: 300_000 };
        let mut recorder = Recorder::new(machine, Script::new(seed), intervals);
        while recorder.machine().instruction_count() < InstructionCount(steps) {
            match recorder.run_slice(&mut recording, slice).unwrap() {
                Slice::Ran => {}
                Slice::Waiting => {
                    let deadline = recorder.machine().timer_deadline();
                    recorder.source_mut().sleep(deadline);
                }
                Slice::Stopped(_) => break,
            }
        }
        recorder.digest(&mut recording).unwrap();
        let EntryBody::Digest(end) = recording.entries.last().unwrap().body else { unreachable!() };
        recording.end = end;
        recording
    }

    fn count(&self, is_kind: impl Fn(&EntryBody) -> bool) -> usize {
        self.entries.iter().filter(|entry| is_kind(&entry.body)).count()
    }

    /// Replays the entries on a new machine and compares all results.
    #[track_caller]
    fn replays(&self, image: &[u8]) {
        let mut replayer = Replayer::new(Machine::new(&config(), image).unwrap(), LogSeq(0));
        let mut outputs = Vec::new();
        for entry in &self.entries {
            match replayer.consume(entry) {
                Ok(Consumed::Output(id, output)) => outputs.push((id, output)),
                Ok(Consumed::Nothing | Consumed::Stopped(_)) => {}
                Err(divergence) => panic!("{divergence}"),
            }
        }
        assert_eq!(outputs, self.outputs);
        assert_eq!(replayer.consumed(), LogSeq(self.entries.len() as u64));
        let digests = self.count(|body| matches!(body, EntryBody::Digest(_) | EntryBody::PartDigest { .. }));
        assert_eq!(replayer.digests_checked(), digests as u64);
        assert_eq!(replayer.machine_mut().digest(), self.end);
    }

    /// The log as the bytes of a file.
    pub(super) fn file(&self, image: &[u8]) -> Vec<u8> {
        let vm = VmId::new("scripted").unwrap();
        let header = SessionHeader::new(vm, Generation(0), config(), "scripted", image).unwrap();
        let mut log = LogWriter::create(Vec::new(), &header, image).unwrap();
        for entry in &self.entries {
            log.append(entry).unwrap();
            // As a recorder does at each output.
            if matches!(entry.body, EntryBody::Output { .. }) {
                log.flush().unwrap();
            }
        }
        log.finish().unwrap()
    }
}

/// All entries of a log, and its ending.
fn read(log: &[u8]) -> Result<(Vec<LogEntry>, Ending), LogFileError> {
    let mut log = LogReader::open(log)?;
    let mut entries = Vec::new();
    while let Some(entry) = log.next_entry()? {
        entries.push(entry);
    }
    let ending = log.ending().cloned().unwrap();
    Ok((entries, ending))
}

#[test]
fn every_guest_replays_whatever_the_slices_were() {
    let seed = seed();
    for guest in ["counter", "echo", "hello", "suite"] {
        let image = Guest::load(guest).unwrap().image;
        for (slice, steps) in [(1, 300_000), (7, 1_000_000), (613, 4_000_000), (5_000, 4_000_000), (100_003, 8_000_000)]
        {
            let recording = Recording::of(&image, seed ^ slice, slice, steps);
            let what = format!(
                "{guest}, {slice} steps a slice: {} entries, {} outputs",
                recording.entries.len(),
                recording.outputs.len()
            );
            println!("{what}");
            recording.replays(&image);
            let (entries, ending) = read(&recording.file(&image)).unwrap();
            assert!(entries == recording.entries, "{what}: the file has other entries");
            assert_eq!(ending, Ending::Finished, "{what}");
        }
    }
}

/// The test above needs this: the script's inputs must reach the guest, and the guest must answer.
#[test]
fn the_script_makes_every_kind_of_entry() {
    let seed = seed();
    let image = Guest::load("echo").unwrap().image;
    let recording = Recording::of(&image, seed, 613, 8_000_000);
    let event =
        |is_kind: fn(&Event) -> bool| recording.count(|body| matches!(body, EntryBody::Event(event) if is_kind(event)));
    let kinds = BTreeMap::from([
        ("clock reads", event(|event| matches!(event, Event::ClockRead { .. }))),
        ("timer interrupts", event(|event| matches!(event, Event::TimerInterrupt))),
        ("packets", event(|event| matches!(event, Event::Packet { .. }))),
        ("console inputs", event(|event| matches!(event, Event::ConsoleInput { .. }))),
        ("outputs", recording.count(|body| matches!(body, EntryBody::Output { .. }))),
        ("progress", recording.count(|body| matches!(body, EntryBody::Progress))),
        ("digests", recording.count(|body| matches!(body, EntryBody::Digest(_) | EntryBody::PartDigest { .. }))),
    ]);
    println!("{kinds:?}");
    assert!(kinds.values().all(|count| *count > 0), "{kinds:?}");
    let echoes = |frame: &[u8]| frame.starts_with(&HOST_MAC) && frame.get(34..36) == Some(&[0, 7]);
    let echoed = recording.outputs.iter().filter(|(_, output)| echoes(output.bytes())).count();
    assert!(echoed > 0, "the guest answered none of {} packets", kinds["packets"]);
}

#[test]
fn the_same_script_gives_the_same_log_and_another_one_another() {
    let seed = seed();
    let image = Guest::load("echo").unwrap().image;
    let [one, again, other] = [seed, seed, !seed].map(|seed| Recording::of(&image, seed, 5_000, 2_000_000));
    assert!(one.entries == again.entries, "the machine is no function of its inputs");
    assert_eq!(one.end, again.end);
    assert!(one.entries != other.entries);
    assert_ne!(one.end, other.end);
}

/// Changes of one entry that a replay can detect at that entry.
fn told_otherwise(entry: &LogEntry) -> Vec<LogEntry> {
    let with = |body| LogEntry { count: entry.count, body };
    match &entry.body {
        EntryBody::Output { id, digest } => vec![
            with(EntryBody::Output { id: *id, digest: digest ^ 1 }),
            with(EntryBody::Output { id: id.next(), digest: *digest }),
            LogEntry { count: entry.count.plus(1), body: entry.body.clone() },
        ],
        EntryBody::Digest(digest) => vec![with(EntryBody::Digest(StateDigest(digest.0 ^ 1)))],
        EntryBody::PartDigest { pages, digest } => {
            let digest = StateDigest(digest.0 ^ 1);
            vec![with(EntryBody::PartDigest { pages: *pages, digest })]
        }
        EntryBody::Stopped(_) => vec![with(EntryBody::Stopped(StopReason::Reboot))],
        EntryBody::Event(_) | EntryBody::Progress | EntryBody::Generation(_) => Vec::new(),
    }
}

/// A log in which a single field is changed must not replay, for each field that replay compares.
#[test]
fn an_entry_that_tells_of_something_else_is_a_divergence_at_its_place() {
    let image = Guest::load("hello").unwrap().image;
    let recording = Recording::of(&image, 1, 613, 1_000_000);
    let mut told = BTreeMap::new();
    for (index, entry) in recording.entries.iter().enumerate() {
        for other in told_otherwise(entry) {
            let mut replayer = Replayer::new(Machine::new(&config(), &image).unwrap(), LogSeq(0));
            recording.entries[..index].iter().for_each(|before| drop(replayer.consume(before).unwrap()));
            match replayer.consume(&other) {
                Ok(consumed) => panic!("entry {index} was {entry:?}, and {other:?} passed as {consumed:?}"),
                Err(divergence) => assert_eq!(divergence.seq, LogSeq(index as u64)),
            }
            *told.entry(entry_name(&entry.body)).or_insert(0) += 1;
        }
    }
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), ["Digest", "Output", "Stopped"], "{told:?}");
}

#[test]
fn a_log_cut_at_any_byte_reads_to_its_last_whole_frame_and_replays() {
    let seed = seed();
    let image = Guest::load("hello").unwrap().image;
    let recording = Recording::of(&image, seed, 613, 4_000_000);
    let whole = recording.file(&image);
    let head = Recording::default().file(&image).len() - end_mark_bytes();
    // Ends of whole frames, with the number of entries up to each: only there the number of
    // readable entries may change.
    let mut lengths = BTreeMap::new();
    for cut in head..whole.len() {
        let (entries, ending) = read(&whole[..cut]).unwrap();
        assert!(recording.entries.starts_with(&entries), "cut at {cut}: other entries");
        let (offset, bytes_dropped) = match ending {
            Ending::Torn { offset, bytes_dropped, .. } => (offset, bytes_dropped),
            Ending::Unfinished { offset } => (offset, 0),
            Ending::Finished => panic!("cut at {cut}: {ending}"),
        };
        assert_eq!(offset + bytes_dropped, cut as u64, "cut at {cut}");
        assert_eq!(*lengths.entry(offset).or_insert(entries.len()), entries.len(), "cut at {cut}");
    }
    assert_eq!(lengths.values().max(), Some(&recording.entries.len()), "the end mark is all that misses");
    assert!(lengths.len() > 3, "frames were cut off one by one: {lengths:?}");
    println!("{} cuts, {} different lengths", whole.len() - head, lengths.len());
    for length in lengths.into_values() {
        let mut replayer = Replayer::new(Machine::new(&config(), &image).unwrap(), LogSeq(0));
        for entry in &recording.entries[..length] {
            replayer.consume(entry).unwrap();
        }
    }
}

#[test]
fn a_log_cut_before_its_first_entry_is_refused() {
    let seed = seed();
    let mut random = Random::new(seed);
    let image = Guest::load("hello").unwrap().image;
    let whole = Recording::default().file(&image);
    let head = whole.len() - end_mark_bytes();
    for cut in (1..300).chain((0..30).map(|_| random.index(head))).filter(|cut| *cut > 0) {
        match read(&whole[..cut]) {
            Err(LogFileError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64),
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
    assert!(matches!(read(b""), Err(LogFileError::NotALog)));
}

/// The length of an empty log's end mark, whose body is the number of entries, 0, in one byte.
const fn end_mark_bytes() -> usize {
    logchannel::frame::FRAME_HEADER_BYTES + 1
}
