//! The core-local interruptor: the software and timer interrupts of M-mode.
//!
//! ```text
//!   0x0000 msip u32     bit 0: the software interrupt is pending
//!   0x4000 mtimecmp u64 the timer interrupt is pending while mtime is not less
//!   0xbff8 mtime u64    the guest's clock
//! ```
//! The clock is not state: a load of `mtime` waits for a value from outside, like a read of CSR
//! `time`, before it comes here. Stores to `mtime` have no effect. Registers of other harts read
//! zero.

use crate::state::{RestoreError, StateReader, StateWriter};

const MSIP: u64 = 0;
const TIMECMP: u64 = 0x4000;
const TIMECMP_HIGH: u64 = TIMECMP + 4;
const TIME: u64 = 0xbff8;

/// The interruptor of one hart.
#[derive(Debug)]
pub(crate) struct Clint {
    software: bool,
    /// CSR-like register `mtimecmp`, in clock ticks.
    timecmp: u64,
}

impl Clint {
    /// As after reset: no interrupt is pending, and no timer is set.
    pub(crate) const fn new() -> Self {
        Self { software: false, timecmp: u64::MAX }
    }

    /// Register `mtimecmp`.
    pub(crate) const fn timecmp(&self) -> u64 {
        self.timecmp
    }

    /// `true` if the software interrupt is pending.
    pub(crate) const fn software(&self) -> bool {
        self.software
    }

    /// `true` if a load of `width` bytes at `offset` reads the clock.
    pub(crate) const fn is_clock(offset: u64, width: usize) -> bool {
        offset >= TIME && offset < TIME + 8 && matches!(width, 4 | 8) && offset.is_multiple_of(width as u64)
    }

    /// Reads a register that isn't the clock; the width is 4, or 8 for `mtimecmp`.
    pub(crate) const fn load(&self, offset: u64, width: usize) -> Option<u64> {
        match (offset, width) {
            // The hart has let the clock be read before.
            (TIME.., _) if offset < TIME + 8 => None,
            (TIMECMP, 8) => Some(self.timecmp),
            (TIMECMP, 4) => Some(self.timecmp & 0xffff_ffff),
            (TIMECMP_HIGH, 4) => Some(self.timecmp >> 32),
            (MSIP, 4) => Some(self.software as u64),
            (TIMECMP.., 8) | (_, 4) => Some(0),
            _ => None,
        }
    }

    /// Writes a register; the width is 4, or 8 for `mtimecmp` and `mtime`.
    pub(crate) const fn store(&mut self, offset: u64, value: u64, width: usize) -> Option<()> {
        match (offset, width) {
            (TIMECMP, 8) => self.timecmp = value,
            (TIMECMP, 4) => self.timecmp = self.timecmp & !0xffff_ffff | value,
            (TIMECMP_HIGH, 4) => self.timecmp = self.timecmp & 0xffff_ffff | value << 32,
            (MSIP, 4) => self.software = value & 1 == 1,
            (TIMECMP.., 8) | (_, 4) => {}
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { software, timecmp } = self;
        writer.bool(*software);
        writer.u64(*timecmp);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        Ok(Self { software: reader.bool()?, timecmp: reader.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::{Clint, TIME, TIMECMP};

    #[test]
    fn registers_take_both_widths() {
        let mut clint = Clint::new();
        clint.store(TIMECMP, 0x1122_3344_5566_7788, 8).unwrap();
        assert_eq!(clint.timecmp(), 0x1122_3344_5566_7788);
        assert_eq!([TIMECMP, TIMECMP + 4].map(|offset| clint.load(offset, 4)), [Some(0x5566_7788), Some(0x1122_3344)]);
        clint.store(TIMECMP + 4, 1, 4).unwrap();
        clint.store(TIMECMP, 2, 4).unwrap();
        assert_eq!(clint.load(TIMECMP, 8), Some(1 << 32 | 2));
        clint.store(0, 3, 4).unwrap();
        assert_eq!((clint.software(), clint.load(0, 4)), (true, Some(1)));
        assert_eq!((clint.load(0, 8), clint.load(TIMECMP, 2), clint.store(0, 0, 1)), (None, None, None));
        assert_eq!((clint.load(4, 4), clint.load(TIMECMP + 8, 8)), (Some(0), Some(0)), "registers of other harts");
    }

    #[test]
    fn the_clock_is_read_whole_or_by_halves() {
        for (offset, width, is) in
            [(0, 8, true), (0, 4, true), (4, 4, true), (4, 8, false), (2, 4, false), (0, 2, false), (8, 4, false)]
        {
            assert_eq!(Clint::is_clock(TIME + offset, width), is, "{width} bytes at +{offset}");
        }
        assert_eq!(Clint::new().load(TIME, 8), None, "there is no clock in here");
    }
}
