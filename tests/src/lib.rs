//! The harness of the end-to-end tests: the real programs as processes, the connections between
//! them, and their clients.
//!
//! Every process is ended when its handle is dropped, every directory is removed, and all traffic
//! stays on the loopback interface or in a network namespace.

pub mod client;
pub mod etcd;
pub mod http_proxy;
pub mod link;
pub mod linux;
pub mod model;
pub mod netns;
pub mod qemu;
pub mod random;
pub mod redis;
pub mod sim;
pub mod stage;
pub mod terminal;
pub mod timer_guest;

pub use hypervisor::program::site::executable::Executable;

/// The executable that runs every program under its name. Only integration tests know its path.
#[macro_export]
macro_rules! programs {
    () => {
        $crate::Executable::at(env!("CARGO_BIN_EXE_ft-programs"))
    };
}
