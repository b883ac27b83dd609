//! The fast path: decoded instructions and cached translations.
//!
//! ```text
//!   Machine::run ─► Fast::run ─► handler ─► handler ─► … ─► Left::Step: one Hart::step, and again
//!                      │            └─ a translation that isn't cached: walk, cache, go on
//!                      └─ looks up the page of code at pc, decodes runs as they are reached
//! ```
//!
//! Everything here is a cache. The plain interpreter ([`Hart::step`], which decodes at every step
//! and walks the page tables at every access) defines what the machine does; this module does the
//! same, faster, for common instructions, and leaves the others to it. [`crate::ram::watch`] makes
//! that exact: what was derived from a page of RAM is dropped when the page is written, before the
//! next instruction. So state, snapshots and digests don't know this module, `sfence.vma` and
//! `fence.i` have nothing to do, and a machine that was restored elsewhere, with empty caches, goes
//! on exactly alike.
//!
//! The `unsafe` code here relies on:
//!
//! - a [`slot::Slot`] holds register numbers below 32, and its handler goes to slots of the same
//!   page only;
//! - a cached translation leads to a whole page within RAM, and RAM's memory is not moved
//!   ([`crate::ram`]'s allocation);
//! - pages of slots are cleared and freed only while no handler runs;
//! - the bus is used through [`env::Env::bus`] alone while handlers run;
//! - all runs are on RAM of one size, and stale data is dropped before handlers run.

mod access;
mod code;
mod context;
mod dispatch;
mod ends;
mod env;
mod fusion;
mod operations;
mod predecode;
mod refill;
mod slot;
#[cfg(test)]
mod tests;
mod walk;

use crate::bus::Bus;
use crate::hart::Hart;
use crate::hart::mmu::Access;
use crate::ram::pages::PAGE_BYTES;
use alloc::boxed::Box;
use code::Code;
use context::{Circumstances, Contexts};
use core::fmt;
use core::ptr::NonNull;
pub(crate) use env::Left;
use env::{Env, Fetch, PAGE_MASK, fetch_index};

/// The most steps of one run; a budget is signed.
const STEPS_MAX: u64 = 1 << 40;

/// The caches of the fast interpreter. Nothing in it is state of the machine.
pub(crate) struct Fast {
    /// `None` until the first run. It is accessed through this pointer only.
    env: Option<NonNull<Env>>,
    code: Code,
    contexts: Contexts,
}

// SAFETY: everything that is pointed to belongs to this value alone, but for the bus, which is set
// anew for every run.
unsafe impl Send for Fast {}

// SAFETY: nothing can be done through a shared reference.
unsafe impl Sync for Fast {}

impl Fast {
    /// Empty caches.
    pub(crate) const fn new() -> Self {
        Self { env: None, code: Code::new(), contexts: Contexts::new() }
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        if let Some(env) = self.env {
            // SAFETY: made by `Box::leak`, and nobody uses it any more.
            drop(unsafe { Box::from_raw(env.as_ptr()) });
        }
    }
}

impl fmt::Debug for Fast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fast").finish_non_exhaustive()
    }
}

impl Fast {
    /// Executes decoded instructions until the count is `until` at most, and says why it went no
    /// further. Unless the count is `until`, the next step is for the plain interpreter
    /// ([`Hart::step`]).
    pub(crate) fn run(&mut self, hart: &mut Hart, bus: &mut Bus, until: u64) -> Left {
        if hart.deliverable_interrupt().is_some() {
            return Left::Step;
        }
        let env = self.prepare(hart, bus);
        while hart.count < until {
            if !self.look_up_code(hart, bus, env) {
                return Left::Step;
            }
            // The page tables that the code was found by may be in pages that stores are cached to.
            self.drop_stale(bus, env);
            let steps = (until - hart.count).min(STEPS_MAX).cast_signed();
            // SAFETY: `prepare` has dropped what isn't right any more; the code at pc has been
            // looked up.
            let left = unsafe {
                (*env).bus = bus;
                let slot = (*env).page_slots.add((hart.pc & !PAGE_MASK) as usize / 2);
                dispatch::enter(hart, slot, steps, env);
                while !(*env).next.is_null() {
                    ((*(*env).next).handler)(hart, (*env).next, (*env).budget, env);
                }
                hart.count += (steps - (*env).budget).cast_unsigned();
                (*env).left
            };
            if left != Left::Fetch {
                return left;
            }
            self.drop_stale(bus, env);
        }
        Left::Budget
    }

    /// Prepares the environment of handlers for this hart and bus, without stale data in it.
    fn prepare(&mut self, hart: &Hart, bus: &mut Bus) -> *mut Env {
        let ram_pages = bus.ram.memory_mut().len() / PAGE_BYTES;
        let env = match self.env {
            Some(env) => env.as_ptr(),
            None => {
                let env = NonNull::from(Box::leak(Env::new()));
                self.env = Some(env);
                self.code.set_ram_pages(ram_pages);
                env.as_ptr()
            }
        };
        assert_eq!(self.code.ram_pages(), ram_pages, "the caches belong to the RAM of one machine");
        // SAFETY: no handler runs, and nobody else has a reference to it.
        unsafe { (*env).ram = bus.ram.memory_mut().base_ptr() }
        self.drop_stale(bus, env);
        let now = Circumstances::of(hart);
        // SAFETY: as above.
        self.contexts.select(now, unsafe { &mut *env });
        env
    }

    /// Drops cached data that has become stale since the last call.
    fn drop_stale(&mut self, bus: &mut Bus, env: *mut Env) {
        if !bus.ram.watches_mut().has_invalidations() {
            return;
        }
        let invalidations = bus.ram.watches_mut().take_invalidations();
        while let Some(page) = bus.ram.watches_mut().take_changed_code() {
            // SAFETY: no handler runs.
            unsafe { self.code.clear(page) }
        }
        // SAFETY: as in `prepare`.
        let env = unsafe { &mut *env };
        if invalidations.tables {
            self.contexts.forget(env);
        } else if invalidations.stores {
            self.contexts.forget_stores(env);
        }
    }

    /// Selects the page of code at pc for execution. `false` if the plain interpreter has to fetch
    /// from there.
    fn look_up_code(&mut self, hart: &Hart, bus: &mut Bus, env: *mut Env) -> bool {
        // SAFETY: as in `prepare`.
        let env = unsafe { &mut *env };
        let page_address = hart.pc & PAGE_MASK;
        let fetch = env.fetches[fetch_index(hart.pc)];
        let tag = page_address | env.fetch_context;
        let page = if fetch.tag == tag { fetch.page } else { None };
        let page = match page {
            Some(page) => page,
            None => {
                let Some(offset) = walk::ram_offset(hart, bus, hart.pc, Access::Fetch) else { return false };
                let Some(page) = self.code.page(offset / PAGE_BYTES) else {
                    // SAFETY: no handler runs, and no page is known any more.
                    unsafe { self.code.drop_all() }
                    bus.ram.watches_mut().forget_code();
                    self.contexts.forget(env);
                    return false;
                };
                env.fetches[fetch_index(hart.pc)] = Fetch { tag, page: Some(page) };
                page
            }
        };
        env.page_address = page_address;
        env.page_slots = page.slot(0);
        true
    }
}
