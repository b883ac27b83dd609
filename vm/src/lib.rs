//! A deterministic uniprocessor RV64 machine.
//!
//! The machine is a pure function of its image and of the [`Event`]s applied to it: the same image
//! with the same events at the same [`InstructionCount`]s gives the same state and the same
//! [`OutputOperation`]s, on every host.
//!
//! What is deliberately absent: clocks, sockets, files, threads, and every other way to reach the
//! host. The crate is `no_std`, so the compiler is the reviewer of that rule.
//!
//! ```text
//!   Event ──► Machine::apply ──► hart · bus · devices ──► Machine::take_output ──► OutputOperation
//!                                   Machine::run ──► Exit
//! ```
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod behaviour;
mod boot;
mod bus;
mod config;
mod count;
mod device;
mod digest;
mod event;
mod exit;
#[expect(unsafe_code, reason = "its module documentation says what for")]
mod fast;
mod fault;
mod hart;
mod inspect;
mod isa;
mod machine;
mod output;
mod probe;
mod ram;
mod snapshot;
mod state;

pub use behaviour::{BehaviourVersion, OtherBehaviour};
pub use boot::image::{Image, ImageError};
pub use boot::loader::{DISK_BYTES_MAX, LoadError};
pub use config::{BootMode, MachineConfig, TIMEBASE_HZ};
pub use count::InstructionCount;
pub use digest::StateDigest;
pub use event::{
    CONSOLE_BYTES_MAX, Event, OutputId, OutputOperation, PACKET_BYTES_MAX, PACKET_BYTES_MIN, RANDOM_BYTES_MAX,
};
pub use exit::{Exit, FirstTrap, HaltReason, Lack, StopReason};
pub use fault::{DeviceFault, VirtioDevice};
pub use machine::{ApplyError, DroppedPackets, Machine};
pub use probe::{Hit, HitKind, Probe, Writer};
pub use ram::pages::{PAGE_BYTES, PageCopy, PageRange};
pub use snapshot::{Restoration, STATE_BYTES_MAX};
pub use state::RestoreError;
