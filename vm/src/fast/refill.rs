//! Handling of loads and stores whose translation isn't cached.

use super::dispatch::{go, look_up, step};
use super::env::{Env, PAGE_MASK, Translation, translation_index};
use super::slot::Slot;
use super::walk::ram_offset;
use crate::hart::Hart;
use crate::hart::mmu::Access;

/// Caches the translation for a load of `bytes` bytes and executes `slot` again, or leaves it to
/// the plain interpreter.
#[cold]
#[inline(never)]
pub(super) unsafe fn load(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, address: u64, bytes: u64) {
    // SAFETY: as in `dispatch::go`; the bus is nobody else's while handlers run.
    unsafe {
        let offset =
            if address & (bytes - 1) == 0 { ram_offset(hart, &mut *(*env).bus, address, Access::Load) } else { None };
        let Some(offset) = offset else { return step(hart, slot, budget, env) };
        if (*(*env).bus).ram.watches_mut().has_invalidations() {
            return look_up(hart, slot, budget, env);
        }
        (&mut (*env).loads)[translation_index(address)] = translation(address, offset, (*env).load_context);
        go(hart, slot, budget, env);
    }
}

/// As [`load`], for a store. Its page counts as written from now on.
#[cold]
#[inline(never)]
pub(super) unsafe fn store(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, address: u64, bytes: u64) {
    // SAFETY: as in `load`.
    unsafe {
        let bus = &mut *(*env).bus;
        let offset = if address & (bytes - 1) == 0 { ram_offset(hart, bus, address, Access::Store) } else { None };
        let Some(offset) = offset.filter(|offset| bus.ram.allow_stores(*offset)) else {
            return step(hart, slot, budget, env);
        };
        if bus.ram.watches_mut().has_invalidations() {
            return look_up(hart, slot, budget, env);
        }
        (&mut (*env).stores)[translation_index(address)] = translation(address, offset, (*env).store_context);
        go(hart, slot, budget, env);
    }
}

const fn translation(address: u64, offset: usize, context: u64) -> Translation {
    let page = address & PAGE_MASK;
    Translation { tag: page | context, delta: (offset as u64).wrapping_sub(address) }
}
