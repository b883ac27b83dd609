//! Pseudo-random programs: generated as machine code by the guest and executed. There is no model
//! of their results, which are compared between machines only.
//!
//! Unlike the fixed tests they run many instructions on each other's results, with memory accesses
//! among them, and replace code that the hart has executed: each program overwrites the one before,
//! followed by FENCE.I.

use super::checker::{Checker, Random};
use core::arch::asm;

const SEED: u64 = 0x5eed_0003;
const PROGRAMS: usize = 200;
const PROGRAM_INSTRUCTIONS: usize = 120;
const SCRATCH_WORDS: u32 = 64;

/// The registers that programs compute on: t0-t2, a0-a6, t3-t5.
const REGISTERS: [u32; REGISTER_COUNT] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 28, 29, 30];
const REGISTER_COUNT: usize = 13;
/// a7 holds the address of the scratch memory. Programs use it only as the base of loads and
/// stores, because the address differs between images.
const SCRATCH_BASE: u32 = 17;

const OP: u32 = 0x33;
const OP_32: u32 = 0x3b;
const OP_IMM: u32 = 0x13;
const OP_IMM_32: u32 = 0x1b;
const LUI: u32 = 0x37;
const LOAD: u32 = 0x03;
const STORE: u32 = 0x23;
const BRANCH: u32 = 0x63;
const RETURN: u32 = 0x0000_8067;

/// funct7 and funct3 of the instructions of OP: I, then M.
const OP_FUNCTIONS: [(u32, u32); 18] = [
    (0, 0),
    (0x20, 0),
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (0, 5),
    (0x20, 5),
    (0, 6),
    (0, 7), // I
    (1, 0),
    (1, 1),
    (1, 2),
    (1, 3),
    (1, 4),
    (1, 5),
    (1, 6),
    (1, 7), // M
];
/// funct7 and funct3 of the instructions of OP-32.
const OP_32_FUNCTIONS: [(u32, u32); 10] =
    [(0, 0), (0x20, 0), (0, 1), (0, 5), (0x20, 5), (1, 0), (1, 4), (1, 5), (1, 6), (1, 7)];
/// funct3 of BEQ, BNE, BLT, BGE, BLTU, BGEU.
const BRANCH_FUNCTIONS: [u32; 6] = [0, 1, 4, 5, 6, 7];

pub(super) fn run(checker: &mut Checker) {
    let mut random = Random::new(SEED);
    let mut code = [RETURN; PROGRAM_INSTRUCTIONS + 1];
    let mut scratch = [0_u64; SCRATCH_WORDS as usize];
    for _ in 0..PROGRAMS {
        for (index, word) in code[..PROGRAM_INSTRUCTIONS].iter_mut().enumerate() {
            *word = random_instruction(&mut random, PROGRAM_INSTRUCTIONS - index);
        }
        let mut registers = [0; REGISTER_COUNT];
        for value in registers.iter_mut().chain(&mut scratch) {
            *value = random.next() >> random.below(64);
        }
        execute(&code, &mut registers, &mut scratch);
        for value in registers.iter().chain(&scratch) {
            checker.record(*value);
        }
    }
}

/// A random instruction that stays within the `remaining` instructions before the return.
fn random_instruction(random: &mut Random, remaining: usize) -> u32 {
    let rd = pick(random, &REGISTERS) << 7;
    let rs1 = pick(random, &REGISTERS) << 15;
    let rs2 = pick(random, &REGISTERS) << 20;
    match random.below(10) {
        0..=2 => {
            let (funct7, funct3) = pick(random, &OP_FUNCTIONS);
            funct7 << 25 | rs2 | rs1 | funct3 << 12 | rd | OP
        }
        3..=4 => {
            let (funct7, funct3) = pick(random, &OP_32_FUNCTIONS);
            funct7 << 25 | rs2 | rs1 | funct3 << 12 | rd | OP_32
        }
        5 => random_immediate(random) | rs1 | rd,
        6 => random.below(1 << 20) << 12 | rd | LUI,
        7 => {
            // All widths and signs, at any alignment within the scratch memory.
            random.below(7) << 12 | scratch_offset(random) << 20 | SCRATCH_BASE << 15 | rd | LOAD
        }
        8 => {
            let offset = scratch_offset(random);
            (offset >> 5) << 25 | rs2 | SCRATCH_BASE << 15 | random.below(4) << 12 | (offset & 31) << 7 | STORE
        }
        _ => {
            // Forward only, so that every program ends; skips up to seven instructions.
            let skip = 1 + random.below(7).min(u32::try_from(remaining).unwrap_or(u32::MAX) - 1);
            let offset = 4 * skip;
            rs2 | rs1 | pick(random, &BRANCH_FUNCTIONS) << 12 | (offset & 0x1e) << 7 | (offset >> 5) << 25 | BRANCH
        }
    }
}

/// Immediate, funct3 and opcode of an instruction of OP-IMM or OP-IMM-32.
fn random_immediate(random: &mut Random) -> u32 {
    let funct3 = random.below(8);
    let word = random.below(2) == 1;
    match (funct3, word) {
        // Shifts: the upper bits of the immediate choose the kind, the lower ones are the amount.
        (1, false) => random.below(64) << 20 | funct3 << 12 | OP_IMM,
        (5, false) => random.below(2) << 30 | random.below(64) << 20 | funct3 << 12 | OP_IMM,
        (1, true) => random.below(32) << 20 | funct3 << 12 | OP_IMM_32,
        (5, true) => random.below(2) << 30 | random.below(32) << 20 | funct3 << 12 | OP_IMM_32,
        // Of the other instructions only ADDI has a W-form.
        (0, true) => random.below(1 << 12) << 20 | OP_IMM_32,
        _ => random.below(1 << 12) << 20 | funct3 << 12 | OP_IMM,
    }
}

/// An offset in the scratch memory with eight bytes from there on.
fn scratch_offset(random: &mut Random) -> u32 {
    random.below(8 * (SCRATCH_WORDS - 1) + 1)
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    let count = u32::try_from(from.len()).unwrap_or(u32::MAX);
    from[random.below(count) as usize]
}

fn execute(code: &[u32], registers: &mut [u64; REGISTER_COUNT], scratch: &mut [u64]) {
    let [t0, t1, t2, a0, a1, a2, a3, a4, a5, a6, t3, t4, t5] = registers;
    // SAFETY: the code changes the registers declared here and the scratch memory, and returns.
    unsafe {
        asm!(
            "fence.i",
            "jalr ra, 0(t6)",
            inout("t0") *t0, inout("t1") *t1, inout("t2") *t2, inout("a0") *a0, inout("a1") *a1, inout("a2") *a2,
            inout("a3") *a3, inout("a4") *a4, inout("a5") *a5, inout("a6") *a6, inout("t3") *t3, inout("t4") *t4,
            inout("t5") *t5, in("a7") scratch.as_mut_ptr(), inout("t6") code.as_ptr() => _, out("ra") _,
        );
    }
}
