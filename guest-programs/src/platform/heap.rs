//! The allocator: the first-fit heap of `embedded-alloc` in the memory that the linker script
//! reserves.

use core::ptr::addr_of;
use embedded_alloc::LlffHeap;

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

unsafe extern "C" {
    static __heap_start: u8;
    static __heap_end: u8;
}

/// Initialises the heap; called once, before the first allocation.
pub(super) fn init() {
    let (start, end) = (addr_of!(__heap_start).addr(), addr_of!(__heap_end).addr());
    // SAFETY: the linker script reserves this memory, and the start code calls this once.
    unsafe { HEAP.init(start, end - start) }
}
