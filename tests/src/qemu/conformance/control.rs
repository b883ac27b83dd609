//! Branches, jumps, loops, calls, and self-modifying code.
//!
//! All jumps go forward, except those of loops that count down, so that every program ends.

use super::program::{DATA_REGISTER, InitialState};
use super::writer::Writer;
use crate::qemu::assembler::{CSRRS, FENCE_I, Label, addi, csr, i_type, opcode, r_type, s_type};

const UNITS: u32 = 40;
/// Words at the start of the data: instructions that are written into the code.
const PATCHES: u32 = 64;
/// The loop counter; no other instruction of a loop writes to it.
const COUNTER: u32 = 31;

pub(super) fn write(writer: &mut Writer, initial: &mut InitialState) {
    for word in initial.memory[0].1.iter_mut().take(PATCHES as usize / 2) {
        *word = u64::from(patch(writer)) << 32 | u64::from(patch(writer));
    }
    for _ in 0..UNITS {
        writer.unit(|writer| match writer.random.below(8) {
            0..3 => forward(writer),
            3 => counted_loop(writer, operations),
            4 => counted_loop(writer, rewritten),
            5 => rewritten(writer),
            6 => call(writer),
            _ => crossing(writer),
        });
    }
}

/// An instruction that computes on registers.
fn patch(writer: &mut Writer) -> u32 {
    let (rd, rs1, rs2) = (writer.random.pick(&[5, 6, 7, 10, 11, 12]), writer.source(), writer.source());
    let funct3 = writer.random.below(8);
    match writer.random.below(4) {
        0 => r_type(opcode::OP, funct3, 0, rd, rs1, rs2),
        1 => r_type(opcode::OP, funct3, 1, rd, rs1, rs2),
        // Two compressed ones: c.li, c.addi.
        2 => 0x4505_0505 | writer.random.below(8) << 2,
        _ => addi(rd, rs1, writer.immediate()),
    }
}

/// An instruction that neither traps nor writes to the loop counter or the patches.
fn plain(writer: &mut Writer) {
    let (rd, rs1, rs2) = (writer.random.pick(&[0, 1, 5, 6, 7, 8, 9, 10, 11, 12]), writer.source(), writer.source());
    let (funct3, funct7) = (writer.random.below(8), writer.random.below(2));
    writer.code.word(r_type(opcode::OP, funct3, funct7, rd, rs1, rs2));
}

fn operations(writer: &mut Writer) {
    for _ in 0..=writer.random.below(4) {
        plain(writer);
    }
    if writer.random.one_in(2) {
        forward(writer);
    }
}

/// A branch or jump over a few instructions.
fn forward(writer: &mut Writer) {
    let over = writer.code.label();
    let (rs1, rs2) = (writer.source(), writer.source());
    match writer.random.below(8) {
        0 => {
            let rd = writer.random.pick(&[0, 1, 5]);
            writer.code.jump(rd, over);
        }
        1 => writer.code.short_jump(over),
        2 => {
            let (not_zero, register) = (writer.random.one_in(2), 8 + writer.short_register());
            writer.code.short_branch(not_zero, register, over);
        }
        3 | 4 => indirect(writer, over),
        // Also the two reserved conditions.
        _ => {
            let funct3 = writer.random.pick(&[0, 1, 4, 5, 6, 7, 0, 1, 4, 5, 6, 7, 2, 3]);
            writer.code.branch(funct3, rs1, rs2, over);
        }
    }
    for _ in 0..writer.random.below(4) {
        if writer.random.one_in(4) {
            writer.code.half(0x0505); // c.addi a0, 1
        }
        plain(writer);
    }
    writer.code.place(over);
}

/// JALR, C.JR or C.JALR; JALR ignores bit 0 of its target.
fn indirect(writer: &mut Writer, target: Label) {
    let register = writer.random.pick(&[1, 5, 6, 7, 12]);
    writer.code.address(register, target);
    let number = u16::try_from(register).expect("five bits");
    match writer.random.below(3) {
        0 => writer.code.half(0x8002 | number << 7),
        1 => writer.code.half(0x9002 | number << 7),
        _ => {
            let (rd, odd) = (writer.random.pick(&[0, 1, register]), writer.random.below(2).cast_signed());
            writer.code.word(i_type(opcode::JALR, 0, rd, register, odd));
        }
    }
}

fn counted_loop(writer: &mut Writer, body: impl FnOnce(&mut Writer)) {
    let turns = writer.random.below(20).cast_signed();
    writer.code.word(addi(COUNTER, 0, turns + 1));
    let back = writer.code.place_new();
    body(writer);
    writer.code.word(addi(COUNTER, COUNTER, -1));
    writer.code.branch(1, COUNTER, 0, back);
}

/// Overwrites an instruction with another, and executes it.
fn rewritten(writer: &mut Writer) {
    let slot = writer.code.label();
    let offset = (writer.random.below(PATCHES) << 2).cast_signed() - 2048;
    let (at, word) = (13, 14);
    if writer.random.one_in(2) {
        // An instruction that depends on the iteration.
        writer.code.words(&[i_type(opcode::OP_IMM, 1, at, COUNTER, 58), i_type(opcode::OP_IMM, 5, at, at, 56)]);
        writer.code.word(r_type(opcode::OP, 0, 0, at, at, DATA_REGISTER));
        writer.code.word(i_type(opcode::LOAD, 2, word, at, -2048));
    } else {
        writer.code.word(i_type(opcode::LOAD, 2, word, DATA_REGISTER, offset));
    }
    writer.code.address(at, slot);
    if writer.random.one_in(3) {
        // In two halves.
        writer.code.words(&[s_type(1, at, word, 0), i_type(opcode::OP_IMM, 5, word, word, 16), s_type(1, at, word, 2)]);
    } else {
        writer.code.word(s_type(2, at, word, 0));
    }
    if writer.random.one_in(2) {
        plain(writer);
    }
    writer.code.word(FENCE_I);
    writer.code.place(slot);
    writer.code.word(addi(0, 0, 0));
}

/// A subroutine, called from one or two places.
fn call(writer: &mut Writer) {
    let (routine, over) = (writer.code.label(), writer.code.label());
    for _ in 0..=writer.random.below(2) {
        writer.code.jump(1, routine);
        plain_but_return(writer);
    }
    writer.code.jump(0, over);
    writer.code.place(routine);
    plain_but_return(writer);
    match writer.random.below(2) {
        0 => writer.code.half(0x8082), // c.jr ra
        _ => writer.code.word(i_type(opcode::JALR, 0, 0, 1, 0)),
    }
    writer.code.place(over);
}

/// As [`plain`], but doesn't write to x1.
fn plain_but_return(writer: &mut Writer) {
    let (rd, rs1, rs2) = (writer.random.pick(&[5, 6, 7, 10]), writer.source(), writer.source());
    writer.code.word(r_type(opcode::OP, 0, 0, rd, rs1, rs2));
}

/// Instructions across the boundaries of words, with a store and a CSR among them.
fn crossing(writer: &mut Writer) {
    if writer.random.one_in(2) {
        writer.code.half(0x0001);
    }
    // Doesn't overwrite the patches, which are at lower addresses.
    let (rs2, offset) = (writer.source(), writer.random.below(1 << 11).cast_signed());
    writer.code.word(s_type(writer.random.below(4), DATA_REGISTER, rs2, offset));
    plain(writer);
    // Every mode may read this CSR.
    writer.code.word(csr(CSRRS, 0, 0x003, 0));
}
