//! The environment of handlers: cached translations, and the page of code that they execute.

use super::slot::{CodePagePtr, Slot};
use crate::bus::Bus;
use alloc::boxed::Box;
use core::ptr;

/// Why decoded code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The next run is longer than the budget.
    Budget,
    /// The next step is for the plain interpreter.
    Step,
    /// The code at pc isn't in the cache of fetches, or cached data is stale.
    Fetch,
}

/// Entries of the caches of translations for loads and for stores.
pub(super) const TRANSLATIONS: usize = 1024;

/// Entries of the cache of pages that can be jumped to directly.
pub(super) const FETCHES: usize = 256;

/// Page number bits of an address.
pub(super) const PAGE_MASK: u64 = !0xfff;

/// A cached translation of a page.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Translation {
    /// The page's virtual address, and the context it is valid in. No context is 0.
    pub(super) tag: u64,
    /// Added to a virtual address, wrapping, it gives the offset in RAM.
    pub(super) delta: u64,
}

impl Translation {
    /// No context is 0.
    pub(super) const EMPTY: Self = Self { tag: 0, delta: 0 };
}

/// A cached page of code that can be jumped to.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    /// As in [`Translation`].
    pub(super) tag: u64,
    pub(super) page: Option<CodePagePtr>,
}

impl Fetch {
    pub(super) const EMPTY: Self = Self { tag: 0, page: None };
}

/// State shared by the running handlers. It is accessed through pointers only.
#[repr(C)]
pub(super) struct Env {
    /// Where RAM begins; valid while handlers run.
    pub(super) ram: *mut u8,
    /// The virtual address of the page of code that is executed.
    pub(super) page_address: u64,
    /// Its slots.
    pub(super) page_slots: *const Slot,
    pub(super) load_context: u64,
    pub(super) store_context: u64,
    pub(super) fetch_context: u64,
    /// Valid while handlers run.
    pub(super) bus: *mut Bus,
    /// The next slot to execute if handlers don't call each other; null if decoded code was left.
    pub(super) next: *const Slot,
    /// Steps left in the budget, when handlers return.
    pub(super) budget: i64,
    pub(super) left: Left,
    pub(super) loads: [Translation; TRANSLATIONS],
    pub(super) stores: [Translation; TRANSLATIONS],
    pub(super) fetches: [Fetch; FETCHES],
}

/// The cache entry for the translation of `address`.
#[inline(always)]
pub(super) const fn translation_index(address: u64) -> usize {
    (address >> 12) as usize % TRANSLATIONS
}

/// The cache entry for the page of code at `address`.
#[inline(always)]
pub(super) const fn fetch_index(address: u64) -> usize {
    (address >> 12) as usize % FETCHES
}

impl Env {
    /// An environment with empty caches.
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            ram: ptr::null_mut(),
            page_address: 0,
            page_slots: ptr::null(),
            load_context: 0,
            store_context: 0,
            fetch_context: 0,
            bus: ptr::null_mut(),
            next: ptr::null(),
            budget: 0,
            left: Left::Step,
            loads: [Translation::EMPTY; TRANSLATIONS],
            stores: [Translation::EMPTY; TRANSLATIONS],
            fetches: [Fetch::EMPTY; FETCHES],
        })
    }

    /// Ends the execution of decoded code.
    pub(super) const fn leave(&mut self, budget: i64, left: Left) {
        self.next = ptr::null();
        self.budget = budget;
        self.left = left;
    }
}
