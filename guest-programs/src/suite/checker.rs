//! Checks of the suite: counted, printed if they fail, and summed up in a checksum.

use crate::println;
use core::fmt;

/// The checks of one section.
pub(super) struct Checker {
    section: &'static str,
    checks: u64,
    failures: u64,
    checksum: u64,
}

impl Checker {
    pub(super) fn new(section: &'static str) -> Self {
        Self { section, checks: 0, failures: 0, checksum: 0 }
    }

    /// Checks that `what` gave the expected value. The value is added to the checksum in any case.
    pub(super) fn check(&mut self, what: impl fmt::Display, actual: u64, expected: u64) {
        self.record(actual);
        self.checks += 1;
        if actual != expected {
            self.failures += 1;
            println!("{}: FAILED: {what} gave {actual:#x}, expected {expected:#x}", self.section);
        }
    }

    /// Adds a value to the checksum.
    pub(super) fn record(&mut self, value: u64) {
        self.checksum = (self.checksum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub(super) fn checks(&self) -> u64 {
        self.checks
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures
    }
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, checks, failures, checksum } = self;
        write!(f, "{section}: {checks} checks, {failures} failures, checksum {checksum:016x}")
    }
}

/// Pseudo-random numbers from a seed (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    /// `seed` must not be 0.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        // The upper 32 bits scaled to `limit`: the result is less than it, so it fits.
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }
}
