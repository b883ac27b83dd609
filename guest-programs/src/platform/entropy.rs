//! Entropy (CSR `seed` of Zkr).

use core::arch::asm;

/// The value of CSR `seed`: 16 bits of entropy in the low bits, if the hart has some.
///
/// A hart without Zkr traps.
#[must_use]
pub fn read() -> u64 {
    let seed: u64;
    // SAFETY: the read has no effect but on the hart's entropy source.
    unsafe { asm!("csrrw {seed}, 0x015, zero", seed = out(reg) seed, options(nomem, nostack)) };
    seed
}
