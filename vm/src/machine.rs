//! The machine: hart, bus, RAM and devices under one instruction count.

use crate::boot::loader::{self, LoadError, Loaded};
use crate::boot::sbi::Firmware;
use crate::bus::Bus;
use crate::config::MachineConfig;
use crate::count::InstructionCount;
use crate::digest::StateDigest;
use crate::event::{Event, OutputId, OutputOperation, PACKET_BYTES_MAX};
use crate::exit::{Exit, HaltReason, StopReason};
use crate::fast::Fast;
use crate::fault::DeviceFault;
use crate::hart::{AwaitedRead, Hart, Pause};
use crate::isa::address::GuestPhysAddr;
use crate::isa::trap::Interrupt;
use crate::ram::disk::Disk;
use crate::ram::pages::PageRange;
use crate::ram::{RAM_BASE, Ram};
use crate::state::{RestoreError, StateReader, StateWriter};

/// An event that the machine isn't waiting for, or can't take: the log belongs to another
/// execution.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// An answer to a clock or seed read without such a read.
    #[error("the machine does not stand at a read of the {0}")]
    NotRead(&'static str),
    /// A clock that goes back.
    #[error("the clock would go back from {last} to {ticks} ticks")]
    ClockWentBack {
        /// The value to be read.
        ticks: u64,
        /// [`Machine::last_ticks`].
        last: u64,
    },
    /// A timer interrupt that the guest hasn't asked for.
    #[error("the guest has set no timer")]
    NoTimer,
    /// A packet that the guest has had, or that came out of order.
    #[error("packet {number} after packet {last}: their numbers must rise")]
    PacketOutOfOrder {
        /// The packet's number.
        number: u64,
        /// [`Machine::last_packet_number`].
        last: u64,
    },
    /// A packet longer than the network device carries.
    #[error("a frame of {bytes} bytes; the longest is {PACKET_BYTES_MAX}")]
    PacketTooLong {
        /// Its length.
        bytes: usize,
    },
    /// More console input than there is room for.
    #[error("{bytes} bytes of console input, but room for {room}")]
    ConsoleFull {
        /// How many came.
        bytes: usize,
        /// [`Machine::console_room`].
        room: usize,
    },
    /// The guest has come to its end; nothing happens any more.
    #[error("the machine has stopped: {0}")]
    Stopped(StopReason),
}

/// Packets that the network device couldn't carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedPackets {
    /// Applied without a buffer, or with one too short.
    pub received: u64,
    /// Sent by the guest with a length that isn't that of a packet.
    pub transmitted: u64,
}

/// A uniprocessor RV64GC machine on a subset of QEMU's `virt` board.
///
/// Invariant: between calls it is at rest, that is, all consequences of what happened so far have
/// been drawn. So its state is a function of the image, the events and the instruction count, and
/// not of the limits it was run with.
#[derive(Debug)]
pub struct Machine {
    hart: Hart,
    pub(crate) bus: Bus,
    firmware: Firmware,
    last_ticks: u64,
    last_packet_number: u64,
    /// Not state.
    fast: Fast,
}

/// Which interpreter executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
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
            bus: Bus::new(ram, disk, config.mac),
            firmware: Firmware::default(),
            last_ticks: 0,
            last_packet_number: 0,
            fast: Fast::new(),
        })
    }

    /// Steps executed since reset.
    #[must_use]
    pub const fn instruction_count(&self) -> InstructionCount {
        InstructionCount(self.hart.count())
    }

    /// Runs until the instruction count is `limit` or something needs the hypervisor.
    ///
    /// What it says first if several things hold: outputs to be taken, the end of the guest, the
    /// limit, WFI, a read.
    pub fn run(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::Fast, limit)
    }

    /// Does what [`Self::run`] does, but may stop a little before `limit`, though not before it has
    /// executed a step: for who looks after something every now and then, and not at a certain
    /// instruction. [`Exit::LimitReached`] is what it says then.
    pub fn run_about(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::FastAndEarly, limit)
    }

    /// Does what [`Self::run`] does, by the plain interpreter alone, which keeps nothing from one
    /// step to the next: the oracle for tests of the fast one. It takes several times as long.
    pub fn run_plain(&mut self, limit: InstructionCount) -> Exit {
        self.run_at(Engine::Plain, limit)
    }

    fn run_at(&mut self, engine: Engine, limit: InstructionCount) -> Exit {
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
            if self.hart.is_waiting() {
                return Exit::WaitForInterrupt;
            }
            // A device with work left does some behind every step.
            let (is_busy, before) = (self.bus.is_busy(), self.hart.count());
            let until = limit.0.min(if is_busy { before + 1 } else { self.bus.outputs.deadline() });
            let pause = match engine {
                Engine::Plain => self.hart.run(&mut self.bus, until),
                Engine::Fast | Engine::FastAndEarly => {
                    self.fast.run(&mut self.hart, &mut self.bus, until, engine == Engine::FastAndEarly)
                }
            };
            match pause {
                Pause::Count => {}
                // The device may have written what the reservation is for.
                Pause::DeviceTouched => self.hart.drop_reservation(),
                Pause::Awaits(AwaitedRead::Clock) => return Exit::ClockRead,
                Pause::Awaits(AwaitedRead::Seed) => return Exit::SeedRead,
                Pause::FirmwareCall => self.firmware.call(&mut self.hart, &mut self.bus),
                // Nobody should wait for the rest of a line while the guest sleeps.
                Pause::Waiting => self.bus.outputs.flush_console(),
                Pause::DoubleTrap { pc, cause } => {
                    let first = self.hart.trap_being_entered(&mut self.bus);
                    self.bus.stop(StopReason::Halt(HaltReason::DoubleTrap { pc, cause, first }));
                }
            }
            if is_busy && self.hart.count() > before {
                self.bus.work();
                self.hart.drop_reservation();
            }
            // The count stands still in sleep, and with it the device: it keeps its guest awake, as
            // WFI may.
            if self.bus.is_busy() {
                self.hart.stay_awake();
            }
            self.settle();
            if pause == Pause::Count && engine == Engine::FastAndEarly && !is_busy && self.bus.outputs.is_empty() {
                return Exit::LimitReached;
            }
        }
    }

    /// Applies one input, at the present instruction count.
    ///
    /// An answered read completes its instruction: the count is one more afterwards.
    ///
    /// # Errors
    /// [`ApplyError`] if the machine isn't in a state in which this event could have happened; the
    /// state is unchanged.
    pub fn apply(&mut self, event: &Event) -> Result<(), ApplyError> {
        if let Some(reason) = self.bus.stopped() {
            return Err(ApplyError::Stopped(reason));
        }
        match event {
            Event::ClockRead { ticks } => self.answer_clock_read(*ticks)?,
            Event::Entropy { bits } => self.answer_seed_read(*bits)?,
            Event::TimerInterrupt => {
                let deadline = self.firmware.timer_deadline().ok_or(ApplyError::NoTimer)?;
                self.firmware.expire_timer(&mut self.hart);
                self.last_ticks = self.last_ticks.max(deadline);
            }
            Event::Packet { number, packet } => self.receive_packet(*number, packet)?,
            Event::ConsoleInput { bytes } => {
                let room = self.console_room();
                if bytes.len() > room {
                    return Err(ApplyError::ConsoleFull { bytes: bytes.len(), room });
                }
                self.bus.uart.receive(bytes);
            }
        }
        self.settle();
        Ok(())
    }

    /// The oldest output not yet taken, and its place in the sequence of outputs since reset.
    pub fn take_output(&mut self) -> Option<(OutputId, OutputOperation)> {
        self.bus.outputs.take()
    }

    /// Whether there are outputs to be taken.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.bus.outputs.is_empty()
    }

    /// The id that the next output will get. Outputs produced and not yet taken have had theirs.
    #[must_use]
    pub const fn next_output_id(&self) -> OutputId {
        self.bus.outputs.next_id()
    }

    /// The latest clock value that the guest can know of: of its last clock read, or the deadline
    /// of its last timer interrupt if that is later. The clock of whoever takes the guest over goes
    /// on from here.
    #[must_use]
    pub const fn last_ticks(&self) -> u64 {
        self.last_ticks
    }

    /// The number of the last packet applied; 0 if there was none.
    #[must_use]
    pub const fn last_packet_number(&self) -> u64 {
        self.last_packet_number
    }

    /// When the guest wants its next timer interrupt, in clock ticks; `None` if it has set none or
    /// has had it.
    #[must_use]
    pub const fn timer_deadline(&self) -> Option<u64> {
        self.firmware.timer_deadline()
    }

    /// Whether the guest sleeps and no event can wake it: it waits neither for a device nor for a
    /// timer.
    #[must_use]
    pub const fn sleeps_for_good(&self) -> bool {
        let timer_wakes = self.timer_deadline().is_some() && self.hart.is_woken_by(Interrupt::SupervisorTimer);
        self.hart.is_waiting() && !timer_wakes && !self.hart.is_woken_by(Interrupt::SupervisorExternal)
    }

    /// Whether the guest is to tell its result through the symbol `tohost` of its image.
    #[must_use]
    pub const fn has_tohost(&self) -> bool {
        self.hart.has_tohost()
    }

    /// Whether the network device has a buffer for one more packet. A packet applied without is
    /// dropped and counted, as is one that is too long for the buffer.
    ///
    /// Also `true` if the guest has made a mess of its receive queue: a packet then makes the
    /// device need a reset.
    #[must_use]
    pub fn can_receive_packet(&self) -> bool {
        self.bus.net.can_receive(&self.bus.ram)
    }

    /// What the driver of a device last did wrong, so that its device needs a reset: told once, and
    /// not part of the state. A later mistake takes the place of an earlier one.
    pub const fn take_device_fault(&mut self) -> Option<DeviceFault> {
        self.bus.take_fault()
    }

    /// Packets that couldn't be carried so far.
    #[must_use]
    pub const fn dropped_packets(&self) -> DroppedPackets {
        let (received, transmitted) = self.bus.net.dropped();
        DroppedPackets { received, transmitted }
    }

    /// How many bytes of console input the machine takes now.
    #[must_use]
    pub fn console_room(&self) -> usize {
        self.bus.uart.room()
    }

    /// The digest of the state. Costs time in proportion to the pages written since the last call.
    pub fn digest(&mut self) -> StateDigest {
        let mut writer = StateWriter::default();
        self.write_to(&mut writer);
        let memory = self.bus.memories().map(|(pages, contents)| pages.digest(contents));
        StateDigest::new(writer, memory.fold(0, u128::wrapping_add))
    }

    /// As [`Self::digest`], but of RAM and the disk only the pages in `range` are part of it;
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

    /// As [`Self::digest_of`] the pages from page index `from` on, as far as one gets by looking at
    /// `dirty_max` pages that were written since a digest last looked at them, and these pages.
    /// From the end one begins at the beginning.
    ///
    /// What it costs is bounded however much the guest has written.
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

    /// Fault injection: flips one bit of RAM behind the guest's back. `false` if the address is not
    /// RAM or `bit` is not 0 to 7.
    pub fn flip_ram_bit(&mut self, address: u64, bit: u8) -> bool {
        let address = GuestPhysAddr(address);
        let Some(mask) = 1_u8.checked_shl(bit.into()) else { return false };
        let Some([byte]) = self.bus.ram.load(address) else { return false };
        self.bus.ram.store(address, [byte ^ mask]).is_some()
    }

    /// Writes all of the state but the contents of RAM and of the disk.
    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { hart, bus, firmware, last_ticks, last_packet_number, fast: _ } = self;
        hart.write_to(writer);
        bus.write_to(writer);
        firmware.write_to(writer);
        writer.u64(*last_ticks);
        writer.u64(*last_packet_number);
    }

    /// The machine of this configuration with this RAM and disk whose state without their contents
    /// is `state`.
    pub(crate) fn restored(
        config: &MachineConfig,
        ram: Ram,
        disk: Option<Disk>,
        state: &[u8],
    ) -> Result<Self, RestoreError> {
        let mut reader = StateReader::new(state);
        let hart = Hart::read_from(&mut reader, config.boot)?;
        let bus = Bus::read_from(&mut reader, ram, disk, config.mac, hart.count())?;
        reader.require(!(hart.is_waiting() && bus.is_busy()), "the hart sleeps while a device has work left")?;
        let firmware = Firmware::read_from(&mut reader)?;
        let (last_ticks, last_packet_number) = (reader.u64()?, reader.u64()?);
        let mut machine = Self { hart, bus, firmware, last_ticks, last_packet_number, fast: Fast::new() };
        reader.finish()?;
        // What no component can tell by itself: a machine at rest stays as it is.
        machine.settle();
        let mut writer = StateWriter::default();
        machine.write_to(&mut writer);
        if writer.into_bytes() == state { Ok(machine) } else { Err(RestoreError::NotAtRest) }
    }

    fn answer_clock_read(&mut self, ticks: u64) -> Result<(), ApplyError> {
        if self.hart.next_awaited_read(&self.bus) != Some(AwaitedRead::Clock) {
            return Err(ApplyError::NotRead("clock"));
        }
        if ticks < self.last_ticks {
            return Err(ApplyError::ClockWentBack { ticks, last: self.last_ticks });
        }
        self.last_ticks = ticks;
        self.hart.complete_read(&mut self.bus, ticks);
        Ok(())
    }

    fn answer_seed_read(&mut self, bits: u16) -> Result<(), ApplyError> {
        /// Field OPST of CSR `seed`: 16 bits of entropy are valid.
        const OPST_ES16: u64 = 0b10 << 30;
        if self.hart.next_awaited_read(&self.bus) != Some(AwaitedRead::Seed) {
            return Err(ApplyError::NotRead("seed"));
        }
        self.hart.complete_read(&mut self.bus, OPST_ES16 | u64::from(bits));
        Ok(())
    }

    fn receive_packet(&mut self, number: u64, packet: &[u8]) -> Result<(), ApplyError> {
        if number <= self.last_packet_number {
            return Err(ApplyError::PacketOutOfOrder { number, last: self.last_packet_number });
        }
        if packet.len() > PACKET_BYTES_MAX {
            return Err(ApplyError::PacketTooLong { bytes: packet.len() });
        }
        self.last_packet_number = number;
        self.bus.receive_packet(packet);
        self.hart.drop_reservation();
        Ok(())
    }

    /// Draws the consequences of a step or an event, so that the machine is at rest.
    fn settle(&mut self) {
        let external = self.bus.settle(self.hart.count());
        self.hart.set_external_line(external);
    }
}
