//! Decoding of bit manipulation: Zba, Zbb and Zbs.

use super::instruction::BitOp;

/// The operation of an instruction on two registers, by its upper and its lower function bits.
pub(super) const fn register(funct7: u32, funct3: u32) -> Option<BitOp> {
    Some(match (funct7, funct3) {
        (0b000_0101, 4) => BitOp::Min,
        (0b000_0101, 5) => BitOp::Minu,
        (0b000_0101, 6) => BitOp::Max,
        (0b000_0101, 7) => BitOp::Maxu,
        (0b001_0000, 2) => BitOp::Sh1Add,
        (0b001_0000, 4) => BitOp::Sh2Add,
        (0b001_0000, 6) => BitOp::Sh3Add,
        (0b001_0100, 1) => BitOp::Bset,
        (0b010_0000, 4) => BitOp::Xnor,
        (0b010_0000, 6) => BitOp::Orn,
        (0b010_0000, 7) => BitOp::Andn,
        (0b010_0100, 1) => BitOp::Bclr,
        (0b010_0100, 5) => BitOp::Bext,
        (0b011_0000, 1) => BitOp::Rol,
        (0b011_0000, 5) => BitOp::Ror,
        (0b011_0100, 1) => BitOp::Binv,
        _ => return None,
    })
}

/// The same of words; `rs2` is the number of the second register.
pub(super) const fn register_word(funct7: u32, funct3: u32, rs2: u32) -> Option<BitOp> {
    Some(match (funct7, funct3, rs2) {
        (0b000_0100, 0, _) => BitOp::AddUw,
        (0b000_0100, 4, 0) => BitOp::ZextH,
        (0b001_0000, 2, _) => BitOp::Sh1AddUw,
        (0b001_0000, 4, _) => BitOp::Sh2AddUw,
        (0b001_0000, 6, _) => BitOp::Sh3AddUw,
        (0b011_0000, 1, _) => BitOp::RolW,
        (0b011_0000, 5, _) => BitOp::RorW,
        _ => return None,
    })
}

/// The operation of an instruction with an immediate of 12 bits. Its lower 6 bits are the operand
/// of those that have one.
pub(super) const fn immediate(funct3: u32, immediate: u32) -> Option<BitOp> {
    Some(match (funct3, immediate >> 6, immediate) {
        (1, _, 0x600) => BitOp::Clz,
        (1, _, 0x601) => BitOp::Ctz,
        (1, _, 0x602) => BitOp::Cpop,
        (1, _, 0x604) => BitOp::SextB,
        (1, _, 0x605) => BitOp::SextH,
        (5, _, 0x287) => BitOp::OrcB,
        (5, _, 0x6b8) => BitOp::Rev8,
        (1, 0b00_1010, _) => BitOp::Bset,
        (1, 0b01_0010, _) => BitOp::Bclr,
        (1, 0b01_1010, _) => BitOp::Binv,
        (5, 0b01_0010, _) => BitOp::Bext,
        (5, 0b01_1000, _) => BitOp::Ror,
        _ => return None,
    })
}

/// The same of words: of rotations the operand has 5 bits.
pub(super) const fn immediate_word(funct3: u32, immediate: u32) -> Option<BitOp> {
    Some(match (funct3, immediate >> 6, immediate >> 5, immediate) {
        (1, _, _, 0x600) => BitOp::ClzW,
        (1, _, _, 0x601) => BitOp::CtzW,
        (1, _, _, 0x602) => BitOp::CpopW,
        (1, 0b00_0010, _, _) => BitOp::SllUw,
        (5, _, 0b011_0000, _) => BitOp::RorW,
        _ => return None,
    })
}
