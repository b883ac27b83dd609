//! The allocation of RAM.
//!
//! A `Vec` doesn't do, because the fast path caches pointers into RAM, and every `&mut` to a
//! `Vec`'s contents invalidates the pointers made before. Here all access goes through one pointer,
//! made when the memory was allocated.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::slice;

/// Enough for every aligned guest access to be aligned on the host. Not more: for a greater
/// alignment the host's allocator writes zeros to all of the memory.
const ALIGNMENT: usize = 16;

/// Zeroed memory of a fixed size.
pub(crate) struct Memory {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone; the pointer is not shared.
unsafe impl Send for Memory {}

// SAFETY: through a shared reference the memory is only read; `base_ptr`'s users have to have a
// mutable one.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zero bytes, at least one.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        assert!(bytes > 0, "memory has at least one byte");
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size isn't zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, bytes }
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(crate) const fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes from `base` on are allocated and initialised, and nobody writes
        // them while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }

    #[inline]
    pub(crate) const fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else reads or writes them while `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }

    /// A pointer to its beginning. Its user must have the only reference to this value.
    pub(crate) const fn base_ptr(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT).expect("RAM is far smaller than the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, and not freed before.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.bytes)) }
    }
}
