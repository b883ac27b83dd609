//! Decoding of instruction bits into [`Instruction`]; compressed instructions become the
//! instruction that they expand to.
//!
//! Decoding is a pure function of the bits, so that its result may be cached.

use super::float::{self, FloatRegister};
use super::instruction::{
    AluOp, AmoOp, AtomicWidth, Condition, CsrInstruction, CsrOp, CsrSource, Instruction, LoadKind, Register, StoreKind,
};
use super::{bits as bit_manipulation, compressed};

/// Length in bytes of the instruction that begins with `bits`: 2 or 4. Longer formats aren't
/// offered and trap.
#[inline]
pub(crate) const fn length(bits: u32) -> u64 {
    if bits & 3 == 3 { 4 } else { 2 }
}

/// Decodes the instruction that begins with `bits`; the upper half is ignored if it is a compressed
/// one.
#[inline]
pub(crate) fn decode(bits: u32) -> Instruction {
    if bits & 3 != 3 {
        return compressed::expand(bits & 0xffff);
    }
    let (rd, rs1) = (Register::new(bits >> 7), Register::new(bits >> 15));
    match (bits >> 2) & 0x1f {
        0b0_0000 => load(bits),
        0b0_0001 => float_load(bits),
        0b0_0011 => fence(bits),
        0b0_0100 => alu_immediate(bits),
        0b0_0101 => Instruction::Auipc { rd, immediate: u_immediate(bits) },
        0b0_0110 => alu_immediate_word(bits),
        0b0_1000 => store(bits),
        0b0_1001 => float_store(bits),
        0b0_1011 => atomic(bits),
        0b0_1100 => alu_register(bits),
        0b0_1101 => Instruction::Lui { rd, immediate: u_immediate(bits) },
        0b0_1110 => alu_register_word(bits),
        0b1_0000..=0b1_0011 => float::decode_multiply_add(bits),
        0b1_0100 => float::decode_operation(bits),
        0b1_1000 => branch(bits),
        0b1_1001 if funct3(bits) == 0 => Instruction::Jalr { rd, rs1, offset: i_immediate(bits) },
        0b1_1011 => Instruction::Jal { rd, offset: j_immediate(bits) },
        0b1_1100 => system(bits),
        _ => Instruction::Illegal,
    }
}

const fn funct3(bits: u32) -> u32 {
    (bits >> 12) & 7
}

const fn funct7(bits: u32) -> u32 {
    bits >> 25
}

const fn signed(bits: u32) -> i32 {
    bits.cast_signed()
}

const fn i_immediate(bits: u32) -> i32 {
    signed(bits) >> 20
}

const fn s_immediate(bits: u32) -> i32 {
    (signed(bits) >> 25 << 5) | signed((bits >> 7) & 0x1f)
}

const fn b_immediate(bits: u32) -> i32 {
    (signed(bits) >> 31 << 12)
        | signed(((bits >> 7) & 1) << 11)
        | signed(((bits >> 25) & 0x3f) << 5)
        | signed(((bits >> 8) & 0xf) << 1)
}

const fn u_immediate(bits: u32) -> i32 {
    signed(bits & 0xffff_f000)
}

const fn j_immediate(bits: u32) -> i32 {
    (signed(bits) >> 31 << 20)
        | signed(bits & 0xf_f000)
        | signed(((bits >> 20) & 1) << 11)
        | signed(((bits >> 21) & 0x3ff) << 1)
}

#[inline]
fn load(bits: u32) -> Instruction {
    let kind = match funct3(bits) {
        0 => LoadKind::Byte,
        1 => LoadKind::Half,
        2 => LoadKind::Word,
        3 => LoadKind::Double,
        4 => LoadKind::ByteUnsigned,
        5 => LoadKind::HalfUnsigned,
        6 => LoadKind::WordUnsigned,
        _ => return Instruction::Illegal,
    };
    let (rd, rs1) = (Register::new(bits >> 7), Register::new(bits >> 15));
    Instruction::Load { kind, rd, rs1, offset: i_immediate(bits) }
}

#[inline]
fn store(bits: u32) -> Instruction {
    let kind = match funct3(bits) {
        0 => StoreKind::Byte,
        1 => StoreKind::Half,
        2 => StoreKind::Word,
        3 => StoreKind::Double,
        _ => return Instruction::Illegal,
    };
    let (rs1, rs2) = (Register::new(bits >> 15), Register::new(bits >> 20));
    Instruction::Store { kind, rs1, rs2, offset: s_immediate(bits) }
}

#[inline]
fn float_load(bits: u32) -> Instruction {
    let Some(format) = float::memory_format(funct3(bits)) else { return Instruction::Illegal };
    let (rd, rs1) = (FloatRegister::new(bits >> 7), Register::new(bits >> 15));
    Instruction::FloatLoad { format, rd, rs1, offset: i_immediate(bits) }
}

#[inline]
fn float_store(bits: u32) -> Instruction {
    let Some(format) = float::memory_format(funct3(bits)) else { return Instruction::Illegal };
    let (rs1, rs2) = (Register::new(bits >> 15), FloatRegister::new(bits >> 20));
    Instruction::FloatStore { format, rs1, rs2, offset: s_immediate(bits) }
}

/// Reserved fields of fences are ignored, as the specification asks of implementations.
fn fence(bits: u32) -> Instruction {
    match funct3(bits) {
        0 => Instruction::Fence,
        1 => Instruction::FenceI,
        _ => Instruction::Illegal,
    }
}

#[inline]
fn branch(bits: u32) -> Instruction {
    let condition = match funct3(bits) {
        0 => Condition::Equal,
        1 => Condition::NotEqual,
        4 => Condition::Less,
        5 => Condition::GreaterEqual,
        6 => Condition::LessUnsigned,
        7 => Condition::GreaterEqualUnsigned,
        _ => return Instruction::Illegal,
    };
    let (rs1, rs2) = (Register::new(bits >> 15), Register::new(bits >> 20));
    Instruction::Branch { condition, rs1, rs2, offset: b_immediate(bits) }
}

#[inline]
fn alu_immediate(bits: u32) -> Instruction {
    let immediate = i_immediate(bits);
    let shift_amount = immediate & 0x3f;
    let (op, immediate) = match (funct3(bits), bits >> 26) {
        (0, _) => (AluOp::Add, immediate),
        (1, 0) => (AluOp::Sll, shift_amount),
        (2, _) => (AluOp::Slt, immediate),
        (3, _) => (AluOp::Sltu, immediate),
        (4, _) => (AluOp::Xor, immediate),
        (5, 0) => (AluOp::Srl, shift_amount),
        (5, 0b01_0000) => (AluOp::Sra, shift_amount),
        (6, _) => (AluOp::Or, immediate),
        (7, _) => (AluOp::And, immediate),
        (funct3, _) => match bit_manipulation::immediate(funct3, bits >> 20) {
            Some(op) => (AluOp::Bits(op), shift_amount),
            None => return Instruction::Illegal,
        },
    };
    Instruction::AluImmediate { op, rd: Register::new(bits >> 7), rs1: Register::new(bits >> 15), immediate }
}

#[inline]
fn alu_immediate_word(bits: u32) -> Instruction {
    let immediate = i_immediate(bits);
    let shift_amount = immediate & 0x1f;
    let (op, immediate) = match (funct3(bits), funct7(bits)) {
        (0, _) => (AluOp::AddW, immediate),
        (1, 0) => (AluOp::SllW, shift_amount),
        (5, 0) => (AluOp::SrlW, shift_amount),
        (5, 0b010_0000) => (AluOp::SraW, shift_amount),
        (funct3, _) => match bit_manipulation::immediate_word(funct3, bits >> 20) {
            Some(op) => (AluOp::Bits(op), immediate & 0x3f),
            None => return Instruction::Illegal,
        },
    };
    Instruction::AluImmediate { op, rd: Register::new(bits >> 7), rs1: Register::new(bits >> 15), immediate }
}

#[inline]
fn alu_register(bits: u32) -> Instruction {
    let op = match (funct7(bits), funct3(bits)) {
        (0, 0) => AluOp::Add,
        (0, 1) => AluOp::Sll,
        (0, 2) => AluOp::Slt,
        (0, 3) => AluOp::Sltu,
        (0, 4) => AluOp::Xor,
        (0, 5) => AluOp::Srl,
        (0, 6) => AluOp::Or,
        (0, 7) => AluOp::And,
        (0b010_0000, 0) => AluOp::Sub,
        (0b010_0000, 5) => AluOp::Sra,
        (1, 0) => AluOp::Mul,
        (1, 1) => AluOp::Mulh,
        (1, 2) => AluOp::Mulhsu,
        (1, 3) => AluOp::Mulhu,
        (1, 4) => AluOp::Div,
        (1, 5) => AluOp::Divu,
        (1, 6) => AluOp::Rem,
        (1, 7) => AluOp::Remu,
        (funct7, funct3) => match bit_manipulation::register(funct7, funct3) {
            Some(op) => AluOp::Bits(op),
            None => return Instruction::Illegal,
        },
    };
    register_form(op, bits)
}

#[inline]
fn alu_register_word(bits: u32) -> Instruction {
    let op = match (funct7(bits), funct3(bits)) {
        (0, 0) => AluOp::AddW,
        (0, 1) => AluOp::SllW,
        (0, 5) => AluOp::SrlW,
        (0b010_0000, 0) => AluOp::SubW,
        (0b010_0000, 5) => AluOp::SraW,
        (1, 0) => AluOp::MulW,
        (1, 4) => AluOp::DivW,
        (1, 5) => AluOp::DivuW,
        (1, 6) => AluOp::RemW,
        (1, 7) => AluOp::RemuW,
        (funct7, funct3) => match bit_manipulation::register_word(funct7, funct3, bits >> 20 & 0x1f) {
            Some(op) => AluOp::Bits(op),
            None => return Instruction::Illegal,
        },
    };
    register_form(op, bits)
}

const fn register_form(op: AluOp, bits: u32) -> Instruction {
    let (rd, rs1, rs2) = (Register::new(bits >> 7), Register::new(bits >> 15), Register::new(bits >> 20));
    Instruction::AluRegister { op, rd, rs1, rs2 }
}

/// The acquire and release bits order nothing on one hart.
fn atomic(bits: u32) -> Instruction {
    let width = match funct3(bits) {
        2 => AtomicWidth::Word,
        3 => AtomicWidth::Double,
        _ => return Instruction::Illegal,
    };
    let (rd, rs1, rs2) = (Register::new(bits >> 7), Register::new(bits >> 15), Register::new(bits >> 20));
    let op = match bits >> 27 {
        0b0_0010 if rs2 == Register::ZERO => return Instruction::LoadReserved { width, rd, rs1 },
        0b0_0011 => return Instruction::StoreConditional { width, rd, rs1, rs2 },
        0b0_0001 => AmoOp::Swap,
        0b0_0000 => AmoOp::Add,
        0b0_0100 => AmoOp::Xor,
        0b0_1100 => AmoOp::And,
        0b0_1000 => AmoOp::Or,
        0b1_0000 => AmoOp::Min,
        0b1_0100 => AmoOp::Max,
        0b1_1000 => AmoOp::MinUnsigned,
        0b1_1100 => AmoOp::MaxUnsigned,
        _ => return Instruction::Illegal,
    };
    Instruction::Amo { op, width, rd, rs1, rs2 }
}

fn system(bits: u32) -> Instruction {
    const SFENCE_VMA: u32 = 0b000_1001;
    let op = match funct3(bits) {
        0 => {
            return match bits {
                0x0000_0073 => Instruction::Ecall,
                0x0010_0073 => Instruction::Ebreak,
                0x1020_0073 => Instruction::Sret,
                0x3020_0073 => Instruction::Mret,
                0x1050_0073 => Instruction::Wfi,
                _ if funct7(bits) == SFENCE_VMA && Register::new(bits >> 7) == Register::ZERO => Instruction::SfenceVma,
                _ => Instruction::Illegal,
            };
        }
        1 | 5 => CsrOp::Write,
        2 | 6 => CsrOp::Set,
        3 | 7 => CsrOp::Clear,
        _ => return Instruction::Illegal,
    };
    let source = if funct3(bits) < 4 { CsrSource::Register } else { CsrSource::Immediate };
    let (rd, rs1) = (Register::new(bits >> 7), Register::new(bits >> 15));
    Instruction::Csr(CsrInstruction { op, source, rd, rs1, csr: (bits >> 20) as u16 })
}
