//! The two formats: their encoding, their boxing in registers, and the host's arithmetic on them.

use crate::isa::float::BinaryOp;

/// A binary interchange format of IEEE 754, as bits in the low part of a `u64`.
pub(super) trait Format {
    /// Bits of the significand, the hidden one included.
    const PRECISION: u32;
    /// The exponent of the largest binade, which is also the bias.
    const EXPONENT_MAX: i32;
    const SIGN: u64;
    /// The canonical NaN: the only one that any operation makes.
    const NAN: u64;

    /// Bits of the significand that are stored.
    const FRACTION_BITS: u32 = Self::PRECISION - 1;
    /// The exponent of the smallest normal numbers.
    const EXPONENT_MIN: i32 = 1 - Self::EXPONENT_MAX;
    /// The smallest normal number.
    const MIN_NORMAL: u64 = 1 << Self::FRACTION_BITS;
    const INFINITY: u64 = Self::NAN & !Self::QUIET;
    /// The fraction bit that is set in quiet NaNs and clear in signaling ones.
    const QUIET: u64 = 1 << (Self::FRACTION_BITS - 1);

    /// The value in a register; a single that isn't properly boxed is the canonical NaN.
    fn unbox(register: u64) -> u64;
    /// The register value of the value `bits`.
    fn boxed(bits: u64) -> u64;

    /// The bits of the value in a register, boxed or not, as a move to an integer register gives
    /// them.
    fn sign_extended(register: u64) -> u64;

    /// The host's result, rounded to nearest even.
    fn on_host(op: BinaryOp, a: u64, b: u64) -> u64;
    /// `bits`, which aren't a NaN, as a double, exactly.
    fn to_host(bits: u64) -> f64;
    /// `value` rounded to nearest even by the host.
    fn from_host(value: f64) -> u64;
    /// `value` rounded to nearest even by the host.
    fn from_host_signed(value: i64) -> u64;
    /// `value` rounded to nearest even by the host.
    fn from_host_unsigned(value: u64) -> u64;

    #[inline]
    fn is_negative(bits: u64) -> bool {
        bits & Self::SIGN != 0
    }

    #[inline]
    fn magnitude(bits: u64) -> u64 {
        bits & !Self::SIGN
    }

    #[inline]
    fn is_nan(bits: u64) -> bool {
        Self::magnitude(bits) > Self::INFINITY
    }

    #[inline]
    fn is_signaling(bits: u64) -> bool {
        Self::is_nan(bits) && bits & Self::QUIET == 0
    }

    /// `bits` with its sign turned if `negate`.
    #[inline]
    fn negated_if(negate: bool, bits: u64) -> u64 {
        if negate { bits ^ Self::SIGN } else { bits }
    }

    /// `magnitude` with a sign.
    #[inline]
    fn signed(negative: bool, magnitude: u64) -> u64 {
        Self::negated_if(negative, magnitude)
    }

    /// `true` if the value is zero or a normal number.
    #[inline]
    fn is_normal_or_zero(bits: u64) -> bool {
        let magnitude = Self::magnitude(bits);
        magnitude == 0 || (Self::MIN_NORMAL..Self::INFINITY).contains(&magnitude)
    }

    /// `true` if the value is a finite number above the lowest binade of normal ones.
    #[inline]
    fn is_well_inside(bits: u64) -> bool {
        (2 * Self::MIN_NORMAL..Self::INFINITY).contains(&Self::magnitude(bits))
    }
}

/// binary32.
#[derive(Debug)]
pub(super) struct Single;

/// binary64.
#[derive(Debug)]
pub(super) struct Double;

/// The upper half of a register that holds a single.
const BOX: u64 = 0xffff_ffff_0000_0000;

#[expect(
    clippy::cast_possible_truncation,
    reason = "a single is in the low half, and the upper one is cleared or ignored"
)]
#[expect(clippy::cast_precision_loss, reason = "these conversions round")]
impl Format for Single {
    const PRECISION: u32 = 24;
    const EXPONENT_MAX: i32 = 127;
    const SIGN: u64 = 1 << 31;
    const NAN: u64 = 0x7fc0_0000;

    #[inline]
    fn unbox(register: u64) -> u64 {
        if register >= BOX { register & !BOX } else { Self::NAN }
    }

    #[inline]
    fn boxed(bits: u64) -> u64 {
        bits | BOX
    }

    #[inline]
    fn sign_extended(register: u64) -> u64 {
        i64::from(register as i32).cast_unsigned()
    }

    #[inline]
    fn on_host(op: BinaryOp, a: u64, b: u64) -> u64 {
        let (a, b) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
        let result = match op {
            BinaryOp::Add => a + b,
            BinaryOp::Subtract => a - b,
            BinaryOp::Multiply => a * b,
            BinaryOp::Divide => a / b,
        };
        result.to_bits().into()
    }

    #[inline]
    fn to_host(bits: u64) -> f64 {
        f32::from_bits(bits as u32).into()
    }

    #[inline]
    fn from_host(value: f64) -> u64 {
        (value as f32).to_bits().into()
    }

    #[inline]
    fn from_host_signed(value: i64) -> u64 {
        (value as f32).to_bits().into()
    }

    #[inline]
    fn from_host_unsigned(value: u64) -> u64 {
        (value as f32).to_bits().into()
    }
}

#[expect(clippy::cast_precision_loss, reason = "these conversions round")]
impl Format for Double {
    const PRECISION: u32 = 53;
    const EXPONENT_MAX: i32 = 1023;
    const SIGN: u64 = 1 << 63;
    const NAN: u64 = 0x7ff8_0000_0000_0000;

    #[inline]
    fn unbox(register: u64) -> u64 {
        register
    }

    #[inline]
    fn boxed(bits: u64) -> u64 {
        bits
    }

    #[inline]
    fn sign_extended(register: u64) -> u64 {
        register
    }

    #[inline]
    fn on_host(op: BinaryOp, a: u64, b: u64) -> u64 {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        let result = match op {
            BinaryOp::Add => a + b,
            BinaryOp::Subtract => a - b,
            BinaryOp::Multiply => a * b,
            BinaryOp::Divide => a / b,
        };
        result.to_bits()
    }

    #[inline]
    fn to_host(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    #[inline]
    fn from_host(value: f64) -> u64 {
        value.to_bits()
    }

    #[inline]
    fn from_host_signed(value: i64) -> u64 {
        (value as f64).to_bits()
    }

    #[inline]
    fn from_host_unsigned(value: u64) -> u64 {
        (value as f64).to_bits()
    }
}
