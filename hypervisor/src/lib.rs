//! Fault tolerance by deterministic replay: everything between the machine and the host.
//!
//! ```text
//!   host/ ──► event source ──► LogEntry ──► log (file, channel) ──► Machine
//!   Machine ──► OutputOperation ──► OutputGate ──► host/ (LAN, console)
//! ```
//!
//! [`host`] is the only module that reads clocks and entropy or opens sockets for a VM.

pub mod arbiter;
pub mod console;
pub mod distribution;
pub mod divergence;
pub mod event_source;
pub mod guest;
pub mod host;
pub mod lan;
pub mod mutation;
pub mod output_gate;
mod page_copy;
pub mod program;
pub mod record;
pub mod replay;
pub mod report;
pub mod restore;
pub mod role;
pub mod start;
pub mod trouble;
