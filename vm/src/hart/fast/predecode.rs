//! From an instruction to its slot.

use super::handlers::{self as h, by_length};
use super::slot::{Handler, Slot};
use crate::hart::alu::AluOp;
use crate::hart::decode::{self, Condition, Instruction, LoadKind, Register, StoreKind};
use crate::pages::PAGE_BYTES;

/// A slot, and whether the next instruction may be elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Decoded {
    pub(super) slot: Slot,
    pub(super) ends_run: bool,
}

/// What the plain interpreter does.
const STEP: Decoded = Decoded { slot: Slot { handler: h::step, ..Slot::UNDECODED }, ends_run: true };

/// An instruction of which only the first half is in its page.
pub(super) const fn straddling() -> Decoded {
    STEP
}

/// The slot of the instruction that begins with `bits`, at `offset` in its page.
pub(super) fn predecode(bits: u32, offset: usize) -> Decoded {
    let length = if decode::length(bits) == 2 { 1 } else { 2 };
    match decode::decode(bits) {
        Instruction::Lui { rd, immediate } => {
            constant(length, rd, by_length(length, h::load_immediate::<1>, h::load_immediate::<2>), immediate)
        }
        Instruction::Auipc { rd, immediate } => {
            constant(length, rd, by_length(length, h::add_to_pc::<1>, h::add_to_pc::<2>), immediate + signed(offset))
        }
        Instruction::AluImmediate { op, rd, rs1, immediate } => alu_immediate(length, op, rd, rs1, immediate),
        Instruction::AluRegister { op, rd, rs1, rs2 } => alu_register(length, op, rd, rs1, rs2),
        // A load to x0 still has to trap.
        Instruction::Load { rd: Register::ZERO, .. } => STEP,
        Instruction::Load { kind, rd, rs1, offset } => straight(load_handler(length, kind), offset, rd, rs1),
        Instruction::Store { kind, rs1, rs2, offset } => straight(store_handler(length, kind), offset, rs2, rs1),
        Instruction::Branch { condition, rs1, rs2, offset: distance } => match target(offset, distance) {
            Target::Slot(slots) => end(branch_handler(length, condition), slots, rs2, rs1),
            Target::Page(bytes) => end(far_branch_handler(length, condition), bytes, rs2, rs1),
        },
        Instruction::Jal { rd, offset: distance } => {
            let (handler, immediate) = match (target(offset, distance), rd == Register::ZERO) {
                (Target::Slot(slots), true) => (by_length(length, h::jump::<false, 1>, h::jump::<false, 2>), slots),
                (Target::Slot(slots), false) => (by_length(length, h::jump::<true, 1>, h::jump::<true, 2>), slots),
                (Target::Page(bytes), true) => {
                    (by_length(length, h::far_jump::<false, 1>, h::far_jump::<false, 2>), bytes)
                }
                (Target::Page(bytes), false) => {
                    (by_length(length, h::far_jump::<true, 1>, h::far_jump::<true, 2>), bytes)
                }
            };
            end(handler, immediate, rd, Register::ZERO)
        }
        Instruction::Jalr { rd, rs1, offset: distance } => {
            let handler = if rd == Register::ZERO {
                by_length(length, h::jump_register::<false, 1>, h::jump_register::<false, 2>)
            } else {
                by_length(length, h::jump_register::<true, 1>, h::jump_register::<true, 2>)
            };
            end(handler, distance, rd, rs1)
        }
        // Decoded code is coherent with memory.
        Instruction::Fence | Instruction::FenceI => nothing(length),
        Instruction::LoadReserved { .. }
        | Instruction::StoreConditional { .. }
        | Instruction::Amo { .. }
        | Instruction::Csr(_)
        | Instruction::SfenceVma
        | Instruction::Ecall
        | Instruction::Ebreak
        | Instruction::Sret
        | Instruction::Mret
        | Instruction::Float(_)
        | Instruction::FloatLoad { .. }
        | Instruction::FloatStore { .. }
        | Instruction::Wfi
        | Instruction::Illegal => STEP,
    }
}

/// Where a jump or branch goes.
enum Target {
    /// To this many slots from here, in the same page.
    Slot(i32),
    /// To this many bytes from the page's start.
    Page(i32),
}

fn target(offset: usize, distance: i32) -> Target {
    let place = signed(offset) + distance;
    if (0..signed(PAGE_BYTES)).contains(&place) { Target::Slot(distance / 2) } else { Target::Page(place) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "an offset in a page")]
const fn signed(offset: usize) -> i32 {
    offset as i32
}

fn slot(handler: Handler, immediate: i32, a: Register, b: Register) -> Slot {
    Slot { handler, immediate, a: a.number(), b: b.number(), run: 0 }
}

fn straight(handler: Handler, immediate: i32, a: Register, b: Register) -> Decoded {
    Decoded { slot: slot(handler, immediate, a, b), ends_run: false }
}

fn end(handler: Handler, immediate: i32, a: Register, b: Register) -> Decoded {
    Decoded { slot: slot(handler, immediate, a, b), ends_run: true }
}

fn nothing(length: usize) -> Decoded {
    straight(by_length(length, h::nothing::<1>, h::nothing::<2>), 0, Register::ZERO, Register::ZERO)
}

/// An instruction that sets `rd` to something that depends on no register.
fn constant(length: usize, rd: Register, handler: Handler, immediate: i32) -> Decoded {
    if rd == Register::ZERO { nothing(length) } else { straight(handler, immediate, rd, Register::ZERO) }
}

fn alu_immediate(length: usize, op: AluOp, rd: Register, rs1: Register, immediate: i32) -> Decoded {
    if rd == Register::ZERO {
        return nothing(length);
    }
    match (op, rs1, immediate) {
        (AluOp::Add, Register::ZERO, _) => {
            constant(length, rd, by_length(length, h::load_immediate::<1>, h::load_immediate::<2>), immediate)
        }
        (AluOp::Add, _, 0) => straight(by_length(length, h::move_register::<1>, h::move_register::<2>), 0, rd, rs1),
        _ => straight(alu_immediate_handler(length, op), immediate, rd, rs1),
    }
}

fn alu_register(length: usize, op: AluOp, rd: Register, rs1: Register, rs2: Register) -> Decoded {
    if rd == Register::ZERO {
        return nothing(length);
    }
    match (op, rs1) {
        (AluOp::Add, Register::ZERO) => {
            straight(by_length(length, h::move_register::<1>, h::move_register::<2>), 0, rd, rs2)
        }
        _ => straight(alu_register_handler(length, op), i32::from(rs2.number()), rd, rs1),
    }
}

/// Defines a function from a length and an operation to the handler.
macro_rules! handlers_of {
    ($name:ident: $handler:ident, $enum:ident, $($variant:ident => $type:ident)*) => {
        fn $name(length: usize, of: $enum) -> Handler {
            match of {
                $($enum::$variant => by_length(length, h::$handler::<h::$type, 1>, h::$handler::<h::$type, 2>),)*
            }
        }
    };
}

macro_rules! alu_handlers {
    ($name:ident: $handler:ident) => {
        handlers_of!($name: $handler, AluOp,
            Add => Add Sub => Sub Sll => Sll Slt => Slt Sltu => Sltu Xor => Xor Srl => Srl Sra => Sra Or => Or And => And
            AddW => AddW SubW => SubW SllW => SllW SrlW => SrlW SraW => SraW Mul => Mul Mulh => Mulh Mulhsu => Mulhsu
            Mulhu => Mulhu Div => Div Divu => Divu Rem => Rem Remu => Remu MulW => MulW DivW => DivW DivuW => DivuW
            RemW => RemW RemuW => RemuW);
    };
}

macro_rules! branch_handlers {
    ($name:ident: $handler:ident) => {
        handlers_of!($name: $handler, Condition,
            Equal => Equal NotEqual => NotEqual Less => Less GreaterEqual => GreaterEqual LessUnsigned => LessUnsigned
            GreaterEqualUnsigned => GreaterEqualUnsigned);
    };
}

alu_handlers!(alu_immediate_handler: alu_immediate);
alu_handlers!(alu_register_handler: alu_register);
branch_handlers!(branch_handler: branch);
branch_handlers!(far_branch_handler: far_branch);
handlers_of!(load_handler: load, LoadKind,
    Byte => Byte Half => Half Word => Word Double => Double ByteUnsigned => ByteUnsigned HalfUnsigned => HalfUnsigned
    WordUnsigned => WordUnsigned);
handlers_of!(store_handler: store, StoreKind,
    Byte => StoreByte Half => StoreHalf Word => StoreWord Double => StoreDouble);
