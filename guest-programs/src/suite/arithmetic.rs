//! Integer instructions (I and M), each compared with a model on edge cases and on pseudo-random
//! operands.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "reinterpreting registers as signed and as 32-bit numbers is what these instructions do"
)]

use super::checker::{Checker, Random};
use core::arch::asm;

const RANDOM_PAIRS: usize = 200;
const SEED: u64 = 0x5eed_0001;

const EDGE_CASES: [u64; 16] = [
    0,
    1,
    2,
    31,
    63,
    64,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_7fff_ffff,
    0xffff_ffff_8000_0000,
    u64::MAX,
];

struct Operation {
    name: &'static str,
    execute: fn(u64, u64) -> u64,
    model: fn(u64, u64) -> u64,
}

macro_rules! register_operation {
    ($name:literal, $model:expr) => {
        Operation {
            name: $name,
            execute: |a, b| {
                let result: u64;
                // SAFETY: computes on registers only.
                unsafe {
                    asm!(concat!($name, " {}, {}, {}"), out(reg) result, in(reg) a, in(reg) b, options(pure, nomem, nostack));
                }
                result
            },
            model: $model,
        }
    };
}

macro_rules! immediate_operation {
    ($name:literal, $immediate:literal, $model:expr) => {
        Operation {
            name: concat!($name, " ", $immediate),
            execute: |a, _| {
                let result: u64;
                // SAFETY: computes on registers only.
                unsafe {
                    asm!(concat!($name, " {}, {}, ", $immediate), out(reg) result, in(reg) a, options(pure, nomem, nostack));
                }
                result
            },
            model: $model,
        }
    };
}

const REGISTER_OPERATIONS: &[Operation] = &[
    register_operation!("add", |a, b| a.wrapping_add(b)),
    register_operation!("sub", |a, b| a.wrapping_sub(b)),
    register_operation!("sll", |a, b| a << (b & 63)),
    register_operation!("srl", |a, b| a >> (b & 63)),
    register_operation!("sra", |a, b| ((a as i64) >> (b & 63)) as u64),
    register_operation!("slt", |a, b| u64::from((a as i64) < (b as i64))),
    register_operation!("sltu", |a, b| u64::from(a < b)),
    register_operation!("xor", |a, b| a ^ b),
    register_operation!("or", |a, b| a | b),
    register_operation!("and", |a, b| a & b),
    register_operation!("addw", |a, b| word(a.wrapping_add(b))),
    register_operation!("subw", |a, b| word(a.wrapping_sub(b))),
    register_operation!("sllw", |a, b| word(a << (b & 31))),
    register_operation!("srlw", |a, b| word(u64::from(a as u32 >> (b & 31)))),
    register_operation!("sraw", |a, b| word(i64::from(a as i32 >> (b & 31)) as u64)),
    register_operation!("mul", |a, b| a.wrapping_mul(b)),
    register_operation!("mulh", |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
    register_operation!("mulhsu", |a, b| ((i128::from(a as i64) * i128::from(b)) >> 64) as u64),
    register_operation!("mulhu", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    register_operation!("mulw", |a, b| word(a.wrapping_mul(b))),
    register_operation!("div", |a, b| divide(a as i64, b as i64)),
    register_operation!("divu", |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
    register_operation!("rem", |a, b| remainder(a as i64, b as i64)),
    register_operation!("remu", |a, b| a.checked_rem(b).unwrap_or(a)),
    register_operation!("divw", |a, b| divide(i64::from(a as i32), i64::from(b as i32)) as i32 as u64),
    register_operation!("divuw", |a, b| word(u64::from((a as u32).checked_div(b as u32).unwrap_or(u32::MAX)))),
    register_operation!("remw", |a, b| remainder(i64::from(a as i32), i64::from(b as i32)) as i32 as u64),
    register_operation!("remuw", |a, b| word(u64::from((a as u32).checked_rem(b as u32).unwrap_or(a as u32)))),
];

const IMMEDIATE_OPERATIONS: &[Operation] = &[
    immediate_operation!("addi", "-2048", |a, _| a.wrapping_sub(2048)),
    immediate_operation!("addi", "2047", |a, _| a.wrapping_add(2047)),
    immediate_operation!("slti", "-1", |a, _| u64::from((a as i64) < -1)),
    immediate_operation!("sltiu", "-1", |a, _| u64::from(a < u64::MAX)),
    immediate_operation!("xori", "-1", |a, _| !a),
    immediate_operation!("ori", "0x555", |a, _| a | 0x555),
    immediate_operation!("andi", "-256", |a, _| a & !0xff),
    immediate_operation!("slli", "63", |a, _| a << 63),
    immediate_operation!("slli", "1", |a, _| a << 1),
    immediate_operation!("srli", "63", |a, _| a >> 63),
    immediate_operation!("srli", "32", |a, _| a >> 32),
    immediate_operation!("srai", "63", |a, _| ((a as i64) >> 63) as u64),
    immediate_operation!("srai", "33", |a, _| ((a as i64) >> 33) as u64),
    immediate_operation!("addiw", "-1", |a, _| word(a.wrapping_sub(1))),
    immediate_operation!("addiw", "0", |a, _| word(a)),
    immediate_operation!("slliw", "31", |a, _| word(a << 31)),
    immediate_operation!("srliw", "1", |a, _| word(u64::from(a as u32 >> 1))),
    immediate_operation!("srliw", "31", |a, _| word(u64::from(a as u32 >> 31))),
    immediate_operation!("sraiw", "31", |a, _| word(i64::from(a as i32 >> 31) as u64)),
];

pub(super) fn run(checker: &mut Checker) {
    let mut random = Random::new(SEED);
    for operation in REGISTER_OPERATIONS {
        for a in EDGE_CASES {
            for b in EDGE_CASES {
                check(checker, operation, a, b);
            }
        }
        for _ in 0..RANDOM_PAIRS {
            // Shifted, so that operands have all magnitudes: uniform ones are nearly all large.
            let (a, b) = (random.next() >> random.below(64), random.next() >> random.below(64));
            check(checker, operation, a, b);
        }
    }
    for operation in IMMEDIATE_OPERATIONS {
        for a in EDGE_CASES {
            check(checker, operation, a, 0);
        }
    }
}

fn check(checker: &mut Checker, operation: &Operation, a: u64, b: u64) {
    let expected = (operation.model)(a, b);
    checker.check(format_args!("{} of {a:#x}, {b:#x}", operation.name), (operation.execute)(a, b), expected);
}

/// The lower half, sign-extended, as W-forms return it.
fn word(value: u64) -> u64 {
    value as i32 as u64
}

/// DIV: division by zero gives all ones, the one overflow gives the dividend.
fn divide(a: i64, b: i64) -> u64 {
    if b == 0 { u64::MAX } else { a.wrapping_div(b) as u64 }
}

/// REM: a division by zero gives the dividend, the one overflow gives 0.
fn remainder(a: i64, b: i64) -> u64 {
    if b == 0 { a as u64 } else { a.wrapping_rem(b) as u64 }
}
