//! Probes: they note where a machine comes by and who writes its memory, for searches in a
//! recording.
//!
//! A machine without a probe runs as if there were none: the probe has a loop of its own, beside
//! [`crate::inspect`]. Writes are noticed by the flags of pages that decoded code has too
//! ([`crate::ram::watch`]), so the fast interpreter runs on, and only stores to the probed pages
//! take its slow way. A probe changes nothing of what the machine does and isn't state.

use alloc::vec::Vec;
use core::ops::Range;

/// The most hits that wait to be taken.
const HITS_MAX: usize = 1 << 20;

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Addresses of instructions. With any of them every step is executed by the plain interpreter.
    pub pcs: Vec<u64>,
    /// Physical addresses in RAM that are written.
    pub writes: Option<Range<u64>>,
    /// Exceptions and interrupts that are taken.
    pub traps: bool,
}

/// What was found: the step at this count does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The instruction count before the step; for an event, at which it is applied.
    pub count: u64,
    /// The address of the instruction, or that of the next one.
    pub pc: u64,
    /// What it does.
    pub what: HitKind,
}

/// What a hit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HitKind {
    /// The instruction is one of the probe's.
    Pc,
    /// An exception or interrupt is taken.
    Trap {
        /// As in `scause` and `mcause`.
        cause: u64,
        /// As in `stval` and `mtval`.
        value: u64,
    },
    /// Probed memory is written.
    Write {
        /// By whom.
        writer: Writer,
        /// The physical address of the first byte written.
        address: u64,
        /// How many bytes are written.
        length: u64,
        /// The first 8 of them, after the step, as a little-endian number.
        value: u64,
    },
}

/// Who writes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The instruction.
    Instruction,
    /// The instruction's address translation, which marks a page-table entry.
    PageTableMark,
    /// The firmware, for the instruction's environment call.
    Firmware,
    /// A device that works through its queue.
    Device,
    /// An event from outside, such as a packet.
    Event,
}

/// A probe at work.
#[derive(Debug, Default)]
pub(crate) struct ActiveProbe {
    pub(crate) probe: Probe,
    pub(crate) hits: Vec<Hit>,
    /// Hits that were dropped because too many waited.
    pub(crate) lost: u64,
}

impl ActiveProbe {
    /// Notes a hit.
    pub(crate) fn note(&mut self, hit: Hit) {
        if self.hits.len() < HITS_MAX {
            self.hits.push(hit);
        } else {
            self.lost += 1;
        }
    }
}
