//! Translation of an instruction into a slot.

use super::dispatch;
use super::fusion::Kind;
use super::slot::Slot;
use crate::isa::decode;
use crate::isa::instruction::{AluOp, BitOp, Condition, Instruction, LoadKind, Register, StoreKind};
use crate::ram::pages::PAGE_BYTES;

/// A slot and the kind of its instruction; `None` if the plain interpreter executes it.
#[derive(Clone, Copy)]
pub(super) struct Decoded {
    pub(super) slot: Slot,
    pub(super) kind: Option<Kind>,
}

/// A slot that leaves its instruction to the plain interpreter.
const STEP: Decoded = Decoded { slot: Slot { handler: dispatch::step, ..Slot::UNDECODED }, kind: None };

/// The slot of an instruction whose second half is in the next page.
pub(super) const fn straddling() -> Decoded {
    STEP
}

/// The slot of the instruction that begins with `bits`, at `offset` in its page.
pub(super) fn predecode(bits: u32, offset: usize) -> Decoded {
    let Some(Operands { kind, immediate, a, b }) = operands(decode::decode(bits), offset) else { return STEP };
    let handler = kind.handler(halfwords(bits));
    Decoded { slot: Slot { handler, immediate, a: a.number(), b: b.number(), run: 0 }, kind: Some(kind) }
}

/// Length of the instruction that begins with `bits`, in halfwords.
pub(super) const fn halfwords(bits: u32) -> usize {
    if decode::length(bits) == 2 { 1 } else { 2 }
}

/// The contents of a slot beside its handler.
struct Operands {
    kind: Kind,
    immediate: i32,
    a: Register,
    b: Register,
}

impl Operands {
    const NOTHING: Self = Self::new(Kind::Nothing, 0, Register::ZERO, Register::ZERO);

    const fn new(kind: Kind, immediate: i32, a: Register, b: Register) -> Self {
        Self { kind, immediate, a, b }
    }
}

fn operands(instruction: Instruction, offset: usize) -> Option<Operands> {
    Some(match instruction {
        // Decoded code is coherent with memory.
        Instruction::Fence | Instruction::FenceI => Operands::NOTHING,
        // Without a destination these do nothing; a load may still trap.
        Instruction::Lui { rd: Register::ZERO, .. }
        | Instruction::Auipc { rd: Register::ZERO, .. }
        | Instruction::AluImmediate { rd: Register::ZERO, .. }
        | Instruction::AluRegister { rd: Register::ZERO, .. } => Operands::NOTHING,
        Instruction::Load { rd: Register::ZERO, .. } => return None,
        Instruction::Lui { rd, immediate } => Operands::new(Kind::Constant, immediate, rd, Register::ZERO),
        Instruction::Auipc { rd, immediate } => {
            Operands::new(Kind::NearPc, immediate + signed(offset), rd, Register::ZERO)
        }
        Instruction::AluImmediate { op, rd, rs1, immediate } => alu_immediate(op, rd, rs1, immediate),
        Instruction::AluRegister { op: AluOp::Add, rd, rs1: Register::ZERO, rs2 } => {
            Operands::new(Kind::Move, 0, rd, rs2)
        }
        Instruction::AluRegister { op, rd, rs1, rs2 } => {
            Operands::new(register_kind(op), i32::from(rs2.number()), rd, rs1)
        }
        Instruction::Load { kind, rd, rs1, offset } => Operands::new(load_kind(kind), offset, rd, rs1),
        Instruction::Store { kind, rs1, rs2, offset } => Operands::new(store_kind(kind), offset, rs2, rs1),
        Instruction::Branch { condition, rs1, rs2, offset: distance } => {
            let (near, far) = branch_kinds(condition);
            match target(offset, distance) {
                Target::Slots(slots) => Operands::new(near, slots, rs2, rs1),
                Target::Page(bytes) => Operands::new(far, bytes, rs2, rs1),
            }
        }
        Instruction::Jal { rd, offset: distance } => {
            let (kind, immediate) = match (target(offset, distance), rd == Register::ZERO) {
                (Target::Slots(slots), true) => (Kind::Jump, slots),
                (Target::Slots(slots), false) => (Kind::Call, slots),
                (Target::Page(bytes), true) => (Kind::FarJump, bytes),
                (Target::Page(bytes), false) => (Kind::FarCall, bytes),
            };
            Operands::new(kind, immediate, rd, Register::ZERO)
        }
        Instruction::Jalr { rd, rs1, offset } => {
            let kind = if rd == Register::ZERO { Kind::JumpRegister } else { Kind::CallRegister };
            Operands::new(kind, offset, rd, rs1)
        }
        Instruction::LoadReserved { .. }
        | Instruction::StoreConditional { .. }
        | Instruction::Amo { .. }
        | Instruction::Float(_)
        | Instruction::FloatLoad { .. }
        | Instruction::FloatStore { .. }
        | Instruction::Csr(_)
        | Instruction::SfenceVma
        | Instruction::Ecall
        | Instruction::Ebreak
        | Instruction::Mret
        | Instruction::Sret
        | Instruction::Wfi
        | Instruction::Illegal => return None,
    })
}

/// The target of a jump or branch.
enum Target {
    /// This many slots from here, in the same page.
    Slots(i32),
    /// This many bytes from the page's start.
    Page(i32),
}

fn target(offset: usize, distance: i32) -> Target {
    let from_page = signed(offset) + distance;
    if (0..signed(PAGE_BYTES)).contains(&from_page) { Target::Slots(distance / 2) } else { Target::Page(from_page) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "an offset in a page")]
const fn signed(offset: usize) -> i32 {
    offset as i32
}

/// `rd` isn't x0.
fn alu_immediate(op: AluOp, rd: Register, rs1: Register, immediate: i32) -> Operands {
    match (op, rs1, immediate) {
        (AluOp::Add, Register::ZERO, _) => Operands::new(Kind::Constant, immediate, rd, rs1),
        (AluOp::Add, _, 0) => Operands::new(Kind::Move, 0, rd, rs1),
        _ => Operands::new(immediate_kind(op), immediate, rd, rs1),
    }
}

fn immediate_kind(op: AluOp) -> Kind {
    match op {
        AluOp::Add => Kind::AddImmediate,
        AluOp::And => Kind::AndImmediate,
        AluOp::Or => Kind::OrImmediate,
        AluOp::Xor => Kind::XorImmediate,
        AluOp::Slt => Kind::LessImmediate,
        AluOp::Sltu => Kind::LessUnsignedImmediate,
        AluOp::Sll => Kind::ShiftLeft,
        AluOp::Srl => Kind::ShiftRight,
        AluOp::Sra => Kind::ShiftRightSigned,
        AluOp::AddW => Kind::AddWordImmediate,
        AluOp::SllW => Kind::ShiftLeftWordImmediate,
        AluOp::SrlW => Kind::ShiftRightWordImmediate,
        AluOp::SraW => Kind::ShiftRightSignedWordImmediate,
        AluOp::Bits(op) => bits_immediate_kind(op),
        AluOp::Sub
        | AluOp::SubW
        | AluOp::Mul
        | AluOp::Mulh
        | AluOp::Mulhsu
        | AluOp::Mulhu
        | AluOp::Div
        | AluOp::Divu
        | AluOp::Rem
        | AluOp::Remu
        | AluOp::MulW
        | AluOp::DivW
        | AluOp::DivuW
        | AluOp::RemW
        | AluOp::RemuW => unreachable!("the decoder gives no immediate to this operation"),
    }
}

fn register_kind(op: AluOp) -> Kind {
    match op {
        AluOp::Add => Kind::Add,
        AluOp::Sub => Kind::Sub,
        AluOp::Sll => Kind::ShiftLeftRegister,
        AluOp::Slt => Kind::Less,
        AluOp::Sltu => Kind::LessUnsigned,
        AluOp::Xor => Kind::Xor,
        AluOp::Srl => Kind::ShiftRightRegister,
        AluOp::Sra => Kind::ShiftRightSignedRegister,
        AluOp::Or => Kind::Or,
        AluOp::And => Kind::And,
        AluOp::AddW => Kind::AddWord,
        AluOp::SubW => Kind::SubWord,
        AluOp::SllW => Kind::ShiftLeftWord,
        AluOp::SrlW => Kind::ShiftRightWord,
        AluOp::SraW => Kind::ShiftRightSignedWord,
        AluOp::Mul => Kind::Mul,
        AluOp::Mulh => Kind::MulHigh,
        AluOp::Mulhsu => Kind::MulHighSignedUnsigned,
        AluOp::Mulhu => Kind::MulHighUnsigned,
        AluOp::Div => Kind::Div,
        AluOp::Divu => Kind::DivUnsigned,
        AluOp::Rem => Kind::Rem,
        AluOp::Remu => Kind::RemUnsigned,
        AluOp::MulW => Kind::MulWord,
        AluOp::DivW => Kind::DivWord,
        AluOp::DivuW => Kind::DivUnsignedWord,
        AluOp::RemW => Kind::RemWord,
        AluOp::RemuW => Kind::RemUnsignedWord,
        AluOp::Bits(op) => bits_register_kind(op),
    }
}

fn bits_immediate_kind(op: BitOp) -> Kind {
    match op {
        BitOp::SllUw => Kind::ShiftLeftUnsignedWord,
        BitOp::Clz => Kind::LeadingZeros,
        BitOp::Ctz => Kind::TrailingZeros,
        BitOp::Cpop => Kind::CountOnes,
        BitOp::ClzW => Kind::LeadingZerosWord,
        BitOp::CtzW => Kind::TrailingZerosWord,
        BitOp::CpopW => Kind::CountOnesWord,
        BitOp::SextB => Kind::ExtendByte,
        BitOp::SextH => Kind::ExtendHalf,
        BitOp::Ror => Kind::RotateRightImmediate,
        BitOp::RorW => Kind::RotateRightWordImmediate,
        BitOp::OrcB => Kind::OrCombineBytes,
        BitOp::Rev8 => Kind::ReverseBytes,
        BitOp::Bclr => Kind::BitClearImmediate,
        BitOp::Bext => Kind::BitExtractImmediate,
        BitOp::Binv => Kind::BitInvertImmediate,
        BitOp::Bset => Kind::BitSetImmediate,
        BitOp::AddUw
        | BitOp::Sh1Add
        | BitOp::Sh2Add
        | BitOp::Sh3Add
        | BitOp::Sh1AddUw
        | BitOp::Sh2AddUw
        | BitOp::Sh3AddUw
        | BitOp::Andn
        | BitOp::Orn
        | BitOp::Xnor
        | BitOp::Max
        | BitOp::Maxu
        | BitOp::Min
        | BitOp::Minu
        | BitOp::ZextH
        | BitOp::Rol
        | BitOp::RolW => unreachable!("the decoder gives no immediate to this operation"),
    }
}

fn bits_register_kind(op: BitOp) -> Kind {
    match op {
        BitOp::AddUw => Kind::AddUnsignedWord,
        BitOp::Sh1Add => Kind::Shift1Add,
        BitOp::Sh2Add => Kind::Shift2Add,
        BitOp::Sh3Add => Kind::Shift3Add,
        BitOp::Sh1AddUw => Kind::Shift1AddUnsignedWord,
        BitOp::Sh2AddUw => Kind::Shift2AddUnsignedWord,
        BitOp::Sh3AddUw => Kind::Shift3AddUnsignedWord,
        BitOp::Andn => Kind::AndNot,
        BitOp::Orn => Kind::OrNot,
        BitOp::Xnor => Kind::XorNot,
        BitOp::Max => Kind::Max,
        BitOp::Maxu => Kind::MaxUnsigned,
        BitOp::Min => Kind::Min,
        BitOp::Minu => Kind::MinUnsigned,
        BitOp::ZextH => Kind::ExtendHalfUnsigned,
        BitOp::Rol => Kind::RotateLeft,
        BitOp::Ror => Kind::RotateRight,
        BitOp::RolW => Kind::RotateLeftWord,
        BitOp::RorW => Kind::RotateRightWord,
        BitOp::Bclr => Kind::BitClear,
        BitOp::Bext => Kind::BitExtract,
        BitOp::Binv => Kind::BitInvert,
        BitOp::Bset => Kind::BitSet,
        BitOp::SllUw
        | BitOp::Clz
        | BitOp::Ctz
        | BitOp::Cpop
        | BitOp::ClzW
        | BitOp::CtzW
        | BitOp::CpopW
        | BitOp::SextB
        | BitOp::SextH
        | BitOp::OrcB
        | BitOp::Rev8 => unreachable!("the decoder gives an immediate to this operation"),
    }
}

fn load_kind(kind: LoadKind) -> Kind {
    match kind {
        LoadKind::Byte => Kind::LoadByte,
        LoadKind::Half => Kind::LoadHalf,
        LoadKind::Word => Kind::LoadWord,
        LoadKind::Double => Kind::LoadDouble,
        LoadKind::ByteUnsigned => Kind::LoadByteUnsigned,
        LoadKind::HalfUnsigned => Kind::LoadHalfUnsigned,
        LoadKind::WordUnsigned => Kind::LoadWordUnsigned,
    }
}

fn store_kind(kind: StoreKind) -> Kind {
    match kind {
        StoreKind::Byte => Kind::StoreByte,
        StoreKind::Half => Kind::StoreHalf,
        StoreKind::Word => Kind::StoreWord,
        StoreKind::Double => Kind::StoreDouble,
    }
}

/// The kinds for a target within the page, and beyond it.
fn branch_kinds(condition: Condition) -> (Kind, Kind) {
    match condition {
        Condition::Equal => (Kind::BranchEqual, Kind::FarEqual),
        Condition::NotEqual => (Kind::BranchNotEqual, Kind::FarNotEqual),
        Condition::Less => (Kind::BranchLess, Kind::FarLess),
        Condition::GreaterEqual => (Kind::BranchGreaterEqual, Kind::FarGreaterEqual),
        Condition::LessUnsigned => (Kind::BranchLessUnsigned, Kind::FarLessUnsigned),
        Condition::GreaterEqualUnsigned => (Kind::BranchGreaterEqualUnsigned, Kind::FarGreaterEqualUnsigned),
    }
}
