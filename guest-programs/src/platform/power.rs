//! The guest's end.

use riscv::interrupt;
use sbi_rt::{NoReason, Shutdown, SystemFailure};

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has done what it was for.
    Success,
    /// It can't go on.
    Failure,
}

/// Powers the machine off (SBI SRST).
pub fn power_off(outcome: Outcome) -> ! {
    match outcome {
        Outcome::Success => sbi_rt::system_reset(Shutdown, NoReason),
        Outcome::Failure => sbi_rt::system_reset(Shutdown, SystemFailure),
    };
    // The call returns only if the firmware can't power off; then there's nothing left to do but to
    // stand still.
    interrupt::disable();
    loop {
        riscv::asm::wfi();
    }
}
