//! Compressed instructions (C), each written explicitly, because the compiler's choice isn't known.
#![expect(clippy::cast_sign_loss, reason = "the expected values are written as signed numbers")]

use super::checker::Checker;
use core::arch::asm;

pub(super) fn run(checker: &mut Checker) {
    check_computation(checker);
    check_memory(checker);
    check_jumps(checker);
}

/// Runs compressed instructions on `a0` and `a1`; returns `a0`.
macro_rules! compute {
    ($a0:expr, $a1:expr, $($line:literal),+) => {{
        let result: u64;
        // SAFETY: computes on registers only.
        unsafe {
            asm!(
                ".option push", ".option rvc", $($line,)+ ".option pop",
                inout("a0") $a0 => result, inout("a1") $a1 => _, options(pure, nomem, nostack),
            );
        }
        result
    }};
}

fn check_computation(checker: &mut Checker) {
    let a = 0x8765_4321_fedc_ba98_u64;
    let b = 0x0f0f_0f0f_8000_0001_u64;
    let word = |value: u64| value.cast_signed().wrapping_shl(32).wrapping_shr(32) as u64;
    let cases = [
        ("c.li", compute!(a, b, "c.li a0, -32"), -32_i64 as u64),
        ("c.lui", compute!(a, b, "c.lui a0, 0xfffe0"), -0x2_0000_i64 as u64),
        ("c.addi", compute!(a, b, "c.addi a0, 31"), a + 31),
        ("c.addiw", compute!(a, b, "c.addiw a0, -1"), word(a - 1)),
        ("c.slli", compute!(a, b, "c.slli a0, 63"), a << 63),
        ("c.srli", compute!(a, b, "c.srli a0, 33"), a >> 33),
        ("c.srai", compute!(a, b, "c.srai a0, 33"), (a.cast_signed() >> 33) as u64),
        ("c.andi", compute!(a, b, "c.andi a0, -16"), a & !15),
        ("c.mv", compute!(a, b, "c.mv a0, a1"), b),
        ("c.add", compute!(a, b, "c.add a0, a1"), a.wrapping_add(b)),
        ("c.sub", compute!(a, b, "c.sub a0, a1"), a.wrapping_sub(b)),
        ("c.xor", compute!(a, b, "c.xor a0, a1"), a ^ b),
        ("c.or", compute!(a, b, "c.or a0, a1"), a | b),
        ("c.and", compute!(a, b, "c.and a0, a1"), a & b),
        ("c.subw", compute!(a, b, "c.subw a0, a1"), word(a.wrapping_sub(b))),
        ("c.addw", compute!(a, b, "c.addw a0, a1"), word(a.wrapping_add(b))),
        ("c.nop", compute!(a, b, "c.nop"), a),
    ];
    for (name, actual, expected) in cases {
        checker.check(name, actual, expected);
    }
}

fn check_memory(checker: &mut Checker) {
    let mut memory = [0x0123_4567_89ab_cdef_u64, 0];
    let (word, double): (u64, u64);
    // SAFETY: reads and writes the array.
    unsafe {
        asm!(
            ".option push", ".option rvc",
            "c.lw a1, 0(a0)", "c.ld a2, 0(a0)", "c.sd a2, 8(a0)", "c.sw a1, 12(a0)",
            ".option pop",
            in("a0") &raw mut memory, out("a1") word, out("a2") double, options(nostack),
        );
    }
    checker.check("c.lw", word, 0xffff_ffff_89ab_cdef);
    checker.check("c.ld", double, 0x0123_4567_89ab_cdef);
    checker.check("c.sd and c.sw", memory[1], 0x89ab_cdef_89ab_cdef);

    let (word, double, address): (u64, u64, u64);
    // SAFETY: uses 32 bytes of stack and frees them.
    unsafe {
        asm!(
            ".option push", ".option rvc",
            "c.addi16sp sp, -32", "c.sdsp a0, 8(sp)", "c.swsp a0, 20(sp)", "c.ldsp a1, 8(sp)", "c.lwsp a2, 20(sp)",
            "c.addi4spn a3, sp, 16", "sub a3, a3, sp", "c.addi16sp sp, 32",
            ".option pop",
            in("a0") 0x1234_5678_9abc_def0_u64, out("a1") double, out("a2") word, out("a3") address,
        );
    }
    checker.check("c.sdsp and c.ldsp", double, 0x1234_5678_9abc_def0);
    checker.check("c.swsp and c.lwsp", word, 0xffff_ffff_9abc_def0);
    checker.check("c.addi4spn", address, 16);
}

fn check_jumps(checker: &mut Checker) {
    let (path, links): (u64, u64);
    // SAFETY: jumps within the block only. Each instruction that must be skipped would set a bit of
    // `path`.
    unsafe {
        asm!(
            ".option push", ".option rvc",
            "c.li a0, 0", "c.li a1, 1",
            "c.beqz a0, 1f", "ori a0, a0, 1",
            "1: c.bnez a0, 2f", "c.bnez a1, 3f",
            "2: ori a0, a0, 2",
            "3: c.beqz a1, 2b", "c.j 4f", "ori a0, a0, 4",
            "4: la a2, 5f", "c.jr a2", "ori a0, a0, 8",
            // A compressed call links to two bytes after itself, a full one to four.
            "5: la a2, 6f", "c.jalr a2", "6: la a3, 6b", "sub a3, ra, a3",
            "la a2, 7f", ".option norvc", "jalr ra, 0(a2)", "7: .option rvc", "la a2, 7b", "sub a2, ra, a2", "or a3, a3, a2",
            ".option pop",
            out("a0") path, out("a1") _, out("a2") _, out("a3") links, out("ra") _, options(nomem, nostack),
        );
    }
    checker.check("compressed branches and jumps", path, 0);
    checker.check("links of calls", links, 0);
}
