//! `mcycle` and `minstret`: the guest may write them, unlike the instruction count that they derive
//! from.
//!
//! `mcycle` counts steps. `minstret` counts instructions that retire, so it leaves out steps that
//! take an interrupt or an exception, ECALL and EBREAK among them. Source: privileged specification
//! 20211203, §3.1.10 and §3.3.1.

use crate::state::{RestoreError, StateReader, StateWriter};

/// One of the counters; the discriminant is its bit in `mcountinhibit` and `mcounteren`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Counter {
    Cycle = 0,
    Instret = 2,
}

impl Counter {
    const fn mask(self) -> u64 {
        1 << self as u8
    }
}

/// Both counters. A counter is stored as its distance from the instruction count while it runs, and
/// as its value while it is stopped; so counting costs nothing.
#[derive(Debug)]
pub(super) struct Counters {
    cycle: u64,
    instret: u64,
    /// CSR `mcountinhibit`.
    inhibit: u64,
}

impl Counters {
    /// Bits of `mcountinhibit` that exist.
    const INHIBIT_MASK: u64 = Counter::Cycle.mask() | Counter::Instret.mask();

    /// As after reset: both equal the instruction count.
    pub(super) const fn new() -> Self {
        Self { cycle: 0, instret: 0, inhibit: 0 }
    }

    /// The counter's value at instruction count `count`.
    pub(super) const fn value(&self, counter: Counter, count: u64) -> u64 {
        let base = match counter {
            Counter::Cycle => self.cycle,
            Counter::Instret => self.instret,
        };
        if self.inhibit & counter.mask() == 0 { base.wrapping_add(count) } else { base }
    }

    /// Sets the counter's value at `count`, the count of the instruction after the one that writes.
    pub(super) const fn set(&mut self, counter: Counter, value: u64, count: u64) {
        let base = if self.inhibit & counter.mask() == 0 { value.wrapping_sub(count) } else { value };
        match counter {
            Counter::Cycle => self.cycle = base,
            Counter::Instret => self.instret = base,
        }
    }

    /// Leaves the last step out of `minstret`: it has retired no instruction.
    pub(super) const fn leave_step_out(&mut self) {
        if self.inhibit & Counter::Instret.mask() == 0 {
            self.instret = self.instret.wrapping_sub(1);
        }
    }

    /// CSR `mcountinhibit`.
    pub(super) const fn inhibit(&self) -> u64 {
        self.inhibit
    }

    /// Stops and starts counters at `count`.
    pub(super) fn set_inhibit(&mut self, inhibit: u64, count: u64) {
        let values = [Counter::Cycle, Counter::Instret].map(|counter| (counter, self.value(counter, count)));
        self.inhibit = inhibit & Self::INHIBIT_MASK;
        for (counter, value) in values {
            self.set(counter, value, count);
        }
    }

    pub(super) fn write_to(&self, writer: &mut StateWriter) {
        let Self { cycle, instret, inhibit } = self;
        for field in [cycle, instret, inhibit] {
            writer.u64(*field);
        }
    }

    pub(super) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let counters = Self { cycle: reader.u64()?, instret: reader.u64()?, inhibit: reader.u64()? };
        reader.require(counters.inhibit & !Self::INHIBIT_MASK == 0, "a counter that doesn't exist is stopped")?;
        Ok(counters)
    }
}
