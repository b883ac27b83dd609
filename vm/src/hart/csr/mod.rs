//! Control and status registers.
//!
//! `sstatus`, `sie` and `sip` are views of `mstatus`, `mie` and `mip`; `fcsr` and its parts are
//! views of the floating-point unit's state. `mcycle` and `minstret` derive from the instruction
//! count, which is deterministic. `time` and `seed` are not deterministic: reading one stops the
//! machine until the value has come through the log. Performance counters without events and
//! triggers read zero.

mod access;
mod address;
mod counters;
mod execute;
mod pmp;
mod status;

use crate::config::BootMode;
use crate::isa::trap::{Interrupt, TrapLevel};
use crate::state::{RestoreError, StateReader, StateWriter};
use counters::Counters;
use pmp::Pmp;
pub(super) use status::Status;

/// Bits of `scounteren` and `mcounteren` that exist: cycle, time, instret.
const COUNTEREN_MASK: u64 = 0b111;

/// Bits of `senvcfg` that exist: FIOM.
const SENVCFG_MASK: u64 = 1;

/// `menvcfg.STCE`: the supervisor has its timer, CSR `stimecmp`.
const STCE: u64 = 1 << 63;

/// Bits of `menvcfg` that exist: FIOM and STCE.
const MENVCFG_MASK: u64 = 1 | STCE;

/// Interrupts of the supervisor: they can be delegated, and M-mode can make them pending.
const SUPERVISOR_INTERRUPTS: u64 =
    Interrupt::SupervisorSoftware.mask() | Interrupt::SupervisorTimer.mask() | Interrupt::SupervisorExternal.mask();

/// All interrupts that exist.
const INTERRUPTS: u64 = SUPERVISOR_INTERRUPTS
    | Interrupt::MachineSoftware.mask()
    | Interrupt::MachineTimer.mask()
    | Interrupt::MachineExternal.mask();

/// Exceptions that can be delegated: all but the environment call from M-mode. The misaligned fetch
/// is among them, because software delegates it without knowing that it can't happen here.
const DELEGABLE_EXCEPTIONS: u64 = 0xb3ff;

/// Bits of `stvec` and `mtvec` that exist: MODE 2 and 3 are reserved.
const TVEC_MASK: u64 = !2;

/// Bits of `sepc` and `mepc` that exist: instructions are at even addresses.
const EPC_MASK: u64 = !1;

/// The trap CSRs of one mode.
#[derive(Debug)]
pub(super) struct TrapCsrs {
    pub(super) tvec: u64,
    scratch: u64,
    pub(super) epc: u64,
    pub(super) cause: u64,
    pub(super) tval: u64,
}

impl TrapCsrs {
    const fn new() -> Self {
        Self { tvec: 0, scratch: 0, epc: 0, cause: 0, tval: 0 }
    }

    /// The address of the handler of exceptions.
    pub(super) const fn trap_base(&self) -> u64 {
        self.tvec & !3
    }

    fn write_to(&self, writer: &mut StateWriter) {
        let Self { tvec, scratch, epc, cause, tval } = self;
        for csr in [tvec, scratch, epc, cause, tval] {
            writer.u64(*csr);
        }
    }

    fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        Ok(Self {
            tvec: masked(reader, TVEC_MASK)?,
            scratch: reader.u64()?,
            epc: masked(reader, EPC_MASK)?,
            cause: reader.u64()?,
            tval: reader.u64()?,
        })
    }
}

/// The CSRs that hold state of their own.
#[derive(Debug)]
pub(super) struct Csrs {
    pub(super) status: Status,
    supervisor: TrapCsrs,
    machine: TrapCsrs,
    medeleg: u64,
    mideleg: u64,
    mie: u64,
    /// The bits of `mip` that software has set.
    mip: u64,
    /// The interrupt lines of devices and of the supervisor's timer, as bits of `mip`, which shows
    /// these and what software has set. Not state: it follows from the devices, `ticks` and
    /// `stimecmp`.
    lines: u64,
    /// The latest clock value that the guest can know.
    ticks: u64,
    stimecmp: u64,
    scounteren: u64,
    mcounteren: u64,
    senvcfg: u64,
    menvcfg: u64,
    counters: Counters,
    pmp: Pmp,
}

impl Csrs {
    /// The CSRs after reset. With the hypervisor as firmware, as firmware leaves them: interrupts
    /// off, no handler, and everything delegated to the supervisor.
    ///
    /// `scounteren` lets user programs read the clock: Linux relies on its firmware for that.
    pub(super) const fn new(boot: BootMode) -> Self {
        let (medeleg, mideleg, mcounteren, menvcfg) = match boot {
            BootMode::Firmware => (DELEGABLE_EXCEPTIONS, SUPERVISOR_INTERRUPTS, COUNTEREN_MASK, STCE),
            BootMode::Bare => (0, 0, 0, 0),
        };
        Self {
            status: Status::new(),
            supervisor: TrapCsrs::new(),
            machine: TrapCsrs::new(),
            medeleg,
            mideleg,
            mie: 0,
            mip: 0,
            lines: 0,
            ticks: 0,
            stimecmp: u64::MAX,
            scounteren: COUNTEREN_MASK,
            mcounteren,
            senvcfg: 0,
            menvcfg,
            counters: Counters::new(),
            pmp: Pmp::new(),
        }
    }

    /// Interrupts that are pending and enabled in `mie`, whatever `mstatus` says.
    #[inline]
    pub(super) const fn pending_interrupts(&self) -> u64 {
        self.pending() & self.mie
    }

    /// CSR `mie`.
    pub(super) const fn enabled_interrupts(&self) -> u64 {
        self.mie
    }

    /// CSR `mip`.
    const fn pending(&self) -> u64 {
        self.mip | self.lines
    }

    /// CSR `medeleg`.
    pub(super) const fn exceptions_delegated(&self) -> u64 {
        self.medeleg
    }

    /// CSR `mideleg`.
    pub(super) const fn interrupts_delegated(&self) -> u64 {
        self.mideleg
    }

    pub(super) const fn level(&self, level: TrapLevel) -> &TrapCsrs {
        match level {
            TrapLevel::Supervisor => &self.supervisor,
            TrapLevel::Machine => &self.machine,
        }
    }

    pub(super) const fn level_mut(&mut self, level: TrapLevel) -> &mut TrapCsrs {
        match level {
            TrapLevel::Supervisor => &mut self.supervisor,
            TrapLevel::Machine => &mut self.machine,
        }
    }

    /// Leaves the last step out of `minstret`: it has retired no instruction.
    pub(super) const fn leave_step_out(&mut self) {
        self.counters.leave_step_out();
    }

    /// The latest clock value that the guest can know.
    pub(super) const fn ticks(&self) -> u64 {
        self.ticks
    }

    /// The clock has come to `ticks`, and the guest can know it.
    pub(super) const fn set_ticks(&mut self, ticks: u64) {
        self.ticks = ticks;
        self.update_supervisor_timer();
    }

    /// The deadline of the supervisor's timer in clock ticks; `None` if it has no timer.
    pub(super) const fn supervisor_timer(&self) -> Option<u64> {
        if self.menvcfg & STCE == 0 { None } else { Some(self.stimecmp) }
    }

    /// Sets the deadline of the supervisor's timer.
    pub(super) const fn set_supervisor_timer(&mut self, deadline: u64) {
        self.stimecmp = deadline;
        self.update_supervisor_timer();
    }

    /// Sets the lines of devices, as bits of `mip`.
    pub(super) const fn set_device_lines(&mut self, lines: u64) {
        self.lines = lines;
        self.update_supervisor_timer();
    }

    /// Makes the supervisor's software interrupt pending or not, for the firmware.
    pub(super) const fn set_software_pending(&mut self, pending: bool) {
        let mask = Interrupt::SupervisorSoftware.mask();
        self.mip = if pending { self.mip | mask } else { self.mip & !mask };
    }

    /// `menvcfg` has been written. While the supervisor has a timer, STIP is its line and not
    /// software's.
    const fn set_menvcfg(&mut self, value: u64) {
        self.menvcfg = value & MENVCFG_MASK;
        self.mip &= self.software_interrupts();
        self.update_supervisor_timer();
    }

    /// The bits of `mip` that M-mode can write.
    const fn software_interrupts(&self) -> u64 {
        if self.menvcfg & STCE == 0 {
            SUPERVISOR_INTERRUPTS
        } else {
            SUPERVISOR_INTERRUPTS & !Interrupt::SupervisorTimer.mask()
        }
    }

    const fn update_supervisor_timer(&mut self) {
        let mask = Interrupt::SupervisorTimer.mask();
        let is_due = self.menvcfg & STCE != 0 && self.ticks >= self.stimecmp;
        self.lines = if is_due { self.lines | mask } else { self.lines & !mask };
    }

    pub(super) fn write_to(&self, writer: &mut StateWriter) {
        let Self { status, supervisor, machine, medeleg, mideleg, mie, mip, lines: _, ticks, stimecmp, .. } = self;
        let Self { scounteren, mcounteren, senvcfg, menvcfg, counters, pmp, .. } = self;
        writer.u64(status.bits());
        supervisor.write_to(writer);
        machine.write_to(writer);
        for csr in [medeleg, mideleg, mie, mip] {
            writer.u64(*csr);
        }
        for register in [ticks, stimecmp] {
            writer.u64(*register);
        }
        for csr in [scounteren, mcounteren, senvcfg, menvcfg] {
            writer.u64(*csr);
        }
        counters.write_to(writer);
        pmp.write_to(writer);
    }

    pub(super) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let status = Status::from_bits(reader.u64()?);
        let mut csrs = Self {
            status: status.ok_or_else(|| reader.impossible("mstatus has a value that it can't have"))?,
            supervisor: TrapCsrs::read_from(reader)?,
            machine: TrapCsrs::read_from(reader)?,
            medeleg: masked(reader, DELEGABLE_EXCEPTIONS)?,
            mideleg: masked(reader, SUPERVISOR_INTERRUPTS)?,
            mie: masked(reader, INTERRUPTS)?,
            mip: masked(reader, SUPERVISOR_INTERRUPTS)?,
            lines: 0,
            ticks: reader.u64()?,
            stimecmp: reader.u64()?,
            scounteren: masked(reader, COUNTEREN_MASK)?,
            mcounteren: masked(reader, COUNTEREN_MASK)?,
            senvcfg: masked(reader, SENVCFG_MASK)?,
            menvcfg: masked(reader, MENVCFG_MASK)?,
            counters: Counters::read_from(reader)?,
            pmp: Pmp::read_from(reader)?,
        };
        let is_software = csrs.mip & !csrs.software_interrupts() == 0;
        reader.require(is_software, "software has set the interrupt of the supervisor's timer")?;
        csrs.update_supervisor_timer();
        Ok(csrs)
    }
}

/// Reads a CSR of which only the bits in `fields` exist.
fn masked(reader: &mut StateReader<'_>, fields: u64) -> Result<u64, RestoreError> {
    let value = reader.u64()?;
    reader.require(value & !fields == 0, "a CSR has bits that don't exist")?;
    Ok(value)
}
