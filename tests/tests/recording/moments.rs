//! Every moment of a recording is reached, from wherever a seek begins, and the machine there is
//! the one that a replay from the start comes to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::scripted::{Recording as Scripted, config};
use ft::replay::Replayer;
use hypervisor::program::guest::Guest;
use hypervisor::recording::index::{IndexLimits, build};
use hypervisor::recording::marks::Marks;
use hypervisor::recording::{Monitor, Observer, Position, Recording, RecordingError, Seeker, Span, Step, Target, scan};
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::random::{Random, seed};
use vm::{Event, InstructionCount, Machine, OutputOperation, StateDigest};

/// Work that nobody interrupts.
pub(super) struct Unwatched;

impl Monitor for Unwatched {
    fn advanced(&self, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A recording of a built-in guest as a file, and what a plain replay of it comes to.
pub(super) struct Recorded {
    pub(super) directory: TempDir,
    pub(super) image: Vec<u8>,
    pub(super) scripted: Scripted,
}

impl Recorded {
    pub(super) fn of(guest: &str, seed: u64, steps: u64) -> Self {
        let image = Guest::load(guest).unwrap().image;
        let scripted = Scripted::of(&image, seed, 613, steps);
        let recorded = Self { directory: TempDir::new().unwrap(), image, scripted };
        fs::write(recorded.path(), recorded.scripted.file(&recorded.image)).unwrap();
        recorded
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub(super) fn open(&self) -> Recording {
        Recording::open(&self.path()).unwrap()
    }

    /// The state before the entry at `index`, with the machine at `count`, by a plain replay.
    pub(super) fn digest_at(&self, count: u64, index: usize) -> StateDigest {
        let mut replayer = Replayer::new(Machine::new(&config(), &self.image).unwrap(), LogSeq(0));
        self.scripted.entries[..index].iter().for_each(|entry| drop(replayer.consume(entry).unwrap()));
        replayer.run_before(InstructionCount(count)).unwrap();
        replayer.machine_mut().digest()
    }

    /// The first entry at or after an instruction count.
    fn entry_at(&self, count: u64) -> usize {
        self.scripted.entries.partition_point(|entry| entry.count.0 < count)
    }

    pub(super) fn last_count(&self) -> u64 {
        self.scripted.entries.last().unwrap().count.0
    }
}

/// The number of the packet in an entry, if it has one.
pub(super) fn packet_number(entry: &LogEntry) -> Option<u64> {
    if let EntryBody::Event(Event::Packet { number, .. }) = &entry.body { Some(*number) } else { None }
}

/// The value of a clock read.
fn ticks(entry: &LogEntry) -> Option<u64> {
    if let EntryBody::Event(Event::ClockRead { ticks }) = &entry.body { Some(*ticks) } else { None }
}

pub(super) fn index(recording: &Recording, spacing: u64) -> hypervisor::recording::index::Indexed {
    let limits = IndexLimits { spacing, bytes_max: 1 << 30, rebuild: false };
    build(&recording.parts()[0], limits, &Unwatched).unwrap()
}

fn digest(seeker: &Seeker<'_>, target: Target) -> (u64, StateDigest) {
    let mut replay = seeker.seek(target, &Unwatched).unwrap_or_else(|error| panic!("{target}: {error}"));
    (replay.machine().instruction_count().0, replay.machine_mut().digest())
}

#[test]
fn every_count_is_reached_alike_with_and_without_an_index() {
    let seed = seed();
    let recorded = Recorded::of("echo", seed, 4_000_000);
    let recording = recorded.open();
    let plain = Seeker::new(&recording);
    let made = index(&recording, 300_000);
    assert!(made.snapshots > 8, "{made:?}");
    let seeker = Seeker::new(&recording);
    assert_eq!(seeker.index(0).unwrap().records().len(), made.snapshots);
    let mut random = Random::new(seed);
    let anywhere = (0..30).map(|_| u64::from(random.below(4_000_000)));
    // And where there is something: at the counts of entries.
    let entries = recorded.scripted.entries.iter().step_by(53).map(|entry| entry.count.0);
    let last = recorded.last_count();
    for count in anywhere.chain(entries).chain([0, last]).filter(|count| *count <= last) {
        let target = Target::Count(InstructionCount(count));
        let expected = (count, recorded.digest_at(count, recorded.entry_at(count)));
        assert_eq!(digest(&plain, target), expected, "{count} without an index");
        assert_eq!(digest(&seeker, target), expected, "{count} with an index");
    }
    assert_eq!(seeker.take_complaints(), Vec::<String>::new());
}

#[test]
fn what_a_target_names_is_about_to_happen() {
    let mut seen = [0; 4];
    // One gets packets, the other reads the clock.
    for (guest, every) in [("echo", 17), ("counter", 37)] {
        let recorded = Recorded::of(guest, seed(), 2_000_000);
        check_targets(&recorded, every, &mut seen);
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

fn check_targets(recorded: &Recorded, every: usize, seen: &mut [u64; 4]) {
    let recording = recorded.open();
    index(&recording, 500_000);
    let seeker = Seeker::new(&recording);
    for (number, entry) in recorded.scripted.entries.iter().enumerate() {
        // Clock reads are rare with some seeds, and many with others.
        if !number.is_multiple_of(every) && (ticks(entry).is_none() || seen[2] >= 50) {
            continue;
        }
        let named = if let Some(number) = packet_number(entry) {
            Some((0, Target::Packet(number)))
        } else if let EntryBody::Output { id, .. } = &entry.body {
            Some((1, Target::Output(id.0)))
        } else {
            let before = recorded.scripted.entries[..number].iter().rev().find_map(ticks);
            // Reads with one value are one target: the first of them.
            ticks(entry).filter(|ticks| before != Some(*ticks)).map(|ticks| (2, Target::Ticks(ticks)))
        };
        let by_entry = (3, Target::Entry(LogSeq(number as u64)));
        for (kind, target) in named.into_iter().chain([by_entry]) {
            seen[kind] += 1;
            let replay = seeker.seek(target, &Unwatched).unwrap();
            assert_eq!((replay.moment().count, replay.moment().seq.0), (entry.count, number as u64), "{target}");
        }
    }
    let end = seeker.seek(Target::End, &Unwatched).unwrap().moment();
    assert_eq!((end.count.0, end.seq.0), (recorded.last_count(), recorded.scripted.entries.len() as u64));
    assert_eq!(seeker.seek(Target::Start, &Unwatched).unwrap().moment().count.0, 0);
}

#[test]
fn what_is_not_in_the_recording_is_refused_with_what_is() {
    let recorded = Recorded::of("echo", seed(), 1_000_000);
    let recording = recorded.open();
    let seeker = Seeker::new(&recording);
    let refused = |target| seeker.seek(target, &Unwatched).unwrap_err();
    let beyond = recorded.last_count() + 1;
    for target in [
        Target::Count(InstructionCount(beyond)),
        Target::Count(InstructionCount(u64::MAX)),
        Target::Entry(LogSeq(u64::MAX)),
        Target::Ticks(u64::MAX),
        Target::Output(u64::MAX),
        Target::Packet(u64::MAX),
    ] {
        let error = refused(target);
        assert!(matches!(error, RecordingError::Outside { begins: InstructionCount(0), .. }), "{error}");
        assert!(error.to_string().contains(&format!("instructions 0 to {}", recorded.last_count())), "{error}");
    }
    // The script leaves packet numbers out.
    let packets: Vec<u64> = recorded.scripted.entries.iter().filter_map(packet_number).collect();
    let gap = packets.windows(2).find(|pair| pair[1] > pair[0] + 1).unwrap();
    let error = refused(Target::Packet(gap[0] + 1));
    assert!(matches!(error, RecordingError::Skipped { found, .. } if found == gap[1]), "{error}");
}

/// Gathers the console.
struct Console(Vec<u8>);

impl Observer for Console {
    fn begin(&mut self, _: &mut Machine) {}

    fn step(&mut self, step: &Step, _: &mut Machine) {
        if let ft::replay::Consumed::Output(_, OutputOperation::Console(bytes)) = &step.consumed {
            self.0.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, _: &mut Machine) {}
}

#[test]
fn a_range_is_looked_through_in_order_on_any_number_of_threads() {
    let recorded = Recorded::of("suite", seed(), 4_000_000);
    let recording = recorded.open();
    let gather = |seeker: &Seeker<'_>, span: Span, jobs: usize| {
        let mut gathered = Vec::new();
        let mut pieces = 0;
        scan(
            seeker,
            span,
            jobs,
            &Unwatched,
            || Console(Vec::new()),
            |Console(bytes)| {
                gathered.push(bytes);
                pieces += 1;
                Ok::<_, RecordingError>(ControlFlow::Continue(()))
            },
        )
        .unwrap();
        (gathered, pieces)
    };
    let all = Span { from: Target::Start, to: Target::End, is_backwards: false };
    let (whole, pieces) = gather(&Seeker::new(&recording), all, 1);
    assert_eq!(pieces, 1, "nothing to begin from but the start");
    assert!(!whole[0].is_empty());
    index(&recording, 100_000);
    let seeker = Seeker::new(&recording);
    for jobs in [1, 3] {
        let (found, pieces) = gather(&seeker, all, jobs);
        assert!(pieces > 5);
        assert_eq!(found.concat(), whole[0]);
        let (mut backwards, _) = gather(&seeker, Span { is_backwards: true, ..all }, jobs);
        backwards.reverse();
        assert_eq!(backwards.concat(), whole[0]);
    }
}

#[test]
fn marks_are_kept_beside_the_log_and_those_of_another_are_refused() {
    let recorded = Recorded::of("echo", seed(), 1_000_000);
    let recording = recorded.open();
    let moment = Seeker::new(&recording).seek(Target::Entry(LogSeq(7)), &Unwatched).unwrap().moment();
    let mut marks = Marks::of(&recording).unwrap();
    marks.add("crash", moment).unwrap();
    assert!(marks.add("crash", moment).unwrap_err().to_string().contains("already"));
    assert!(marks.add("end", moment).is_err() && marks.add("", moment).is_err() && marks.add("a..b", moment).is_err());
    assert_eq!("crash".parse(), Ok(Position::Mark("crash".into())));
    let again = Marks::of(&recording).unwrap();
    let found = again.get("crash").unwrap().moment();
    assert_eq!(found, moment);
    let reached = Seeker::new(&recording).seek(Target::Moment(found), &Unwatched).unwrap().moment();
    assert_eq!(reached, moment);
    assert!(again.get("other").unwrap_err().to_string().contains("the marks are crash"));
    let path = recording.marks_path();
    let text = fs::read_to_string(&path).unwrap();
    for (bad, said) in [
        (text.replace("\"seed\":\"00", "\"seed\":\"ff"), "of another recording"),
        (text.replace("crash", "end"), "line 2"),
        (format!("{text}{}", text.lines().last().unwrap()), "twice"),
        ("{}\n".into(), "line 1"),
        (text.replace("instruction_count", "count"), "line 2"),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(Marks::of(&recording).unwrap_err().to_string().contains(said), "{said}");
    }
}

/// A log that is cut anywhere is reached up to its last whole entry, and no further.
#[test]
fn a_log_that_is_cut_or_still_written_is_reached_up_to_its_last_whole_entry() {
    let recorded = Recorded::of("hello", seed(), 1_000_000);
    let recording = recorded.open();
    index(&recording, 1_000);
    let whole = fs::read(recorded.path()).unwrap();
    let begin = usize::try_from(recording.parts()[0].begin().cursor.offset).unwrap();
    for cut in begin..whole.len() {
        // The index is of the whole log: its snapshots behind the cut are left out.
        fs::write(recorded.path(), &whole[..cut]).unwrap();
        let recording = recorded.open();
        let seeker = Seeker::new(&recording);
        let mut end = seeker.seek(Target::End, &Unwatched).unwrap();
        let moment = end.moment();
        let index = usize::try_from(moment.seq.0).unwrap();
        assert_eq!(end.machine_mut().digest(), recorded.digest_at(moment.count.0, index), "cut at {cut}");
    }
}

/// No bit of a log can be flipped so that a machine is found that never was: it is refused, or the
/// replay diverges, or the bit is behind what was looked at.
#[test]
fn a_flipped_bit_of_a_log_makes_no_machine_that_never_was() {
    let mut random = Random::new(seed());
    let recorded = Recorded::of("hello", 1, 1_000_000);
    let whole = fs::read(recorded.path()).unwrap();
    let begin = usize::try_from(recorded.open().parts()[0].begin().cursor.offset).unwrap();
    let digests: Vec<StateDigest> = (0..=recorded.scripted.entries.len())
        .map(|index| {
            let mut replayer = Replayer::new(Machine::new(&config(), &recorded.image).unwrap(), LogSeq(0));
            recorded.scripted.entries[..index].iter().for_each(|entry| drop(replayer.consume(entry).unwrap()));
            replayer.machine_mut().digest()
        })
        .collect();
    let head = (0..begin).step_by(4099);
    for byte in (begin..whole.len()).chain(head).chain(0..300) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << random.below(8);
        fs::write(recorded.path(), flipped).unwrap();
        let Ok(recording) = Recording::open(&recorded.path()) else { continue };
        match Seeker::new(&recording).seek(Target::End, &Unwatched) {
            Ok(mut end) => {
                let index = usize::try_from(end.moment().seq.0).unwrap();
                assert_eq!(end.machine_mut().digest(), digests[index], "byte {byte}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn what_is_no_log_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let refused = |path: &Path| Recording::open(path).unwrap_err().to_string();
    assert!(refused(&directory.path().join("none")).contains("can't read"));
    assert!(refused(Path::new("/dev/zero")).contains("no regular file"));
    assert!(refused(directory.path()).contains("no log that can be read"));
    let file = directory.path().join("text");
    fs::write(&file, "no log\n").unwrap();
    assert!(refused(&file).contains("not a log"));
}
