//! Traps: interrupts of devices go to their drivers, all others to the guest's handler.

use super::{clock, plic};
use core::arch::global_asm;
use core::sync::atomic::{AtomicPtr, Ordering};
use riscv::register::{scause, stval, stvec};

/// The bit of `scause` that tells an interrupt from an exception.
pub const INTERRUPT_BIT: usize = 1 << (usize::BITS - 1);
const SUPERVISOR_TIMER: usize = INTERRUPT_BIT | 5;
const SUPERVISOR_EXTERNAL: usize = INTERRUPT_BIT | 9;

/// The interrupted code's registers. A handler's changes take effect on return.
#[derive(Debug)]
#[repr(C)]
pub struct TrapFrame {
    /// x1 to x31: `registers[0]` is x1.
    pub registers: [usize; 31],
    /// The address at which execution goes on.
    pub sepc: usize,
    /// The mode, and the interrupt enable, with which execution goes on.
    pub sstatus: usize,
}

/// Cause and value of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// `scause`.
    pub cause: usize,
    /// `stval`.
    pub value: usize,
}

/// Handles a trap by changing the frame. Without a change the interrupted instruction is executed
/// again.
pub type TrapHandler = fn(&mut TrapFrame, Trap);

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the handler of all traps that aren't a device's interrupt. Without a handler such a trap is
/// a panic.
pub fn set_handler(handler: TrapHandler) {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
}

/// Points the hart's trap vector here.
pub(super) fn install() {
    let vector = stvec::Stvec::new(trap_vector as *const () as usize, stvec::TrapMode::Direct);
    // SAFETY: the vector saves all of the interrupted code's registers and restores them.
    unsafe { stvec::write(vector) };
}

unsafe extern "C" {
    fn trap_vector();
}

// The frame is pushed onto the interrupted code's stack, in U-mode too, because these guests have
// one stack only. All registers are saved, not only those that a call may change, so that a handler
// can read and change any of them.
global_asm!(
    ".pushsection .text.trap, \"ax\", @progbits",
    ".balign 4",
    ".global trap_vector",
    "trap_vector:",
    "    addi sp, sp, -{frame_bytes}",
    "    sd ra, 0*8(sp)",
    "    sd gp, 2*8(sp)",
    "    sd tp, 3*8(sp)",
    "    sd t0, 4*8(sp)",
    "    sd t1, 5*8(sp)",
    "    sd t2, 6*8(sp)",
    "    sd s0, 7*8(sp)",
    "    sd s1, 8*8(sp)",
    "    sd a0, 9*8(sp)",
    "    sd a1, 10*8(sp)",
    "    sd a2, 11*8(sp)",
    "    sd a3, 12*8(sp)",
    "    sd a4, 13*8(sp)",
    "    sd a5, 14*8(sp)",
    "    sd a6, 15*8(sp)",
    "    sd a7, 16*8(sp)",
    "    sd s2, 17*8(sp)",
    "    sd s3, 18*8(sp)",
    "    sd s4, 19*8(sp)",
    "    sd s5, 20*8(sp)",
    "    sd s6, 21*8(sp)",
    "    sd s7, 22*8(sp)",
    "    sd s8, 23*8(sp)",
    "    sd s9, 24*8(sp)",
    "    sd s10, 25*8(sp)",
    "    sd s11, 26*8(sp)",
    "    sd t3, 27*8(sp)",
    "    sd t4, 28*8(sp)",
    "    sd t5, 29*8(sp)",
    "    sd t6, 30*8(sp)",
    "    addi t0, sp, {frame_bytes}",
    "    sd t0, 1*8(sp)",
    "    csrr t0, sepc",
    "    sd t0, 31*8(sp)",
    "    csrr t0, sstatus",
    "    sd t0, 32*8(sp)",
    "    mv a0, sp",
    "    call {handle_trap}",
    "    ld t0, 32*8(sp)",
    "    csrw sstatus, t0",
    "    ld t0, 31*8(sp)",
    "    csrw sepc, t0",
    "    ld ra, 0*8(sp)",
    "    ld gp, 2*8(sp)",
    "    ld tp, 3*8(sp)",
    "    ld t0, 4*8(sp)",
    "    ld t1, 5*8(sp)",
    "    ld t2, 6*8(sp)",
    "    ld s0, 7*8(sp)",
    "    ld s1, 8*8(sp)",
    "    ld a0, 9*8(sp)",
    "    ld a1, 10*8(sp)",
    "    ld a2, 11*8(sp)",
    "    ld a3, 12*8(sp)",
    "    ld a4, 13*8(sp)",
    "    ld a5, 14*8(sp)",
    "    ld a6, 15*8(sp)",
    "    ld a7, 16*8(sp)",
    "    ld s2, 17*8(sp)",
    "    ld s3, 18*8(sp)",
    "    ld s4, 19*8(sp)",
    "    ld s5, 20*8(sp)",
    "    ld s6, 21*8(sp)",
    "    ld s7, 22*8(sp)",
    "    ld s8, 23*8(sp)",
    "    ld s9, 24*8(sp)",
    "    ld s10, 25*8(sp)",
    "    ld s11, 26*8(sp)",
    "    ld t3, 27*8(sp)",
    "    ld t4, 28*8(sp)",
    "    ld t5, 29*8(sp)",
    "    ld t6, 30*8(sp)",
    "    ld sp, 1*8(sp)",
    "    sret",
    ".popsection",
    frame_bytes = const FRAME_BYTES,
    handle_trap = sym handle_trap,
);

/// The frame's size, rounded up to the stack's alignment.
const FRAME_BYTES: usize = size_of::<TrapFrame>().next_multiple_of(16);

extern "C" fn handle_trap(frame: &mut TrapFrame) {
    match scause::read().bits() {
        SUPERVISOR_TIMER => clock::tick(),
        SUPERVISOR_EXTERNAL => plic::claim(),
        cause => handle_other(frame, Trap { cause, value: stval::read() }),
    }
}

fn handle_other(frame: &mut TrapFrame, trap: Trap) {
    let handler = HANDLER.load(Ordering::Relaxed);
    assert!(!handler.is_null(), "trap: scause {:#x} stval {:#x} sepc {:#x}", trap.cause, trap.value, frame.sepc);
    // SAFETY: a value that isn't null was stored by `set_handler` as a `TrapHandler`.
    let handler = unsafe { core::mem::transmute::<*mut (), TrapHandler>(handler) };
    handler(frame, trap);
}
