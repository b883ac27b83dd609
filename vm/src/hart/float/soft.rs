//! Arithmetic by integers: exact, in every rounding mode, with every flag.
//!
//! An operation unpacks its operands, computes a [`Finite`] that rounds like the exact result, and
//! [`round`] packs it. The significand of an intermediate result is 126 bits wide, so that bits
//! that don't fit can be ORed into its lowest bit ("jammed"), far below the bit that rounding looks
//! at.
//!
//! The maintained library for this, a port of LLVM's APFloat, isn't used here: it has no square
//! root, keeps NaN payloads, and detects tininess by another rule than RISC-V. Correcting that from
//! outside takes as much code as this.

use super::format::Format;
use crate::isa::float::Rounding;

/// Accrued exceptions, as in `fflags`.
pub(super) mod flag {
    /// Inexact.
    pub(in crate::hart::float) const NX: u8 = 1;
    /// Underflow.
    pub(in crate::hart::float) const UF: u8 = 1 << 1;
    /// Overflow.
    pub(in crate::hart::float) const OF: u8 = 1 << 2;
    /// Division by zero.
    pub(in crate::hart::float) const DZ: u8 = 1 << 3;
    /// Invalid operation.
    pub(in crate::hart::float) const NV: u8 = 1 << 4;
}

/// Rounding mode and flags: what arithmetic depends on beside its operands, and what it changes
/// beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) rounding: Rounding,
    /// Bits of [`flag`]; those that were set before stay.
    pub(super) flags: u8,
}

impl Context {
    pub(super) const fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// The result of an invalid operation.
    const fn invalid<F: Format>(&mut self) -> u64 {
        self.raise(flag::NV);
        F::NAN
    }
}

/// The number ±`significand` · 2^`exponent`. Invariant: 0 < `significand` < 2^127.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finite {
    pub(super) negative: bool,
    pub(super) exponent: i32,
    pub(super) significand: u128,
}

impl Finite {
    /// The same number with bit 125 of the significand as the highest.
    const fn normalized(self) -> Self {
        // No operand has more bits than that: the widest is a product of 106.
        let up = self.significand.leading_zeros() as i32 - 2;
        Self { exponent: self.exponent - up, significand: self.significand << up, ..self }
    }
}

/// An unpacked value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    NaN,
    Infinity,
    Zero,
    Finite(Finite),
}

/// Unpacks `bits`. The sign of values that aren't finite is not kept: see [`Format::is_negative`].
pub(super) fn unpack<F: Format>(bits: u64) -> Value {
    let magnitude = F::magnitude(bits);
    if magnitude >= F::INFINITY {
        return if magnitude == F::INFINITY { Value::Infinity } else { Value::NaN };
    }
    if magnitude == 0 {
        return Value::Zero;
    }
    let field = ((magnitude >> F::FRACTION_BITS) & 0x7ff) as i32;
    let fraction = magnitude & (F::MIN_NORMAL - 1);
    let significand = if field == 0 { fraction } else { fraction | F::MIN_NORMAL };
    let exponent = field.max(1) - F::EXPONENT_MAX - F::FRACTION_BITS as i32;
    Value::Finite(Finite { negative: F::is_negative(bits), exponent, significand: significand.into() })
}

/// `significand / 2^shift`, rounded to an integer, and whether that is exact.
pub(super) const fn shift_rounded(significand: u128, shift: u32, negative: bool, rounding: Rounding) -> (u128, bool) {
    if shift == 0 {
        return (significand, true);
    }
    // Beyond 127, a significand below 2^127 is less than half a unit, as 1 is with a shift of 127.
    let (significand, shift) = if shift > 127 { ((significand != 0) as u128, 127) } else { (significand, shift) };
    let kept = significand >> shift;
    let rest = significand & ((1 << shift) - 1);
    let half = 1 << (shift - 1);
    let up = match rounding {
        Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
        Rounding::NearestAway => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
    };
    (kept + up as u128, rest == 0)
}

/// `significand / 2^shift`, with the lowest bit set if that isn't exact.
const fn shift_jammed(significand: u128, shift: u32) -> u128 {
    if shift > 127 {
        return (significand != 0) as u128;
    }
    let rest = significand & ((1 << shift) - 1);
    (significand >> shift) | (rest != 0) as u128
}

/// Packs `value`, rounded; raises inexact, underflow and overflow.
///
/// Tininess is detected after rounding: as if the exponent had no lower bound (RISC-V unprivileged,
/// chapter "F").
#[expect(clippy::cast_possible_truncation, reason = "what is kept of the significand has no more bits than the format")]
pub(super) fn round<F: Format>(value: Finite, context: &mut Context) -> u64 {
    let Finite { negative, exponent, significand } = value;
    let rounding = context.rounding;
    // The exponent of the leading bit, and of the last bit that is kept.
    let leading = exponent + 127 - significand.leading_zeros() as i32;
    let unbounded_unit = leading - F::FRACTION_BITS as i32;
    let unit = unbounded_unit.max(F::EXPONENT_MIN - F::FRACTION_BITS as i32);
    let (kept, exact) = if unit <= exponent {
        (significand << (exponent - unit), true)
    } else {
        shift_rounded(significand, (unit - exponent).unsigned_abs(), negative, rounding)
    };
    if !exact {
        context.raise(flag::NX);
        let becomes_normal = || {
            let shift = (unbounded_unit - exponent).unsigned_abs();
            shift_rounded(significand, shift, negative, rounding).0 == 1 << F::PRECISION
        };
        // Only in the binade just below the normal numbers is there anything to round up to one.
        if leading < F::EXPONENT_MIN - 1 || (leading == F::EXPONENT_MIN - 1 && !becomes_normal()) {
            context.raise(flag::UF);
        }
    }
    // The hidden bit adds one to the exponent field, and so does the carry of a significand that
    // was rounded up to a power of two. A subnormal number hasn't the one and gets the other when
    // it becomes normal. The field is at most 3119, of a quotient: it isn't cut off.
    let field = (unit + F::FRACTION_BITS as i32 - F::EXPONENT_MIN).unsigned_abs();
    let magnitude = (u64::from(field) << F::FRACTION_BITS) + kept as u64;
    if magnitude >= F::INFINITY {
        return overflow::<F>(negative, context);
    }
    F::signed(negative, magnitude)
}

fn overflow<F: Format>(negative: bool, context: &mut Context) -> u64 {
    context.raise(flag::OF | flag::NX);
    let to_infinity = match context.rounding {
        Rounding::NearestEven | Rounding::NearestAway => true,
        Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
    };
    F::signed(negative, if to_infinity { F::INFINITY } else { F::INFINITY - 1 })
}

/// The result of an operation with a NaN among its operands.
fn propagated<F: Format>(operands: &[u64], context: &mut Context) -> u64 {
    if operands.iter().any(|bits| F::is_signaling(*bits)) {
        context.raise(flag::NV);
    }
    F::NAN
}

pub(super) fn add<F: Format>(a: u64, b: u64, context: &mut Context) -> u64 {
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Value::NaN, _) | (_, Value::NaN) => propagated::<F>(&[a, b], context),
        (Value::Infinity, Value::Infinity) if a != b => context.invalid::<F>(),
        (Value::Infinity, _) => a,
        (_, Value::Infinity) => b,
        (Value::Zero, Value::Zero) => zero_sum::<F>(F::is_negative(a), F::is_negative(b), context),
        (Value::Zero, Value::Finite(_)) => b,
        (Value::Finite(_), Value::Zero) => a,
        (Value::Finite(a), Value::Finite(b)) => add_finite::<F>(a, b, context),
    }
}

/// A sum of exactly zero, by the signs of its summands.
fn zero_sum<F: Format>(a: bool, b: bool, context: &Context) -> u64 {
    let negative = if a == b { a } else { context.rounding == Rounding::Down };
    F::signed(negative, 0)
}

/// Adds; neither significand may have more than 106 bits.
///
/// If the exponents differ by more than 20, bits of the smaller summand are jammed; but a
/// difference of 2 or more leaves a sum of at least 2^124, whose rounding doesn't look at the
/// lowest bits.
fn add_finite<F: Format>(a: Finite, b: Finite, context: &mut Context) -> u64 {
    let (a, b) = (a.normalized(), b.normalized());
    let (high, low) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
    let low_significand = shift_jammed(low.significand, high.exponent.abs_diff(low.exponent));
    let (negative, significand) = if high.negative == low.negative {
        (high.negative, high.significand + low_significand)
    } else {
        let negative = if high.significand >= low_significand { high.negative } else { low.negative };
        (negative, high.significand.abs_diff(low_significand))
    };
    if significand == 0 {
        return zero_sum::<F>(high.negative, low.negative, context);
    }
    round::<F>(Finite { negative, exponent: high.exponent, significand }, context)
}

/// The exact product, of up to 106 bits.
const fn product(a: Finite, b: Finite) -> Finite {
    Finite {
        negative: a.negative != b.negative,
        exponent: a.exponent + b.exponent,
        significand: a.significand * b.significand,
    }
}

pub(super) fn multiply<F: Format>(a: u64, b: u64, context: &mut Context) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Value::NaN, _) | (_, Value::NaN) => propagated::<F>(&[a, b], context),
        (Value::Infinity, Value::Zero) | (Value::Zero, Value::Infinity) => context.invalid::<F>(),
        (Value::Infinity, _) | (_, Value::Infinity) => F::signed(negative, F::INFINITY),
        (Value::Zero, _) | (_, Value::Zero) => F::signed(negative, 0),
        (Value::Finite(a), Value::Finite(b)) => round::<F>(product(a, b), context),
    }
}

pub(super) fn divide<F: Format>(a: u64, b: u64, context: &mut Context) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Value::NaN, _) | (_, Value::NaN) => propagated::<F>(&[a, b], context),
        (Value::Infinity, Value::Infinity) | (Value::Zero, Value::Zero) => context.invalid::<F>(),
        (Value::Infinity, _) => F::signed(negative, F::INFINITY),
        (Value::Zero, _) | (_, Value::Infinity) => F::signed(negative, 0),
        (Value::Finite(_), Value::Zero) => {
            context.raise(flag::DZ);
            F::signed(negative, F::INFINITY)
        }
        (Value::Finite(a), Value::Finite(b)) => {
            // The divisor has at most 53 bits: the quotient has 73 at least.
            let a = a.normalized();
            let is_exact = a.significand.is_multiple_of(b.significand);
            let significand = (a.significand / b.significand) | u128::from(!is_exact);
            round::<F>(Finite { negative, exponent: a.exponent - b.exponent, significand }, context)
        }
    }
}

pub(super) fn square_root<F: Format>(bits: u64, context: &mut Context) -> u64 {
    match unpack::<F>(bits) {
        Value::NaN => propagated::<F>(&[bits], context),
        Value::Zero => bits,
        _ if F::is_negative(bits) => context.invalid::<F>(),
        Value::Infinity => bits,
        Value::Finite(value) => {
            let Finite { exponent, significand, .. } = value.normalized();
            // An even exponent; the root has 63 or 64 bits, and one more below them says whether it
            // is exact.
            let odd = exponent & 1;
            let significand = significand << odd;
            let root = significand.isqrt();
            let is_exact = root * root == significand;
            let root = Finite {
                negative: false,
                exponent: (exponent - odd) / 2 - 1,
                significand: root << 1 | u128::from(!is_exact),
            };
            round::<F>(root, context)
        }
    }
}

/// `a * b + c`, rounded once. Infinity times zero is invalid even if `c` is a quiet NaN.
pub(super) fn multiply_add<F: Format>(a: u64, b: u64, c: u64, context: &mut Context) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    let addend = unpack::<F>(c);
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Value::Infinity, Value::Zero) | (Value::Zero, Value::Infinity) => context.invalid::<F>(),
        (Value::NaN, _) | (_, Value::NaN) => propagated::<F>(&[a, b, c], context),
        _ if matches!(addend, Value::NaN) => propagated::<F>(&[c], context),
        (Value::Infinity, _) | (_, Value::Infinity) => add::<F>(F::signed(negative, F::INFINITY), c, context),
        (Value::Zero, _) | (_, Value::Zero) => add::<F>(F::signed(negative, 0), c, context),
        (Value::Finite(a), Value::Finite(b)) => match addend {
            Value::NaN | Value::Infinity => c,
            Value::Zero => round::<F>(product(a, b), context),
            Value::Finite(c) => add_finite::<F>(product(a, b), c, context),
        },
    }
}
