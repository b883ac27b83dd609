//! The hart: registers, and the loop that executes steps.
//!
//! ```text
//!            ┌────────────── step ──────────────┐
//!   fetch ──► decode ──► Instruction ──► execute ──► next pc, or Unretired
//!            (pure)                                    ├─ trap: enter the handler
//!                                                      └─ Pause: the machine has to act
//! ```
//!
//! The hart knows the bus and nothing above it: firmware calls and values from outside are left to the machine.

mod alu;
mod compressed;
mod csr;
mod decode;
mod execute;
#[expect(unsafe_code, reason = "the one module that needs it; it says what for")]
mod fast;
mod float;
pub(crate) mod trap;

use crate::bus::Bus;
use crate::mmu::{Access, GuestPhysAddr, GuestVirtAddr, Mmu};
use crate::state::{RestoreError, StateReader, StateWriter};
use csr::Csrs;
use decode::{Instruction, Register};
use fast::Fast;
pub(crate) use fast::memory;
use float::FloatState;
use trap::{Exception, Interrupt, Trap};

/// Who the guest's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    User,
    Supervisor,
    Machine,
}

impl Privilege {
    /// The number of the mode, as CSR addresses have it.
    const fn level(self) -> u16 {
        match self {
            Self::User => 0,
            Self::Supervisor => 1,
            Self::Machine => 3,
        }
    }
}

/// A read whose value comes from outside the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AwaitedRead {
    Clock,
    Seed,
}

/// Why [`Hart::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// The count has come to where it was to stop.
    Count,
    /// The last step touched a device: interrupt lines and outputs may have changed.
    DeviceTouched,
    /// The next instruction reads a value from outside; nothing has been executed.
    Awaits(AwaitedRead),
    /// The last step was a call of the firmware.
    FirmwareCall,
    /// The last step was a WFI, and nothing is pending.
    Waiting,
    /// The trap handler can't be fetched.
    DoubleTrap { pc: u64, cause: u64 },
}

/// Why an instruction did not simply retire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unretired {
    Trap(Trap),
    /// An illegal instruction; the trap value is its bits, which only [`Hart::step`] knows.
    Illegal,
    Awaits(AwaitedRead),
    FirmwareCall,
    WaitForInterrupt,
}

impl From<Trap> for Unretired {
    fn from(trap: Trap) -> Self {
        Self::Trap(trap)
    }
}

/// One RV64IMAC hart with S-mode and U-mode.
///
/// Invariants: `x[0]` is 0; `waiting` only while nothing enabled is pending; `pc` is even.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Hart {
    x: [u64; 32],
    pc: u64,
    count: u64,
    privilege: Privilege,
    csrs: Csrs,
    float: FloatState,
    mmu: Mmu,
    /// Where the last LR read, if its reservation is still valid.
    reservation: Option<GuestPhysAddr>,
    waiting: bool,
    /// Not state.
    fast: Fast,
}

impl Hart {
    /// A hart in S-mode at `entry`, as firmware starts a supervisor: a0 = hart id 0, a1 = device tree.
    pub(crate) const fn new(entry: u64, device_tree: u64) -> Self {
        let mut x = [0; 32];
        x[11] = device_tree;
        Self {
            x,
            pc: entry,
            count: 0,
            privilege: Privilege::Supervisor,
            csrs: Csrs::new(),
            float: FloatState::new(),
            mmu: Mmu::new(),
            reservation: None,
            waiting: false,
            fast: Fast::new(),
        }
    }

    /// Steps executed since reset.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Whether it sleeps in WFI.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// The address of the next instruction.
    pub(crate) const fn pc(&self) -> u64 {
        self.pc
    }

    /// Registers x0 to x31.
    pub(crate) const fn registers(&self) -> &[u64; 32] {
        &self.x
    }

    /// Executes steps until the count is `until` or the machine has to act. The hart must not be waiting.
    pub(crate) fn run(&mut self, bus: &mut Bus, until: u64) -> Pause {
        assert!(!self.waiting, "a waiting hart executes nothing");
        while self.count < until {
            if self.csrs.pending_interrupts() != 0
                && let Some(interrupt) = self.deliverable_interrupt()
            {
                self.take_interrupt(interrupt);
                continue;
            }
            self.run_fast(bus, until);
            if self.count == until {
                break;
            }
            match self.step(bus) {
                Ok(next_pc) => {
                    self.pc = next_pc;
                    self.count += 1;
                }
                Err((unretired, bits)) => {
                    if let Some(pause) = self.divert(unretired, bits) {
                        return pause;
                    }
                }
            }
            if bus.touched() {
                return Pause::DeviceTouched;
            }
        }
        Pause::Count
    }

    /// Which value from outside the next step would wait for.
    ///
    /// A function of the state alone, so that it gives the same answer to a recorder, whose run has just stopped there, and
    /// to a replayer, whose run has stopped because the log said so.
    pub(crate) fn next_awaited_read(&self, bus: &Bus) -> Option<AwaitedRead> {
        self.next_csr_read(bus).map(|(read, _)| read)
    }

    /// Completes the read that the hart stands at. It must stand at one.
    pub(crate) fn complete_read(&mut self, bus: &Bus, value: u64) {
        let (_, rd) = self.next_csr_read(bus).expect("the caller has seen that the hart stands at a read");
        self.set_register(rd, value);
        self.pc = self.pc.wrapping_add(4);
        self.count += 1;
    }

    /// Sets or clears the pending bit of `interrupt`, and wakes the hart if that is what it waits for.
    ///
    /// It wakes here, not when it next runs, so that its state doesn't depend on whether it has been run since.
    pub(crate) const fn set_pending(&mut self, interrupt: Interrupt, pending: bool) {
        self.csrs.set_pending(interrupt, pending);
        if self.csrs.pending_interrupts() != 0 {
            self.waiting = false;
        }
    }

    /// Forgets the reservation of an LR: a device or other code of the guest may have written where it points.
    pub(crate) const fn drop_reservation(&mut self) {
        self.reservation = None;
    }

    /// The arguments of a firmware call: a0 to a5, the function (a6), the extension (a7).
    pub(crate) fn firmware_arguments(&self) -> [u64; 8] {
        core::array::from_fn(|index| self.x[10 + index])
    }

    /// What a firmware call returns: a0, and a1 unless the call leaves it alone.
    pub(crate) const fn set_firmware_result(&mut self, a0: u64, a1: Option<u64>) {
        self.x[10] = a0;
        if let Some(a1) = a1 {
            self.x[11] = a1;
        }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { x, pc, count, privilege, csrs, float, mmu, reservation, waiting, fast: _ } = self;
        for register in x {
            writer.u64(*register);
        }
        writer.u64(*pc);
        writer.u64(*count);
        writer.u16(privilege.level());
        csrs.write_to(writer);
        float.write_to(writer);
        mmu.write_to(writer);
        writer.optional_u64(reservation.map(|address| address.0));
        writer.bool(*waiting);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let mut x = [0; 32];
        for register in &mut x {
            *register = reader.u64()?;
        }
        reader.require(x[0] == 0, "register x0 is not zero")?;
        let pc = reader.u64()?;
        reader.require(pc.is_multiple_of(2), "the pc is odd")?;
        let count = reader.counter()?;
        let level = reader.u16()?;
        let privilege =
            [Privilege::User, Privilege::Supervisor, Privilege::Machine].into_iter().find(|mode| mode.level() == level);
        let privilege = privilege.ok_or_else(|| reader.impossible("the privilege mode doesn't exist"))?;
        let csrs = Csrs::read_from(reader)?;
        let float = FloatState::read_from(reader)?;
        let mmu = Mmu::read_from(reader)?;
        let reservation = reader.optional_u64()?;
        reader.require(reservation.unwrap_or(0).is_multiple_of(4), "the reservation is not aligned")?;
        let waiting = reader.bool()?;
        reader
            .require(!waiting || csrs.pending_interrupts() == 0, "the hart waits for an interrupt that is pending")?;
        Ok(Self {
            x,
            pc,
            count,
            privilege,
            csrs,
            float,
            mmu,
            reservation: reservation.map(GuestPhysAddr),
            waiting,
            fast: Fast::new(),
        })
    }

    #[inline]
    const fn register(&self, register: Register) -> u64 {
        self.x[register.index()]
    }

    #[inline]
    const fn set_register(&mut self, register: Register, value: u64) {
        self.x[register.index()] = value;
        self.x[0] = 0;
    }

    /// Fetches, decodes and executes one instruction. The result is the next pc; nothing else has moved on yet.
    #[inline]
    fn step(&mut self, bus: &mut Bus) -> Result<u64, (Unretired, u32)> {
        let bits = self.fetch(bus).map_err(|trap| (trap.into(), 0))?;
        self.execute(bus, decode::decode(bits), decode::length(bits)).map_err(|unretired| (unretired, bits))
    }

    /// The bits at pc: 32, or 16 if the instruction is a compressed one at the very end of memory.
    #[inline]
    fn fetch(&self, bus: &Bus) -> Result<u32, Trap> {
        let pc = GuestVirtAddr(self.pc);
        let physical = self.mmu.translate(pc, Access::Fetch)?;
        match bus.ram.load(physical) {
            Some(bytes) => Ok(u32::from_le_bytes(bytes)),
            None => self.fetch_at_the_end(bus, pc, physical),
        }
    }

    #[cold]
    fn fetch_at_the_end(&self, bus: &Bus, pc: GuestVirtAddr, physical: GuestPhysAddr) -> Result<u32, Trap> {
        let bits = bus.ram.load(physical).map(u16::from_le_bytes).ok_or(Access::Fetch.fault(pc))?;
        match decode::length(u32::from(bits)) {
            2 => Ok(u32::from(bits)),
            // The half that isn't there is the one that faults.
            _ => Err(Access::Fetch.fault(GuestVirtAddr(pc.0.wrapping_add(2)))),
        }
    }

    /// Deals with what did not simply retire. `None`: go on.
    #[cold]
    fn divert(&mut self, unretired: Unretired, bits: u32) -> Option<Pause> {
        match unretired {
            Unretired::Trap(trap) => self.take_exception(trap),
            Unretired::Illegal => {
                let bits = if decode::length(bits) == 2 { bits & 0xffff } else { bits };
                self.take_exception(Trap { exception: Exception::IllegalInstruction, tval: u64::from(bits) })
            }
            Unretired::Awaits(read) => Some(Pause::Awaits(read)),
            Unretired::FirmwareCall => {
                self.retire_system_instruction();
                self.drop_reservation();
                Some(Pause::FirmwareCall)
            }
            Unretired::WaitForInterrupt => {
                self.retire_system_instruction();
                self.waiting = self.csrs.pending_interrupts() == 0;
                self.waiting.then_some(Pause::Waiting)
            }
        }
    }

    /// Moves on over an ECALL or WFI, which have no compressed form.
    const fn retire_system_instruction(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.count += 1;
    }

    /// The read of a value from outside that the next step would be, and its destination.
    fn next_csr_read(&self, bus: &Bus) -> Option<(AwaitedRead, Register)> {
        if self.waiting || self.deliverable_interrupt().is_some() {
            return None;
        }
        let bits = self.fetch(bus).ok()?;
        let Instruction::Csr(instruction) = decode::decode(bits) else { return None };
        let read = self.awaited_read(instruction).ok()??;
        Some((read, instruction.rd))
    }
}
