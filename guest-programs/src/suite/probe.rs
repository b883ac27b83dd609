//! Probes: execute one instruction and return the trap that it took, if any.

use crate::platform::trap::{self, INTERRUPT_BIT, Trap, TrapFrame};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use riscv::register::sip;

/// `sstatus.SPP`: the trap came from S-mode.
const PREVIOUS_SUPERVISOR: usize = 1 << 8;
/// Index of x31 (t6) in a trap frame.
const T6: usize = 30;

static TAKEN: AtomicBool = AtomicBool::new(false);
static CAUSE: AtomicUsize = AtomicUsize::new(0);
static VALUE: AtomicUsize = AtomicUsize::new(0);
static PROGRAM_COUNTER: AtomicUsize = AtomicUsize::new(0);
static FROM_SUPERVISOR: AtomicBool = AtomicBool::new(false);

/// A trap that an instruction took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `scause`.
    pub(super) cause: usize,
    /// `stval`.
    pub(super) value: usize,
    /// `sepc`.
    pub(super) program_counter: usize,
    /// `sstatus.SPP`: `true` if the trap came from S-mode.
    pub(super) from_supervisor: bool,
}

/// Installs a handler that notes each trap and goes on in S-mode at the address in t6.
pub(super) fn install() {
    trap::set_handler(note);
}

/// The trap that was noted since the last call.
pub(super) fn take() -> Option<Seen> {
    TAKEN.swap(false, Ordering::Relaxed).then(|| Seen {
        cause: CAUSE.load(Ordering::Relaxed),
        value: VALUE.load(Ordering::Relaxed),
        program_counter: PROGRAM_COUNTER.load(Ordering::Relaxed),
        from_supervisor: FROM_SUPERVISOR.load(Ordering::Relaxed),
    })
}

fn note(frame: &mut TrapFrame, trap: Trap) {
    CAUSE.store(trap.cause, Ordering::Relaxed);
    VALUE.store(trap.value, Ordering::Relaxed);
    PROGRAM_COUNTER.store(frame.sepc, Ordering::Relaxed);
    FROM_SUPERVISOR.store(frame.sstatus & PREVIOUS_SUPERVISOR != 0, Ordering::Relaxed);
    TAKEN.store(true, Ordering::Relaxed);
    if trap.cause & INTERRUPT_BIT != 0 {
        // SAFETY: this is the only interrupt that the suite raises, and it is noted now.
        unsafe { sip::clear_ssoft() };
    }
    frame.sepc = frame.registers[T6];
    frame.sstatus |= PREVIOUS_SUPERVISOR;
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.from_supervisor { 'S' } else { 'U' };
        if self.cause & INTERRUPT_BIT == 0 {
            write!(f, "exception {} from {mode}", self.cause)
        } else {
            write!(f, "interrupt {} from {mode}", self.cause & !INTERRUPT_BIT)
        }
    }
}

/// Executes an instruction; returns its address and the trap that it took. The instruction may use
/// `a0`.
macro_rules! probe {
    ($instruction:expr) => {
        $crate::suite::probe::probe!($instruction, 0_usize)
    };
    ($instruction:expr, $a0:expr) => {{
        let address: usize;
        // SAFETY: if the instruction traps, the handler goes on at label 2; all registers that it
        // may change are declared.
        unsafe {
            core::arch::asm!(
                "la t6, 2f", "la t5, 1f", "1:", $instruction, "2:",
                out("t5") address, inout("a0") $a0 => _, out("t6") _, clobber_abi("C"),
            );
        }
        (address, $crate::suite::probe::take())
    }};
}
pub(super) use probe;

/// Like [`probe`], in U-mode. If the instruction takes no trap, the breakpoint after it does.
macro_rules! probe_user {
    ($instruction:expr) => {{
        let address: usize;
        // SAFETY: the handler goes on at label 2, in S-mode; all registers that may change are
        // declared.
        unsafe {
            core::arch::asm!(
                "la t6, 2f", "la t5, 1f", "csrw sepc, t5",
                "li t4, 0x120", "csrc sstatus, t4", // clears SPP and SPIE: to U-mode, without interrupts
                "sret",
                "1:", $instruction, "ebreak", "2:",
                out("t4") _, out("t5") address, out("t6") _, clobber_abi("C"),
            );
        }
        (address, $crate::suite::probe::take())
    }};
}
pub(super) use probe_user;
