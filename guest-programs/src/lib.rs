//! Rust guests for the fault-tolerant machine, and the code they share.
//!
//! | guest | does |
//! |---|---|
//! | `hello` | prints a few lines and powers off |
//! | `echo` | TCP and UDP echo on port 7; with the boot argument `busy` it computes instead of sleeping |
//! | `counter` | computes for ever, prints its count every second, answers datagrams to UDP port 7 with it |
//! | `bench` | runs the benchmark that its boot arguments describe |
//! | `lock` | a lock service ([`services::lock`]) on UDP port 7 |
//! | `kv` | a key/value store ([`services::kv`]) on UDP port 7 |
//! | `tally` | counts requests in raw packets and answers each with a hash of its whole history |
//! | `suite` | checks the machine's instruction set, traps and translation, and prints the results |
//!
//! The guests need an RV64IMAC hart in S-mode, SBI firmware, and QEMU's `virt` memory map as the
//! device tree describes it. They run unchanged on QEMU, which makes it an independent oracle for
//! this project's machine. For the same reason they share no code with the machine.
//!
//! The logic ([`mod@bench`], [`echo`], [`counter`], [`network`], [`rpc_server`], [`tally`],
//! [`boot_arguments`], [`workload`]) has no access to hardware: time and device are arguments, so
//! the host can test it.
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
pub mod rpc_server;
pub mod tally;
pub mod workload;

#[cfg(target_arch = "riscv64")]
pub mod platform;
#[cfg(target_arch = "riscv64")]
pub mod suite;

#[cfg(test)]
mod test_network;
