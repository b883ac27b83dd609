//! Integer arithmetic: pure functions of two operands.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "reinterpreting and narrowing register values is what these instructions do"
)]

use crate::isa::instruction::AluOp;

/// The result of `op` on `a` and `b`. Division by zero and overflow have results, as the M
/// extension defines; nothing traps.
#[inline]
pub(crate) fn compute(op: AluOp, a: u64, b: u64) -> u64 {
    match op {
        AluOp::Add => a.wrapping_add(b),
        AluOp::Sub => a.wrapping_sub(b),
        AluOp::Sll => a << (b & 63),
        AluOp::Slt => u64::from((a as i64) < (b as i64)),
        AluOp::Sltu => u64::from(a < b),
        AluOp::Xor => a ^ b,
        AluOp::Srl => a >> (b & 63),
        AluOp::Sra => ((a as i64) >> (b & 63)) as u64,
        AluOp::Or => a | b,
        AluOp::And => a & b,
        AluOp::AddW => extend_word((a as u32).wrapping_add(b as u32)),
        AluOp::SubW => extend_word((a as u32).wrapping_sub(b as u32)),
        AluOp::SllW => extend_word((a as u32) << (b & 31)),
        AluOp::SrlW => extend_word((a as u32) >> (b & 31)),
        AluOp::SraW => ((a as i32) >> (b & 31)) as u64,
        AluOp::Mul => a.wrapping_mul(b),
        AluOp::Mulh => ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64,
        AluOp::Mulhsu => ((i128::from(a as i64) * i128::from(b)) >> 64) as u64,
        AluOp::Mulhu => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        AluOp::MulW => extend_word((a as u32).wrapping_mul(b as u32)),
        AluOp::Div
        | AluOp::Divu
        | AluOp::Rem
        | AluOp::Remu
        | AluOp::DivW
        | AluOp::DivuW
        | AluOp::RemW
        | AluOp::RemuW => divide(op, a, b),
    }
}

/// Sign-extends the 32-bit result of a word instruction.
#[inline]
pub(crate) const fn extend_word(word: u32) -> u64 {
    word as i32 as u64
}

/// `op` must be one of the divisions. A quotient by zero is all ones, a remainder by zero the
/// dividend; the most negative number over -1 is itself, remainder 0.
fn divide(op: AluOp, a: u64, b: u64) -> u64 {
    if matches!(op, AluOp::DivW | AluOp::DivuW | AluOp::RemW | AluOp::RemuW) {
        return divide_words(op, a as u32, b as u32);
    }
    let quotient = matches!(op, AluOp::Div | AluOp::Divu);
    match (op, b) {
        (_, 0) if quotient => u64::MAX,
        (_, 0) => a,
        (AluOp::Div, _) => (a as i64).wrapping_div(b as i64) as u64,
        (AluOp::Rem, _) => (a as i64).wrapping_rem(b as i64) as u64,
        (AluOp::Divu, _) => a / b,
        (_, _) => a % b,
    }
}

fn divide_words(op: AluOp, a: u32, b: u32) -> u64 {
    let quotient = matches!(op, AluOp::DivW | AluOp::DivuW);
    let word = match (op, b) {
        (_, 0) if quotient => u32::MAX,
        (_, 0) => a,
        (AluOp::DivW, _) => (a as i32).wrapping_div(b as i32) as u32,
        (AluOp::RemW, _) => (a as i32).wrapping_rem(b as i32) as u32,
        (AluOp::DivuW, _) => a / b,
        (_, _) => a % b,
    };
    extend_word(word)
}
