//! A VM's log on disk: segments, going on from them wherever they were cut, and disks that fail.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../ft/tests/roles_image/mod.rs"]
mod roles_image;

use ft::event_source::EventSource;
use ft::record::{Intervals, LogSink, Recorder};
use ft::replay::{Consumed, Replayer};
use hypervisor::node::log::restore::RestoreError;
use hypervisor::node::log::{
    DiskLimits, DiskLog, JoiningLog, LogDirectory, LogDirectoryError, PossibleLoss, Resumed, StuckDisk, Survey,
    segments,
};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{Ending, LogReader};
use logchannel::session::{NodeId, SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot};
use roles_image::image;
use std::convert::Infallible;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use vm::{Event, Machine, MachineConfig, OutputId, OutputOperation, PageCopy, Restoration, StateDigest, StopReason};

const NODE: NodeId = NodeId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
/// Longer than anything here takes on a machine that works.
const TIMEOUT: Duration = Duration::from_secs(30);
const STEPS: u64 = 200;

const fn addi(rd: u32, rs1: u32, immediate: u32) -> u32 {
    immediate << 20 | rs1 << 15 | rd << 7 | 0x13
}

const fn andi(rd: u32, rs1: u32, immediate: u32) -> u32 {
    immediate << 20 | rs1 << 15 | 7 << 12 | rd << 7 | 0x13
}

const fn slli(rd: u32, rs1: u32, amount: u32) -> u32 {
    amount << 20 | rs1 << 15 | 1 << 12 | rd << 7 | 0x13
}

const fn add(rd: u32, rs1: u32, rs2: u32) -> u32 {
    rs2 << 20 | rs1 << 15 | rd << 7 | 0x33
}

/// A guest that reads the clock, writes it to one page of 64 after the other, and prints a line,
/// for ever.
fn guest() -> Vec<u8> {
    guest_of(64)
}

/// The same with so many pages, a power of 2.
fn guest_of(pages: u32) -> Vec<u8> {
    const RDTIME_T2: u32 = 0xc010_23f3;
    const SW_T2_S0: u32 = 0x0074_2023;
    const LUI_T1_1_MIB: u32 = 0x0010_0337;
    const ECALL: u32 = 0x0000_0073;
    const JUMP_BACK_12: u32 = 0xfd1f_f06f;
    image(&[
        addi(5, 0, 1),
        slli(5, 5, 31),
        LUI_T1_1_MIB,
        add(5, 5, 6),
        RDTIME_T2,
        slli(8, 9, 12),
        add(8, 8, 5),
        SW_T2_S0,
        addi(9, 9, 1),
        andi(9, 9, pages - 1),
        addi(17, 0, 1),
        andi(10, 9, 15),
        addi(10, 10, b'a' as u32),
        ECALL,
        addi(10, 0, b'\n' as u32),
        ECALL,
        JUMP_BACK_12,
    ])
}

fn config() -> MachineConfig {
    MachineConfig { ram_bytes: 4 << 20, ..MachineConfig::default() }
}

fn vm_id() -> VmId {
    VmId::new("alpha").unwrap()
}

fn session(generation: u64) -> SessionHeader {
    SessionHeader::new(vm_id(), Generation(generation), config(), "test", &guest()).unwrap()
}

fn limits(segment_bytes: u64) -> DiskLimits {
    DiskLimits { segment_bytes, sync_interval: Duration::from_millis(1), ..DiskLimits::default() }
}

/// A clock that a wall would be surprised by, and no other events.
struct Source(u64);

impl EventSource for Source {
    fn now_ns(&mut self) -> u64 {
        0
    }

    fn ticks(&mut self) -> u64 {
        self.0 = self.0 * 5 / 4 % (1 << 40) + self.0 + 1;
        self.0
    }

    fn entropy(&mut self) -> u16 {
        0
    }

    fn poll(&mut self, _: &Machine) -> Option<Event> {
        None
    }
}

/// All of a VM's log, and what of it goes to disk.
struct Sink {
    disk: Option<DiskLog>,
    entries: Vec<LogEntry>,
    outputs: Vec<(OutputId, Arc<OutputOperation>)>,
}

impl LogSink for Sink {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        self.entries.push(entry.clone());
        self.outputs.extend(output.map(|(id, operation)| (id, Arc::new(operation))));
        if let Some(disk) = &mut self.disk {
            disk.on_entry(entry);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// How many outputs this VM's primary hasn't let out.
const HELD: usize = 3;

struct Vm {
    image: Vec<u8>,
    recorder: Recorder<Source>,
    sink: Sink,
}

impl Vm {
    /// A guest at its reset.
    fn new() -> Self {
        Self::of(Machine::new(&config(), &guest()).unwrap(), Vec::new(), 1)
    }

    fn of(machine: Machine, entries: Vec<LogEntry>, ticks: u64) -> Self {
        let intervals = Intervals { digest_steps: 2000, ..Intervals::default() };
        let recorder = Recorder::new(machine, Source(ticks), intervals);
        Self { image: guest(), recorder, sink: Sink { disk: None, entries, outputs: Vec::new() } }
    }

    /// One whose memory doesn't fit into the rest of a copy.
    fn large() -> Self {
        let image = guest_of(512);
        let vm = Self::of(Machine::new(&config(), &image).unwrap(), Vec::new(), 1);
        Self { image, ..vm }
    }

    /// A guest at its reset, logged from there on.
    fn logged(directory: LogDirectory, generation: u64, limits: DiskLimits) -> Self {
        let mut vm = Self::new();
        vm.sink.disk = Some(directory.begin(session(generation), NODE, limits).unwrap());
        vm.snapshot_now();
        vm
    }

    fn snapshot_now(&mut self) {
        let Sink { disk, entries, outputs } = &mut self.sink;
        let seq = LogSeq(entries.len() as u64);
        disk.as_mut().unwrap().snapshot_now(self.recorder.machine_mut(), seq, || outputs.clone(), || false);
    }

    fn run_slice(&mut self) {
        let Ok(_) = self.recorder.run_slice(&mut self.sink, STEPS);
        let Sink { disk, entries, outputs } = &mut self.sink;
        let seq = LogSeq(entries.len() as u64);
        let unsent = || outputs[outputs.len().saturating_sub(HELD)..].to_vec();
        if let Some(disk) = disk {
            disk.serve(self.recorder.machine_mut(), seq, unsent);
        }
    }

    fn run(&mut self, slices: u32) {
        (0..slices).for_each(|_| self.run_slice());
    }

    fn disk(&mut self) -> &mut DiskLog {
        self.sink.disk.as_mut().unwrap()
    }

    /// Runs, as fast as the disk takes it, until `is_done`.
    fn run_until(&mut self, what: &str, mut is_done: impl FnMut(&mut Self) -> bool) {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        while !is_done(self) {
            self.run_slice();
            std::thread::sleep(Duration::from_millis(1));
            assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT, "no {what}");
        }
    }

    fn finish(&mut self) -> Result<LogDirectory, LogDirectoryError> {
        self.sink.disk.take().unwrap().finish()
    }

    /// The state at a place of the log, where the machine stands at the count of `machine`.
    fn state_at(&self, seq: LogSeq, machine: &Machine) -> StateDigest {
        let mut replayer = Replayer::new(Machine::new(&config(), &self.image).unwrap(), LogSeq(0));
        let rest = LogEntry { count: machine.instruction_count(), body: EntryBody::Progress };
        for entry in self.sink.entries[..index(seq)].iter().chain([&rest]) {
            replayer.consume(entry).unwrap_or_else(|divergence| panic!("{divergence}"));
        }
        replayer.machine_mut().digest()
    }

    /// The state behind every entry.
    fn states(&self) -> Vec<StateDigest> {
        let mut replayer = Replayer::new(Machine::new(&config(), &guest()).unwrap(), LogSeq(0));
        let mut states = vec![replayer.machine_mut().digest()];
        for entry in &self.sink.entries {
            replayer.consume(entry).unwrap_or_else(|divergence| panic!("{divergence}"));
            states.push(replayer.machine_mut().digest());
        }
        states
    }
}

fn open(path: &Path) -> LogDirectory {
    // A process that another test is just starting may have inherited the lock, until it is another
    // program.
    for _ in 0..100 {
        match LogDirectory::open(path, &vm_id()) {
            Err(LogDirectoryError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays in use", path.display())
}

/// A VM as a directory has it, and what was found before its replay.
struct Found {
    session: SessionHeader,
    generation: Generation,
    nodes: Vec<NodeId>,
    stopped: Option<StopReason>,
    skipped: Vec<(PathBuf, RestoreError)>,
    losses: Vec<PossibleLoss>,
    resumed: Resumed,
}

impl Deref for Found {
    type Target = Resumed;

    fn deref(&self) -> &Resumed {
        &self.resumed
    }
}

impl DerefMut for Found {
    fn deref_mut(&mut self) -> &mut Resumed {
        &mut self.resumed
    }
}

fn resume(path: &Path) -> Found {
    found(open(path).survey().unwrap_or_else(|error| panic!("{error}")))
}

fn found(mut survey: Survey) -> Found {
    let (session, generation, stopped) = (survey.session.clone(), survey.provenance.generation, survey.stopped);
    let losses = survey.provenance.possible_losses(NODE);
    let (nodes, skipped) = (survey.provenance.nodes.clone(), std::mem::take(&mut survey.skipped));
    let (entries, end_count) = (survey.entries, survey.end_count);
    let mut last = 0;
    let resumed = survey
        .replay(|progress| {
            assert!(progress.entries > last && progress.entries <= progress.entries_all);
            assert!(progress.entries_all == entries && progress.count <= end_count);
            last = progress.entries;
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(resumed.entries_replayed, entries);
    Found { session, generation, nodes, stopped, skipped, losses, resumed }
}

fn index(seq: LogSeq) -> usize {
    usize::try_from(seq.0).unwrap()
}

/// A VM that has begun its third segment at least, and whose log ended in order.
fn vm_of_many_segments(path: &Path) -> Vm {
    let mut vm = Vm::logged(open(path), 1, limits(0));
    let mut seen = Vec::new();
    vm.run_until("third segment", |_| {
        let newest = segments(path).unwrap().pop();
        if seen.last() != newest.as_ref() {
            seen.extend(newest);
        }
        seen.len() >= 3
    });
    for _ in 0..8 {
        vm.run_slice();
        // So that each slice comes to a frame of its own.
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.finish().unwrap();
    vm
}

#[test]
fn segments_follow_each_other_and_the_last_two_are_kept() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let kept = segments(directory.path()).unwrap();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let logs: Vec<_> = kept.iter().map(|path| LogReader::open(fs::File::open(path).unwrap()).unwrap()).collect();
    assert!(logs[0].next_seq() > LogSeq(0), "the first segment has gone");
    let newest = logs[1].next_seq();
    for mut log in logs {
        let mut at = log.next_seq();
        while let Some(entry) = log.next_entry().unwrap() {
            assert_eq!(entry, vm.sink.entries[index(at)]);
            at = log.next_seq();
        }
        assert_eq!(log.ending(), Some(&Ending::Finished));
        assert!(at == newest || index(at) == vm.sink.entries.len());
    }
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.entries_replayed, resumed.next_seq.0 - newest.0);
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
    assert_eq!((&resumed.ending, &*resumed.nodes, resumed.stopped), (&Ending::Finished, &[NODE][..], None));
    assert!(resumed.losses.is_empty(), "{:?}", resumed.losses);
    assert_eq!((&resumed.session, resumed.generation), (&session(1), Generation(1)));
    assert!(resumed.skipped.is_empty());
}

#[test]
fn what_may_not_have_left_is_what_the_snapshot_says_and_what_came_after() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let resumed = resume(directory.path());
    let first = resumed.next_seq.0 - resumed.entries_replayed;
    let is_output = |entry: &&LogEntry| matches!(entry.body, EntryBody::Output { .. });
    let before = vm.sink.entries[..index(LogSeq(first))].iter().filter(is_output).count();
    let expected: Vec<_> = vm.sink.outputs[before - HELD..].iter().map(|(id, sent)| (*id, (**sent).clone())).collect();
    assert!(expected.len() > HELD);
    assert_eq!(resumed.next_output.0, vm.sink.outputs.last().unwrap().0.0 + 1);
    assert_eq!(Vec::from(resumed.unsent.clone()), expected);
    assert_eq!(resumed.unsent_dropped, 0);
}

/// Copies a directory as it is.
fn copy_of(path: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn a_log_cut_at_any_byte_goes_on_from_its_last_whole_entry() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let states = vm.states();
    let kept = segments(directory.path()).unwrap();
    let newest = &kept[1];
    let bytes = fs::read(newest).unwrap();
    let head = {
        let mut log = LogReader::open(&bytes[..]).unwrap();
        log.next_entry().unwrap();
        usize::try_from(log.frame_offset()).unwrap()
    };
    let first = LogReader::open(&bytes[..]).unwrap().next_seq();
    let in_snapshot = (0..head).step_by(head / 40).chain([head - 1]);
    let step = 1 + (bytes.len() - head) / 1000;
    let mut before = LogSeq(0);
    let mut places = 0;
    for cut in in_snapshot.chain((head..bytes.len()).step_by(step)) {
        fs::write(newest, &bytes[..cut]).unwrap();
        let mut resumed = resume(directory.path());
        let expected = match resumed.entries_replayed {
            0 => vm.state_at(resumed.next_seq, &resumed.machine),
            _ => states[index(resumed.next_seq)],
        };
        assert_eq!(resumed.machine.digest(), expected, "cut at {cut}");
        assert!(resumed.next_seq >= before, "cut at {cut}");
        places += usize::from(resumed.next_seq > before);
        before = resumed.next_seq;
        if cut < head {
            assert_eq!(resumed.skipped.len(), 1, "cut at {cut}");
            assert_eq!((&resumed.skipped[0].0, &resumed.segment), (newest, &kept[0]));
            assert_eq!(resumed.next_seq, first, "the segment before ends where the newest begins");
            assert_eq!(resumed.ending, Ending::Finished);
        } else {
            assert!(resumed.skipped.is_empty());
            assert!(
                matches!(resumed.ending, Ending::Torn { .. } | Ending::Unfinished { .. }),
                "cut at {cut}: {:?}",
                resumed.ending
            );
        }
    }
    assert!(places > 3, "{places} places in {} bytes", bytes.len() - head);
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_segment_before() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let kept = segments(directory.path()).unwrap();
    let mut bytes = fs::read(&kept[1]).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&kept[1], &bytes).unwrap();
    let resumed = resume(directory.path());
    assert_eq!(resumed.segment, kept[0]);
    assert!(resumed.skipped[0].1.to_string().contains("snapshot is damaged"), "{}", resumed.skipped[0].1);
    fs::write(&kept[0], b"").unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(&error, LogDirectoryError::NoSegment { skipped, .. } if skipped.len() == 2), "{error}");
    assert!(error.to_string().contains("nothing to resume"), "{error}");
}

/// Not the writer's end did this, but the storage: to go on from before it would give up what
/// follows unseen.
#[test]
fn a_log_that_is_damaged_before_its_end_is_not_resumed() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    for _ in 0..20 {
        vm.run(20);
        std::thread::sleep(Duration::from_millis(2));
    }
    vm.finish().unwrap();
    let segment = segments(directory.path()).unwrap().remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    let mut log = LogReader::open(&bytes[..]).unwrap();
    log.next_entry().unwrap();
    let at = usize::try_from(log.frame_offset()).unwrap() + 20;
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::Log { .. }), "{error}");
    assert!(error.to_string().contains("corrupt at byte"), "{error}");
}

#[test]
fn a_resumed_vm_goes_on_in_the_same_directory() {
    let directory = TempDir::new().unwrap();
    let mut first = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    first.run(10);
    first.finish().unwrap();
    let log_directory = open(directory.path());
    let resumed = log_directory.survey().unwrap().replay(|_| ()).unwrap();
    let ticks = resumed.machine.last_ticks();
    let mut second = Vm::of(resumed.machine, first.sink.entries, ticks);
    second.sink.disk = Some(log_directory.begin(session(1), NodeId(2), limits(u64::MAX)).unwrap());
    let Ok(()) = second.recorder.log_generation(&mut second.sink, Generation(2));
    second.snapshot_now();
    second.run(10);
    let Ok(()) = second.recorder.log_generation(&mut second.sink, Generation(3));
    let end = second.sink.entries.len();
    second.finish().unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), end);
    assert_eq!(Some(&resumed.machine.digest()), second.states().last());
    assert_eq!((resumed.session.generation, resumed.generation), (Generation(2), Generation(3)));
    assert_eq!(resumed.nodes, [NodeId(2)]);
    assert_eq!(segments(directory.path()).unwrap().len(), 2);
}

#[test]
fn a_generation_that_begins_during_a_snapshot_is_known() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::large();
    vm.run(60);
    vm.sink.disk = Some(open(directory.path()).begin(session(1), NODE, limits(u64::MAX)).unwrap());
    vm.run(1);
    assert!(vm.disk().is_copying() && vm.disk().durable().is_none());
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(5));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    vm.finish().unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!((resumed.session.generation, resumed.generation), (Generation(5), Generation(5)));
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

/// A VM that is started afresh counts its entries from 0 again, under a greater generation.
#[test]
fn a_new_life_comes_after_the_old_one() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let mut vm = Vm::logged(open(directory.path()), 2, limits(u64::MAX));
    vm.run(3);
    vm.finish().unwrap();
    let resumed = resume(directory.path());
    assert_eq!(resumed.generation, Generation(2));
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
}

#[test]
fn a_directory_has_one_vm_and_one_user() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("of/alpha");
    let first = open(&path);
    let error = LogDirectory::open(&path, &vm_id()).unwrap_err();
    assert!(matches!(&error, LogDirectoryError::InUse(in_use) if *in_use == path), "{error}");
    let mut vm = Vm::logged(first, 1, limits(u64::MAX));
    assert!(matches!(LogDirectory::open(&path, &vm_id()), Err(LogDirectoryError::InUse(_))));
    drop(vm.finish().unwrap());
    let error = LogDirectory::open(&path, &VmId::new("beta").unwrap()).unwrap_err();
    assert!(error.to_string().contains("belongs to VM alpha, not beta"), "{error}");
    fs::write(path.join("vm"), "beta").unwrap();
    let error = LogDirectory::open(&path, &VmId::new("beta").unwrap()).unwrap().survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::OtherVm { .. }), "a segment of another VM: {error}");
}

#[test]
fn an_empty_directory_has_nothing_to_resume() {
    let directory = TempDir::new().unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::NoSegment { .. }), "{error}");
}

#[test]
fn entries_become_durable_and_a_full_queue_is_told_until_it_is_written() {
    let directory = TempDir::new().unwrap();
    let limits = DiskLimits { queue_bytes_max: 1, ..limits(u64::MAX) };
    let mut vm = Vm::logged(open(directory.path()), 1, limits);
    assert!(!vm.disk().is_full(), "the first snapshot waits for its own writing");
    let mut was_full = false;
    vm.run_until("full queue", |vm| {
        was_full |= vm.disk().is_full();
        was_full
    });
    let end = LogSeq(vm.sink.entries.len() as u64);
    vm.run_until("durable entries", |vm| vm.disk().durable() >= Some(end) && !vm.disk().is_full());
}

/// A killed process leaves what it has written.
#[test]
fn what_was_written_is_there_without_an_end() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(10);
    let end = LogSeq(vm.sink.entries.len() as u64);
    vm.run_until("durable entries", |vm| vm.disk().durable() >= Some(end));
    let copy = copy_of(directory.path());
    let mut resumed = resume(copy.path());
    assert!(resumed.next_seq >= end);
    assert!(matches!(resumed.ending, Ending::Torn { .. } | Ending::Unfinished { .. }));
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

/// The disk fails under a VM that is logged: it is told once, the VM runs on, and the directory
/// says it.
fn fails(path: &Path, mut vm: Vm) {
    let mut failure = None;
    vm.run_until("failure", |vm| {
        failure = vm.disk().take_failure();
        failure.is_some()
    });
    let failure = failure.unwrap();
    assert!(matches!(&failure, LogDirectoryError::Io { path: at, .. } if at.starts_with(path)), "{failure}");
    let lost = vm.disk().entries_lost();
    let before = vm.sink.entries.len();
    vm.run(10);
    assert_eq!(vm.disk().entries_lost() - lost, (vm.sink.entries.len() - before) as u64);
    assert!(vm.sink.entries.len() > before);
    assert!(!vm.disk().is_full());
    assert!(vm.disk().take_failure().is_none(), "told twice");
    assert!(vm.finish().is_ok(), "told before");
}

#[test]
fn a_full_disk_ends_the_logging_and_not_the_vm() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(0));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    std::os::unix::fs::symlink("/dev/full", directory.path().join("snapshot.part")).unwrap();
    fails(directory.path(), vm);
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(&error, LogDirectoryError::Stopped { reason, .. } if reason.contains("No space left")), "{error}");
    fs::remove_file(directory.path().join("stopped")).unwrap();
    assert!(resume(directory.path()).next_seq > LogSeq(0), "for who wants it");

    fs::write(directory.path().join("stopped"), "before").unwrap();
    fs::remove_file(directory.path().join("snapshot.part")).unwrap();
    let mut vm = Vm::logged(open(directory.path()), 2, limits(u64::MAX));
    vm.finish().unwrap();
    assert_eq!(resume(directory.path()).generation, Generation(2), "a new log is not stopped");
}

#[test]
fn a_directory_that_goes_away_ends_the_logging_and_not_the_vm() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let mut vm = Vm::logged(open(&path), 1, limits(0));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    fs::remove_dir_all(&path).unwrap();
    fails(&path, vm);
}

fn ft_replay(path: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ft-replay")).arg(path).args(more).output().unwrap()
}

/// Segments of one VM, as many as a test wants.
fn chain(path: &Path) -> (Vm, Vec<PathBuf>) {
    let vm = vm_of_many_segments(path);
    (vm, segments(path).unwrap())
}

#[test]
fn ft_replay_takes_segments_and_directories_of_them() {
    let directory = TempDir::new().unwrap();
    let (vm, kept) = chain(directory.path());
    let first = LogReader::open(fs::File::open(&kept[0]).unwrap()).unwrap().next_seq();
    let expected = [
        (directory.path(), vm.sink.entries.len() - index(first)),
        (&kept[0], index(LogReader::open(fs::File::open(&kept[1]).unwrap()).unwrap().next_seq()) - index(first)),
    ];
    for (path, entries) in expected {
        let output = ft_replay(path, &["--json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let replayed = text.lines().find(|line| line.contains("\"replayed\"")).unwrap();
        assert!(replayed.contains(&format!("\"entries\":{entries},")), "{entries}: {replayed}");
        let output = ft_replay(path, &["--entries"]);
        let has_head = 1;
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), has_head + entries);
    }

    // The newest snapshot is torn: what comes before it is replayed, and the rest named.
    let bytes = fs::read(&kept[1]).unwrap();
    fs::write(&kept[1], &bytes[..bytes.len() / 3]).unwrap();
    let output = ft_replay(directory.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("skipped") && text.contains(&*kept[1].to_string_lossy()), "{text}");
}

/// The next segment's snapshot must be the state that the segment before ends with.
#[test]
fn ft_replay_compares_the_state_between_segments() {
    let directory = TempDir::new().unwrap();
    let (_, kept) = chain(directory.path());
    let other = TempDir::new().unwrap();
    let mut vm = Vm::new();
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(1));
    let second = LogReader::open(fs::File::open(&kept[1]).unwrap()).unwrap().next_seq();
    vm.sink.disk = Some(open(other.path()).begin(session(1), NODE, limits(u64::MAX)).unwrap());
    let Sink { disk, .. } = &mut vm.sink;
    disk.as_mut().unwrap().snapshot_now(vm.recorder.machine_mut(), second, Vec::new, || false);
    vm.finish().unwrap();
    fs::copy(segments(other.path()).unwrap().remove(0), &kept[1]).unwrap();
    let output = ft_replay(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_replayed_is_what_was_recorded() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(10);
    vm.finish().unwrap();
    let mut log = LogReader::open(fs::File::open(segments(directory.path()).unwrap().remove(0)).unwrap()).unwrap();
    let mut replayer = Replayer::new(Machine::new(&config(), &guest()).unwrap(), LogSeq(0));
    let mut outputs = 0;
    while let Some(entry) = log.next_entry().unwrap() {
        outputs += usize::from(matches!(replayer.consume(&entry), Ok(Consumed::Output(..))));
    }
    assert_eq!(outputs, vm.sink.outputs.len());
    assert!(outputs > 10);
}

#[test]
fn pipes_in_the_place_of_files_hang_nobody() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let pipe = |name: &str| nix::unistd::mkfifo(&directory.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pipe("99999999999999999999-00000000000000000000.ftlog");
    assert!(resume(directory.path()).entries_replayed > 0, "it is no segment");
    pipe("stopped");
    let error = open(directory.path()).survey().unwrap_err().to_string();
    assert!(error.contains("stopped") && error.contains("no file"), "{error}");
}

/// A backup's log: what is received goes to `joining`, and `machine` follows behind.
struct Following {
    disk: DiskLog,
    joining: JoiningLog,
    replayer: Replayer,
    received: usize,
}

impl Following {
    /// Joins `vm` where it stands, by the stream that a primary sends.
    fn join(vm: &mut Vm, directory: LogDirectory, limits: DiskLimits) -> Self {
        let (mut disk, joining) = directory.begin_joining(session(1), NODE, limits).unwrap();
        let machine = vm.recorder.machine_mut();
        machine.begin_copy(PageCopy::Backup);
        let mut restoration = Restoration::new(&config()).unwrap();
        let (mut next, mut bytes) = (0, 0);
        while let Some((first, page)) = machine.take_page(PageCopy::Backup, next) {
            let pages = Pages { first, bytes: page.to_vec() };
            joining.pages(&pages);
            restoration.put_pages(first, &pages.bytes).unwrap();
            (next, bytes) = (first + 1, bytes + pages.bytes.len() as u64);
        }
        let seq = LogSeq(vm.sink.entries.len() as u64);
        let snapshot = Snapshot { seq, digest: machine.digest(), state: machine.state() };
        joining.complete(std::iter::empty(), &snapshot);
        let machine = restoration.finish(&snapshot.state).unwrap();
        disk.on_restored(&machine, bytes);
        Self { disk, joining, replayer: Replayer::new(machine, seq), received: index(seq) }
    }

    /// Receives what `vm` has logged, and consumes it but for the last `behind` entries.
    fn follow(&mut self, vm: &Vm, behind: usize) {
        self.joining.entries(vm.sink.entries[self.received..].iter());
        self.received = vm.sink.entries.len();
        let until = self.received.saturating_sub(behind);
        while index(self.replayer.consumed()) < until {
            let entry = &vm.sink.entries[index(self.replayer.consumed())];
            self.replayer.consume(entry).unwrap();
            self.disk.on_consumed(entry);
            // A machine in the middle of a step's outputs is none for a snapshot.
            if !self.replayer.machine().has_output() {
                let next = self.replayer.consumed();
                self.disk.serve(self.replayer.machine_mut(), next, Vec::new);
            }
        }
    }

    fn wait_written(&self, end: usize) {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        while self.disk.in_cache() < Some(LogSeq(end as u64)) {
            std::thread::sleep(Duration::from_millis(1));
            assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT, "{:?}", self.disk);
        }
    }
}

/// A VM that has run for a while without a log.
fn running() -> Vm {
    let mut vm = Vm::new();
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(1));
    vm.run(10);
    vm
}

#[test]
fn the_stream_with_which_a_backup_joins_is_its_first_segment() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let following = Following::join(&mut vm, open(directory.path()), limits(u64::MAX));
    following.wait_written(following.received);
    // Killed now, before it has replayed anything.
    let copy = copy_of(directory.path());
    let mut resumed = resume(copy.path());
    assert_eq!((index(resumed.next_seq), resumed.entries_replayed), (vm.sink.entries.len(), 0));
    assert_eq!(resumed.machine.digest(), vm.recorder.machine_mut().digest());
    assert_eq!(resumed.nodes, [NODE], "its claim is known before it makes it");
    assert!(resumed.losses.is_empty(), "it is this node that has claimed");
}

#[test]
fn a_backups_log_has_what_was_received_though_its_machine_is_behind() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let mut following = Following::join(&mut vm, open(directory.path()), limits(u64::MAX));
    vm.run(10);
    following.follow(&vm, usize::MAX);
    following.wait_written(vm.sink.entries.len());
    let mut resumed = resume(copy_of(directory.path()).path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

#[test]
fn a_backups_next_segment_has_the_entries_that_were_received_before_its_snapshot_was_made() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let mut following = Following::join(&mut vm, open(directory.path()), limits(0));
    let mut begun = std::collections::BTreeSet::new();
    let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    while begun.len() < 4 {
        vm.run(1);
        following.follow(&vm, 7);
        std::thread::sleep(Duration::from_millis(1));
        begun.extend(segments(directory.path()).unwrap());
        assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT);
    }
    following.wait_written(vm.sink.entries.len());
    let Following { disk, joining, .. } = following;
    drop(joining);
    disk.finish().unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert!(resumed.entries_replayed >= 7);
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
    // The segment before goes beyond the snapshot; its replay ends where the next begins.
    let kept = segments(directory.path()).unwrap();
    let [before, newest] =
        [0, 1].map(|segment: usize| LogReader::open(fs::File::open(&kept[segment]).unwrap()).unwrap());
    let expected = vm.sink.entries.len() - index(before.next_seq());
    assert!(before.next_seq() < newest.next_seq());
    for arguments in [&["--json"][..], &["--entries"]] {
        let output = ft_replay(directory.path(), arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        if arguments == ["--entries"] {
            assert_eq!(text.lines().count(), 1 + expected, "a head, and each entry once");
        } else {
            assert!(text.contains(&format!("\"entries\":{expected},")), "{expected}: {text}");
        }
    }
}

#[test]
fn a_log_that_may_lack_something_says_why() {
    let lost = |prepare: &dyn Fn(&Path)| {
        let directory = TempDir::new().unwrap();
        let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
        vm.run(3);
        vm.finish().unwrap();
        prepare(directory.path());
        resume(directory.path()).losses
    };
    let kept = |text: &'static str| move |path: &Path| fs::write(path.join("kept"), text).unwrap();
    let other = NodeId(7).to_string();
    let of_other = |kind: &str| {
        let kind = kind.to_owned();
        let other = other.clone();
        move |path: &Path| {
            let kept = fs::read_to_string(path.join("kept")).unwrap();
            fs::write(path.join("kept"), kept.replace("owner", &kind)).unwrap();
            fs::write(path.join("node"), &other).unwrap();
        }
    };
    assert_eq!(lost(&|_| ()), []);
    assert_eq!(lost(&kept("owner written an-earlier-boot")), [PossibleLoss::HostStartedAgain]);
    assert_eq!(lost(&kept("owner durable an-earlier-boot")), []);
    assert_eq!(lost(&kept("owner no an-earlier-boot")), [PossibleLoss::NothingWaited]);
    assert_eq!(lost(&of_other("backup")), [PossibleLoss::OfBackup]);
    assert_eq!(lost(&of_other("joining")), [PossibleLoss::OfJoiningBackup]);
    assert_eq!(lost(&|path| fs::remove_file(path.join("node")).unwrap()), [PossibleLoss::HadFailed]);
    assert_eq!(
        lost(&|path| fs::write(path.join("99999999999999999999-00000000000000000000.ftlog"), b"torn").unwrap()),
        [PossibleLoss::NewestUnreadable]
    );
}

#[test]
fn nodes_that_resume_are_listed_until_the_log_is_theirs() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(3);
    vm.finish().unwrap();
    for node in [2, 3] {
        open(directory.path()).add_node(NodeId(node)).unwrap();
    }
    assert_eq!(resume(directory.path()).nodes, [NODE, NodeId(2), NodeId(3)]);
    let mut vm = Vm::new();
    vm.sink.disk = Some(open(directory.path()).begin(session(4), NodeId(3), limits(u64::MAX)).unwrap());
    vm.snapshot_now();
    vm.finish().unwrap();
    assert_eq!(resume(directory.path()).nodes, [NodeId(3)]);
}

/// The part of a snapshot is a FIFO that nobody reads: whoever opens it waits, as for a disk that
/// hangs. Without the bounds this test doesn't end.
#[test]
fn a_process_that_ends_does_not_wait_for_a_disk_that_hangs() {
    let directory = TempDir::new().unwrap();
    let opened = open(directory.path());
    nix::unistd::mkfifo(&directory.path().join("snapshot.part"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let limits = DiskLimits { queue_bytes_max: 1, patience: Duration::from_millis(200), ..limits(u64::MAX) };
    let mut disk = opened.begin(session(1), NODE, limits).unwrap();
    let mut machine = Machine::new(&config(), &guest()).unwrap();
    disk.snapshot_now(&mut machine, LogSeq(0), Vec::new, || true);
    assert!(disk.watch().is_pending());
    let stuck = disk.finish().unwrap_err();
    assert!(matches!(stuck, LogDirectoryError::Stuck { .. }), "{stuck}");
}

#[test]
fn a_disk_is_stuck_while_it_takes_nothing_of_what_there_is() {
    let mut disk = StuckDisk::since(100);
    let looks = [(200, 0, true), (300, 1, true), (400, 1, true), (500, 1, false), (600, 1, true), (650, 1, true)];
    let stuck = looks.map(|(now_ns, taken, is_pending)| disk.look(now_ns, taken, is_pending));
    assert_eq!(stuck, [100, 0, 100, 0, 100, 150]);
}
