//! The machine's position in its execution.

use core::fmt;

/// Steps executed since reset. A step is one instruction, one that traps included, or the taking of
/// one interrupt.
///
/// The guest can't write it; it never goes back, and it stands still while the hart waits in WFI.
/// Log positions are in this unit and no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstructionCount(pub u64);

impl InstructionCount {
    /// The position `steps` further on, saturating at the end of the range.
    #[must_use]
    pub const fn plus(self, steps: u64) -> Self {
        Self(self.0.saturating_add(steps))
    }

    /// Steps from `earlier` to `self`; 0 if `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Decimal with `_` between groups of three digits: `8_123_456`.
impl fmt::Display for InstructionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut divisor = 1_u64;
        while self.0 / divisor >= 1000 {
            divisor *= 1000;
        }
        write!(f, "{}", self.0 / divisor)?;
        while divisor > 1 {
            divisor /= 1000;
            write!(f, "_{:03}", self.0 / divisor % 1000)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::InstructionCount;
    use alloc::format;

    #[test]
    fn display_groups_digits() {
        for (count, text) in
            [(0, "0"), (999, "999"), (1000, "1_000"), (8_123_456, "8_123_456"), (1_000_007, "1_000_007")]
        {
            assert_eq!(format!("{}", InstructionCount(count)), text);
        }
    }
}
