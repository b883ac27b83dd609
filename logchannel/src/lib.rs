//! Log entries, their codec and framing, the log file, and the acknowledged stream.
//!
//! Knows the machine's events; knows no role. See `FORMAT.md` for the byte tables.
//!
//! ```text
//!   LogEntry ──► codec (deltas) ──► frame (length, CRC) ──► file   LogWriter, LogReader
//!                                                      └──► stream LogSender, LogReceiver, Message
//! ```
#![forbid(unsafe_code)]

pub mod codec;
pub mod entry;
pub mod file;
pub mod frame;
pub mod message;
pub mod session;
pub mod snapshot;
pub mod stream;
