//! Operands that a seed makes, and what is computed from them.

use super::println;
use crate::hart::float::format::Format;
use crate::hart::float::soft::Context;
use crate::isa::float::Rounding;

pub(super) const MODES: [Rounding; 5] =
    [Rounding::NearestEven, Rounding::Zero, Rounding::Down, Rounding::Up, Rounding::NearestAway];

/// Numbers that a seed makes (splitmix64).
pub(super) struct Random(u64);

impl Random {
    /// The seed is printed, for whoever looks at a failure.
    pub(super) fn new(seed: u64) -> Self {
        println!("seed {seed:#x}");
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An index less than `bound`.
    pub(super) fn index(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap()
    }

    /// Bits of any kind of value; those that arithmetic finds hard are frequent.
    pub(super) fn operand<F: Format>(&mut self) -> u64 {
        let sign = self.next() & F::SIGN;
        let fraction = match self.below(4) {
            0 => self.next(),
            // Few bits set, or few clear: ties and carries.
            1 => 1 << self.below(F::FRACTION_BITS.into()),
            2 => u64::MAX << self.below(F::FRACTION_BITS.into()),
            _ => self.below(4).wrapping_sub(2),
        } & (F::MIN_NORMAL - 1);
        let largest = (F::INFINITY >> F::FRACTION_BITS) - 1;
        let near = |middle: u64, offset: u64| middle.wrapping_add(offset).wrapping_sub(40).clamp(1, largest);
        let field = match self.below(8) {
            0 => 0,
            1 => near(1, self.below(80)),
            2 => near(largest, self.below(80)),
            3 | 4 => near(largest / 2, self.below(80)),
            // Products and quotients of these are near the smallest and the largest numbers.
            5 => near(largest / 4, self.below(80)),
            6 => near(largest / 4 * 3, self.below(80)),
            _ => self.below(largest + 2),
        };
        sign | field << F::FRACTION_BITS | fraction
    }
}

/// The result and flags of `operation` in mode `rounding`, with no flags set before.
pub(super) fn computed(rounding: Rounding, operation: impl FnOnce(&mut Context) -> u64) -> (u64, u8) {
    let mut context = Context { rounding, flags: 0 };
    let result = operation(&mut context);
    (result, context.flags)
}
