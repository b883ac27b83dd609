//! The log as a file: self-contained, readable up to wherever it was cut.
//!
//! ```text
//!   [magic "FTLOG\0\r\n"] [format version u32 LE] [session frame] [image frames] [entries frames] [end frame]
//! ```
//! A log without its end frame is *torn*: its writer was killed or is still writing. It reads to its last whole frame.

mod reader;
mod writer;

pub use reader::{Ending, LogFileError, LogReader, TornReason};
pub use writer::LogWriter;

use crate::codec::VARINT_BYTES_MAX;
use crate::frame::FrameKind;
use crate::message::BATCH_BYTES_MAX;

/// The first bytes of every log. The line ending shows a transfer in text mode for what it is.
pub const MAGIC: [u8; 8] = *b"FTLOG\0\r\n";

/// A frame is written at the latest when it holds this many bytes of entries, so that not more is lost with the writer.
pub const FLUSH_BYTES: usize = 4096;

/// The frame kind that only files have: the log is complete.
const END: FrameKind = FrameKind(12);

/// Magic and format version.
const PREAMBLE_BYTES: usize = MAGIC.len() + 4;

/// The longest body behind the image, in bytes.
const ENTRIES_BODY_BYTES_MAX: usize = VARINT_BYTES_MAX + BATCH_BYTES_MAX;
