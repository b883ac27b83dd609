//! The machine as the guests see it: start, traps, clock, console, interrupts, network device.
//!
//! One hart, physical addressing, one stack. Interrupt handlers do no more than note what has
//! happened; the main loop does the work. `unsafe` lives here (and in the `suite`), with the reason
//! at each place.

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
