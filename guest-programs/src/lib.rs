//! Rust guests for the fault-tolerant machine, and what they share.
//!
//! | guest | does |
//! |---|---|
//! | `hello` | prints a few lines and powers off |
//! | `echo` | TCP and UDP echo on port 7; with the boot argument `busy` it computes instead of sleeping |
//! | `counter` | computes for ever, prints its count every second, tells it to whoever asks over UDP port 7 |
//! | `bench` | does as much work as its boot arguments say, to measure a machine by |
//! | `tally` | counts requests in raw packets; its answers show the history of the machine that gave them |
//! | `suite` | checks the machine's instruction set, traps and translation, and prints what it sees |
//!
//! The guests need an RV64IMAC hart in S-mode, SBI firmware, and QEMU's `virt` memory map as the
//! device tree tells it; they run unchanged on QEMU, which is therefore an independent oracle for
//! this project's machine.
//!
//! The logic ([`mod@bench`], [`echo`], [`counter`], [`network`], [`tally`], [`boot_arguments`],
//! [`workload`]) knows no hardware: time and device are arguments, so it is tested on the host.
//! Only `platform` and `suite` need the target.
#![no_std]

extern crate alloc;

#[cfg(test)]
extern crate std;

#[path = "../bench/mod.rs"]
pub mod bench;
pub mod boot_arguments;
pub mod counter;
pub mod echo;
pub mod network;
pub mod tally;
pub mod workload;

#[cfg(target_arch = "riscv64")]
pub mod platform;
#[cfg(target_arch = "riscv64")]
pub mod suite;

#[cfg(test)]
mod test_network;
