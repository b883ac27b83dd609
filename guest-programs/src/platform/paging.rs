//! Identity translation and the tick: a program runs under the same load as one under an operating
//! system.

use super::{Boot, Clock};
use core::arch::asm;
use core::ptr::addr_of;
use riscv::interrupt;

const PAGE_BYTES: usize = 4096;
const ENTRIES: usize = 512;
const SV39: usize = 8 << 60;

const VALID: usize = 1;
/// Flags of a leaf: read, write and execute, and accessed and dirty, which a hart may set or leave
/// to a fault.
const LEAF: usize = 7 << 1 | 3 << 6;

/// The gibibyte in which RAM begins, and the image's offset in it.
const RAM: usize = 0x8000_0000;
const LARGE_PAGE_BYTES: usize = ENTRIES * PAGE_BYTES;
/// Large pages of RAM that are mapped: more than the firmware's memory and the image.
const LARGE_PAGES: usize = 8;

#[repr(align(4096))]
struct Table([usize; ENTRIES]);

static mut ROOT: Table = Table([0; ENTRIES]);
static mut MIDDLE: Table = Table([0; ENTRIES]);
static mut LEAVES: [Table; LARGE_PAGES] = [const { Table([0; ENTRIES]) }; LARGE_PAGES];

unsafe extern "C" {
    static __heap_end: u8;
}

/// Maps the image, its stack and its heap to themselves with 4 KiB pages, and starts the tick.
///
/// The device tree can't be read afterwards. Returns `false`, without an effect, if the hart has no
/// Sv39.
///
/// # Panics
/// If the image is larger than what is mapped, or the device tree has no clock.
#[must_use]
pub fn start(boot: &Boot) -> bool {
    assert!(addr_of!(__heap_end).addr() <= RAM + LARGE_PAGES * LARGE_PAGE_BYTES, "the image is larger than its tables");
    let timebase_hz = boot.device_tree.timebase_hz().expect("the device tree tells the clock's frequency");
    // SAFETY: nothing else uses the tables, and this runs once, on the only hart.
    unsafe {
        ROOT.0[RAM >> 30] = pointer(addr_of!(MIDDLE).addr());
        for table in 0..LARGE_PAGES {
            MIDDLE.0[table] = pointer(addr_of!(LEAVES).addr() + table * PAGE_BYTES);
        }
        for page in 0..LARGE_PAGES * ENTRIES {
            LEAVES[page / ENTRIES].0[page % ENTRIES] = pointer(RAM + page * PAGE_BYTES) | LEAF;
        }
    }
    let satp = SV39 | (addr_of!(ROOT).addr() / PAGE_BYTES);
    let found: usize;
    // SAFETY: all that the guest uses has the same address with translation and without.
    unsafe {
        asm!("csrw satp, {satp}", "sfence.vma", "csrr {found}, satp", satp = in(reg) satp, found = out(reg) found);
    };
    if found != satp {
        return false;
    }
    let _ = Clock::start(timebase_hz);
    // SAFETY: the trap handler handles timer interrupts.
    unsafe { interrupt::enable() };
    true
}

/// An entry for the table or the page at `physical`.
const fn pointer(physical: usize) -> usize {
    (physical / PAGE_BYTES) << 10 | VALID
}
