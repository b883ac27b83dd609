//! Instructions that end a run: branches and jumps.

use super::dispatch::{address_of, enter, extended, go_to, set_x, x};
use super::env::Env;
use super::slot::Slot;
use crate::hart::{Hart, execute};
use crate::isa::instruction::Condition;
use core::marker::PhantomData;

/// An instruction that ends a run, of `LENGTH` halfwords; `b` is the value of its register `b`.
pub(super) trait End {
    /// # Safety
    /// As for handlers.
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, b: u64);
}

/// The condition of a branch.
pub(super) trait When {
    const CONDITION: Condition;
}

macro_rules! conditions {
    ($($name:ident)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name;
            impl When for $name {
                const CONDITION: Condition = Condition::$name;
            }
        )*
    };
}

conditions!(Equal NotEqual Less GreaterEqual LessUnsigned GreaterEqualUnsigned);

/// A branch within the page: the immediate counts slots.
#[derive(Debug)]
pub(super) struct Branch<W>(PhantomData<W>);

impl<W: When> End for Branch<W> {
    #[inline(always)]
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, b: u64) {
        // SAFETY: as in `go`; the decoder has seen that the target is in the page.
        unsafe {
            if execute::holds(W::CONDITION, b, x(hart, (*slot).a)) {
                enter(hart, slot.offset((*slot).immediate as isize), budget, env);
            } else {
                enter(hart, slot.add(LENGTH), budget, env);
            }
        }
    }
}

/// A branch to another page: the immediate counts bytes from the page's start.
#[derive(Debug)]
pub(super) struct FarBranch<W>(PhantomData<W>);

impl<W: When> End for FarBranch<W> {
    #[inline(always)]
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, b: u64) {
        // SAFETY: as in `go`.
        unsafe {
            if execute::holds(W::CONDITION, b, x(hart, (*slot).a)) {
                let target = (*env).page_address.wrapping_add(extended((*slot).immediate));
                go_to(hart, target, budget, env);
            } else {
                enter(hart, slot.add(LENGTH), budget, env);
            }
        }
    }
}

/// A jump within the page: the immediate counts slots.
#[derive(Debug)]
pub(super) struct Jump<const LINK: bool>;

impl<const LINK: bool> End for Jump<LINK> {
    #[inline(always)]
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, _: u64) {
        // SAFETY: as in `go`; the decoder has seen that the target is in the page.
        unsafe {
            if LINK {
                set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
            }
            enter(hart, slot.offset((*slot).immediate as isize), budget, env);
        }
    }
}

/// A jump to another page: the immediate counts bytes from the page's start.
#[derive(Debug)]
pub(super) struct FarJump<const LINK: bool>;

impl<const LINK: bool> End for FarJump<LINK> {
    #[inline(always)]
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, _: u64) {
        // SAFETY: as in `go`.
        unsafe {
            let target = (*env).page_address.wrapping_add(extended((*slot).immediate));
            if LINK {
                set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
            }
            go_to(hart, target, budget, env);
        }
    }
}

/// A jump to an address in a register.
#[derive(Debug)]
pub(super) struct JumpRegister<const LINK: bool>;

impl<const LINK: bool> End for JumpRegister<LINK> {
    #[inline(always)]
    unsafe fn end<const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, b: u64) {
        // SAFETY: as in `go`.
        unsafe {
            let target = b.wrapping_add(extended((*slot).immediate)) & !1;
            if LINK {
                set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
            }
            go_to(hart, target, budget, env);
        }
    }
}
