//! The C extension: every 16-bit instruction expands to one of 32 bits.
//!
//! HINTs expand to what their fields say, which has no effect because their destination is x0.

use super::float::{FloatFormat, FloatRegister};
use super::instruction::AluOp;
use super::instruction::{Condition, Instruction, LoadKind, Register, StoreKind};

/// Expands the instruction in the low 16 bits of `bits`, whose two lowest aren't both set.
pub(crate) fn expand(bits: u32) -> Instruction {
    match bits & 3 {
        0 => quadrant_0(bits),
        1 => quadrant_1(bits),
        _ => quadrant_2(bits),
    }
}

/// The field of `width` bits at `from`, moved to bit `to`.
const fn field(bits: u32, from: u32, width: u32, to: u32) -> u32 {
    ((bits >> from) & ((1 << width) - 1)) << to
}

/// `value`, whose sign is bit `sign`, extended.
const fn sign_extend(value: u32, sign: u32) -> i32 {
    (value << (31 - sign)).cast_signed() >> (31 - sign)
}

/// The register that a three-bit field at `from` names: x8 to x15.
const fn short_register(bits: u32, from: u32) -> Register {
    Register::new(8 + field(bits, from, 3, 0))
}

/// The floating-point register that a three-bit field at `from` names: f8 to f15.
const fn short_float_register(bits: u32, from: u32) -> FloatRegister {
    FloatRegister::new(8 + field(bits, from, 3, 0))
}

const fn funct3(bits: u32) -> u32 {
    field(bits, 13, 3, 0)
}

/// The six-bit signed immediate of CI formats.
const fn ci_immediate(bits: u32) -> i32 {
    sign_extend(field(bits, 12, 1, 5) | field(bits, 2, 5, 0), 5)
}

/// The shift amount of CI and CB formats, 0 to 63.
const fn shift_amount(bits: u32) -> i32 {
    (field(bits, 12, 1, 5) | field(bits, 2, 5, 0)).cast_signed()
}

fn quadrant_0(bits: u32) -> Instruction {
    let (rs1, other, other_float) = (short_register(bits, 7), short_register(bits, 2), short_float_register(bits, 2));
    let word_offset = (field(bits, 6, 1, 2) | field(bits, 10, 3, 3) | field(bits, 5, 1, 6)).cast_signed();
    let double_offset = (field(bits, 10, 3, 3) | field(bits, 5, 2, 6)).cast_signed();
    match funct3(bits) {
        0 => {
            let immediate = field(bits, 6, 1, 2) | field(bits, 5, 1, 3) | field(bits, 11, 2, 4) | field(bits, 7, 4, 6);
            if immediate == 0 {
                return Instruction::Illegal;
            }
            add_immediate(other, Register::SP, immediate.cast_signed())
        }
        1 => Instruction::FloatLoad { format: FloatFormat::Double, rd: other_float, rs1, offset: double_offset },
        2 => Instruction::Load { kind: LoadKind::Word, rd: other, rs1, offset: word_offset },
        3 => Instruction::Load { kind: LoadKind::Double, rd: other, rs1, offset: double_offset },
        5 => Instruction::FloatStore { format: FloatFormat::Double, rs1, rs2: other_float, offset: double_offset },
        6 => Instruction::Store { kind: StoreKind::Word, rs1, rs2: other, offset: word_offset },
        7 => Instruction::Store { kind: StoreKind::Double, rs1, rs2: other, offset: double_offset },
        _ => Instruction::Illegal,
    }
}

fn quadrant_1(bits: u32) -> Instruction {
    let rd = Register::new(bits >> 7);
    match funct3(bits) {
        0 => add_immediate(rd, rd, ci_immediate(bits)),
        1 if rd != Register::ZERO => {
            Instruction::AluImmediate { op: AluOp::AddW, rd, rs1: rd, immediate: ci_immediate(bits) }
        }
        2 => add_immediate(rd, Register::ZERO, ci_immediate(bits)),
        3 => load_upper_or_adjust_stack(bits, rd),
        4 => short_arithmetic(bits),
        5 => Instruction::Jal { rd: Register::ZERO, offset: jump_offset(bits) },
        6 => branch_on_zero(bits, Condition::Equal),
        7 => branch_on_zero(bits, Condition::NotEqual),
        _ => Instruction::Illegal,
    }
}

fn quadrant_2(bits: u32) -> Instruction {
    let (rd, rs2) = (Register::new(bits >> 7), Register::new(bits >> 2));
    let word_load = field(bits, 4, 3, 2) | field(bits, 12, 1, 5) | field(bits, 2, 2, 6);
    let double_load = field(bits, 5, 2, 3) | field(bits, 12, 1, 5) | field(bits, 2, 3, 6);
    let word_store = field(bits, 9, 4, 2) | field(bits, 7, 2, 6);
    let double_store = field(bits, 10, 3, 3) | field(bits, 7, 3, 6);
    let from_stack = |kind, offset: u32| {
        if rd == Register::ZERO {
            return Instruction::Illegal;
        }
        Instruction::Load { kind, rd, rs1: Register::SP, offset: offset.cast_signed() }
    };
    let to_stack =
        |kind, offset: u32| Instruction::Store { kind, rs1: Register::SP, rs2, offset: offset.cast_signed() };
    match funct3(bits) {
        0 => Instruction::AluImmediate { op: AluOp::Sll, rd, rs1: rd, immediate: shift_amount(bits) },
        1 => Instruction::FloatLoad {
            format: FloatFormat::Double,
            rd: FloatRegister::new(bits >> 7),
            rs1: Register::SP,
            offset: double_load.cast_signed(),
        },
        2 => from_stack(LoadKind::Word, word_load),
        3 => from_stack(LoadKind::Double, double_load),
        4 => move_add_or_jump(bits, rd, rs2),
        5 => Instruction::FloatStore {
            format: FloatFormat::Double,
            rs1: Register::SP,
            rs2: FloatRegister::new(bits >> 2),
            offset: double_store.cast_signed(),
        },
        6 => to_stack(StoreKind::Word, word_store),
        7 => to_stack(StoreKind::Double, double_store),
        _ => Instruction::Illegal,
    }
}

const fn add_immediate(rd: Register, rs1: Register, immediate: i32) -> Instruction {
    Instruction::AluImmediate { op: AluOp::Add, rd, rs1, immediate }
}

/// `c.addi16sp` and `c.lui`; both are reserved with an immediate of zero.
fn load_upper_or_adjust_stack(bits: u32, rd: Register) -> Instruction {
    if ci_immediate(bits) == 0 {
        return Instruction::Illegal;
    }
    if rd != Register::SP {
        return Instruction::Lui { rd, immediate: ci_immediate(bits) << 12 };
    }
    let immediate = field(bits, 6, 1, 4)
        | field(bits, 2, 1, 5)
        | field(bits, 5, 1, 6)
        | field(bits, 3, 2, 7)
        | field(bits, 12, 1, 9);
    add_immediate(rd, rd, sign_extend(immediate, 9))
}

fn short_arithmetic(bits: u32) -> Instruction {
    let (rd, rs2) = (short_register(bits, 7), short_register(bits, 2));
    let immediate = |op, immediate| Instruction::AluImmediate { op, rd, rs1: rd, immediate };
    let op = match (field(bits, 10, 2, 0), field(bits, 12, 1, 0), field(bits, 5, 2, 0)) {
        (0, _, _) => return immediate(AluOp::Srl, shift_amount(bits)),
        (1, _, _) => return immediate(AluOp::Sra, shift_amount(bits)),
        (2, _, _) => return immediate(AluOp::And, ci_immediate(bits)),
        (_, 0, 0) => AluOp::Sub,
        (_, 0, 1) => AluOp::Xor,
        (_, 0, 2) => AluOp::Or,
        (_, 0, _) => AluOp::And,
        (_, _, 0) => AluOp::SubW,
        (_, _, 1) => AluOp::AddW,
        _ => return Instruction::Illegal,
    };
    Instruction::AluRegister { op, rd, rs1: rd, rs2 }
}

fn jump_offset(bits: u32) -> i32 {
    let offset = field(bits, 3, 3, 1)
        | field(bits, 11, 1, 4)
        | field(bits, 2, 1, 5)
        | field(bits, 7, 1, 6)
        | field(bits, 6, 1, 7)
        | field(bits, 9, 2, 8)
        | field(bits, 8, 1, 10)
        | field(bits, 12, 1, 11);
    sign_extend(offset, 11)
}

fn branch_on_zero(bits: u32, condition: Condition) -> Instruction {
    let offset = field(bits, 3, 2, 1)
        | field(bits, 10, 2, 3)
        | field(bits, 2, 1, 5)
        | field(bits, 5, 2, 6)
        | field(bits, 12, 1, 8);
    let offset = sign_extend(offset, 8);
    Instruction::Branch { condition, rs1: short_register(bits, 7), rs2: Register::ZERO, offset }
}

/// `c.jr`, `c.mv`, `c.ebreak`, `c.jalr` and `c.add`.
fn move_add_or_jump(bits: u32, rd: Register, rs2: Register) -> Instruction {
    let links = field(bits, 12, 1, 0) == 1;
    match (links, rd == Register::ZERO, rs2 == Register::ZERO) {
        (false, true, true) => Instruction::Illegal,
        (false, false, true) => Instruction::Jalr { rd: Register::ZERO, rs1: rd, offset: 0 },
        (true, true, true) => Instruction::Ebreak,
        (true, false, true) => Instruction::Jalr { rd: Register::RA, rs1: rd, offset: 0 },
        (false, _, false) => Instruction::AluRegister { op: AluOp::Add, rd, rs1: Register::ZERO, rs2 },
        (true, _, false) => Instruction::AluRegister { op: AluOp::Add, rd, rs1: rd, rs2 },
    }
}

#[cfg(test)]
mod tests {
    use super::{Instruction, expand};
    use crate::isa::decode::decode;

    /// Compressed instructions and the instructions of 32 bits with the same meaning, both from an
    /// assembler. Every bit of every immediate is set in one of them.
    const EQUIVALENTS: &[(u32, u32)] = &[
        (0x1fe8, 0x3fc10513), // c.addi4spn a0, sp, 1020
        (0x005c, 0x00410793), // c.addi4spn a5, sp, 4
        (0x5de8, 0x07c5a503), // c.lw a0, 124(a1)
        (0x40c0, 0x0044a403), // c.lw s0, 4(s1)
        (0x7ef0, 0x0f86b603), // c.ld a2, 248(a3)
        (0x62b0, 0x0406b603), // c.ld a2, 64(a3)
        (0xc3b8, 0x04e7a023), // c.sw a4, 64(a5)
        (0xe3f8, 0x0ce7b023), // c.sd a4, 192(a5)
        (0xe798, 0x00e7b423), // c.sd a4, 8(a5)
        (0x0001, 0x00000013), // c.nop
        (0x1281, 0xfe028293), // c.addi t0, -32
        (0x0ffd, 0x01ff8f93), // c.addi t6, 31
        (0x357d, 0xfff5051b), // c.addiw a0, -1
        (0x5d81, 0xfe000d93), // c.li s11, -32
        (0x457d, 0x01f00513), // c.li a0, 31
        (0x7101, 0xe0010113), // c.addi16sp sp, -512
        (0x617d, 0x1f010113), // c.addi16sp sp, 496
        (0x6141, 0x01010113), // c.addi16sp sp, 16
        (0x6105, 0x02010113), // c.addi16sp sp, 32
        (0x6121, 0x04010113), // c.addi16sp sp, 64
        (0x6505, 0x00001537), // c.lui a0, 1
        (0x7501, 0xfffe0537), // c.lui a0, 0xfffe0
        (0x917d, 0x03f55513), // c.srli a0, 63
        (0x8105, 0x00155513), // c.srli a0, 1
        (0x9481, 0x4204d493), // c.srai s1, 32
        (0x9b81, 0xfe07f793), // c.andi a5, -32
        (0x8bd5, 0x0157f793), // c.andi a5, 21
        (0x8d0d, 0x40b50533), // c.sub a0, a1
        (0x8d2d, 0x00b54533), // c.xor a0, a1
        (0x8d4d, 0x00b56533), // c.or a0, a1
        (0x8d6d, 0x00b57533), // c.and a0, a1
        (0x9d0d, 0x40b5053b), // c.subw a0, a1
        (0x9d2d, 0x00b5053b), // c.addw a0, a1
        (0xb001, 0x801ff06f), // c.j -2048
        (0xaffd, 0x7fe0006f), // c.j 2046
        (0xa009, 0x0020006f), // c.j 2
        (0xa011, 0x0040006f), // c.j 4
        (0xa021, 0x0080006f), // c.j 8
        (0xa801, 0x0100006f), // c.j 16
        (0xa005, 0x0200006f), // c.j 32
        (0xa081, 0x0400006f), // c.j 64
        (0xa041, 0x0800006f), // c.j 128
        (0xa201, 0x1000006f), // c.j 256
        (0xa401, 0x2000006f), // c.j 512
        (0xa101, 0x4000006f), // c.j 1024
        (0xd281, 0xf00680e3), // c.beqz a3, -256
        (0xcefd, 0x0e068f63), // c.beqz a3, 254
        (0xc289, 0x00068163), // c.beqz a3, 2
        (0xc291, 0x00068263), // c.beqz a3, 4
        (0xc681, 0x00068463), // c.beqz a3, 8
        (0xca81, 0x00068863), // c.beqz a3, 16
        (0xc285, 0x02068063), // c.beqz a3, 32
        (0xc2a1, 0x04068063), // c.beqz a3, 64
        (0xc2c1, 0x08068063), // c.beqz a3, 128
        (0xf001, 0xf00410e3), // c.bnez s0, -256
        (0x12fe, 0x03f29293), // c.slli t0, 63
        (0x0286, 0x00129293), // c.slli t0, 1
        (0x557e, 0x0fc12503), // c.lwsp a0, 252(sp)
        (0x4512, 0x00412503), // c.lwsp a0, 4(sp)
        (0x5502, 0x02012503), // c.lwsp a0, 32(sp)
        (0x4506, 0x04012503), // c.lwsp a0, 64(sp)
        (0x7ffe, 0x1f813f83), // c.ldsp t6, 504(sp)
        (0x6fa2, 0x00813f83), // c.ldsp t6, 8(sp)
        (0x7f82, 0x02013f83), // c.ldsp t6, 32(sp)
        (0x6f86, 0x04013f83), // c.ldsp t6, 64(sp)
        (0xdffe, 0x0ff12e23), // c.swsp t6, 252(sp)
        (0xc0fe, 0x05f12023), // c.swsp t6, 64(sp)
        (0xc27e, 0x01f12223), // c.swsp t6, 4(sp)
        (0xfffe, 0x1ff13c23), // c.sdsp t6, 504(sp)
        (0xe0fe, 0x05f13023), // c.sdsp t6, 64(sp)
        (0xe47e, 0x01f13423), // c.sdsp t6, 8(sp)
        (0x8282, 0x00028067), // c.jr t0
        (0x9282, 0x000280e7), // c.jalr t0
        (0x857e, 0x01f00533), // c.mv a0, t6
        (0x957e, 0x01f50533), // c.add a0, t6
        (0x9002, 0x00100073), // c.ebreak
        (0x3ef0, 0x0f86b607), // c.fld fa2, 248(a3)
        (0x22b0, 0x0406b607), // c.fld fa2, 64(a3)
        (0xa3f8, 0x0ce7b027), // c.fsd fa4, 192(a5)
        (0xa780, 0x0087b427), // c.fsd fs0, 8(a5)
        (0x3ffe, 0x1f813f87), // c.fldsp ft11, 504(sp)
        (0x2022, 0x00813007), // c.fldsp ft0, 8(sp)
        (0x3502, 0x02013507), // c.fldsp fa0, 32(sp)
        (0xbffe, 0x1ff13c27), // c.fsdsp ft11, 504(sp)
        (0xa082, 0x04013027), // c.fsdsp ft0, 64(sp)
        (0xa42a, 0x00a13427), // c.fsdsp fa0, 8(sp)
    ];

    #[test]
    fn compressed_instructions_are_their_equivalents() {
        for (compressed, full) in EQUIVALENTS {
            assert_eq!(expand(*compressed), decode(*full), "{compressed:#06x} against {full:#010x}");
        }
    }

    #[test]
    fn reserved_encodings_are_illegal() {
        // All zero, c.addi4spn of 0, c.addiw x0, c.lui of 0, c.addi16sp of 0, reserved arithmetic,
        // c.lwsp x0, c.ldsp x0, c.jr x0.
        let encodings = [0x0000, 0x0004, 0x2005, 0x6081, 0x6101, 0x9c41, 0x4012, 0x6012, 0x8002];
        for bits in encodings {
            assert_eq!(expand(bits), Instruction::Illegal, "{bits:#06x}");
        }
    }
}
