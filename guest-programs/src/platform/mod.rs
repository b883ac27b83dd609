//! The machine as the guests see it: start, traps, clock, console, interrupts, network device.
//!
//! One hart, physical addresses, one stack. Interrupt handlers only note the interrupt; the main
//! loop does the work. `unsafe` is used here and in the `suite` only, each time with its reason.

pub mod clock;
pub mod console;
pub mod device_tree;
pub mod entropy;
mod heap;
pub mod nic;
pub mod paging;
mod plic;
pub mod power;
mod runtime;
mod start;
pub mod trap;

pub use clock::Clock;
pub use device_tree::{DeviceTree, Node};
pub use nic::Nic;
pub use runtime::{Program, run, run_program};
pub use start::Boot;
