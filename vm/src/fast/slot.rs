//! Slots: decoded instructions, in pages that belong to pages of RAM.

use super::dispatch;
use super::env::Env;
use crate::hart::Hart;
use crate::ram::pages::PAGE_BYTES;
use alloc::alloc::{alloc, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::NonNull;

/// The function that executes a slot: it calls the next slot's handler, or leaves in [`Env`] what
/// is to be called next.
pub(super) type Handler = unsafe fn(&mut Hart, *const Slot, i64, *mut Env);

/// A decoded instruction.
///
/// A *run* is a sequence of instructions up to and including the next branch, jump, or instruction
/// for the plain interpreter. Entering a run subtracts its length from the budget; leaving it in
/// the middle adds `run` of the slot where it is left. So counting costs one subtraction per run,
/// and the count is exact wherever it is needed.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Slot {
    pub(super) handler: Handler,
    pub(super) immediate: i32,
    /// Register number, below 32: the destination, or the second source of a store or branch.
    pub(super) a: u8,
    /// The first source.
    pub(super) b: u8,
    /// Instructions from here to the end of the run; 0 if this isn't decoded.
    pub(super) run: u16,
}

impl Slot {
    /// A slot that isn't decoded yet.
    pub(super) const UNDECODED: Self = Self { handler: dispatch::undecoded, immediate: 0, a: 0, b: 0, run: 0 };

    /// The second source register of an operation on two, which is in the immediate.
    #[inline(always)]
    pub(super) const fn second(self) -> u8 {
        self.immediate.to_le_bytes()[0]
    }

    /// The slot after the last one of a page.
    const PAGE_END: Self = Self { handler: dispatch::page_end, ..Self::UNDECODED };
}

/// Slots of a page: one for every address where an instruction can begin, a multiple of two bytes.
pub(super) const SLOTS: usize = PAGE_BYTES / 2;

/// The slots of a page of RAM, and one for what comes after it.
#[repr(C)]
pub(super) struct CodePage {
    slots: [Slot; SLOTS + 1],
    /// The page's index in RAM.
    pub(super) index: usize,
}

/// An allocated [`CodePage`]. Slots are read through pointers to it while others of it are written,
/// so there is never a reference to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodePagePtr(NonNull<CodePage>);

impl CodePagePtr {
    /// A page without a decoded slot, to be freed with [`Self::free`].
    pub(super) fn new(index: usize) -> Self {
        let layout = Layout::new::<CodePage>();
        // SAFETY: the layout's size isn't zero.
        let page = unsafe { alloc(layout) }.cast::<CodePage>();
        let Some(page) = NonNull::new(page) else { handle_alloc_error(layout) };
        // SAFETY: the memory is allocated for a `CodePage`; all of its fields are initialised here.
        unsafe {
            (&raw mut (*page.as_ptr()).index).write(index);
            let first = (&raw mut (*page.as_ptr()).slots).cast::<Slot>();
            for index in 0..SLOTS {
                first.add(index).write(Slot::UNDECODED);
            }
            first.add(SLOTS).write(Slot::PAGE_END);
        }
        Self(page)
    }

    /// The page whose first slot this is.
    pub(super) fn of(first: *const Slot) -> Self {
        Self(NonNull::new(first.cast_mut().cast()).expect("a page that is executed"))
    }

    /// Slot number `index`, at most [`SLOTS`].
    #[inline(always)]
    pub(super) fn slot(self, index: usize) -> *mut Slot {
        debug_assert!(index <= SLOTS, "a slot of the page");
        // SAFETY: `index` is within the array by what the caller promises; every caller masks or
        // bounds it.
        unsafe { self.0.as_ptr().cast::<Slot>().add(index) }
    }

    pub(super) fn index(self) -> usize {
        // SAFETY: initialised in `new`, and not freed: `free` is the owner's last use.
        unsafe { (*self.0.as_ptr()).index }
    }

    /// No slot of the page is decoded any more.
    ///
    /// # Safety
    /// The hart isn't executing decoded code.
    pub(super) unsafe fn clear(self) {
        for index in 0..SLOTS {
            // SAFETY: within the array; nobody else reads or writes slots now.
            unsafe { self.slot(index).write(Slot::UNDECODED) }
        }
    }

    /// Frees the page.
    ///
    /// # Safety
    /// Nobody uses it any more.
    pub(super) unsafe fn free(self) {
        // SAFETY: allocated in `new` with this layout, and by the caller's promise not used any
        // more.
        unsafe { dealloc(self.0.as_ptr().cast(), Layout::new::<CodePage>()) }
    }
}
