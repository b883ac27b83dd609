//! Control and status registers of the supervisor level, and the counters.
//!
//! CSRs of levels that don't exist are illegal. `cycle` and `instret` both read the instruction count, which is
//! deterministic; `time` and `seed` are not, and stop the machine until their value has come through the log.

use super::decode::{CsrInstruction, CsrOp, CsrSource};
use super::trap::Interrupt;
use super::{AwaitedRead, Hart, Privilege, Unretired};
use crate::state::{RestoreError, StateReader, StateWriter};

mod address {
    pub(super) const SEED: u16 = 0x015;
    pub(super) const SSTATUS: u16 = 0x100;
    pub(super) const SIE: u16 = 0x104;
    pub(super) const STVEC: u16 = 0x105;
    pub(super) const SCOUNTEREN: u16 = 0x106;
    pub(super) const SENVCFG: u16 = 0x10a;
    pub(super) const SSCRATCH: u16 = 0x140;
    pub(super) const SEPC: u16 = 0x141;
    pub(super) const SCAUSE: u16 = 0x142;
    pub(super) const STVAL: u16 = 0x143;
    pub(super) const SIP: u16 = 0x144;
    pub(super) const SATP: u16 = 0x180;
    pub(super) const CYCLE: u16 = 0xc00;
    pub(super) const TIME: u16 = 0xc01;
    pub(super) const INSTRET: u16 = 0xc02;
}

/// Bits of `scounteren` that exist: cycle, time, instret.
const SCOUNTEREN_MASK: u64 = 0b111;

/// Bits of `senvcfg` that exist: FIOM.
const SENVCFG_MASK: u64 = 1;

/// Interrupts that exist.
const INTERRUPT_MASK: u64 = Interrupt::Software.mask() | Interrupt::Timer.mask() | Interrupt::External.mask();

/// Bits of `stvec` that exist: MODE 2 and 3 are reserved.
const STVEC_MASK: u64 = !2;

/// Bits of `sepc` that exist: instructions are at even addresses.
const SEPC_MASK: u64 = !1;

/// `sstatus.UXL` of 64 bits, which is all there is.
const UXL_64: u64 = 2 << 32;

/// An access that raises an illegal-instruction exception.
struct IllegalAccess;

impl From<IllegalAccess> for Unretired {
    fn from(_: IllegalAccess) -> Self {
        Self::Illegal
    }
}

/// The fields of `sstatus` that exist. SUM and MXR are kept, as on QEMU's board, and have no effect in Bare translation;
/// FS and VS read zero while there are no such registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) sie: bool,
    pub(super) spie: bool,
    pub(super) spp: Privilege,
    sum: bool,
    mxr: bool,
}

impl Status {
    const SIE: u64 = 1 << 1;
    const SPIE: u64 = 1 << 5;
    const SPP: u64 = 1 << 8;
    const SUM: u64 = 1 << 18;
    const MXR: u64 = 1 << 19;
    const FIELDS: u64 = UXL_64 | Self::SIE | Self::SPIE | Self::SPP | Self::SUM | Self::MXR;

    fn bits(self) -> u64 {
        let flag = |set, bit| if set { bit } else { 0 };
        UXL_64
            | flag(self.sie, Self::SIE)
            | flag(self.spie, Self::SPIE)
            | flag(self.spp == Privilege::Supervisor, Self::SPP)
            | flag(self.sum, Self::SUM)
            | flag(self.mxr, Self::MXR)
    }

    const fn from_bits(bits: u64) -> Self {
        Self {
            sie: bits & Self::SIE != 0,
            spie: bits & Self::SPIE != 0,
            spp: if bits & Self::SPP != 0 { Privilege::Supervisor } else { Privilege::User },
            sum: bits & Self::SUM != 0,
            mxr: bits & Self::MXR != 0,
        }
    }
}

/// The CSRs that hold state of their own.
#[derive(Debug)]
pub(super) struct Csrs {
    pub(super) status: Status,
    sie: u64,
    sip: u64,
    pub(super) stvec: u64,
    sscratch: u64,
    pub(super) sepc: u64,
    pub(super) scause: u64,
    pub(super) stval: u64,
    scounteren: u64,
    senvcfg: u64,
}

impl Csrs {
    /// As the firmware leaves them: interrupts off, no handler.
    pub(super) const fn new() -> Self {
        Self {
            status: Status::from_bits(0),
            sie: 0,
            sip: 0,
            stvec: 0,
            sscratch: 0,
            sepc: 0,
            scause: 0,
            stval: 0,
            scounteren: 0,
            senvcfg: 0,
        }
    }

    /// Interrupts that are pending and enabled one by one, whatever `sstatus.SIE` says.
    #[inline]
    pub(super) const fn pending_interrupts(&self) -> u64 {
        self.sip & self.sie
    }

    /// Where exceptions go.
    pub(super) const fn trap_base(&self) -> u64 {
        self.stvec & !3
    }

    /// Sets or clears the pending bit of `interrupt`.
    pub(super) const fn set_pending(&mut self, interrupt: Interrupt, pending: bool) {
        if pending {
            self.sip |= interrupt.mask();
        } else {
            self.sip &= !interrupt.mask();
        }
    }

    pub(super) fn write_to(&self, writer: &mut StateWriter) {
        let Self { status, sie, sip, stvec, sscratch, sepc, scause, stval, scounteren, senvcfg } = self;
        for csr in [&status.bits(), sie, sip, stvec, sscratch, sepc, scause, stval, scounteren, senvcfg] {
            writer.u64(*csr);
        }
    }

    pub(super) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let mut csr = |fields: u64| {
            let value = reader.u64()?;
            reader.require(value & !fields == 0, "a CSR has bits that don't exist")?;
            Ok(value)
        };
        let bits = csr(Status::FIELDS)?;
        let csrs = Self {
            status: Status::from_bits(bits),
            sie: csr(INTERRUPT_MASK)?,
            sip: csr(INTERRUPT_MASK)?,
            stvec: csr(STVEC_MASK)?,
            sscratch: csr(u64::MAX)?,
            sepc: csr(SEPC_MASK)?,
            scause: csr(u64::MAX)?,
            stval: csr(u64::MAX)?,
            scounteren: csr(SCOUNTEREN_MASK)?,
            senvcfg: csr(SENVCFG_MASK)?,
        };
        reader.require(csrs.status.bits() == bits, "sstatus.UXL is not that of RV64")?;
        Ok(csrs)
    }
}

impl Hart {
    /// Executes a CSR instruction, except for one that has to wait for its value.
    pub(super) fn execute_csr(&mut self, instruction: CsrInstruction) -> Result<(), Unretired> {
        let CsrInstruction { op, source, rd, rs1, csr } = instruction;
        if let Some(read) = self.awaited_read(instruction)? {
            return Err(Unretired::Awaits(read));
        }
        let old = self.read_csr(csr)?;
        if instruction.writes() {
            let operand = match source {
                CsrSource::Register => self.register(rs1),
                CsrSource::Immediate => rs1.index() as u64,
            };
            let new = match op {
                CsrOp::Write => operand,
                CsrOp::Set => old | operand,
                CsrOp::Clear => old & !operand,
            };
            self.write_csr(csr, new);
        }
        self.set_register(rd, old);
        Ok(())
    }

    /// Which value from outside `instruction` has to wait for, if any.
    pub(super) fn awaited_read(&self, instruction: CsrInstruction) -> Result<Option<AwaitedRead>, Unretired> {
        self.check_access(instruction)?;
        Ok(match instruction.csr {
            address::TIME => Some(AwaitedRead::Clock),
            address::SEED => Some(AwaitedRead::Seed),
            _ => None,
        })
    }

    /// Whether the privilege mode and the kind of access suit the CSR. Whether it exists is for [`Self::read_csr`].
    fn check_access(&self, instruction: CsrInstruction) -> Result<(), IllegalAccess> {
        let csr = instruction.csr;
        let lowest_privilege = (csr >> 8) & 3;
        let read_only = csr >> 10 == 3;
        let allowed = match csr {
            // Entropy is consumed by reading: only the form that writes too is legal, and firmware keeps it from U-mode.
            address::SEED => instruction.writes() && self.privilege == Privilege::Supervisor,
            address::CYCLE | address::TIME | address::INSTRET => {
                let enabled = self.csrs.scounteren >> (csr - address::CYCLE) & 1 == 1;
                !instruction.writes() && (enabled || self.privilege == Privilege::Supervisor)
            }
            _ => lowest_privilege <= self.privilege.level() && !(read_only && instruction.writes()),
        };
        if allowed { Ok(()) } else { Err(IllegalAccess) }
    }

    fn read_csr(&self, csr: u16) -> Result<u64, IllegalAccess> {
        let csrs = &self.csrs;
        Ok(match csr {
            address::SSTATUS => csrs.status.bits(),
            address::SIE => csrs.sie,
            address::STVEC => csrs.stvec,
            address::SCOUNTEREN => csrs.scounteren,
            address::SENVCFG => csrs.senvcfg,
            address::SSCRATCH => csrs.sscratch,
            address::SEPC => csrs.sepc,
            address::SCAUSE => csrs.scause,
            address::STVAL => csrs.stval,
            address::SIP => csrs.sip,
            address::SATP => self.mmu.satp(),
            address::CYCLE | address::INSTRET => self.count,
            _ => return Err(IllegalAccess),
        })
    }

    /// Writes a CSR that [`Self::read_csr`] has found to exist. Fields that don't exist stay as they are.
    fn write_csr(&mut self, csr: u16, value: u64) {
        let csrs = &mut self.csrs;
        match csr {
            address::SSTATUS => csrs.status = Status::from_bits(value),
            address::SIE => csrs.sie = value & INTERRUPT_MASK,
            address::STVEC => csrs.stvec = value & STVEC_MASK,
            address::SCOUNTEREN => csrs.scounteren = value & SCOUNTEREN_MASK,
            address::SENVCFG => csrs.senvcfg = value & SENVCFG_MASK,
            address::SSCRATCH => csrs.sscratch = value,
            address::SEPC => csrs.sepc = value & SEPC_MASK,
            address::SCAUSE => csrs.scause = value,
            address::STVAL => csrs.stval = value,
            // The timer's bit is the firmware's, the external one the interrupt controller's.
            address::SIP => csrs.set_pending(Interrupt::Software, value & Interrupt::Software.mask() != 0),
            address::SATP => self.mmu.set_satp(value),
            _ => unreachable!("CSR {csr:#x} was read but is not known to be writable"),
        }
    }
}
