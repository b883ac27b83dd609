//! Reads and writes of CSRs.

use super::counters::Counter;
use super::{
    COUNTEREN_MASK, Csrs, DELEGABLE_EXCEPTIONS, EPC_MASK, INTERRUPTS, SENVCFG_MASK, SUPERVISOR_INTERRUPTS, TVEC_MASK,
    address,
};
use crate::isa::trap::Interrupt;

/// `misa`: 64 bits, extensions A, C, D, F, I, M and modes S and U.
const MISA: u64 = {
    let mut bits = 2 << 62;
    let letters = b"ACDFIMSU";
    let mut index = 0;
    while index < letters.len() {
        bits |= 1 << (letters[index] - b'A');
        index += 1;
    }
    bits
};

impl Csrs {
    /// The value of a CSR at instruction count `count`; `None` if there is no such CSR.
    pub(super) fn read(&self, csr: u16, count: u64) -> Option<u64> {
        let (supervisor, machine) = (&self.supervisor, &self.machine);
        Some(match csr {
            address::SIE => self.mie & self.mideleg,
            address::STVEC => supervisor.tvec,
            address::SCOUNTEREN => self.scounteren,
            address::SENVCFG => self.senvcfg,
            address::SSCRATCH => supervisor.scratch,
            address::SEPC => supervisor.epc,
            address::SCAUSE => supervisor.cause,
            address::STVAL => supervisor.tval,
            address::SIP => self.pending() & self.mideleg,
            address::STIMECMP => self.stimecmp,
            address::MISA => MISA,
            address::MEDELEG => self.medeleg,
            address::MIDELEG => self.mideleg,
            address::MIE => self.mie,
            address::MTVEC => machine.tvec,
            address::MCOUNTEREN => self.mcounteren,
            address::MENVCFG => self.menvcfg,
            address::MCOUNTINHIBIT => self.counters.inhibit(),
            address::MSCRATCH => machine.scratch,
            address::MEPC => machine.epc,
            address::MCAUSE => machine.cause,
            address::MTVAL => machine.tval,
            address::MIP => self.pending(),
            address::PMPCFG0 => self.pmp.configs(0),
            address::PMPCFG2 => self.pmp.configs(8),
            address::PMPADDR0..=address::PMPADDR15 => self.pmp.address((csr - address::PMPADDR0).into()),
            address::CYCLE | address::MCYCLE => self.counters.value(Counter::Cycle, count),
            address::INSTRET | address::MINSTRET => self.counters.value(Counter::Instret, count),
            address::MHPMEVENT3..=address::MHPMEVENT31
            | address::MHPMCOUNTER3..=address::MHPMCOUNTER31
            | address::HPMCOUNTER3..=address::HPMCOUNTER31
            | address::TSELECT..=address::TDATA3
            | address::MVENDORID..=address::MCONFIGPTR => 0,
            _ => return None,
        })
    }

    /// Writes a CSR that [`Self::read`] has found to exist; `count` is that of the next
    /// instruction. Fields that don't exist stay as they are, and so does what can only be read.
    pub(super) fn write(&mut self, csr: u16, value: u64, count: u64) {
        let (supervisor, machine) = (&mut self.supervisor, &mut self.machine);
        match csr {
            address::SIE => self.mie = merged(self.mie, value, self.mideleg),
            address::STVEC => supervisor.tvec = value & TVEC_MASK,
            address::SCOUNTEREN => self.scounteren = value & COUNTEREN_MASK,
            address::SENVCFG => self.senvcfg = value & SENVCFG_MASK,
            address::SSCRATCH => supervisor.scratch = value,
            address::SEPC => supervisor.epc = value & EPC_MASK,
            address::SCAUSE => supervisor.cause = value,
            address::STVAL => supervisor.tval = value,
            // STIP is the timer's or M-mode's to write, and SEIP the interrupt controller's.
            address::SIP => self.mip = merged(self.mip, value, self.mideleg & Interrupt::SupervisorSoftware.mask()),
            address::STIMECMP => self.set_supervisor_timer(value),
            address::MEDELEG => self.medeleg = value & DELEGABLE_EXCEPTIONS,
            address::MIDELEG => self.mideleg = value & SUPERVISOR_INTERRUPTS,
            address::MIE => self.mie = value & INTERRUPTS,
            address::MTVEC => machine.tvec = value & TVEC_MASK,
            address::MCOUNTEREN => self.mcounteren = value & COUNTEREN_MASK,
            address::MENVCFG => self.set_menvcfg(value),
            address::MCOUNTINHIBIT => self.counters.set_inhibit(value, count),
            address::MSCRATCH => machine.scratch = value,
            address::MEPC => machine.epc = value & EPC_MASK,
            address::MCAUSE => machine.cause = value,
            address::MTVAL => machine.tval = value,
            address::MIP => self.mip = value & self.software_interrupts(),
            address::PMPCFG0 => self.pmp.set_configs(0, value),
            address::PMPCFG2 => self.pmp.set_configs(8, value),
            address::PMPADDR0..=address::PMPADDR15 => {
                self.pmp.set_address((csr - address::PMPADDR0).into(), value);
            }
            address::MCYCLE => self.counters.set(Counter::Cycle, value, count),
            address::MINSTRET => self.counters.set(Counter::Instret, value, count),
            _ => {}
        }
    }
}

/// `old` with the bits of `mask` taken from `new`.
const fn merged(old: u64, new: u64, mask: u64) -> u64 {
    old & !mask | new & mask
}
