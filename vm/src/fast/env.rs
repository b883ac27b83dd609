//! What handlers need beside the hart: cached translations, and where the code is that they
//! execute.

use super::slot::{CodePagePtr, Slot};
use crate::bus::Bus;
use alloc::boxed::Box;
use core::ptr;

/// Why the hart left decoded code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The next run is longer than the budget.
    Budget,
    /// The instruction at pc is for the plain interpreter.
    Step,
    /// The code at pc isn't known to be mapped.
    Fetch,
}

/// How many translations are cached for loads, and for stores.
pub(super) const TRANSLATIONS: usize = 1024;

/// How many pages of code can be jumped to directly.
pub(super) const FETCHES: usize = 256;

/// Page number bits of an address.
pub(super) const PAGE_MASK: u64 = !0xfff;

/// A cached translation of a page.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Translation {
    /// The page's virtual address, and the context it is valid in. No context is 0.
    pub(super) tag: u64,
    /// From a virtual address to its offset in RAM, wrapping.
    pub(super) delta: u64,
}

impl Translation {
    /// No context is 0.
    pub(super) const EMPTY: Self = Self { tag: 0, delta: 0 };
}

/// A page of code that can be jumped to.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    /// As in [`Translation`].
    pub(super) tag: u64,
    pub(super) page: Option<CodePagePtr>,
}

impl Fetch {
    pub(super) const EMPTY: Self = Self { tag: 0, page: None };
}

/// What the running handlers share. It is reached by pointer only.
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
    /// The slot to be executed, if handlers don't call each other; null if the hart has left
    /// decoded code.
    pub(super) next: *const Slot,
    /// How many more steps may be executed, when handlers return.
    pub(super) budget: i64,
    pub(super) left: Left,
    pub(super) loads: [Translation; TRANSLATIONS],
    pub(super) stores: [Translation; TRANSLATIONS],
    pub(super) fetches: [Fetch; FETCHES],
}

/// Where the translation of `address` is, if it is cached.
#[inline(always)]
pub(super) const fn translation_index(address: u64) -> usize {
    (address >> 12) as usize % TRANSLATIONS
}

/// Where the code page of `address` is, if it is cached.
#[inline(always)]
pub(super) const fn fetch_index(address: u64) -> usize {
    (address >> 12) as usize % FETCHES
}

impl Env {
    /// With nothing cached.
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

    /// The hart leaves decoded code.
    pub(super) const fn leave(&mut self, budget: i64, left: Left) {
        self.next = ptr::null();
        self.budget = budget;
        self.left = left;
    }
}
