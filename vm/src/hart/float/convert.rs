//! Conversions between formats, and to and from integers.

use super::format::Format;
use super::soft::{Context, Finite, Value, flag, round, shift_rounded, unpack};
use crate::isa::float::{IntegerKind, Rounding};

impl IntegerKind {
    /// The largest magnitude of a number of this kind with this sign.
    const fn limit(self, negative: bool) -> u64 {
        match (self, negative) {
            (Self::Word, false) => i32::MAX.unsigned_abs() as u64,
            (Self::Word, true) => i32::MIN.unsigned_abs() as u64,
            (Self::WordUnsigned, false) => u32::MAX as u64,
            (Self::Long, false) => i64::MAX.unsigned_abs(),
            (Self::Long, true) => i64::MIN.unsigned_abs(),
            (Self::LongUnsigned, false) => u64::MAX,
            (Self::WordUnsigned | Self::LongUnsigned, true) => 0,
        }
    }

    /// The register value of the number in the low bits of `value`: words are sign-extended,
    /// unsigned ones too.
    #[expect(clippy::cast_possible_truncation, reason = "a word is in the low half")]
    const fn extended(self, value: u64) -> u64 {
        match self {
            Self::Word | Self::WordUnsigned => (value as i32 as i64).cast_unsigned(),
            Self::Long | Self::LongUnsigned => value,
        }
    }
}

/// Rounds to an integer. Numbers that don't fit, infinities and NaN become the limit.
pub(super) fn to_integer<F: Format>(bits: u64, kind: IntegerKind, context: &mut Context) -> u64 {
    if let Some(value) = truncated_on_host::<F>(bits, kind, context) {
        return value;
    }
    let negative = F::is_negative(bits);
    let (magnitude, exact) = match unpack::<F>(bits) {
        Value::NaN => {
            context.raise(flag::NV);
            return kind.extended(kind.limit(false));
        }
        Value::Infinity => (u128::MAX, true),
        Value::Zero => (0, true),
        // Greater than any limit.
        Value::Finite(Finite { exponent, .. }) if exponent > 64 => (u128::MAX, true),
        Value::Finite(Finite { exponent, significand, .. }) if exponent >= 0 => (significand << exponent, true),
        Value::Finite(Finite { exponent, significand, .. }) => {
            shift_rounded(significand, exponent.unsigned_abs(), negative, context.rounding)
        }
    };
    let limit = kind.limit(negative);
    let magnitude = match u64::try_from(magnitude) {
        Ok(magnitude) if magnitude <= limit => {
            if !exact {
                context.raise(flag::NX);
            }
            magnitude
        }
        _ => {
            context.raise(flag::NV);
            limit
        }
    };
    kind.extended(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// Conversion as by a cast in C, toward zero, by the host; `None` near the limits.
///
/// The host's conversion of a number in range is exact except for the fraction that it drops, and
/// the integer, which has no more significant bits than the number, converts back exactly. So the
/// two are equal if nothing was dropped.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the number is known to be in range")]
#[expect(clippy::cast_precision_loss, reason = "the integer has no more significant bits than a double")]
fn truncated_on_host<F: Format>(bits: u64, kind: IntegerKind, context: &mut Context) -> Option<u64> {
    let bound = match kind {
        IntegerKind::Word => 2_147_483_648.0,
        IntegerKind::Long => 9_223_372_036_854_775_808.0,
        IntegerKind::WordUnsigned | IntegerKind::LongUnsigned => return None,
    };
    if context.rounding != Rounding::Zero || !F::is_normal_or_zero(bits) {
        return None;
    }
    let value = F::to_host(bits);
    if value <= -bound || value >= bound {
        return None;
    }
    let integer = value as i64;
    if integer as f64 != value {
        context.raise(flag::NX);
    }
    Some(integer.cast_unsigned())
}

/// The number in the register `value`, rounded.
pub(super) fn from_integer<F: Format>(value: u64, kind: IntegerKind, context: &mut Context) -> u64 {
    let is_signed = matches!(kind, IntegerKind::Word | IntegerKind::Long);
    let value = match kind {
        IntegerKind::Word => kind.extended(value),
        IntegerKind::WordUnsigned => value & u64::from(u32::MAX),
        IntegerKind::Long | IntegerKind::LongUnsigned => value,
    };
    let negative = is_signed && value.cast_signed() < 0;
    let magnitude = if negative { value.wrapping_neg() } else { value };
    // With no more bits than the significand has, the conversion is exact on every host and in
    // every mode. Otherwise the host rounds as we do in the one mode that it has, and raises
    // nothing new if the inexact flag is set already.
    let nothing_to_tell = context.rounding == Rounding::NearestEven && context.flags & flag::NX != 0;
    if magnitude >> F::PRECISION == 0 || nothing_to_tell {
        return if is_signed { F::from_host_signed(value.cast_signed()) } else { F::from_host_unsigned(value) };
    }
    round::<F>(Finite { negative, exponent: 0, significand: magnitude.into() }, context)
}

/// The number `bits` of format `From` in format `To`, rounded.
pub(super) fn resize<From: Format, To: Format>(bits: u64, context: &mut Context) -> u64 {
    if From::is_normal_or_zero(bits) {
        // Exact in a wider format; otherwise as for two operands, see `super::native`.
        let is_wider = To::PRECISION > From::PRECISION;
        let nothing_to_tell = context.rounding == Rounding::NearestEven && context.flags & flag::NX != 0;
        if is_wider || nothing_to_tell {
            let result = To::from_host(From::to_host(bits));
            if is_wider || To::is_well_inside(result) {
                return result;
            }
        }
    }
    let negative = From::is_negative(bits);
    match unpack::<From>(bits) {
        Value::NaN => {
            if From::is_signaling(bits) {
                context.raise(flag::NV);
            }
            To::NAN
        }
        Value::Infinity => To::signed(negative, To::INFINITY),
        Value::Zero => To::signed(negative, 0),
        Value::Finite(value) => round::<To>(value, context),
    }
}
