//! The machine: hart, bus, RAM and devices under one instruction count.

mod apply;

pub use apply::ApplyError;

use crate::boot::loader::{self, LoadError, Loaded};
use crate::boot::sbi;
use crate::bus::Bus;
use crate::config::MachineConfig;
use crate::count::InstructionCount;
use crate::digest::StateDigest;
use crate::event::{OutputId, OutputOperation};
use crate::exit::{Exit, HaltReason, StopReason};
use crate::fast::{Fast, Left};
use crate::fault::DeviceFault;
use crate::hart::{AwaitedValue, Hart, Pause};
use crate::isa::address::GuestPhysAddr;
use crate::isa::trap::Interrupt;
use crate::probe::{ActiveProbe, Writer};
use crate::ram::disk::Disk;
use crate::ram::pages::PageRange;
use crate::ram::{RAM_BASE, Ram};
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::boxed::Box;

/// Packets that the network device couldn't carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedPackets {
    /// Received packets without a buffer, or with one too short.
    pub received: u64,
    /// Transmitted packets of a length that isn't a packet's.
    pub transmitted: u64,
}

/// A uniprocessor RV64GC machine on a subset of QEMU's `virt` board.
///
/// Invariant: between calls it is at rest, that is, all consequences of steps and events have been
/// drawn: interrupt lines are set, outputs are queued. So its state is a function of the image, the
/// events and the instruction count, and not of the limits it was run with.
#[derive(Debug)]
pub struct Machine {
    pub(crate) hart: Hart,
    pub(crate) bus: Bus,
    last_packet_number: u64,
    /// Not state.
    pub(crate) fast: Fast,
    /// Not state.
    pub(crate) probe: Option<Box<ActiveProbe>>,
}

/// Which interpreter executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The fast one.
    Fast,
    /// The fast one, which may stop a few steps early instead of taking the last ones slowly.
    FastAndEarly,
    /// The plain one: it decodes every step and walks the page tables at every access.
    Plain,
}

impl Machine {
    /// Loads an [`Image`](crate::Image) and puts the hart at its entry with a0 = 0 and a1 = device
    /// tree: in S-mode, or in M-mode if the configuration has no firmware.
    ///
    /// # Errors
    /// [`LoadError`] if the configuration is out of range, the image is not loadable, or RAM has no
    /// room for it.
    pub fn new(config: &MachineConfig, image: &[u8]) -> Result<Self, LoadError> {
        let Loaded { ram, disk, entry, device_tree, host_port } = loader::load(config, image)?;
        Ok(Self {
            hart: Hart::new(config.boot, entry, device_tree, host_port),
            bus: Bus::new(ram, disk, config.mac, config.boot),
            last_packet_number: 0,
            fast: Fast::new(),
            probe: None,
        })
    }

    /// Steps executed since reset.
    #[must_use]
    pub const fn instruction_count(&self) -> InstructionCount {
        InstructionCount(self.hart.count())
    }

    /// Runs until the instruction count is `limit` or something needs the hypervisor.
    ///
    /// If several reasons to stop hold, it returns the first of: outputs to be taken, the end of
    /// the guest, the limit, random bytes, WFI, an instruction that needs a value.
    pub fn run(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::Fast, limit)
    }

    /// Like [`Self::run`], but may stop a few steps before `limit`, though not before it has
    /// executed a step, with [`Exit::LimitReached`]. For callers that poll periodically and don't
    /// need an exact instruction.
    pub fn run_about(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::FastAndEarly, limit)
    }

    /// Like [`Self::run`], by the plain interpreter alone: the oracle in tests of the fast one. It
    /// takes several times as long.
    pub fn run_plain(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::Plain, limit)
    }

    fn run_at(&mut self, engine: Engine, limit: InstructionCount) -> Exit {
        if self.probe.is_some() { self.run_with::<true>(engine, limit) } else { self.run_with::<false>(engine, limit) }
    }

    fn run_with<const PROBED: bool>(&mut self, engine: Engine, limit: InstructionCount) -> Exit {
        loop {
            if !self.bus.outputs.is_empty() {
                return Exit::Output;
            }
            if let Some(reason) = self.bus.stopped() {
                return Exit::Stopped(reason);
            }
            if self.hart.count() >= limit.0 {
                return Exit::LimitReached;
            }
            if self.bus.rng.is_waiting() {
                return Exit::RandomBytesNeeded;
            }
            if self.hart.is_waiting() {
                return Exit::WaitForInterrupt;
            }
            // A device with work left does a part of it after every step.
            let (is_busy, before) = (self.bus.is_busy(), self.hart.count());
            let until = limit.0.min(if is_busy { before + 1 } else { self.bus.outputs.deadline() });
            let pause = if PROBED { self.execute_probed(engine, until) } else { self.execute(engine, until) };
            match pause {
                None => {}
                // The device may have written to the reserved address.
                Some(Pause::DeviceTouched) => self.hart.drop_reservation(),
                Some(Pause::Awaits(AwaitedValue::Clock)) => return Exit::ClockRead,
                Some(Pause::Awaits(AwaitedValue::Seed)) => return Exit::SeedRead,
                Some(Pause::Awaits(AwaitedValue::WallClock)) => return Exit::WallClockNeeded,
                Some(Pause::FirmwareCall) => {
                    sbi::call(&mut self.hart, &mut self.bus);
                    if PROBED {
                        let (count, pc) = (self.hart.count() - 1, self.hart.pc().wrapping_sub(4));
                        self.note_writes(Writer::Firmware, count, pc);
                    }
                }
                // Console bytes don't wait for the rest of their line while the guest sleeps.
                Some(Pause::Waiting) => self.bus.outputs.flush_console(),
                Some(Pause::DoubleTrap { pc, cause }) => {
                    let first = self.hart.trap_being_entered(&mut self.bus);
                    self.bus.stop(StopReason::Halt(HaltReason::DoubleTrap { pc, cause, first }));
                }
            }
            if is_busy && self.hart.count() > before {
                self.bus.work();
                if PROBED {
                    self.note_writes(Writer::Device, before, self.hart.pc());
                }
                self.hart.drop_reservation();
            }
            // The count, and with it the device's work, stands still while the hart waits. WFI may
            // end early: a busy device keeps its guest awake.
            if self.bus.is_busy() {
                self.hart.stay_awake();
            }
            self.settle();
            if pause.is_none() && engine == Engine::FastAndEarly && !is_busy && self.bus.outputs.is_empty() {
                return Exit::LimitReached;
            }
        }
    }

    /// Executes steps until the count is `until`, or about `until` if the engine may stop early, or
    /// until the machine has to act.
    ///
    /// The fast interpreter executes what it has decoded, and the plain one each step that the fast
    /// one leaves. This is the only call of [`Hart::step`], so that it is inlined here: a call per
    /// step costs what the fast one leaves 4 % more of the host's instructions.
    fn execute(&mut self, engine: Engine, until: u64) -> Option<Pause> {
        while self.hart.count() < until {
            if engine != Engine::Plain {
                let before = self.hart.count();
                let left = self.fast.run(&mut self.hart, &mut self.bus, until);
                let count = self.hart.count();
                let is_early = engine == Engine::FastAndEarly && left == Left::Budget && count > before;
                if count == until || is_early {
                    break;
                }
            }
            if let Some(pause) = self.hart.step(&mut self.bus) {
                return Some(pause);
            }
        }
        None
    }

    /// Takes the oldest output, with its position in the sequence of outputs since reset.
    pub fn take_output(&mut self) -> Option<(OutputId, OutputOperation)> {
        self.bus.outputs.take()
    }

    /// `true` if there are outputs to take.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.bus.outputs.is_empty()
    }

    /// The id of the next output that the guest produces, however many are still to be taken.
    #[must_use]
    pub const fn next_output_id(&self) -> OutputId {
        self.bus.outputs.next_id()
    }

    /// The latest clock value that the guest can know: that of its last clock read, or the deadline
    /// of its last timer interrupt if that is later. A new primary's clock goes on from here.
    #[must_use]
    pub const fn last_ticks(&self) -> u64 {
        self.hart.ticks()
    }

    /// The latest time of day that the guest can know, in nanoseconds of UTC since 1970: that of
    /// its last access to the real-time clock, or that of its last alarm if it is later; 0 if there
    /// was none. A new primary's time of day must not be less.
    #[must_use]
    pub const fn last_wall_ns(&self) -> u64 {
        self.bus.rtc.host_ns()
    }

    /// The time of day at which the guest wants its alarm ([`Event::Alarm`](crate::Event::Alarm)),
    /// in nanoseconds of UTC since 1970; `None` if no alarm is set.
    #[must_use]
    pub fn alarm_wall_ns(&self) -> Option<u64> {
        self.bus.rtc.alarm_host_ns()
    }

    /// How many random bytes the entropy device takes now; at most
    /// [`RANDOM_BYTES_MAX`](crate::RANDOM_BYTES_MAX). 0 unless the machine stands at
    /// [`Exit::RandomBytesNeeded`].
    #[must_use]
    pub fn random_bytes_needed(&self) -> usize {
        self.bus.rng.wanted(&self.bus.ram)
    }

    /// The number of the last packet applied; 0 if there was none.
    #[must_use]
    pub const fn last_packet_number(&self) -> u64 {
        self.last_packet_number
    }

    /// The clock value at which the guest wants its next timer interrupt, in ticks; `None` if no
    /// timer is set, or the guest can know that all deadlines have passed.
    #[must_use]
    pub fn timer_deadline(&self) -> Option<u64> {
        self.deadlines().map(|(_, deadline)| deadline).min()
    }

    /// The timers whose deadline is still to come: that of the supervisor, which the firmware sets
    /// too, and that of M-mode at the CLINT.
    fn deadlines(&self) -> impl Iterator<Item = (Interrupt, u64)> {
        let supervisor = self.hart.supervisor_timer().map(|deadline| (Interrupt::SupervisorTimer, deadline));
        let machine = (Interrupt::MachineTimer, self.bus.machine_timer());
        let ticks = self.hart.ticks();
        // The greatest deadline means none.
        let is_ahead = move |(_, deadline): &(Interrupt, u64)| *deadline > ticks && *deadline != u64::MAX;
        supervisor.into_iter().chain([machine]).filter(is_ahead)
    }

    /// `true` if the guest waits in WFI and no event can wake it: it has enabled neither an
    /// external interrupt nor a timer that is set.
    #[must_use]
    pub fn sleeps_for_good(&self) -> bool {
        let timer_wakes = self.deadlines().any(|(interrupt, _)| self.hart.is_woken_by(interrupt));
        let external = [Interrupt::SupervisorExternal, Interrupt::MachineExternal];
        let device_wakes = external.into_iter().any(|interrupt| self.hart.is_woken_by(interrupt));
        self.hart.is_waiting() && !timer_wakes && !device_wakes
    }

    /// `true` if the image has a symbol `tohost`, by which it reports its result.
    #[must_use]
    pub const fn has_tohost(&self) -> bool {
        self.hart.has_tohost()
    }

    /// `true` if the driver has made a receive buffer available. A packet applied without one, or
    /// too long for it, is dropped and counted.
    ///
    /// Also `true` if the receive queue is malformed: the next packet then makes the device need a
    /// reset.
    #[must_use]
    pub fn can_receive_packet(&self) -> bool {
        self.bus.net.can_receive(&self.bus.ram)
    }

    /// Takes the last mistake of a device's driver that made the device need a reset. Not part of
    /// the state; a later mistake replaces an earlier one.
    pub const fn take_device_fault(&mut self) -> Option<DeviceFault> {
        self.bus.take_fault()
    }

    /// Packets dropped since reset.
    #[must_use]
    pub const fn dropped_packets(&self) -> DroppedPackets {
        let (received, transmitted) = self.bus.net.dropped();
        DroppedPackets { received, transmitted }
    }

    /// The most bytes of console input that the machine takes now.
    #[must_use]
    pub fn console_room(&self) -> usize {
        self.bus.uart.room()
    }

    /// The digest of the state. Its cost is in proportion to the pages written since the last call.
    pub fn digest(&mut self) -> StateDigest {
        let mut writer = StateWriter::default();
        self.write_to(&mut writer);
        let memory = self.bus.memories().map(|(pages, contents)| pages.digest(contents));
        StateDigest::new(writer, memory.fold(0, u128::wrapping_add))
    }

    /// Like [`Self::digest`], but of RAM and the disk only the pages in `range` are part of it;
    /// `None` if there are no such pages.
    pub fn digest_of(&mut self, range: PageRange) -> Option<StateDigest> {
        if range.first >= range.end || range.end > self.pages_end() {
            return None;
        }
        let mut writer = StateWriter::default();
        self.write_to(&mut writer);
        let parts = self.bus.memories().map(|(pages, contents)| pages.digest_range(range.first, range.end, contents));
        Some(StateDigest::new(writer, parts.fold(0, u128::wrapping_add)))
    }

    /// Like [`Self::digest_of`], of a range that begins at page index `from`, or at 0 if `from` is
    /// past the end, and ends once `dirty_max` pages have been hashed that were written since their
    /// last digest. Returns the range too.
    ///
    /// Its cost is bounded, however much the guest has written.
    pub fn digest_some(&mut self, from: u64, dirty_max: usize) -> (PageRange, StateDigest) {
        let first = if from < self.pages_end() { from } else { 0 };
        let mut writer = StateWriter::default();
        self.write_to(&mut writer);
        let (mut end, mut left, mut sum) = (first, dirty_max.max(1), 0_u128);
        for (pages, contents) in self.bus.memories() {
            if end < pages.end() && left > 0 {
                let part = pages.digest_some(end, left, contents);
                (end, left, sum) = (part.end, left - part.looked_at, sum.wrapping_add(part.sum));
            }
        }
        (PageRange { first, end }, StateDigest::new(writer, sum))
    }

    /// One past the index of the last page of RAM and the disk.
    #[must_use]
    pub fn pages_end(&self) -> u64 {
        self.bus.disk().map_or(self.bus.ram.pages().end(), |disk| disk.pages().end())
    }

    /// The address of the next instruction.
    #[must_use]
    pub const fn pc(&self) -> u64 {
        self.hart.pc()
    }

    /// Registers x0 to x31.
    #[must_use]
    pub const fn registers(&self) -> &[u64; 32] {
        self.hart.registers()
    }

    /// All of RAM.
    #[must_use]
    pub fn ram(&self) -> &[u8] {
        let bytes = self.bus.ram.end() - RAM_BASE;
        self.bus.ram.slice(GuestPhysAddr(RAM_BASE), bytes).expect("RAM is in RAM")
    }

    /// The `length` bytes of RAM at the physical address `address`; `None` if not all of them are
    /// RAM.
    #[must_use]
    pub fn memory(&self, address: u64, length: u64) -> Option<&[u8]> {
        self.bus.ram.slice(GuestPhysAddr(address), length)
    }

    /// The `length` bytes of the disk at `offset`; `None` if the machine has no disk, or not all of
    /// them are on it.
    #[must_use]
    pub fn disk(&self, offset: u64, length: u64) -> Option<&[u8]> {
        self.bus.disk()?.slice(offset, length)
    }

    /// Fault injection: flips one bit of RAM. `false` if the address is not in RAM or `bit` is not
    /// 0 to 7.
    pub fn flip_ram_bit(&mut self, address: u64, bit: u8) -> bool {
        let address = GuestPhysAddr(address);
        let Some(mask) = 1_u8.checked_shl(bit.into()) else { return false };
        let Some([byte]) = self.bus.ram.load(address) else { return false };
        self.bus.ram.store(address, [byte ^ mask]).is_some()
    }

    /// Writes all of the state but the contents of RAM and of the disk.
    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { hart, bus, last_packet_number, fast: _, probe: _ } = self;
        hart.write_to(writer);
        bus.write_to(writer);
        writer.u64(*last_packet_number);
    }

    /// Restores a machine of this configuration from RAM, disk and the bytes of [`Self::state`].
    pub(crate) fn restored(
        config: &MachineConfig,
        ram: Ram,
        disk: Option<Disk>,
        state: &[u8],
    ) -> Result<Self, RestoreError> {
        let mut reader = StateReader::new(state);
        let hart = Hart::read_from(&mut reader, config.boot)?;
        let bus = Bus::read_from(&mut reader, ram, disk, config.mac, config.boot, hart.count())?;
        reader.require(!(hart.is_waiting() && bus.is_busy()), "the hart sleeps while a device has work left")?;
        let mut machine = Self { hart, bus, last_packet_number: reader.u64()?, fast: Fast::new(), probe: None };
        reader.finish()?;
        // Checks what no component can check alone: a machine at rest doesn't change when it
        // settles.
        machine.settle();
        let mut writer = StateWriter::default();
        machine.write_to(&mut writer);
        if writer.into_bytes() == state { Ok(machine) } else { Err(RestoreError::NotAtRest) }
    }

    /// Draws the consequences of a step or an event: sets interrupt lines, queues outputs.
    fn settle(&mut self) {
        let lines = self.bus.settle(self.hart.count(), self.hart.ticks());
        self.hart.set_device_lines(lines);
    }
}
