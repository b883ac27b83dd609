//! Integer arithmetic: pure functions of two operands.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "reinterpreting and narrowing register values is what these instructions do"
)]

use crate::isa::instruction::{AluOp, BitOp};

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
        AluOp::Bits(op) => manipulate(op, a, b),
    }
}

/// The result of a bit manipulation of `a` and `b`. Shift and rotation amounts, and the numbers of
/// bits, are modulo the width.
#[inline]
fn manipulate(op: BitOp, a: u64, b: u64) -> u64 {
    let word = a as u32;
    let bit = 1 << (b & 63);
    let (amount, word_amount) = ((b & 63) as u32, (b & 31) as u32);
    match op {
        BitOp::AddUw => u64::from(word).wrapping_add(b),
        BitOp::Sh1Add => (a << 1).wrapping_add(b),
        BitOp::Sh2Add => (a << 2).wrapping_add(b),
        BitOp::Sh3Add => (a << 3).wrapping_add(b),
        BitOp::Sh1AddUw => (u64::from(word) << 1).wrapping_add(b),
        BitOp::Sh2AddUw => (u64::from(word) << 2).wrapping_add(b),
        BitOp::Sh3AddUw => (u64::from(word) << 3).wrapping_add(b),
        BitOp::SllUw => u64::from(word) << amount,
        BitOp::Andn => a & !b,
        BitOp::Orn => a | !b,
        BitOp::Xnor => !(a ^ b),
        BitOp::Clz => a.leading_zeros().into(),
        BitOp::Ctz => a.trailing_zeros().into(),
        BitOp::Cpop => a.count_ones().into(),
        BitOp::ClzW => word.leading_zeros().into(),
        BitOp::CtzW => word.trailing_zeros().into(),
        BitOp::CpopW => word.count_ones().into(),
        BitOp::Max => (a as i64).max(b as i64) as u64,
        BitOp::Maxu => a.max(b),
        BitOp::Min => (a as i64).min(b as i64) as u64,
        BitOp::Minu => a.min(b),
        BitOp::SextB => a as i8 as u64,
        BitOp::SextH => a as i16 as u64,
        BitOp::ZextH => (a as u16).into(),
        BitOp::Rol => a.rotate_left(amount),
        BitOp::Ror => a.rotate_right(amount),
        BitOp::RolW => extend_word(word.rotate_left(word_amount)),
        BitOp::RorW => extend_word(word.rotate_right(word_amount)),
        BitOp::OrcB => or_combined_bytes(a),
        BitOp::Rev8 => a.swap_bytes(),
        BitOp::Bclr => a & !bit,
        BitOp::Bext => a >> amount & 1,
        BitOp::Binv => a ^ bit,
        BitOp::Bset => a | bit,
    }
}

/// Each byte that isn't zero becomes all ones.
#[inline]
const fn or_combined_bytes(a: u64) -> u64 {
    const LOW_SEVEN: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // The top bit of each byte that isn't zero; no sum carries into the next byte.
    let tops = (((a & LOW_SEVEN) + LOW_SEVEN) | a) & !LOW_SEVEN;
    (tops >> 7) * 0xff
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
