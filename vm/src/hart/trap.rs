//! How the hart enters and leaves trap handlers.
//!
//! A trap goes to M-mode unless `medeleg` or `mideleg` delegates it to S-mode and the hart is not
//! in M-mode. With the hypervisor as firmware everything is delegated, and the environment call
//! from S-mode is an SBI call, which never becomes a trap: M-mode is never entered.

use super::csr::{Status, TrapCsrs};
use super::{Hart, Pause, Unretired};
use crate::bus::Bus;
use crate::config::BootMode;
use crate::exit::{FirstTrap, Lack};
use crate::isa::address::GuestPhysAddr;
use crate::isa::decode;
use crate::isa::instruction::{CsrInstruction, Instruction};
use crate::isa::privilege::Privilege;
use crate::isa::trap::{Exception, Interrupt, Trap, TrapLevel};

/// Bit 63 of `scause` and `mcause`.
const CAUSE_IS_INTERRUPT: u64 = 1 << 63;

/// MODE of `stvec` and `mtvec` if interrupts are vectored.
const TVEC_VECTORED: u64 = 1;

impl Hart {
    /// The interrupt to take before the next instruction, if any.
    pub(crate) fn deliverable_interrupt(&self) -> Option<Interrupt> {
        let pending = self.csrs.pending_interrupts();
        if pending == 0 {
            return None;
        }
        // Interrupts for a higher mode are always enabled, those for a lower one never.
        let (supervisor_enabled, machine_enabled) = match self.privilege {
            Privilege::User => (true, true),
            Privilege::Supervisor => (self.csrs.status.has(TrapLevel::Supervisor.enable()), true),
            Privilege::Machine => (false, self.csrs.status.has(TrapLevel::Machine.enable())),
        };
        let of = |enabled, mask: u64| if enabled { Interrupt::first_of(pending & mask) } else { None };
        let delegated = self.csrs.interrupts_delegated();
        of(machine_enabled, !delegated).or_else(|| of(supervisor_enabled, delegated))
    }

    /// Enters the trap handler for `interrupt`: a step of its own.
    pub(super) const fn take_interrupt(&mut self, interrupt: Interrupt) {
        let delegated = self.csrs.interrupts_delegated() & interrupt.mask() != 0;
        let level = if delegated { TrapLevel::Supervisor } else { TrapLevel::Machine };
        let code = interrupt as u64;
        let tvec = self.csrs.level(level).tvec;
        let offset = if tvec & TVEC_VECTORED == 0 { 0 } else { 4 * code };
        self.enter_trap(level, CAUSE_IS_INTERRUPT | code, 0, offset);
    }

    /// Enters the trap handler for `trap`, as the step of the instruction that raised it.
    ///
    /// `Some` if the instruction that can't be fetched is the handler's first: it would be entered
    /// for ever.
    pub(super) fn take_exception(&mut self, trap: Trap) -> Option<Pause> {
        let cause = u64::from(trap.exception as u8);
        let delegated = self.privilege != Privilege::Machine && self.csrs.exceptions_delegated() >> cause & 1 == 1;
        let level = if delegated { TrapLevel::Supervisor } else { TrapLevel::Machine };
        let unfetchable = matches!(trap.exception, Exception::InstructionAccessFault | Exception::InstructionPageFault);
        if unfetchable && self.privilege == level.privilege() && self.pc == self.csrs.level(level).trap_base() {
            self.count_unretired();
            return Some(Pause::DoubleTrap { pc: self.pc, cause });
        }
        self.enter_trap(level, cause, trap.tval, 0);
        None
    }

    /// Enters a handler. The reservation ends here and in [`Self::leave_trap`], so that one
    /// context's SC never succeeds by another's LR. The specification leaves that to the guest's
    /// kernel; QEMU does as here.
    const fn enter_trap(&mut self, level: TrapLevel, cause: u64, tval: u64, offset: u64) {
        self.count_unretired();
        self.traps_taken += 1;
        self.drop_reservation();
        self.csrs.status.enter(level, self.privilege);
        let csrs = self.csrs.level_mut(level);
        csrs.epc = self.pc;
        csrs.cause = cause;
        csrs.tval = tval;
        self.pc = csrs.trap_base().wrapping_add(offset);
        self.privilege = level.privilege();
    }

    /// The trap whose handler the hart is at and can't fetch; `None` if it didn't come there by a
    /// trap.
    pub(crate) fn trap_being_entered(&self, bus: &mut Bus) -> Option<FirstTrap> {
        let level = if self.privilege == Privilege::Machine { TrapLevel::Machine } else { TrapLevel::Supervisor };
        let TrapCsrs { cause, epc, tval, .. } = *self.csrs.level(level);
        // The value after reset. As a cause 0 is the misaligned fetch, which can't happen.
        if cause == 0 {
            return None;
        }
        let is_physical = self.mmu.satp() == 0;
        let instruction = if cause == Exception::IllegalInstruction as u64 {
            u32::try_from(tval).unwrap_or(0)
        } else {
            let in_ram = bus.ram.load(GuestPhysAddr(epc)).filter(|_| is_physical);
            in_ram.map_or(0, u32::from_le_bytes)
        };
        let is = |exception: Exception| exception as u64 == cause;
        let absent_csr = if let Instruction::Csr(CsrInstruction { csr, .. }) = decode::decode(instruction) {
            (is(Exception::IllegalInstruction) && !self.has_csr(csr)).then_some(Lack::Csr(csr))
        } else {
            None
        };
        let is_access_fault =
            is(Exception::InstructionAccessFault) || is(Exception::LoadAccessFault) || is(Exception::StoreAccessFault);
        let lacks = absent_csr.or((is_access_fault && is_physical).then_some(Lack::Address));
        Some(FirstTrap { cause, epc, tval, instruction, lacks })
    }

    /// SRET. The result is the next pc.
    pub(super) fn supervisor_return(&mut self) -> Result<u64, Unretired> {
        if !self.may(Status::TSR) {
            return Err(Unretired::Illegal);
        }
        Ok(self.leave_trap(TrapLevel::Supervisor))
    }

    /// MRET. The result is the next pc.
    pub(super) fn machine_return(&mut self) -> Result<u64, Unretired> {
        if self.privilege != Privilege::Machine {
            return Err(Unretired::Illegal);
        }
        Ok(self.leave_trap(TrapLevel::Machine))
    }

    /// Returns from a trap handler. The result is the next pc.
    fn leave_trap(&mut self, level: TrapLevel) -> u64 {
        self.drop_reservation();
        self.privilege = self.csrs.status.leave(level);
        self.csrs.level(level).epc
    }

    /// The effect of an ECALL in the current mode.
    pub(super) const fn environment_call(&self) -> Unretired {
        let exception = match (self.privilege, self.boot) {
            (Privilege::User, _) => Exception::UserEnvironmentCall,
            (Privilege::Supervisor, BootMode::Firmware) => return Unretired::FirmwareCall,
            (Privilege::Supervisor, BootMode::Bare) => Exception::SupervisorEnvironmentCall,
            (Privilege::Machine, _) => Exception::MachineEnvironmentCall,
        };
        Unretired::Trap(Trap { exception, tval: 0 })
    }
}
