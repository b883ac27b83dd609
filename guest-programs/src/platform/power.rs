//! Powering off.

use riscv::interrupt;
use sbi_rt::{NoReason, Shutdown, SystemFailure};

/// The result with which a guest powers off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest has done its work.
    Success,
    /// The guest can't go on.
    Failure,
}

/// Powers the machine off (SBI SRST).
pub fn power_off(outcome: Outcome) -> ! {
    match outcome {
        Outcome::Success => sbi_rt::system_reset(Shutdown, NoReason),
        Outcome::Failure => sbi_rt::system_reset(Shutdown, SystemFailure),
    };
    // The call returns only if the firmware can't power off. Then the guest stops here.
    interrupt::disable();
    loop {
        riscv::asm::wfi();
    }
}
