//! `mstatus`, of which `sstatus` is a part.

use crate::isa::privilege::Privilege;
use crate::isa::trap::TrapLevel;

/// The fields of `mstatus` that hold state, at their bit positions. FS is stored in the
/// floating-point unit; the widths of S- and U-mode are fixed; there are no vectors and no
/// big-endian memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hart) struct Status(u64);

impl Status {
    pub(in crate::hart) const MPRV: u64 = 1 << 17;
    pub(in crate::hart) const SUM: u64 = 1 << 18;
    pub(in crate::hart) const MXR: u64 = 1 << 19;
    pub(in crate::hart) const TVM: u64 = 1 << 20;
    pub(in crate::hart) const TW: u64 = 1 << 21;
    pub(in crate::hart) const TSR: u64 = 1 << 22;
    const SPP: u64 = 1 << 8;
    const MPP_SHIFT: u32 = 11;
    const MPP: u64 = 3 << Self::MPP_SHIFT;

    /// The fields that a write of `sstatus` changes.
    pub(super) const SUPERVISOR: u64 =
        TrapLevel::Supervisor.enable() | TrapLevel::Supervisor.previous_enable() | Self::SPP | Self::SUM | Self::MXR;

    /// The fields that a write of `mstatus` changes.
    pub(super) const FIELDS: u64 = Self::SUPERVISOR
        | TrapLevel::Machine.enable()
        | TrapLevel::Machine.previous_enable()
        | Self::MPP
        | Self::MPRV
        | Self::TVM
        | Self::TW
        | Self::TSR;

    /// As after reset: interrupts off, previous modes U.
    pub(super) const fn new() -> Self {
        Self(0)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// The fields in `bits`; `None` if one has an illegal value.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        let mpp = (bits & Self::MPP) >> Self::MPP_SHIFT;
        (bits & !Self::FIELDS == 0 && Privilege::from_level(mpp).is_some()).then_some(Self(bits))
    }

    /// Writes the fields in `mask`. MPP stays as it is if its new value would be a mode that
    /// doesn't exist.
    pub(super) fn write(&mut self, value: u64, mask: u64) {
        let merge = |mask: u64| (self.0 & !mask) | (value & mask);
        let written = Self::from_bits(merge(mask)).or_else(|| Self::from_bits(merge(mask & !Self::MPP)));
        *self = written.unwrap_or(*self);
    }

    #[inline]
    pub(in crate::hart) const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// The mode that MRET returns to, and whose rights accesses have with MPRV.
    pub(in crate::hart) fn machine_previous(self) -> Privilege {
        // The invariant of this type: another value is never written.
        Privilege::from_level((self.0 & Self::MPP) >> Self::MPP_SHIFT).unwrap_or(Privilege::User)
    }

    /// Updates the fields for a trap from mode `from` into `level`.
    pub(in crate::hart) const fn enter(&mut self, level: TrapLevel, from: Privilege) {
        self.put(level.previous_enable(), self.has(level.enable()));
        self.put(level.enable(), false);
        self.set_previous(level, from);
    }

    /// Updates the fields for SRET or MRET; returns the mode to go to.
    pub(in crate::hart) fn leave(&mut self, level: TrapLevel) -> Privilege {
        let to = match level {
            TrapLevel::Supervisor if self.has(Self::SPP) => Privilege::Supervisor,
            TrapLevel::Supervisor => Privilege::User,
            TrapLevel::Machine => self.machine_previous(),
        };
        self.put(level.enable(), self.has(level.previous_enable()));
        self.put(level.previous_enable(), true);
        self.set_previous(level, Privilege::User);
        if to != Privilege::Machine {
            self.put(Self::MPRV, false);
        }
        to
    }

    const fn set_previous(&mut self, level: TrapLevel, privilege: Privilege) {
        match level {
            TrapLevel::Supervisor => self.put(Self::SPP, !matches!(privilege, Privilege::User)),
            TrapLevel::Machine => self.0 = self.0 & !Self::MPP | (privilege.level() as u64) << Self::MPP_SHIFT,
        }
    }

    const fn put(&mut self, bit: u64, set: bool) {
        if set {
            self.0 |= bit;
        } else {
            self.0 &= !bit;
        }
    }
}
