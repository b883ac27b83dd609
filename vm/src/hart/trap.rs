//! Exceptions, interrupts, and how the hart enters and leaves a supervisor trap handler.
//!
//! There is no M-mode: everything goes to S, except the environment call from S, which is the call of the firmware and
//! never becomes a trap.

use super::{Hart, Pause, Privilege};

/// A synchronous exception; the discriminant is its code in `scause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exception {
    InstructionAccessFault = 1,
    IllegalInstruction = 2,
    Breakpoint = 3,
    LoadAddressMisaligned = 4,
    LoadAccessFault = 5,
    StoreAddressMisaligned = 6,
    StoreAccessFault = 7,
    UserEnvironmentCall = 8,
}

/// A supervisor interrupt; the discriminant is its bit in `sip` and `sie`, and its code in `scause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Interrupt {
    Software = 1,
    Timer = 5,
    External = 9,
}

impl Interrupt {
    /// All of them, the one to be taken first first.
    const BY_PRIORITY: [Self; 3] = [Self::External, Self::Software, Self::Timer];

    /// Its bit in `sip` and `sie`.
    pub(crate) const fn mask(self) -> u64 {
        1 << self as u8
    }
}

/// A fault of the guest: a value, never an error of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    pub(crate) exception: Exception,
    /// What `stval` gets.
    pub(crate) tval: u64,
}

/// Bit 63 of `scause`.
const CAUSE_IS_INTERRUPT: u64 = 1 << 63;

/// `stvec.MODE` of vectored interrupts.
const STVEC_VECTORED: u64 = 1;

impl Hart {
    /// The interrupt that is to be taken before the next instruction.
    pub(super) fn deliverable_interrupt(&self) -> Option<Interrupt> {
        let pending = self.csrs.pending_interrupts();
        // In U-mode SIE doesn't matter: interrupts of a higher mode are always enabled.
        if pending == 0 || (self.privilege == Privilege::Supervisor && !self.csrs.status.sie) {
            return None;
        }
        Interrupt::BY_PRIORITY.into_iter().find(|interrupt| pending & interrupt.mask() != 0)
    }

    /// Enters the trap handler for `interrupt`: one step of its own.
    pub(super) fn take_interrupt(&mut self, interrupt: Interrupt) {
        let code = u64::from(interrupt as u8);
        let base = self.csrs.trap_base();
        let vector = if self.csrs.stvec & STVEC_VECTORED == 0 { base } else { base.wrapping_add(4 * code) };
        self.enter_trap(CAUSE_IS_INTERRUPT | code, 0, vector);
    }

    /// Enters the trap handler for `trap`, as the step of the instruction that raised it.
    ///
    /// `Some` if the handler itself is what can't be fetched: it would be entered again and again.
    pub(super) fn take_exception(&mut self, trap: Trap) -> Option<Pause> {
        let base = self.csrs.trap_base();
        let cause = u64::from(trap.exception as u8);
        if trap.exception == Exception::InstructionAccessFault && self.pc == base {
            self.count += 1;
            return Some(Pause::DoubleTrap { pc: self.pc, cause });
        }
        self.enter_trap(cause, trap.tval, base);
        None
    }

    /// A reservation ends here and in [`Self::leave_trap`], so that one context's SC never succeeds by another's LR. The
    /// specification leaves that to the guest's kernel; QEMU does as here.
    fn enter_trap(&mut self, cause: u64, tval: u64, vector: u64) {
        self.count += 1;
        self.drop_reservation();
        let csrs = &mut self.csrs;
        csrs.sepc = self.pc;
        csrs.scause = cause;
        csrs.stval = tval;
        csrs.status.spie = csrs.status.sie;
        csrs.status.sie = false;
        csrs.status.spp = self.privilege;
        self.privilege = Privilege::Supervisor;
        self.pc = vector;
    }

    /// SRET: back to where the trap came from. The result is the next pc.
    pub(super) fn leave_trap(&mut self) -> u64 {
        self.drop_reservation();
        let status = &mut self.csrs.status;
        self.privilege = status.spp;
        status.sie = status.spie;
        status.spie = true;
        status.spp = Privilege::User;
        self.csrs.sepc
    }
}
