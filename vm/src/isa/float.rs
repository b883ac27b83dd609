//! Instructions of F and D, and their decoding.

use super::instruction::{Instruction, Register};

/// A floating-point register's number, 0 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatRegister(u8);

impl FloatRegister {
    /// The register that the low five bits of `field` name.
    #[inline]
    pub(crate) const fn new(field: u32) -> Self {
        Self((field & 31) as u8)
    }

    /// Its index in the register file.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        (self.0 & 31) as usize
    }
}

/// The format that an instruction works in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatFormat {
    Single,
    Double,
}

/// An instruction's field `rm`, without its reserved values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundingField {
    Static(Rounding),
    /// Dynamic: as `frm` says when the instruction is executed.
    Dynamic,
}

/// A rounding mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    NearestEven,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero.
    NearestAway,
}

impl Rounding {
    /// The mode that `frm` names, if it names one.
    #[inline]
    pub(crate) const fn from_frm(frm: u32) -> Option<Self> {
        Some(match frm {
            0 => Self::NearestEven,
            1 => Self::Zero,
            2 => Self::Down,
            3 => Self::Up,
            4 => Self::NearestAway,
            _ => return None,
        })
    }
}

/// Arithmetic on two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// The sign of the result of `fsgnj`, `fsgnjn`, `fsgnjx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignOp {
    Copy,
    CopyNegated,
    Xor,
}

/// Minimum or maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extreme {
    Minimum,
    Maximum,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    LessOrEqual,
    Less,
    Equal,
}

/// The integer side of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntegerKind {
    Word,
    WordUnsigned,
    Long,
    LongUnsigned,
}

/// The operation of an instruction; operands and result are in its format unless they are integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOperation {
    Binary {
        op: BinaryOp,
        rounding: RoundingField,
        rd: FloatRegister,
        rs1: FloatRegister,
        rs2: FloatRegister,
    },
    SquareRoot {
        rounding: RoundingField,
        rd: FloatRegister,
        rs1: FloatRegister,
    },
    /// `rs1 * rs2 + rs3`
    MultiplyAdd(Fused),
    /// `rs1 * rs2 - rs3`
    MultiplySubtract(Fused),
    /// `-(rs1 * rs2) + rs3`
    NegatedMultiplySubtract(Fused),
    /// `-(rs1 * rs2) - rs3`
    NegatedMultiplyAdd(Fused),
    InjectSign {
        op: SignOp,
        rd: FloatRegister,
        rs1: FloatRegister,
        rs2: FloatRegister,
    },
    Select {
        extreme: Extreme,
        rd: FloatRegister,
        rs1: FloatRegister,
        rs2: FloatRegister,
    },
    Compare {
        comparison: Comparison,
        rd: Register,
        rs1: FloatRegister,
        rs2: FloatRegister,
    },
    Classify {
        rd: Register,
        rs1: FloatRegister,
    },
    ToInteger {
        kind: IntegerKind,
        rounding: RoundingField,
        rd: Register,
        rs1: FloatRegister,
    },
    FromInteger {
        kind: IntegerKind,
        rounding: RoundingField,
        rd: FloatRegister,
        rs1: Register,
    },
    /// From the other format.
    Resize {
        rounding: RoundingField,
        rd: FloatRegister,
        rs1: FloatRegister,
    },
    /// Bits, not values.
    MoveToInteger {
        rd: Register,
        rs1: FloatRegister,
    },
    /// Bits, not values.
    MoveFromInteger {
        rd: FloatRegister,
        rs1: Register,
    },
}

/// The operands of a multiplication and addition, which is rounded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fused {
    pub(crate) rounding: RoundingField,
    pub(crate) rd: FloatRegister,
    pub(crate) rs1: FloatRegister,
    pub(crate) rs2: FloatRegister,
    pub(crate) rs3: FloatRegister,
}

/// An instruction that computes or moves between register files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatInstruction {
    pub(crate) format: FloatFormat,
    pub(crate) operation: FloatOperation,
}

/// Decodes opcode `OP-FP`.
pub(crate) fn decode_operation(bits: u32) -> Instruction {
    match format(bits).zip(operation(bits)) {
        Some((format, operation)) => Instruction::Float(FloatInstruction { format, operation }),
        None => Instruction::Illegal,
    }
}

/// Decodes one of the four opcodes `MADD`, `MSUB`, `NMSUB`, `NMADD`.
pub(crate) fn decode_multiply_add(bits: u32) -> Instruction {
    let Some((format, rounding)) = format(bits).zip(rounding(bits)) else { return Instruction::Illegal };
    let fused = Fused {
        rounding,
        rd: FloatRegister::new(bits >> 7),
        rs1: FloatRegister::new(bits >> 15),
        rs2: FloatRegister::new(bits >> 20),
        rs3: FloatRegister::new(bits >> 27),
    };
    let operation = match (bits >> 2) & 3 {
        0 => FloatOperation::MultiplyAdd(fused),
        1 => FloatOperation::MultiplySubtract(fused),
        2 => FloatOperation::NegatedMultiplySubtract(fused),
        _ => FloatOperation::NegatedMultiplyAdd(fused),
    };
    Instruction::Float(FloatInstruction { format, operation })
}

/// The format that a load or store with field `width` (funct3) moves.
pub(crate) const fn memory_format(width: u32) -> Option<FloatFormat> {
    match width {
        2 => Some(FloatFormat::Single),
        3 => Some(FloatFormat::Double),
        _ => None,
    }
}

/// The field `fmt`; the formats of Zfh and Q aren't offered.
const fn format(bits: u32) -> Option<FloatFormat> {
    match (bits >> 25) & 3 {
        0 => Some(FloatFormat::Single),
        1 => Some(FloatFormat::Double),
        _ => None,
    }
}

fn rounding(bits: u32) -> Option<RoundingField> {
    match (bits >> 12) & 7 {
        7 => Some(RoundingField::Dynamic),
        mode => Rounding::from_frm(mode).map(RoundingField::Static),
    }
}

fn operation(bits: u32) -> Option<FloatOperation> {
    let (funct5, funct3, rs2_field) = (bits >> 27, (bits >> 12) & 7, (bits >> 20) & 31);
    let (rd, rs1, rs2) =
        (FloatRegister::new(bits >> 7), FloatRegister::new(bits >> 15), FloatRegister::new(bits >> 20));
    let (integer_rd, integer_rs1) = (Register::new(bits >> 7), Register::new(bits >> 15));
    let binary = |op| Some(FloatOperation::Binary { op, rounding: rounding(bits)?, rd, rs1, rs2 });
    match (funct5, funct3) {
        (0b0_0000, _) => binary(BinaryOp::Add),
        (0b0_0001, _) => binary(BinaryOp::Subtract),
        (0b0_0010, _) => binary(BinaryOp::Multiply),
        (0b0_0011, _) => binary(BinaryOp::Divide),
        (0b0_1011, _) if rs2_field == 0 => Some(FloatOperation::SquareRoot { rounding: rounding(bits)?, rd, rs1 }),
        (0b0_0100, 0) => Some(FloatOperation::InjectSign { op: SignOp::Copy, rd, rs1, rs2 }),
        (0b0_0100, 1) => Some(FloatOperation::InjectSign { op: SignOp::CopyNegated, rd, rs1, rs2 }),
        (0b0_0100, 2) => Some(FloatOperation::InjectSign { op: SignOp::Xor, rd, rs1, rs2 }),
        (0b0_0101, 0) => Some(FloatOperation::Select { extreme: Extreme::Minimum, rd, rs1, rs2 }),
        (0b0_0101, 1) => Some(FloatOperation::Select { extreme: Extreme::Maximum, rd, rs1, rs2 }),
        // The field is the format to convert from: the other one.
        (0b0_1000, _) if rs2_field == ((bits >> 25) & 1 ^ 1) => {
            Some(FloatOperation::Resize { rounding: rounding(bits)?, rd, rs1 })
        }
        (0b1_0100, _) => Some(FloatOperation::Compare { comparison: comparison(funct3)?, rd: integer_rd, rs1, rs2 }),
        (0b1_1000, _) => {
            let (kind, rounding) = (integer_kind(rs2_field)?, rounding(bits)?);
            Some(FloatOperation::ToInteger { kind, rounding, rd: integer_rd, rs1 })
        }
        (0b1_1010, _) => {
            let (kind, rounding) = (integer_kind(rs2_field)?, rounding(bits)?);
            Some(FloatOperation::FromInteger { kind, rounding, rd, rs1: integer_rs1 })
        }
        (0b1_1100, 0) if rs2_field == 0 => Some(FloatOperation::MoveToInteger { rd: integer_rd, rs1 }),
        (0b1_1100, 1) if rs2_field == 0 => Some(FloatOperation::Classify { rd: integer_rd, rs1 }),
        (0b1_1110, 0) if rs2_field == 0 => Some(FloatOperation::MoveFromInteger { rd, rs1: integer_rs1 }),
        _ => None,
    }
}

const fn comparison(funct3: u32) -> Option<Comparison> {
    match funct3 {
        0 => Some(Comparison::LessOrEqual),
        1 => Some(Comparison::Less),
        2 => Some(Comparison::Equal),
        _ => None,
    }
}

const fn integer_kind(field: u32) -> Option<IntegerKind> {
    match field {
        0 => Some(IntegerKind::Word),
        1 => Some(IntegerKind::WordUnsigned),
        2 => Some(IntegerKind::Long),
        3 => Some(IntegerKind::LongUnsigned),
        _ => None,
    }
}
