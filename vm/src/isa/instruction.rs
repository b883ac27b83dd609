//! Instructions as the interpreters execute them: operation, registers and immediates.

use super::float::{FloatFormat, FloatInstruction, FloatRegister};

/// An integer register's number, 0 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(u8);

impl Register {
    pub(crate) const ZERO: Self = Self(0);
    pub(crate) const RA: Self = Self(1);
    pub(crate) const SP: Self = Self(2);

    /// The register that the low five bits of `field` name.
    #[inline]
    pub(crate) const fn new(field: u32) -> Self {
        Self((field & 31) as u8)
    }

    /// Its number, 0 to 31.
    #[inline]
    pub(crate) const fn number(self) -> u8 {
        self.0 & 31
    }

    /// Its index in the register file.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        (self.0 & 31) as usize
    }
}

/// A computational operation of RV64I, M, Zba, Zbb or Zbs. Its second operand is a register or an
/// immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AluOp {
    Add,
    Sub,
    Sll,
    Slt,
    Sltu,
    Xor,
    Srl,
    Sra,
    Or,
    And,
    AddW,
    SubW,
    SllW,
    SrlW,
    SraW,
    Mul,
    Mulh,
    Mulhsu,
    Mulhu,
    Div,
    Divu,
    Rem,
    Remu,
    MulW,
    DivW,
    DivuW,
    RemW,
    RemuW,
    Bits(BitOp),
}

/// A computational operation of Zba, Zbb or Zbs. Those of one operand ignore the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOp {
    // Zba: addresses.
    AddUw,
    Sh1Add,
    Sh2Add,
    Sh3Add,
    Sh1AddUw,
    Sh2AddUw,
    Sh3AddUw,
    SllUw,
    // Zbb: logic, counting, comparing, extending, rotating, bytes.
    Andn,
    Orn,
    Xnor,
    Clz,
    Ctz,
    Cpop,
    ClzW,
    CtzW,
    CpopW,
    Max,
    Maxu,
    Min,
    Minu,
    SextB,
    SextH,
    ZextH,
    Rol,
    Ror,
    RolW,
    RorW,
    OrcB,
    Rev8,
    // Zbs: single bits.
    Bclr,
    Bext,
    Binv,
    Bset,
}

/// The condition under which a branch is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Equal,
    NotEqual,
    Less,
    GreaterEqual,
    LessUnsigned,
    GreaterEqualUnsigned,
}

/// The width of a load, and how it extends the value to XLEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadKind {
    Byte,
    Half,
    Word,
    Double,
    ByteUnsigned,
    HalfUnsigned,
    WordUnsigned,
}

impl LoadKind {
    /// The width in bytes.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Byte | Self::ByteUnsigned => 1,
            Self::Half | Self::HalfUnsigned => 2,
            Self::Word | Self::WordUnsigned => 4,
            Self::Double => 8,
        }
    }
}

/// The width of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Byte,
    Half,
    Word,
    Double,
}

/// Operand size of an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicWidth {
    Word,
    Double,
}

impl AtomicWidth {
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Word => 4,
            Self::Double => 8,
        }
    }
}

/// The operation of an AMO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AmoOp {
    Swap,
    Add,
    Xor,
    And,
    Or,
    Min,
    Max,
    MinUnsigned,
    MaxUnsigned,
}

/// The operation of a CSR instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CsrOp {
    Write,
    Set,
    Clear,
}

/// The source of a CSR instruction's operand; the five-bit field is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CsrSource {
    Register,
    Immediate,
}

/// A CSR instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CsrInstruction {
    pub(crate) op: CsrOp,
    pub(crate) source: CsrSource,
    pub(crate) rd: Register,
    /// A register, or the immediate itself.
    pub(crate) rs1: Register,
    /// CSR address, 12 bits.
    pub(crate) csr: u16,
}

impl CsrInstruction {
    /// `true` if it writes the CSR: set and clear with a zero operand field only read.
    pub(crate) fn writes(self) -> bool {
        self.op == CsrOp::Write || self.rs1 != Register::ZERO
    }
}

/// One instruction of RV64IMAFD, Zicsr, Zifencei or the supervisor level, immediates sign-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    Lui {
        rd: Register,
        immediate: i32,
    },
    Auipc {
        rd: Register,
        immediate: i32,
    },
    Jal {
        rd: Register,
        offset: i32,
    },
    Jalr {
        rd: Register,
        rs1: Register,
        offset: i32,
    },
    Branch {
        condition: Condition,
        rs1: Register,
        rs2: Register,
        offset: i32,
    },
    Load {
        kind: LoadKind,
        rd: Register,
        rs1: Register,
        offset: i32,
    },
    Store {
        kind: StoreKind,
        rs1: Register,
        rs2: Register,
        offset: i32,
    },
    AluImmediate {
        op: AluOp,
        rd: Register,
        rs1: Register,
        immediate: i32,
    },
    AluRegister {
        op: AluOp,
        rd: Register,
        rs1: Register,
        rs2: Register,
    },
    LoadReserved {
        width: AtomicWidth,
        rd: Register,
        rs1: Register,
    },
    StoreConditional {
        width: AtomicWidth,
        rd: Register,
        rs1: Register,
        rs2: Register,
    },
    Amo {
        op: AmoOp,
        width: AtomicWidth,
        rd: Register,
        rs1: Register,
        rs2: Register,
    },
    FloatLoad {
        format: FloatFormat,
        rd: FloatRegister,
        rs1: Register,
        offset: i32,
    },
    FloatStore {
        format: FloatFormat,
        rs1: Register,
        rs2: FloatRegister,
        offset: i32,
    },
    Float(FloatInstruction),
    Csr(CsrInstruction),
    /// Nothing to order: one hart, and devices act at once.
    Fence,
    /// Nothing to order while every fetch reads memory.
    FenceI,
    /// Nothing to forget while every access walks the page table.
    SfenceVma,
    Ecall,
    Ebreak,
    Sret,
    Mret,
    Wfi,
    /// Reserved, or of an extension that isn't offered.
    Illegal,
}

// Passed and compared by value everywhere.
const _: () = assert!(size_of::<Instruction>() == 8);
