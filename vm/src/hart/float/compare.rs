//! Operations without arithmetic: comparisons, minimum and maximum, classes and signs.

use super::format::Format;
use super::soft::flag;
use crate::isa::float::{Comparison, Extreme, SignOp};

/// A key by which numbers are ordered, -0 just before +0. Not for NaN.
#[inline]
fn order_key<F: Format>(bits: u64) -> i64 {
    let magnitude = F::magnitude(bits).cast_signed();
    if F::is_negative(bits) { !magnitude } else { magnitude }
}

/// `true` if the comparison holds. A NaN is neither less than, equal to nor greater than anything;
/// only equality is quiet about it.
#[inline]
pub(super) fn compare<F: Format>(comparison: Comparison, a: u64, b: u64, flags: &mut u8) -> bool {
    if F::is_nan(a) || F::is_nan(b) {
        let is_quiet = comparison == Comparison::Equal;
        if !is_quiet || F::is_signaling(a) || F::is_signaling(b) {
            *flags |= flag::NV;
        }
        return false;
    }
    let are_zero = F::magnitude(a | b) == 0;
    match comparison {
        Comparison::LessOrEqual => order_key::<F>(a) <= order_key::<F>(b) || are_zero,
        Comparison::Less => order_key::<F>(a) < order_key::<F>(b) && !are_zero,
        Comparison::Equal => a == b || are_zero,
    }
}

/// IEEE 754-2019's minimumNumber and maximumNumber: a number rather than a NaN, and -0 less than
/// +0.
#[inline]
pub(super) fn select<F: Format>(extreme: Extreme, a: u64, b: u64, flags: &mut u8) -> u64 {
    if F::is_signaling(a) || F::is_signaling(b) {
        *flags |= flag::NV;
    }
    match (F::is_nan(a), F::is_nan(b)) {
        (true, true) => F::NAN,
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            let a_is_less = order_key::<F>(a) < order_key::<F>(b);
            if a_is_less == (extreme == Extreme::Minimum) { a } else { b }
        }
    }
}

/// The class of a value, as the one bit that `fclass` sets.
pub(super) fn classify<F: Format>(bits: u64) -> u64 {
    let magnitude = F::magnitude(bits);
    let negative = F::is_negative(bits);
    let class = if F::is_nan(bits) {
        if F::is_signaling(bits) { 8 } else { 9 }
    } else {
        // From -infinity up to +infinity: -inf, -normal, -subnormal, -0, +0, +subnormal, +normal,
        // +inf.
        let from_zero = if magnitude == 0 {
            0
        } else if magnitude < F::MIN_NORMAL {
            1
        } else if magnitude < F::INFINITY {
            2
        } else {
            3
        };
        if negative { 3 - from_zero } else { 4 + from_zero }
    };
    1 << class
}

/// The magnitude of `a` with a sign made of both operands' signs.
#[inline]
pub(super) fn inject_sign<F: Format>(op: SignOp, a: u64, b: u64) -> u64 {
    let sign = match op {
        SignOp::Copy => b,
        SignOp::CopyNegated => !b,
        SignOp::Xor => a ^ b,
    };
    F::magnitude(a) | sign & F::SIGN
}
