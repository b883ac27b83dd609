//! A VM with a log on disk.

use super::found::index;
use crate::roles_image::image;
use ft::event_source::EventSource;
use ft::record::{Intervals, LogSink, Recorder};
use ft::replay::Replayer;
use hypervisor::node::host::Host;
use hypervisor::node::log::{DiskLimits, DiskLog, DiskLogSteps, HostDirectory, LogDirectory, LogDirectoryError};
use hypervisor::node::process::ProcessHost;
use hypervisor::os::clock;
use hypervisor::os::report::Reporter;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use vm::{Event, Machine, MachineConfig, OutputId, OutputOperation, StateDigest};

pub(super) const NODE: NodeId = NodeId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
/// Longer than anything here takes on a working host.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const STEPS: u64 = 200;

pub(super) const fn addi(rd: u32, rs1: u32, immediate: u32) -> u32 {
    immediate << 20 | rs1 << 15 | rd << 7 | 0x13
}

pub(super) const fn andi(rd: u32, rs1: u32, immediate: u32) -> u32 {
    immediate << 20 | rs1 << 15 | 7 << 12 | rd << 7 | 0x13
}

pub(super) const fn slli(rd: u32, rs1: u32, amount: u32) -> u32 {
    amount << 20 | rs1 << 15 | 1 << 12 | rd << 7 | 0x13
}

pub(super) const fn add(rd: u32, rs1: u32, rs2: u32) -> u32 {
    rs2 << 20 | rs1 << 15 | rd << 7 | 0x33
}

/// A guest that forever reads the clock, writes it to the next of 64 pages, and prints a line.
pub(super) fn guest() -> Vec<u8> {
    guest_of(64)
}

/// The guest with this many pages, a power of 2.
pub(super) fn guest_of(pages: u32) -> Vec<u8> {
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

pub(super) fn config() -> MachineConfig {
    MachineConfig { ram_bytes: 4 << 20, ..MachineConfig::default() }
}

pub(super) fn vm_id() -> VmId {
    VmId::new("alpha").unwrap()
}

pub(super) fn session(generation: u64) -> SessionHeader {
    SessionHeader::new(vm_id(), Generation(generation), config(), "test", &guest()).unwrap()
}

pub(super) fn limits(segment_bytes: u64) -> DiskLimits {
    DiskLimits { segment_bytes, sync_interval: Duration::from_millis(1), ..DiskLimits::default() }
}

/// A source without events, whose clock takes odd steps.
pub(super) struct Source(u64);

impl EventSource for Source {
    fn now_ns(&mut self) -> u64 {
        0
    }

    fn ticks(&mut self) -> u64 {
        self.0 = self.0 * 5 / 4 % (1 << 40) + self.0 + 1;
        self.0
    }

    fn wall_ns(&mut self) -> u64 {
        0
    }

    fn entropy(&mut self) -> u16 {
        0
    }

    fn poll(&mut self, _: &Machine) -> Option<Event> {
        None
    }
}

/// The sink of a VM's whole log, which passes a part of it to the log on disk.
pub(super) struct Sink {
    pub(super) disk: Option<DiskLog>,
    pub(super) entries: Vec<LogEntry>,
    pub(super) outputs: Vec<(OutputId, Arc<OutputOperation>)>,
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

/// The number of last outputs that the VM's primary still holds.
pub(super) const HELD: usize = 3;

pub(super) struct Vm {
    pub(super) image: Vec<u8>,
    pub(super) recorder: Recorder<Source>,
    pub(super) sink: Sink,
}

impl Vm {
    /// A VM whose guest was just reset.
    pub(super) fn new() -> Self {
        Self::of(Machine::new(&config(), &guest()).unwrap(), Vec::new(), 1)
    }

    pub(super) fn of(machine: Machine, entries: Vec<LogEntry>, ticks: u64) -> Self {
        let intervals = Intervals { digest_steps: 2000, ..Intervals::default() };
        let recorder = Recorder::new(machine, Source(ticks), intervals);
        Self { image: guest(), recorder, sink: Sink { disk: None, entries, outputs: Vec::new() } }
    }

    /// A VM with more memory than the rest of a copy may be.
    pub(super) fn large() -> Self {
        let image = guest_of(512);
        let vm = Self::of(Machine::new(&config(), &image).unwrap(), Vec::new(), 1);
        Self { image, ..vm }
    }

    /// A VM whose log begins at the guest's reset.
    pub(super) fn logged(directory: LogDirectory, generation: u64, limits: DiskLimits) -> Self {
        let mut vm = Self::new();
        vm.sink.disk = Some(begin(directory, session(generation), NODE, limits));
        vm.snapshot_now();
        vm
    }

    /// Makes the first snapshot, as for a guest that doesn't run before.
    pub(super) fn snapshot_now(&mut self) {
        let seq = LogSeq(self.sink.entries.len() as u64);
        self.snapshot_at(seq);
    }

    /// Makes the first snapshot, as if the log had reached `seq`.
    pub(super) fn snapshot_at(&mut self, seq: LogSeq) {
        let Sink { disk, outputs, .. } = &mut self.sink;
        let disk = disk.as_mut().unwrap();
        disk.stand_until_begun();
        while disk.is_beginning() || disk.is_full() {
            disk.serve(self.recorder.machine_mut(), seq, || outputs.clone());
        }
    }

    pub(super) fn run_slice(&mut self) {
        let Ok(_) = self.recorder.run_slice(&mut self.sink, STEPS);
        let Sink { disk, entries, outputs } = &mut self.sink;
        let seq = LogSeq(entries.len() as u64);
        let tail = || outputs[outputs.len().saturating_sub(HELD)..].to_vec();
        if let Some(disk) = disk {
            disk.serve(self.recorder.machine_mut(), seq, tail);
        }
    }

    pub(super) fn run(&mut self, slices: u32) {
        (0..slices).for_each(|_| self.run_slice());
    }

    pub(super) fn disk(&mut self) -> &mut DiskLog {
        self.sink.disk.as_mut().unwrap()
    }

    /// Runs at the disk's speed until `is_done`.
    pub(super) fn run_until(&mut self, what: &str, mut is_done: impl FnMut(&mut Self) -> bool) {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        while !is_done(self) {
            self.run_slice();
            std::thread::sleep(Duration::from_millis(1));
            assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT, "no {what}");
        }
    }

    pub(super) fn finish(&mut self) -> Result<LogDirectory, LogDirectoryError> {
        finish(self.sink.disk.take().unwrap())
    }

    /// The state at a position of the log at which the guest's instruction count is that of
    /// `machine`.
    pub(super) fn state_at(&self, seq: LogSeq, machine: &Machine) -> StateDigest {
        let mut replayer = Replayer::new(Machine::new(&config(), &self.image).unwrap(), LogSeq(0));
        let rest = LogEntry { count: machine.instruction_count(), body: EntryBody::Progress };
        for entry in self.sink.entries[..index(seq)].iter().chain([&rest]) {
            replayer.consume(entry).unwrap_or_else(|divergence| panic!("{divergence}"));
        }
        replayer.machine_mut().digest()
    }

    /// The state after each entry.
    pub(super) fn states(&self) -> Vec<StateDigest> {
        let mut replayer = Replayer::new(Machine::new(&config(), &guest()).unwrap(), LogSeq(0));
        let mut states = vec![replayer.machine_mut().digest()];
        for entry in &self.sink.entries {
            replayer.consume(entry).unwrap_or_else(|divergence| panic!("{divergence}"));
            states.push(replayer.machine_mut().digest());
        }
        states
    }
}

/// Begins a log whose steps run on threads, as in a process.
pub(super) fn begin(directory: LogDirectory, session: SessionHeader, node: NodeId, limits: DiskLimits) -> DiskLog {
    let (log, steps) = directory.begin(session, node, limits);
    run(steps);
    log
}

/// Calls the steps of a log until they are done.
pub(super) fn run(steps: DiskLogSteps<HostDirectory>) {
    ProcessHost::new(Reporter::new("test", false)).run_disk_log(steps).unwrap();
}

/// Ends a log.
pub(super) fn finish(log: DiskLog) -> Result<LogDirectory, LogDirectoryError> {
    let mut ending = log.finish();
    loop {
        match ending.step(clock::now_ns()) {
            Some(ended) => return ended,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
