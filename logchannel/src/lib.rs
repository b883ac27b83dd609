//! Log entries, their codec and framing, the log file, and the acknowledged stream.
//!
//! Knows the machine's events; knows no role. Only `file` knows a host: without the feature `std`
//! the crate compiles for a machine without an operating system. See `FORMAT.md` for the byte
//! tables.
//!
//! ```text
//!   LogEntry ──► codec (deltas) ──► frame (length, CRC) ──► file   LogWriter, LogReader
//!                                                      └──► stream LogSender, LogReceiver, Message
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod codec;
pub mod entry;
#[cfg(feature = "std")]
pub mod file;
pub mod frame;
pub mod message;
pub mod session;
pub mod snapshot;
pub mod stream;
