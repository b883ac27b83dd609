//! A decoded instruction, and the page of them that belongs to a page of RAM.

use super::dispatch;
use super::env::Env;
use crate::hart::Hart;
use crate::ram::pages::PAGE_BYTES;
use alloc::alloc::{alloc, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::NonNull;

/// What executes a slot: it moves on to the next slot's handler by itself, or says in [`Env`] what
/// is to be called next.
pub(super) type Handler = unsafe fn(&mut Hart, *const Slot, i64, *mut Env);

/// A decoded instruction.
///
/// A *run* is a sequence of instructions up to and including the next that may go elsewhere.
/// Whoever enters one pays for all of it, and whoever leaves it in the middle gets back what is in
/// `run` where it leaves. So counting costs one subtraction per run, and the count is exact
/// wherever it is asked for.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Slot {
    pub(super) handler: Handler,
    pub(super) immediate: i32,
    /// Register numbers, below 32: the destination, or what is stored or compared last.
    pub(super) a: u8,
    /// The first source.
    pub(super) b: u8,
    /// Instructions from here to the end of the run; 0 if this isn't decoded.
    pub(super) run: u16,
}

impl Slot {
    /// Not decoded yet.
    pub(super) const UNDECODED: Self = Self { handler: dispatch::undecoded, immediate: 0, a: 0, b: 0, run: 0 };

    /// The second source register of an operation on two, which is in the immediate.
    #[inline(always)]
    pub(super) const fn second(self) -> u8 {
        self.immediate.to_le_bytes()[0]
    }

    /// What follows the last instruction of a page.
    const PAGE_END: Self = Self { handler: dispatch::page_end, ..Self::UNDECODED };
}

/// A slot for every place where an instruction can begin: instructions are a multiple of two bytes
/// long.
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
            for place in 0..SLOTS {
                first.add(place).write(Slot::UNDECODED);
            }
            first.add(SLOTS).write(Slot::PAGE_END);
        }
        Self(page)
    }

    /// The page whose first slot this is.
    pub(super) fn of(first: *const Slot) -> Self {
        Self(NonNull::new(first.cast_mut().cast()).expect("a page that is executed"))
    }

    /// Slot number `place`, at most [`SLOTS`].
    #[inline(always)]
    pub(super) fn slot(self, place: usize) -> *mut Slot {
        debug_assert!(place <= SLOTS, "a place in a page");
        // SAFETY: `place` is within the array by what the caller promises; every caller masks or
        // bounds it.
        unsafe { self.0.as_ptr().cast::<Slot>().add(place) }
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
        for place in 0..SLOTS {
            // SAFETY: within the array; nobody else reads or writes slots now.
            unsafe { self.slot(place).write(Slot::UNDECODED) }
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
