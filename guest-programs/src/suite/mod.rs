//! Self-checking tests of an RV64IMAC hart in S-mode and U-mode.
//!
//! The output is the same on every correct machine, so that two machines can be compared by it:
//! results are compared with models in Rust where there is one, and are summed up in checksums that
//! are printed. What correct machines may do differently is left out: `misa`, clocks and counters,
//! `stval` of an illegal instruction or a breakpoint, misaligned AMOs, pages whose accessed or
//! dirty bit isn't set, the floating-point bits of `sstatus`. Known errors of QEMU 7.2 are left out
//! too: bit 0 of `sepc` stays set there, and an AMO's fault has the cause of a load's.

mod arithmetic;
mod atomics;
mod checker;
mod compressed;
mod csr;
mod memory;
mod paging;
mod probe;
mod random_programs;
mod traps;

use crate::println;
use checker::Checker;

type Section = fn(&mut Checker);

/// Runs all sections; returns `true` if no check failed.
pub fn run() -> bool {
    probe::install();
    let sections: [(&'static str, Section); 8] = [
        ("arithmetic", arithmetic::run),
        ("compressed", compressed::run),
        ("memory", memory::run),
        ("atomics", atomics::run),
        ("csr", csr::run),
        ("traps", traps::run),
        ("paging", paging::run),
        ("random programs", random_programs::run),
    ];
    let (mut checks, mut failures) = (0, 0);
    for (name, section) in sections {
        let mut checker = Checker::new(name);
        section(&mut checker);
        println!("{checker}");
        checks += checker.checks();
        failures += checker.failures();
    }
    println!("suite: {} ({checks} checks, {failures} failures)", if failures == 0 { "passed" } else { "FAILED" });
    failures == 0
}
