//! Fault tolerance by deterministic replay: all that decides what a fault-tolerant VM does, and
//! nothing that knows a host.
//!
//! ```text
//!   EventSource ──► Recorder ──► LogEntry ──► LogSink (PrimaryRole, a file) ──► apply ──► Machine
//!   LogEntry ──► Replayer ──► apply ──► Machine          Machine ──► OutputOperation ──► OutputGate
//! ```
//! Time, messages and the arbiter's answers come in as arguments; messages, outputs and requests
//! come out by polling. The compiler checks that nothing here reaches a host: the crate compiles
//! for a machine without an operating system.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "mutations"))]
extern crate std;

pub mod apply;
pub mod claim;
pub mod divergence;
pub mod event_source;
pub mod guest_clock;
pub mod mutation;
pub mod output_gate;
pub mod page_copy;
pub mod record;
pub mod replay;
pub mod role;
pub mod start;
pub mod trouble;
