//! Instructions after which the next one follows: arithmetic, and what loads and stores share.

use super::dispatch::{extended, go, set_x, step, x};
use super::env::Env;
use super::slot::Slot;
use crate::hart::Hart;
use crate::hart::alu;
use crate::isa::instruction::{AluOp, BitOp};
use core::marker::PhantomData;

/// An instruction that doesn't end a run.
pub(super) trait Straight {
    /// Whether it sets register `a`.
    const SETS: bool;

    /// Executes it with the value `b` of register `b`, and returns the new value of register `a`.
    ///
    /// `None`: it couldn't be executed, nothing has changed, and [`Self::miss`] is to be called.
    ///
    /// # Safety
    /// As for handlers.
    unsafe fn execute(hart: &mut Hart, slot: *const Slot, env: *mut Env, b: u64) -> Option<u64>;

    /// Continues after [`Self::execute`] returned `None`.
    ///
    /// # Safety
    /// As for handlers.
    #[inline(always)]
    unsafe fn miss(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
        // SAFETY: as for handlers.
        unsafe { step(hart, slot, budget, env) }
    }
}

/// Executes the instruction of a slot with the value `b` of register `b`, and sets register `a`.
/// The result is that of [`Straight::execute`].
///
/// # Safety
/// As for handlers.
#[inline(always)]
pub(super) unsafe fn execute<S: Straight>(hart: &mut Hart, slot: *const Slot, env: *mut Env, b: u64) -> Option<u64> {
    // SAFETY: as for handlers; an instruction that would set x0 isn't made one of these.
    unsafe {
        let value = S::execute(hart, slot, env, b)?;
        if S::SETS {
            set_x(hart, (*slot).a, value);
        }
        Some(value)
    }
}

/// Executes one instruction of `LENGTH` halfwords.
pub(super) unsafe fn one<S: Straight, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`; the slot after an instruction is one of the same page, or its end.
    unsafe {
        let b = x(hart, (*slot).b);
        match execute::<S>(hart, slot, env, b) {
            Some(_) => go(hart, slot.add(LENGTH), budget, env),
            None => S::miss(hart, slot, budget, env),
        }
    }
}

/// An operation of two operands.
pub(super) trait Alu {
    const OP: AluOp;
}

/// An operation with an immediate operand.
#[derive(Debug)]
pub(super) struct Immediate<O>(PhantomData<O>);

/// An operation on two registers.
#[derive(Debug)]
pub(super) struct Registers<O>(PhantomData<O>);

macro_rules! operations {
    ($($name:ident)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name;
            impl Alu for $name {
                const OP: AluOp = AluOp::$name;
            }
        )*
    };
}

operations!(Add Sub Sll Slt Sltu Xor Srl Sra Or And AddW SubW SllW SrlW SraW
    Mul Mulh Mulhsu Mulhu Div Divu Rem Remu MulW DivW DivuW RemW RemuW);

macro_rules! bit_operations {
    ($($name:ident)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name;
            impl Alu for $name {
                const OP: AluOp = AluOp::Bits(BitOp::$name);
            }
        )*
    };
}

bit_operations!(AddUw Sh1Add Sh2Add Sh3Add Sh1AddUw Sh2AddUw Sh3AddUw SllUw Andn Orn Xnor Clz Ctz Cpop ClzW CtzW CpopW
    Max Maxu Min Minu SextB SextH ZextH Rol Ror RolW RorW OrcB Rev8 Bclr Bext Binv Bset);

/// Defines instructions that can always be executed.
macro_rules! straight {
    ($($name:ident$(<$operation:ident>)? |$hart:ident, $slot:ident, $env:ident, $b:ident| $value:expr;)*) => {
        $(
            impl$(<$operation: Alu>)? Straight for $name$(<$operation>)? {
                const SETS: bool = true;

                #[allow(unused_unsafe, reason = "not all of these look at the slot")]
                #[inline(always)]
                unsafe fn execute($hart: &mut Hart, $slot: *const Slot, $env: *mut Env, $b: u64) -> Option<u64> {
                    // SAFETY: as for handlers.
                    unsafe { Some($value) }
                }
            }
        )*
    };
}

/// Sets a register to a constant.
#[derive(Debug)]
pub(super) struct Constant;

/// Sets a register to an address near the pc. The immediate counts from the page's start.
#[derive(Debug)]
pub(super) struct NearPc;

/// Copies a register.
#[derive(Debug)]
pub(super) struct Move;

/// Does nothing.
#[derive(Debug)]
pub(super) struct Nothing;

straight! {
    Constant |_hart, slot, _env, _b| extended((*slot).immediate);
    NearPc |_hart, slot, env, _b| (*env).page_address.wrapping_add(extended((*slot).immediate));
    Move |_hart, _slot, _env, b| b;
    Immediate<O> |_hart, slot, _env, b| alu::compute(O::OP, b, extended((*slot).immediate));
    Registers<O> |hart, slot, _env, b| alu::compute(O::OP, b, x(hart, (*slot).second()));
}

impl Straight for Nothing {
    const SETS: bool = false;

    #[inline(always)]
    unsafe fn execute(_: &mut Hart, _: *const Slot, _: *mut Env, _: u64) -> Option<u64> {
        Some(0)
    }
}
