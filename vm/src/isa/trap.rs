//! Traps: exceptions, interrupts, and the modes that handle them.

use super::privilege::Privilege;

/// A synchronous exception; the discriminant is its code in `scause` and `mcause`, and its bit in
/// `medeleg`.
///
/// The misaligned fetch is missing: with compressed instructions it can't happen.
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
    SupervisorEnvironmentCall = 9,
    MachineEnvironmentCall = 11,
    InstructionPageFault = 12,
    LoadPageFault = 13,
    StorePageFault = 15,
}

/// An interrupt; the discriminant is its bit in `mip` and `mie`, and its code in `scause` and
/// `mcause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Interrupt {
    SupervisorSoftware = 1,
    MachineSoftware = 3,
    SupervisorTimer = 5,
    MachineTimer = 7,
    SupervisorExternal = 9,
    MachineExternal = 11,
}

impl Interrupt {
    /// All of them, the highest priority first.
    const BY_PRIORITY: [Self; 6] = [
        Self::MachineExternal,
        Self::MachineSoftware,
        Self::MachineTimer,
        Self::SupervisorExternal,
        Self::SupervisorSoftware,
        Self::SupervisorTimer,
    ];

    /// Its bit in `mip` and `mie`.
    pub(crate) const fn mask(self) -> u64 {
        1 << self as u8
    }

    pub(crate) fn first_of(pending: u64) -> Option<Self> {
        Self::BY_PRIORITY.into_iter().find(|interrupt| pending & interrupt.mask() != 0)
    }
}

/// The mode whose handler a trap enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrapLevel {
    Supervisor,
    Machine,
}

impl TrapLevel {
    pub(crate) const fn privilege(self) -> Privilege {
        match self {
            Self::Supervisor => Privilege::Supervisor,
            Self::Machine => Privilege::Machine,
        }
    }

    /// `mstatus.SIE` or `MIE`.
    pub(crate) const fn enable(self) -> u64 {
        1 << self.privilege().level()
    }

    /// `mstatus.SPIE` or `MPIE`.
    pub(crate) const fn previous_enable(self) -> u64 {
        self.enable() << 4
    }
}

/// An exception with its trap value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    pub(crate) exception: Exception,
    /// The value for `stval` or `mtval`.
    pub(crate) tval: u64,
}
