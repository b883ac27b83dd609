//! CSR instructions: access rights, and the CSRs that show state of other parts of the hart.

use super::{Csrs, Status, address};
use crate::hart::float::FloatStatus;
use crate::hart::{AwaitedValue, Hart, Unretired};
use crate::isa::instruction::{CsrInstruction, CsrOp, CsrSource};
use crate::isa::privilege::Privilege;

/// `UXL` and `SXL`: 64 bits, the only width offered; `sstatus` has UXL alone.
const UXL_64: u64 = 2 << 32;
const SXL_64: u64 = 2 << 34;

/// Position of FS in `mstatus` and `sstatus`.
const FS_SHIFT: u32 = 13;

/// SD of `mstatus` and `sstatus`: some extension's state is dirty.
const STATE_DIRTY: u64 = 1 << 63;

/// The flags of `fcsr`, and the position of its rounding mode.
const FLOAT_FLAGS: u8 = 0x1f;
const FLOAT_ROUNDING_SHIFT: u32 = 5;

impl Hart {
    /// Executes a CSR instruction. An instruction that reads a value from outside returns
    /// [`Unretired::Awaits`], and nothing has changed.
    pub(in crate::hart) fn execute_csr(&mut self, instruction: CsrInstruction) -> Result<(), Unretired> {
        let CsrInstruction { op, source, rd, rs1, csr } = instruction;
        if let Some(read) = self.awaited_read(instruction)? {
            return Err(Unretired::Awaits(read));
        }
        let old = self.read_csr(csr).ok_or(Unretired::Illegal)?;
        if instruction.writes() {
            let operand = match source {
                CsrSource::Register => self.register(rs1),
                CsrSource::Immediate => rs1.index() as u64,
            };
            // Setting or clearing bits of `mip` must not make the interrupt controller's line a bit
            // that software has set.
            let kept = if csr == address::MIP { self.csrs.mip } else { old };
            let new = match op {
                CsrOp::Write => operand,
                CsrOp::Set => kept | operand,
                CsrOp::Clear => kept & !operand,
            };
            self.write_csr(csr, new);
        }
        self.set_register(rd, old);
        Ok(())
    }

    /// The value from outside that `instruction` reads, if any.
    pub(in crate::hart) fn awaited_read(&self, instruction: CsrInstruction) -> Result<Option<AwaitedValue>, Unretired> {
        if !self.may_access(instruction) {
            return Err(Unretired::Illegal);
        }
        Ok(match instruction.csr {
            address::TIME => Some(AwaitedValue::Clock),
            address::SEED => Some(AwaitedValue::Seed),
            _ => None,
        })
    }

    /// `true` if the privilege mode and the kind of access suit the CSR. It may still not exist:
    /// see [`Self::read_csr`].
    fn may_access(&self, instruction: CsrInstruction) -> bool {
        let csr = instruction.csr;
        let level_suffices = csr >> 8 & 3 <= u16::from(self.privilege.level());
        let read_only = csr >> 10 == 3;
        let by_number = level_suffices && !(read_only && instruction.writes());
        match csr {
            // Reading `seed` consumes entropy: only instructions that also write it are legal, and
            // not in U-mode.
            address::SEED => instruction.writes() && self.privilege != Privilege::User,
            address::FFLAGS..=address::FCSR => self.float.status != FloatStatus::Off,
            address::SATP => {
                let trapped = self.privilege == Privilege::Supervisor && self.csrs.status.has(Status::TVM);
                by_number && !trapped
            }
            address::STIMECMP => {
                let time = address::TIME - address::CYCLE;
                let has_timer = self.csrs.supervisor_timer().is_some() && self.csrs.mcounteren >> time & 1 == 1;
                by_number && (self.privilege == Privilege::Machine || has_timer)
            }
            address::CYCLE..=address::HPMCOUNTER31 => by_number && self.counter_enabled(csr - address::CYCLE),
            _ => by_number,
        }
    }

    /// `true` if the current mode may read counter `index`.
    const fn counter_enabled(&self, index: u16) -> bool {
        let Csrs { mcounteren, scounteren, .. } = self.csrs;
        let enabled = match self.privilege {
            Privilege::User => mcounteren & scounteren,
            Privilege::Supervisor => mcounteren,
            Privilege::Machine => u64::MAX,
        };
        enabled >> index & 1 == 1
    }

    /// The value of a CSR for a debugger, in whatever mode the hart is.
    pub(crate) fn csr(&self, csr: u16) -> Option<u64> {
        self.read_csr(csr)
    }

    fn read_csr(&self, csr: u16) -> Option<u64> {
        Some(match csr {
            address::FFLAGS => (self.float.fcsr & FLOAT_FLAGS).into(),
            address::FRM => (self.float.fcsr >> FLOAT_ROUNDING_SHIFT).into(),
            address::FCSR => self.float.fcsr.into(),
            address::SSTATUS => UXL_64 | self.float_status() | (self.csrs.status.bits() & Status::SUPERVISOR),
            address::MSTATUS => SXL_64 | UXL_64 | self.float_status() | self.csrs.status.bits(),
            address::SATP => self.mmu.satp(),
            _ => return self.csrs.read(csr, self.count),
        })
    }

    /// Writes a CSR that [`Self::read_csr`] has found to exist. Fields that don't exist stay as
    /// they are.
    fn write_csr(&mut self, csr: u16, value: u64) {
        match csr {
            address::FFLAGS => self.write_fcsr(value, FLOAT_FLAGS),
            address::FRM => self.write_fcsr(value << FLOAT_ROUNDING_SHIFT, !FLOAT_FLAGS),
            address::FCSR => self.write_fcsr(value, u8::MAX),
            address::SSTATUS => self.write_status(value, Status::SUPERVISOR),
            address::MSTATUS => self.write_status(value, Status::FIELDS),
            address::SATP => self.mmu.set_satp(value),
            // The instruction after this one is the first to see what a counter was set to.
            _ => self.csrs.write(csr, value, self.count + 1),
        }
    }

    /// `true` if the CSR exists, in whatever mode.
    pub(in crate::hart) fn has_csr(&self, csr: u16) -> bool {
        matches!(csr, address::TIME | address::SEED) || self.read_csr(csr).is_some()
    }

    /// The bits FS and SD of `mstatus` and `sstatus`.
    fn float_status(&self) -> u64 {
        let dirty = if self.float.status == FloatStatus::Dirty { STATE_DIRTY } else { 0 };
        dirty | (self.float.status as u64) << FS_SHIFT
    }

    fn write_status(&mut self, value: u64, mask: u64) {
        self.csrs.status.write(value, mask);
        self.float.status = FloatStatus::from_field(value >> FS_SHIFT);
    }

    const fn write_fcsr(&mut self, value: u64, mask: u8) {
        let [low, ..] = value.to_le_bytes();
        self.float.fcsr = self.float.fcsr & !mask | low & mask;
        self.float.status = FloatStatus::Dirty;
    }
}
