//! The platform-level interrupt controller, for one hart and one source.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use riscv::register::sie;

const PRIORITY: usize = 0;
const ENABLE: usize = 0x2000;
const ENABLE_CONTEXT_STRIDE: usize = 0x80;
const CONTEXT: usize = 0x20_0000;
const CONTEXT_STRIDE: usize = 0x1000;
const CLAIM: usize = 4;

/// The claim register; null until a source is enabled.
static CLAIM_REGISTER: AtomicPtr<u32> = AtomicPtr::new(core::ptr::null_mut());
/// The source that is claimed and not completed; 0 if none is.
static CLAIMED: AtomicU32 = AtomicU32::new(0);

/// Enables interrupts of `source` for S-mode of `hart_id`.
///
/// # Safety
/// `registers` are those of a PLIC that no other code uses. Its contexts are those of the `virt`
/// board: M-mode and S-mode of each hart in turn.
pub(super) unsafe fn enable(registers: NonNull<u8>, hart_id: usize, source: u32) {
    let context = 2 * hart_id + 1;
    let source_index = source as usize;
    let register = |offset: usize| {
        // SAFETY: the registers used below are among those of a PLIC with this context and source.
        unsafe { registers.byte_add(offset) }.cast::<u32>()
    };
    let enable = register(ENABLE + context * ENABLE_CONTEXT_STRIDE + source_index / 32 * 4);
    let context_registers = CONTEXT + context * CONTEXT_STRIDE;
    // SAFETY: the caller guarantees that the registers exist and are ours.
    unsafe {
        register(PRIORITY + source_index * 4).write_volatile(1);
        enable.write_volatile(enable.read_volatile() | 1 << (source % 32));
        register(context_registers).write_volatile(0);
    }
    CLAIM_REGISTER.store(register(context_registers + CLAIM).as_ptr(), Ordering::Relaxed);
    // SAFETY: the trap handler handles external interrupts.
    unsafe { sie::set_sext() };
}

/// Handles an external interrupt: claims it, and leaves serving and completing it to the main loop.
/// Until then the controller sends no further interrupt of that source.
pub(super) fn claim() {
    let register = CLAIM_REGISTER.load(Ordering::Relaxed);
    // SAFETY: external interrupts are enabled after the register's address has been set.
    let source = unsafe { register.read_volatile() };
    if source != 0 {
        CLAIMED.store(source, Ordering::Relaxed);
    }
}

/// `true` if a claimed interrupt waits for [`complete`].
pub(super) fn has_claimed() -> bool {
    CLAIMED.load(Ordering::Relaxed) != 0
}

/// Completes the claimed interrupt; its source may interrupt again.
pub(super) fn complete() {
    let source = CLAIMED.swap(0, Ordering::Relaxed);
    if source != 0 {
        // SAFETY: an interrupt is claimed, so the claim register is set.
        unsafe { CLAIM_REGISTER.load(Ordering::Relaxed).write_volatile(source) };
    }
}
