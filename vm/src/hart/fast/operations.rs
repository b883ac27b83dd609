//! Instructions after which the next one follows.

use super::dispatch::{extended, go, set_x, step, x};
use super::env::Env;
use super::slot::Slot;
use crate::hart::Hart;
use crate::hart::alu::{self, AluOp};
use core::marker::PhantomData;

/// What such an instruction does.
pub(super) trait Straight {
    /// Executes it. `false`: it couldn't be, nothing has changed, and [`Self::miss`] is to be called.
    ///
    /// # Safety
    /// As for handlers.
    unsafe fn execute(hart: &mut Hart, slot: *const Slot, env: *mut Env) -> bool;

    /// Goes on where it couldn't be executed.
    ///
    /// # Safety
    /// As for handlers.
    #[inline(always)]
    unsafe fn miss(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
        // SAFETY: as for handlers.
        unsafe { step(hart, slot, budget, env) }
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
        if S::execute(hart, slot, env) {
            go(hart, slot.add(LENGTH), budget, env);
        } else {
            S::miss(hart, slot, budget, env);
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

/// Defines types of instructions that can always be executed.
macro_rules! straight {
    ($($(#[$doc:meta])* $name:ident$(<$operation:ident>)? |$hart:ident, $slot:ident, $env:ident| $value:expr;)*) => {
        $(
            $(#[$doc])*
            impl$(<$operation: Alu>)? Straight for $name$(<$operation>)? {
                #[inline(always)]
                unsafe fn execute($hart: &mut Hart, $slot: *const Slot, $env: *mut Env) -> bool {
                    // SAFETY: as for handlers; a slot that sets x0 isn't made with one of these.
                    unsafe {
                        let value = $value;
                        set_x($hart, (*$slot).a, value);
                    }
                    true
                }
            }
        )*
    };
}

/// Sets a register to a number.
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
    Constant |_hart, slot, _env| extended((*slot).immediate);
    NearPc |_hart, slot, env| (*env).page_address.wrapping_add(extended((*slot).immediate));
    Move |hart, slot, _env| x(hart, (*slot).b);
    Immediate<O> |hart, slot, _env| alu::compute(O::OP, x(hart, (*slot).b), extended((*slot).immediate));
    Registers<O> |hart, slot, _env| alu::compute(O::OP, x(hart, (*slot).b), x(hart, (*slot).second()));
}

impl Straight for Nothing {
    #[inline(always)]
    unsafe fn execute(_: &mut Hart, _: *const Slot, _: *mut Env) -> bool {
        true
    }
}
