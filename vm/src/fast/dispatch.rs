//! Dispatch: from one handler to the next, and out of decoded code.
//!
//! A handler ends with a call of the next slot's handler. Optimised builds compile it to a jump,
//! because all handlers have the same signature and nothing to do afterwards; so the host's branch
//! predictor has one jump per instruction to predict, instead of one for all. In builds that aren't
//! optimised, and under Miri, such calls would use up the stack: there a handler leaves the next
//! slot in [`Env`], and a loop calls its handler ([`TAIL_CALLS`]). Handlers return nothing: with a
//! result of two words, the compiler merges the calls at the end of a branch's two ways into one
//! that it doesn't compile to a jump.
//!
//! Only common instructions are done here. Everything else, and everything that traps or reaches a
//! device, leaves decoded code for the plain interpreter, which executes that one step
//! ([`Left::Step`]). So nothing that is hard is implemented twice.

use super::code;
use super::env::{Env, Left, PAGE_MASK, fetch_index};
use super::slot::Slot;
use crate::hart::Hart;

/// Whether handlers call each other.
const TAIL_CALLS: bool = !cfg!(any(miri, debug_assertions));

/// Executes `slot`.
///
/// # Safety
/// The contract of every handler: `env` is the hart's own, prepared for this run, with a bus that
/// nobody else uses; `slot` is a slot of the page of code at `env.page_slots`, or the one after
/// its last; no cached data is stale; and nobody has a reference to the hart, the bus, `env` or a
/// slot.
#[inline(always)]
pub(super) unsafe fn go(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: the caller passes on what it was called with, and a slot of the page of code that is
    // executed.
    unsafe {
        if TAIL_CALLS {
            ((*slot).handler)(hart, slot, budget, env);
        } else {
            (*env).next = slot;
            (*env).budget = budget;
        }
    }
}

/// Begins a run at `slot` by subtracting its length from the budget; leaves if the budget is too
/// small.
#[inline(always)]
pub(super) unsafe fn enter(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe {
        let left = budget - i64::from((*slot).run);
        if left < 0 { leave(hart, slot, budget, env, Left::Budget) } else { go(hart, slot, left, env) }
    }
}

/// Leaves before the run at `slot`, whose length hasn't been subtracted from the budget.
#[cold]
#[inline(never)]
unsafe fn leave(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, left: Left) {
    // SAFETY: as in `go`.
    unsafe {
        hart.pc = address_of(slot, env);
        (*env).leave(budget, left);
    }
}

/// Leaves in the middle of a run, before the instruction at `slot`, for the plain interpreter.
#[cold]
#[inline(never)]
pub(super) unsafe fn step(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { leave(hart, slot, budget + i64::from((*slot).run), env, Left::Step) }
}

/// Leaves in the middle of a run, before the instruction at `slot`, because cached data is stale.
#[cold]
#[inline(never)]
pub(super) unsafe fn look_up(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { leave(hart, slot, budget + i64::from((*slot).run), env, Left::Fetch) }
}

/// Goes on at `target`, which is even.
#[inline(always)]
pub(super) unsafe fn go_to(hart: &mut Hart, target: u64, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`; the offset in the page is that of a slot.
    unsafe {
        let page_address = target & PAGE_MASK;
        if page_address != (*env).page_address {
            let fetch = &(&(*env).fetches)[fetch_index(target)];
            let Some(page) = fetch.page.filter(|_| fetch.tag == page_address | (*env).fetch_context) else {
                return missing_page(hart, target, budget, env);
            };
            (*env).page_address = page_address;
            (*env).page_slots = page.slot(0);
        }
        enter(hart, (*env).page_slots.add((target & !PAGE_MASK) as usize / 2), budget, env);
    }
}

/// Leaves because the page of code at `target` isn't in the cache of fetches.
#[cold]
#[inline(never)]
unsafe fn missing_page(hart: &mut Hart, target: u64, budget: i64, env: *mut Env) {
    hart.pc = target;
    // SAFETY: as in `go`.
    unsafe { (*env).leave(budget, Left::Fetch) }
}

/// The address of the instruction at `slot`.
#[inline(always)]
pub(super) unsafe fn address_of(slot: *const Slot, env: *const Env) -> u64 {
    // SAFETY: as in `go`.
    unsafe { (*env).page_address.wrapping_add(2 * slot_index(slot, env) as u64) }
}

/// The index of `slot` in its page: halfwords from the page's start.
#[inline(always)]
unsafe fn slot_index(slot: *const Slot, env: *const Env) -> usize {
    // SAFETY: as in `go`.
    unsafe { (slot.addr() - (*env).page_slots.addr()) / size_of::<Slot>() }
}

/// Reads register `number`, which is one of a slot.
#[inline(always)]
pub(super) unsafe fn x(hart: &Hart, number: u8) -> u64 {
    debug_assert!(number < 32, "a register number");
    // SAFETY: slots are made with register numbers below 32.
    unsafe { *hart.x.get_unchecked(usize::from(number)) }
}

/// Writes register `number`, which isn't x0.
#[inline(always)]
pub(super) unsafe fn set_x(hart: &mut Hart, number: u8, value: u64) {
    debug_assert!((1..32).contains(&number), "a register that can be written");
    // SAFETY: as in `x`.
    unsafe { *hart.x.get_unchecked_mut(usize::from(number)) = value }
}

#[inline(always)]
pub(super) const fn extended(immediate: i32) -> u64 {
    (immediate as i64).cast_unsigned()
}

/// Handler of a slot that isn't decoded: decodes its run and begins it.
#[cold]
#[inline(never)]
pub(super) unsafe fn undecoded(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe {
        code::decode_run(env, slot_index(slot, env));
        // Stores to this page have to be noticed from now on.
        if (*(*env).bus).ram.watches_mut().has_invalidations() {
            leave(hart, slot, budget, env, Left::Fetch);
        } else {
            enter(hart, slot, budget, env);
        }
    }
}

/// Handler after a page's last slot: the run goes on in the next page.
#[cold]
pub(super) unsafe fn page_end(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { go_to(hart, address_of(slot, env), budget, env) }
}
