//! The log as a file: self-contained, readable up to wherever it was cut.
//!
//! ```text
//!   [magic "FTLOG\0\r\n"] [format version u32 LE] [session frame] [start] [entries frames] [end frame]
//!
//!   start:  image frames                           the log is of a guest from its reset on
//!       or  pages frames  unsent-output frames  snapshot    the log goes on from there
//! ```
//! A log without its end frame is *unfinished*: its writer was killed or is still writing. If it
//! ends inside a frame it is *torn*, and reads to its last whole frame.

mod damage;
mod frames;
mod reader;
mod start;
mod writer;

pub use damage::{Ending, LogFileError, TornReason};
pub use reader::{LogCursor, LogReader};
pub use start::{LogHead, LogStart};
pub use writer::{LogWriter, SnapshotWriter};

use crate::codec::VARINT_BYTES_MAX;
use crate::frame::FrameKind;
use crate::message::BATCH_BYTES_MAX;

/// The first bytes of every log. Their line ending shows when a file was transferred in text mode.
pub const MAGIC: [u8; 8] = *b"FTLOG\0\r\n";

/// A frame is written at the latest when it holds this many bytes of entries: at most so many are
/// lost with the writer.
pub const FLUSH_BYTES: usize = 4096;

/// The limit on the unsent outputs of a snapshot, in bytes, with [`UNSENT_OUTPUT_BYTES`] added for
/// each: they are held in memory.
pub const UNSENT_BYTES_MAX: usize = 128 << 20;

/// What an unsent output counts beyond its bytes, so that empty ones are bounded too.
pub const UNSENT_OUTPUT_BYTES: usize = 64;

/// A frame kind that only files have: a piece of the image.
const IMAGE_CHUNK: FrameKind = FrameKind(2);

/// A frame kind that only files have: the log is complete.
const END: FrameKind = FrameKind(12);

/// Magic and format version.
const PREAMBLE_BYTES: usize = MAGIC.len() + 4;

/// The longest body after the start, in bytes.
const ENTRIES_BODY_BYTES_MAX: usize = VARINT_BYTES_MAX + BATCH_BYTES_MAX;
