//! Atomics (A): AMOs compared with a model, and when a store-conditional succeeds.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the instructions reinterpret registers so"
)]

use super::checker::Checker;
use core::arch::asm;

const OPERANDS: [u64; 8] =
    [0, 1, u64::MAX, 0x7fff_ffff, 0x8000_0000, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, 0x0123_4567_89ab_cdef];

struct Amo {
    name: &'static str,
    execute_word: fn(&mut u64, u64) -> u64,
    execute_double: fn(&mut u64, u64) -> u64,
    model_word: fn(i32, i32) -> i32,
    model_double: fn(i64, i64) -> i64,
}

macro_rules! execute {
    ($instruction:expr) => {
        |memory, operand| {
            let old: u64;
            // SAFETY: reads and writes the one variable.
            unsafe {
                asm!(concat!($instruction, " {}, {}, ({})"), out(reg) old, in(reg) operand, in(reg) memory, options(nostack));
            }
            old
        }
    };
}

macro_rules! amo {
    ($name:literal, $model_word:expr, $model_double:expr) => {
        Amo {
            name: $name,
            execute_word: execute!(concat!($name, ".w")),
            execute_double: execute!(concat!($name, ".d.aqrl")),
            model_word: $model_word,
            model_double: $model_double,
        }
    };
}

const AMOS: &[Amo] = &[
    amo!("amoswap", |_, b| b, |_, b| b),
    amo!("amoadd", |m, b| m.wrapping_add(b), |m, b| m.wrapping_add(b)),
    amo!("amoxor", |m, b| m ^ b, |m, b| m ^ b),
    amo!("amoand", |m, b| m & b, |m, b| m & b),
    amo!("amoor", |m, b| m | b, |m, b| m | b),
    amo!("amomin", |m, b| m.min(b), |m, b| m.min(b)),
    amo!("amomax", |m, b| m.max(b), |m, b| m.max(b)),
    amo!("amominu", |m, b| (m as u32).min(b as u32) as i32, |m, b| (m as u64).min(b as u64) as i64),
    amo!("amomaxu", |m, b| (m as u32).max(b as u32) as i32, |m, b| (m as u64).max(b as u64) as i64),
];

pub(super) fn run(checker: &mut Checker) {
    for amo in AMOS {
        for initial in OPERANDS {
            for operand in OPERANDS {
                check_amo(checker, amo, initial, operand);
            }
        }
    }
    check_reservations(checker);
}

fn check_amo(checker: &mut Checker, amo: &Amo, initial: u64, operand: u64) {
    let name = amo.name;
    let mut memory = initial;
    let old = (amo.execute_double)(&mut memory, operand);
    let expected = (amo.model_double)(initial as i64, operand as i64) as u64;
    checker.check(format_args!("{name}.d of {initial:#x}, {operand:#x}: old value"), old, initial);
    checker.check(format_args!("{name}.d of {initial:#x}, {operand:#x}: new value"), memory, expected);

    let mut memory = initial;
    let old = (amo.execute_word)(&mut memory, operand);
    // The old word is returned sign-extended; the upper half of memory is unchanged.
    let expected_word = (amo.model_word)(initial as i32, operand as i32) as u32;
    let expected = initial & !0xffff_ffff | u64::from(expected_word);
    checker.check(format_args!("{name}.w of {initial:#x}, {operand:#x}: old value"), old, initial as i32 as u64);
    checker.check(format_args!("{name}.w of {initial:#x}, {operand:#x}: new value"), memory, expected);
}

fn check_reservations(checker: &mut Checker) {
    let mut memory = 0x1111_2222_3333_4444_u64;
    let (loaded, first, second): (u64, u64, u64);
    // SAFETY: reads and writes the two variables.
    unsafe {
        asm!(
            // A constrained LR/SC loop, which must succeed in the end.
            "1: lr.d {loaded}, ({memory})",
            "   sc.d {first}, {new}, ({memory})",
            "   bnez {first}, 1b",
            // The reservation is used up.
            "   sc.d {second}, zero, ({memory})",
            loaded = out(reg) loaded,
            first = out(reg) first,
            second = out(reg) second,
            memory = in(reg) &raw mut memory,
            new = in(reg) 0x5555_u64,
            options(nostack),
        );
    }
    checker.check("lr.d: loaded value", loaded, 0x1111_2222_3333_4444);
    checker.check("sc.d with a reservation", first, 0);
    checker.check("sc.d without a reservation", u64::from(second != 0), 1);
    checker.check("memory after sc.d", memory, 0x5555);

    let mut word = 0xffff_ffff_8000_0000_u64;
    let loaded: u64;
    // SAFETY: reads and writes the one variable.
    unsafe {
        asm!(
            "1: lr.w.aq {loaded}, ({memory})",
            "   sc.w.rl {failed}, zero, ({memory})",
            "   bnez {failed}, 1b",
            loaded = out(reg) loaded,
            failed = out(reg) _,
            memory = in(reg) &raw mut word,
            options(nostack),
        );
    }
    checker.check("lr.w: loaded value is sign-extended", loaded, 0xffff_ffff_8000_0000);
    checker.check("memory after sc.w", word, 0xffff_ffff_0000_0000);
}
