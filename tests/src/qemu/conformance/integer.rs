//! I, M, C, Zba, Zbb and Zbs: every operation on special values, and encodings that may be no
//! instructions.

use super::program::DATA_REGISTER;
use super::writer::{Writer, is_kept};
use crate::qemu::assembler::{i_type, opcode, r_type, s_type, u_type};

const UNITS: u32 = 40;

pub(super) fn write(writer: &mut Writer) {
    for _ in 0..UNITS {
        writer.unit(|writer| {
            for _ in 0..=writer.random.below(8) {
                operation(writer);
            }
            if writer.random.one_in(4) {
                random_encoding(writer);
            }
        });
    }
}

pub(super) fn write_compressed(writer: &mut Writer) {
    for _ in 0..2 * UNITS {
        writer.unit(|writer| match writer.random.below(8) {
            0 => operation(writer),
            1 | 2 => compressed_memory(writer),
            3 => compressed_stack(writer),
            _ => {
                for _ in 0..=writer.random.below(8) {
                    compressed(writer);
                }
            }
        });
    }
}

/// An instruction that computes, or accesses the data.
pub(super) fn operation(writer: &mut Writer) {
    let (rd, rs1, rs2) = (writer.destination(), writer.source(), writer.source());
    match writer.random.below(15) {
        12.. => bit_manipulation(writer, rd, rs1, rs2),
        0..4 => {
            let funct7 = writer.random.pick(&[0, 1, 1]);
            let (opcode, funct3) = (opcode::OP, writer.random.below(8));
            writer.code.word(r_type(opcode, funct3, funct7, rd, rs1, rs2));
        }
        4 => {
            let (funct3, funct7) = writer.random.pick(&[(0, 0), (0, 0x20), (1, 0), (5, 0), (5, 0x20)]);
            let opcode = writer.random.pick(&[opcode::OP, opcode::OP_32]);
            writer.code.word(r_type(opcode, funct3, funct7, rd, rs1, rs2));
        }
        5 => {
            let funct3 = writer.random.pick(&[0, 4, 5, 6, 7]);
            writer.code.word(r_type(opcode::OP_32, funct3, 1, rd, rs1, rs2));
        }
        6 | 7 => immediate_operation(writer, rd, rs1),
        8 => {
            let (opcode, upper) = (writer.random.pick(&[opcode::LUI, opcode::AUIPC]), writer.random.below(1 << 20));
            writer.code.word(u_type(opcode, rd, upper));
        }
        9 => writer.load_value(rd),
        10 => {
            let (funct3, offset) = (writer.random.below(7), writer.immediate());
            writer.code.word(i_type(opcode::LOAD, funct3, rd, DATA_REGISTER, offset));
        }
        _ => {
            let (funct3, offset) = (writer.random.below(4), writer.immediate());
            writer.code.word(s_type(funct3, DATA_REGISTER, rs2, offset));
        }
    }
}

/// Operation bits of Zba, Zbb and Zbs on two registers: opcode, funct7, funct3.
const BITS_OF_REGISTERS: [(u32, u32, u32); 22] = [
    (opcode::OP, 0x05, 4),
    (opcode::OP, 0x05, 5),
    (opcode::OP, 0x05, 6),
    (opcode::OP, 0x05, 7),
    (opcode::OP, 0x10, 2),
    (opcode::OP, 0x10, 4),
    (opcode::OP, 0x10, 6),
    (opcode::OP, 0x14, 1),
    (opcode::OP, 0x20, 4),
    (opcode::OP, 0x20, 6),
    (opcode::OP, 0x20, 7),
    (opcode::OP, 0x24, 1),
    (opcode::OP, 0x24, 5),
    (opcode::OP, 0x30, 1),
    (opcode::OP, 0x30, 5),
    (opcode::OP, 0x34, 1),
    (opcode::OP_32, 0x04, 0),
    (opcode::OP_32, 0x10, 2),
    (opcode::OP_32, 0x10, 4),
    (opcode::OP_32, 0x10, 6),
    (opcode::OP_32, 0x30, 1),
    (opcode::OP_32, 0x30, 5),
];

/// Those on one register: opcode, funct3, the upper 12 bits. Left out: `ctzw`, for which QEMU 7.2
/// looks at all 64 bits.
const BITS_OF_ONE: [(u32, u32, i32); 10] = [
    (opcode::OP_IMM, 1, 0x600),
    (opcode::OP_IMM, 1, 0x601),
    (opcode::OP_IMM, 1, 0x602),
    (opcode::OP_IMM, 1, 0x604),
    (opcode::OP_IMM, 1, 0x605),
    (opcode::OP_IMM, 5, 0x287),
    (opcode::OP_IMM, 5, 0x6b8),
    (opcode::OP_IMM_32, 1, 0x600),
    (opcode::OP_IMM_32, 1, 0x602),
    (opcode::OP_32, 4, 0x080),
];

/// Those on one register and an amount of up to 6 bits.
const BITS_OF_AMOUNTS: [(u32, u32, i32); 7] = [
    (opcode::OP_IMM, 1, 0x280),
    (opcode::OP_IMM, 1, 0x480),
    (opcode::OP_IMM, 1, 0x680),
    (opcode::OP_IMM, 5, 0x480),
    (opcode::OP_IMM, 5, 0x600),
    (opcode::OP_IMM_32, 1, 0x080),
    (opcode::OP_IMM_32, 5, 0x600),
];

fn bit_manipulation(writer: &mut Writer, rd: u32, rs1: u32, rs2: u32) {
    let word = match writer.random.below(4) {
        0 | 1 => {
            let (opcode, funct7, funct3) = writer.random.pick(&BITS_OF_REGISTERS);
            r_type(opcode, funct3, funct7, rd, rs1, rs2)
        }
        2 => {
            let (opcode, funct3, upper) = writer.random.pick(&BITS_OF_ONE);
            i_type(opcode, funct3, rd, rs1, upper)
        }
        _ => {
            let (opcode, funct3, upper) = writer.random.pick(&BITS_OF_AMOUNTS);
            i_type(opcode, funct3, rd, rs1, upper | writer.random.below(64).cast_signed())
        }
    };
    writer.code.word(word);
}

fn immediate_operation(writer: &mut Writer, rd: u32, rs1: u32) {
    let word = writer.random.one_in(3);
    let funct3 = if word { writer.random.pick(&[0, 1, 5]) } else { writer.random.below(8) };
    let immediate = match funct3 {
        // Shifts: an upper bit selects the kind, the lower ones the distance.
        1 | 5 => {
            let amount = writer.random.below(if word { 32 } else { 64 });
            let arithmetic = if funct3 == 5 { writer.random.below(2) << 10 } else { 0 };
            (amount | arithmetic).cast_signed()
        }
        _ => writer.immediate(),
    };
    let opcode = if word { opcode::OP_IMM_32 } else { opcode::OP_IMM };
    writer.code.word(i_type(opcode, funct3, rd, rs1, immediate));
}

/// A random encoding: the machines must agree on whether it is an instruction.
fn random_encoding(writer: &mut Writer) {
    let (rd, rs1, rs2) = (writer.destination(), writer.source(), writer.source());
    let (funct3, funct7) = (writer.random.below(8), writer.random.below(128));
    let offset = writer.data_offset();
    let word = match writer.random.below(9) {
        0 => r_type(opcode::OP, funct3, funct7, rd, rs1, rs2),
        1 => r_type(opcode::OP_32, funct3, funct7, rd, rs1, rs2),
        2 => r_type(opcode::OP_IMM, funct3, funct7, rd, rs1, rs2),
        // Not `ctzw`: see above.
        3 => r_type(opcode::OP_IMM_32, funct3, funct7, rd, rs1, if rs2 == 1 { 2 } else { rs2 }),
        4 => i_type(opcode::LOAD, funct3, rd, DATA_REGISTER, offset),
        5 => s_type(funct3, DATA_REGISTER, rs2, offset),
        6 => r_type(opcode::MISC_MEM, funct3, funct7, rd, rs1, rs2),
        7 => r_type(opcode::SYSTEM, 4, funct7, rd, rs1, rs2),
        // Opcodes of extensions that don't exist here, and of longer instructions.
        _ => r_type(
            writer.random.pick(&[0x0b, 0x2b, 0x57, 0x5b, 0x6b, 0x77, 0x7b, 0x1f, 0x3f, 0x5f]),
            funct3,
            funct7,
            rd,
            rs1,
            rs2,
        ),
    };
    writer.code.word(word);
}

/// A compressed instruction that computes; also HINTs and reserved encodings.
fn compressed(writer: &mut Writer) {
    loop {
        let half = u16::try_from(writer.random.below(1 << 16)).expect("16 bits");
        let (quadrant, funct3) = (half & 3, half >> 13);
        let rd = u32::from(half >> 7 & 31);
        let allowed = match (quadrant, funct3) {
            // C.ADDI4SPN, reserved with an immediate of zero, and reserved encodings.
            (0, 0 | 4) | (1, 4) => true,
            // C.ADDI16SP has a unit of its own.
            (1, 0..=3) | (2, 0) => !is_kept(rd),
            // C.MV and C.ADD: C.JR, C.JALR and C.EBREAK have no source.
            (2, 4) => !is_kept(rd) && half >> 2 & 31 != 0,
            _ => false,
        };
        if allowed {
            return writer.code.half(half);
        }
    }
}

/// Loads and stores of the C extension, also of floating-point registers.
fn compressed_memory(writer: &mut Writer) {
    let base = writer.short_register();
    let random_bits = u16::try_from(writer.random.below(1 << 16)).expect("16 bits");
    // The offset is at most 248.
    let offset = writer.data_offset().min((1 << 11) - 256);
    if writer.random.one_in(12) {
        writer.point_nowhere(8 + base);
    } else {
        writer.point(8 + base, offset);
    }
    let field = u16::try_from(base).expect("three bits") << 7;
    let funct3 = writer.random.pick(&[1, 2, 3, 5, 6, 7]) << 13;
    writer.code.half(funct3 | random_bits & 0x1c7c | field);
}

/// Loads and stores relative to the stack pointer, and additions to it that cancel out.
fn compressed_stack(writer: &mut Writer) {
    if writer.random.one_in(8) {
        writer.code.half(0x6141); // c.addi16sp 16
        let store = writer.random.pick(&[0xa002, 0xc002, 0xe002]);
        let source = u16::try_from(writer.source()).expect("five bits");
        writer.code.half(store | source << 2);
        writer.code.half(0x717d); // c.addi16sp -16
        return;
    }
    loop {
        let half = u16::try_from(writer.random.below(1 << 16)).expect("16 bits") & !3 | 2;
        let rd = u32::from(half >> 7 & 31);
        let allowed = match half >> 13 {
            // c.lwsp and c.ldsp; reserved without a destination. c.fldsp takes all registers.
            2 | 3 => !is_kept(rd),
            1 | 5 | 6 | 7 => true,
            _ => false,
        };
        if allowed {
            return writer.code.half(half);
        }
    }
}
