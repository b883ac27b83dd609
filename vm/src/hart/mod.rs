//! The hart: registers, and the plain interpreter that executes steps.
//!
//! ```text
//!            ┌────────────── step ──────────────┐
//!   fetch ──► decode ──► Instruction ──► execute ──► next pc, or Unretired
//!            (pure)                                    ├─ trap: enter the handler
//!                                                      └─ Pause: the machine has to act
//! ```
//!
//! The hart uses the bus and nothing above it: firmware calls and values from outside are left to
//! the machine.

mod access;
pub(crate) mod alu;
mod csr;
pub(crate) mod execute;
mod float;
pub(crate) mod mmu;
mod tohost;
mod trap;

use crate::bus::{Bus, Clock};
use crate::config::BootMode;
use crate::isa::address::GuestPhysAddr;
use crate::isa::decode;
use crate::isa::instruction::{Instruction, Register, StoreKind};
use crate::isa::privilege::Privilege;
use crate::isa::trap::{Exception, Interrupt, Trap, TrapLevel};
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};
use access::{Accessed, ClockAccess, Fetched};
use csr::Csrs;
use execute::loaded;
use float::FloatState;
use mmu::Mmu;
pub(crate) use tohost::HostPort;

/// A value from outside the machine that an instruction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AwaitedValue {
    Clock,
    Seed,
    /// The time of day, for an access to the real-time clock.
    WallClock,
}

impl From<Clock> for AwaitedValue {
    fn from(clock: Clock) -> Self {
        match clock {
            Clock::Ticks => Self::Clock,
            Clock::Wall => Self::WallClock,
        }
    }
}

/// Why the machine has to act before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// The last step accessed a device: interrupt lines and outputs may have changed.
    DeviceTouched,
    /// The next instruction needs a value from outside; nothing has been executed.
    Awaits(AwaitedValue),
    /// The last step was an SBI call.
    FirmwareCall,
    /// The last step was a WFI, and no enabled interrupt is pending.
    Waiting,
    /// The trap handler can't be fetched.
    DoubleTrap { pc: u64, cause: u64 },
}

/// Why an instruction didn't retire in the usual way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unretired {
    Trap(Trap),
    /// An illegal instruction; the trap value is its bits, which only [`Hart::execute_next`] knows.
    Illegal,
    Awaits(AwaitedValue),
    FirmwareCall,
    WaitForInterrupt,
}

impl From<Trap> for Unretired {
    fn from(trap: Trap) -> Self {
        Self::Trap(trap)
    }
}

/// One RV64GC hart with M-mode, S-mode and U-mode.
///
/// Invariants: `x[0]` is 0; `waiting` only while nothing enabled is pending; `pc` is even.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Hart {
    pub(crate) x: [u64; 32],
    pub(crate) pc: u64,
    pub(crate) count: u64,
    /// Decides whether environment calls from S-mode are SBI calls.
    boot: BootMode,
    privilege: Privilege,
    csrs: Csrs,
    float: FloatState,
    mmu: Mmu,
    /// The address of the last LR, while its reservation is valid.
    reservation: Option<GuestPhysAddr>,
    waiting: bool,
    /// HTIF addresses of a guest without firmware.
    host_port: Option<HostPort>,
    /// Not state.
    traps_taken: u64,
}

impl Hart {
    /// A hart at `entry` with a0 = hart id 0 and a1 = device tree: in S-mode, as firmware starts a
    /// supervisor, or in M-mode if there is no firmware.
    pub(crate) fn new(boot: BootMode, entry: u64, device_tree: u64, host_port: Option<HostPort>) -> Self {
        let mut x = [0; 32];
        x[11] = device_tree;
        let privilege = match boot {
            BootMode::Firmware => Privilege::Supervisor,
            BootMode::Bare => Privilege::Machine,
        };
        Self {
            x,
            pc: entry,
            count: 0,
            boot,
            privilege,
            csrs: Csrs::new(boot),
            float: FloatState::new(),
            mmu: Mmu::new(),
            reservation: None,
            waiting: false,
            host_port,
            traps_taken: 0,
        }
    }

    /// Steps executed since reset.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// `true` while it waits in WFI.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// `true` if `interrupt` would end a WFI.
    pub(crate) const fn is_woken_by(&self, interrupt: Interrupt) -> bool {
        self.csrs.enabled_interrupts() & interrupt.mask() != 0
    }

    /// The privilege mode of the next instruction.
    pub(crate) const fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// CSR `satp`.
    pub(crate) const fn satp(&self) -> u64 {
        self.mmu.satp()
    }

    /// `true` if the image has a symbol `tohost`.
    pub(crate) const fn has_tohost(&self) -> bool {
        self.host_port.is_some()
    }

    /// The address of the next instruction.
    pub(crate) const fn pc(&self) -> u64 {
        self.pc
    }

    /// Registers x0 to x31.
    pub(crate) const fn registers(&self) -> &[u64; 32] {
        &self.x
    }

    /// Registers f0 to f31.
    pub(crate) const fn float_registers(&self) -> &[u64; 32] {
        &self.float.f
    }

    /// Address translation.
    pub(crate) const fn mmu(&self) -> &Mmu {
        &self.mmu
    }

    /// How many traps have been taken since the machine was made.
    pub(crate) const fn traps_taken(&self) -> u64 {
        self.traps_taken
    }

    /// Cause and value of the last trap into the present mode.
    pub(crate) const fn last_trap(&self) -> (u64, u64) {
        let level = match self.privilege {
            Privilege::Machine => TrapLevel::Machine,
            Privilege::Supervisor | Privilege::User => TrapLevel::Supervisor,
        };
        let csrs = self.csrs.level(level);
        (csrs.cause, csrs.tval)
    }

    /// Executes one step: takes an interrupt, or fetches, decodes and executes one instruction.
    /// `None`: the machine needn't act. The hart must not be waiting.
    ///
    /// Nothing is cached from one step to the next, so this defines the result of any faster way to
    /// execute.
    #[inline]
    pub(crate) fn step(&mut self, bus: &mut Bus) -> Option<Pause> {
        debug_assert!(!self.waiting, "a waiting hart executes nothing");
        if self.csrs.pending_interrupts() != 0
            && let Some(interrupt) = self.deliverable_interrupt()
        {
            self.take_interrupt(interrupt);
            return None;
        }
        match self.execute_next(bus) {
            Ok(next_pc) => {
                self.pc = next_pc;
                self.count += 1;
            }
            Err((unretired, bits)) => {
                if let Some(pause) = self.divert(unretired, bits) {
                    return Some(pause);
                }
            }
        }
        bus.touched().then_some(Pause::DeviceTouched)
    }

    /// The value from outside that the next step needs, if any.
    ///
    /// A function of the state alone, so that a recorder, whose run has just stopped there, and a
    /// replayer, whose run has stopped because the log said so, get the same.
    pub(crate) fn next_awaited_value(&self, bus: &Bus) -> Option<AwaitedValue> {
        self.next_awaited_step(&bus.ram).map(|step| step.awaited)
    }

    /// Completes the instruction that needs a value from outside, at which the hart must stand. The
    /// real-time clock, if it is that which is accessed, has got its value before.
    pub(crate) fn complete_awaited(&mut self, bus: &mut Bus, value: u64) {
        let AwaitedStep { rd, access, fetched, .. } =
            self.next_awaited_step(&bus.ram).expect("the caller has seen that the hart stands there");
        fetched.put_marks(&mut bus.ram);
        let value = match access {
            Some(ClockAccess { clock, address, mark, accessed }) => {
                if let Some(mark) = mark {
                    mark.put(&mut bus.ram);
                }
                match (clock, accessed) {
                    (Clock::Ticks, Accessed::Load(kind)) => loaded(kind, value >> (8 * (address.0 % 8))),
                    (Clock::Wall, Accessed::Load(kind)) => loaded(kind, bus.load_rtc(address)),
                    (_, Accessed::Store(value)) => {
                        bus.store_rtc(address, value);
                        0
                    }
                }
            }
            None => value,
        };
        self.set_register(rd, value);
        self.pc = self.pc.wrapping_add(decode::length(fetched.bits));
        self.count += 1;
    }

    /// The latest clock value that the guest can know.
    pub(crate) const fn ticks(&self) -> u64 {
        self.csrs.ticks()
    }

    /// The clock has come to `ticks`, and the guest can know it: ends a WFI that waits for the
    /// supervisor's timer.
    pub(crate) const fn set_ticks(&mut self, ticks: u64) {
        self.csrs.set_ticks(ticks);
        self.wake();
    }

    /// The deadline of the supervisor's timer in clock ticks; `None` if it has no timer.
    pub(crate) const fn supervisor_timer(&self) -> Option<u64> {
        self.csrs.supervisor_timer()
    }

    /// Sets the deadline of the supervisor's timer, for the firmware.
    pub(crate) const fn set_supervisor_timer(&mut self, deadline: u64) {
        self.csrs.set_supervisor_timer(deadline);
        self.wake();
    }

    /// Makes the supervisor's software interrupt pending or not, for the firmware.
    pub(crate) const fn set_software_pending(&mut self, pending: bool) {
        self.csrs.set_software_pending(pending);
        self.wake();
    }

    /// Sets the interrupt lines of devices, as bits of `mip`, and ends a WFI that waits for one of
    /// them.
    ///
    /// It ends here and not when the hart next runs, so that the state doesn't depend on whether
    /// the hart has been run since.
    pub(crate) const fn set_device_lines(&mut self, lines: u64) {
        self.csrs.set_device_lines(lines);
        self.wake();
    }

    /// Ends a WFI without an interrupt.
    pub(crate) const fn stay_awake(&mut self) {
        self.waiting = false;
    }

    const fn wake(&mut self) {
        if self.csrs.pending_interrupts() != 0 {
            self.waiting = false;
        }
    }

    /// Ends the reservation of an LR: a device or other code of the guest may have written to its
    /// address.
    pub(crate) const fn drop_reservation(&mut self) {
        self.reservation = None;
    }

    /// The arguments of a firmware call: a0 to a5, the function (a6), the extension (a7).
    pub(crate) fn firmware_arguments(&self) -> [u64; 8] {
        core::array::from_fn(|index| self.x[10 + index])
    }

    /// Sets the results of a firmware call: a0, and a1 unless the call leaves it alone.
    pub(crate) const fn set_firmware_result(&mut self, a0: u64, a1: Option<u64>) {
        self.x[10] = a0;
        if let Some(a1) = a1 {
            self.x[11] = a1;
        }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { x, pc, count, boot, privilege, csrs, float, mmu, reservation, waiting, host_port, traps_taken: _ } =
            self;
        for register in x {
            writer.u64(*register);
        }
        writer.u64(*pc);
        writer.u64(*count);
        writer.bool(*boot == BootMode::Firmware);
        writer.u8(privilege.level());
        csrs.write_to(writer);
        float.write_to(writer);
        mmu.write_to(writer);
        writer.optional_u64(reservation.map(|address| address.0));
        writer.bool(*waiting);
        let addresses = host_port.map(|HostPort { tohost, fromhost }| (tohost.0, fromhost.map(|address| address.0)));
        writer.optional_u64(addresses.map(|(tohost, _)| tohost));
        writer.optional_u64(addresses.and_then(|(_, fromhost)| fromhost));
    }

    /// Reads the hart of a machine with this boot mode.
    pub(crate) fn read_from(reader: &mut StateReader<'_>, boot: BootMode) -> Result<Self, RestoreError> {
        let mut x = [0; 32];
        for register in &mut x {
            *register = reader.u64()?;
        }
        reader.require(x[0] == 0, "register x0 is not zero")?;
        let pc = reader.u64()?;
        reader.require(pc.is_multiple_of(2), "the pc is odd")?;
        let count = reader.counter()?;
        let stored_boot = if reader.bool()? { BootMode::Firmware } else { BootMode::Bare };
        reader.require(stored_boot == boot, "the machine was booted in another way")?;
        let privilege = Privilege::from_level(reader.u8()?.into());
        let privilege = privilege.ok_or_else(|| reader.impossible("the privilege mode doesn't exist"))?;
        let csrs = Csrs::read_from(reader)?;
        let float = FloatState::read_from(reader)?;
        let mmu = Mmu::read_from(reader)?;
        let reservation = reader.optional_u64()?;
        reader.require(reservation.unwrap_or(0).is_multiple_of(4), "the reservation is not aligned")?;
        let waiting = reader.bool()?;
        let reservation = reservation.map(GuestPhysAddr);
        let (tohost, fromhost) = (reader.optional_u64()?, reader.optional_u64()?.map(GuestPhysAddr));
        reader.require(tohost.is_some() || fromhost.is_none(), "there is `fromhost`, but not `tohost`")?;
        let host_port = tohost.map(|tohost| HostPort { tohost: GuestPhysAddr(tohost), fromhost });
        let traps_taken = 0;
        Ok(Self { x, pc, count, boot, privilege, csrs, float, mmu, reservation, waiting, host_port, traps_taken })
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

    /// Fetches, decodes and executes one instruction. Returns the next pc; pc and count have not
    /// changed yet.
    #[inline]
    fn execute_next(&mut self, bus: &mut Bus) -> Result<u64, (Unretired, u32)> {
        let fetched = self.fetch(&bus.ram).map_err(|trap| (trap.into(), 0))?;
        let instruction = decode::decode(fetched.bits);
        // An instruction that waits for its value is no step yet and must not change memory: a
        // replayer that has only reached its count hasn't fetched it.
        if fetched.has_marks() && self.awaited_by(&bus.ram, instruction, fetched).is_none() {
            fetched.put_marks(&mut bus.ram);
        }
        self.execute(bus, instruction, decode::length(fetched.bits)).map_err(|unretired| (unretired, fetched.bits))
    }

    /// Completes a step whose instruction didn't retire. `None`: the machine needn't act.
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
                // The firmware's own instructions, which would retire, don't exist here.
                self.pc = self.pc.wrapping_add(4);
                self.count_unretired();
                self.drop_reservation();
                Some(Pause::FirmwareCall)
            }
            Unretired::WaitForInterrupt => {
                self.pc = self.pc.wrapping_add(4);
                self.count += 1;
                self.waiting = self.csrs.pending_interrupts() == 0;
                self.waiting.then_some(Pause::Waiting)
            }
        }
    }

    /// Counts a step in which no instruction has retired: it counts in the log's positions, but not
    /// in `minstret`.
    const fn count_unretired(&mut self) {
        self.count += 1;
        self.csrs.leave_step_out();
    }

    /// The next step, if it needs a value from outside.
    fn next_awaited_step(&self, ram: &Ram) -> Option<AwaitedStep> {
        if self.waiting || self.deliverable_interrupt().is_some() {
            return None;
        }
        let fetched = self.fetch(ram).ok()?;
        self.awaited_by(ram, decode::decode(fetched.bits), fetched)
    }

    /// The step that `instruction` is here, if it needs a value from outside.
    fn awaited_by(&self, ram: &Ram, instruction: Instruction, fetched: Fetched) -> Option<AwaitedStep> {
        if let Instruction::Csr(instruction) = instruction {
            let awaited = self.awaited_read(instruction).ok()??;
            return Some(AwaitedStep { awaited, rd: instruction.rd, access: None, fetched });
        }
        let (rd, address, accessed) = if let Instruction::Load { kind, rd, rs1, offset } = instruction {
            (rd, self.effective(rs1, offset), Accessed::Load(kind))
        } else if let Instruction::Store { kind: StoreKind::Word, rs1, rs2, offset } = instruction {
            (Register::ZERO, self.effective(rs1, offset), Accessed::Store(self.register(rs2)))
        } else {
            return None;
        };
        let access = self.clock_access(ram, address, accessed)?;
        Some(AwaitedStep { awaited: access.clock.into(), rd, access: Some(access), fetched })
    }
}

/// An instruction that needs a value from outside.
#[derive(Clone, Copy, Debug)]
struct AwaitedStep {
    awaited: AwaitedValue,
    rd: Register,
    /// `None` if the instruction reads a CSR.
    access: Option<ClockAccess>,
    fetched: Fetched,
}
