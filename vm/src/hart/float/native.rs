//! Arithmetic on two operands: by the host where that is provably the same, by integers elsewhere.
//!
//! The host computes if rounding is to nearest even, the inexact flag is set already, and both
//! operands are normal numbers or zero. Its result is taken if it is a finite number above the
//! lowest binade of normal ones. Then
//! - the result is the exact one rounded once, as IEEE 754 requires: Rust's `f32` and `f64` are
//!   binary32 and binary64 with this rounding mode on every target that we build for (the exception
//!   is x86 without SSE2), and no operand or result is of a kind (subnormal, NaN) in which hosts
//!   differ;
//! - no flag is missed: without infinities and NaN as operands, and without NaN as result, no
//!   operation was invalid; a division by zero or an overflow would have given an infinity; a
//!   result above the lowest binade isn't tiny; inexact is set.
//!
//! `core` has neither a square root nor a fused multiply-add: both are always computed by integers.

use super::format::Format;
use super::soft::{self, Context, flag};
use crate::isa::float::{BinaryOp, Rounding};

/// `a op b`.
#[inline]
pub(super) fn binary<F: Format>(op: BinaryOp, a: u64, b: u64, context: &mut Context) -> u64 {
    let nothing_to_tell = context.rounding == Rounding::NearestEven && context.flags & flag::NX != 0;
    if nothing_to_tell && F::is_normal_or_zero(a) && F::is_normal_or_zero(b) {
        let result = F::on_host(op, a, b);
        if F::is_well_inside(result) {
            return result;
        }
    }
    by_integers::<F>(op, a, b, context)
}

/// `a op b` for all operands.
#[inline(never)]
pub(super) fn by_integers<F: Format>(op: BinaryOp, a: u64, b: u64, context: &mut Context) -> u64 {
    match op {
        BinaryOp::Add => soft::add::<F>(a, b, context),
        // A NaN's sign has no meaning.
        BinaryOp::Subtract => soft::add::<F>(a, b ^ F::SIGN, context),
        BinaryOp::Multiply => soft::multiply::<F>(a, b, context),
        BinaryOp::Divide => soft::divide::<F>(a, b, context),
    }
}
