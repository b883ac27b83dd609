//! The errors of reading a log, and the ways in which a log ends.

use crate::codec::CodecError;
use crate::entry::LogSeq;
use crate::frame::{FrameError, FrameKind};
use crate::session::{FORMAT_VERSION, ImageError};
use crate::stream::ChannelError;
use core::fmt;
use std::io;

/// Why a log can't be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file can't be read.
    #[error("reading the log failed at byte {offset}: {source}")]
    Io {
        /// How many bytes had been read.
        offset: u64,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file doesn't begin like a log.
    #[error("not a log: it does not begin with FTLOG")]
    NotALog,
    /// The log was written by another version.
    #[error("the log has format version {found}, this build reads up to {FORMAT_VERSION}: use the build that wrote it")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends before its first entry.
    #[error("the log ends at byte {offset}, inside its {part}: there is nothing to replay")]
    Truncated {
        /// The length of the file.
        offset: u64,
        /// The part of the log that is missing.
        part: &'static str,
    },
    /// A frame before the first entry is damaged.
    #[error("the log's {part} is damaged: {source}")]
    DamagedHead {
        /// The part of the log that is damaged.
        part: &'static str,
        /// The damage.
        source: FrameError,
    },
    /// The session header can't be understood.
    #[error("the log's session header is unreadable: {0}")]
    Header(CodecError),
    /// The image is not the one that the header names.
    #[error("the log's image is not the one its header names: {0}")]
    Image(#[from] ImageError),
    /// A frame of a kind that doesn't belong in this part of the log.
    #[error("the frame at byte {offset} has kind {}, which does not belong in the log's {part}", .kind.0)]
    UnexpectedFrame {
        /// The offset of the frame.
        offset: u64,
        /// Its kind.
        kind: FrameKind,
        /// The part of the log that was expected.
        part: &'static str,
    },
    /// A damaged frame is followed by whole ones: not the end of its writer caused that, but the
    /// storage.
    #[error(
        "the log is corrupt at byte {offset}, after entry {before}: whole frames follow from byte {whole_offset}; \
         restore it from a copy"
    )]
    Corrupt {
        /// Where the damaged frame begins.
        offset: u64,
        /// All entries before this position are whole.
        before: LogSeq,
        /// Where the next whole frame begins.
        whole_offset: u64,
    },
    /// A whole frame whose content is wrong: whoever wrote it was faulty.
    #[error("the frame at byte {offset} is wrong: {source}")]
    BadFrame {
        /// The offset of the frame.
        offset: u64,
        /// What is wrong with the content.
        source: CodecError,
    },
    /// A whole frame whose entries are wrong: whoever wrote it was faulty.
    #[error("the entries at byte {offset} are wrong: {source}")]
    BadEntries {
        /// Where their frame begins.
        offset: u64,
        /// What is wrong with the content.
        source: ChannelError,
    },
    /// The end mark has another number of entries than the log.
    #[error("the log's end mark counts {counted} entries, but there are {found}")]
    WrongEnd {
        /// The number in the end mark.
        counted: LogSeq,
        /// The number of entries found.
        found: LogSeq,
    },
    /// A cursor names an entry that isn't there: it is of another log.
    #[error("there is no entry {seq} in the frame at byte {offset}: the position is of another log")]
    WrongCursor {
        /// Where the frame begins.
        offset: u64,
        /// The entry's position.
        seq: LogSeq,
    },
    /// Something follows the end.
    #[error("the log goes on after its end mark, at byte {offset}")]
    TrailingBytes {
        /// The offset of the end.
        offset: u64,
    },
}

/// How a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its end mark: these are all entries.
    Finished,
    /// After a whole frame, without its end mark: its writer was killed, or is still writing.
    /// Everything that reached the file can be read.
    Unfinished {
        /// Where its last whole frame ends: the file's length.
        offset: u64,
    },
    /// Inside a frame, or with a damaged one: the last bytes of its writer are lost.
    Torn {
        /// Where its last whole frame ends.
        offset: u64,
        /// How many bytes follow that are no whole frame.
        bytes_dropped: u64,
        /// How it is known.
        reason: TornReason,
    },
}

/// How it is known that a log is torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TornReason {
    /// It ends inside a frame.
    CutInFrame,
    /// Its last frame is damaged, and no whole one follows.
    Damaged(FrameError),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("complete"),
            Self::Unfinished { offset } => {
                write!(f, "whole up to its end at byte {offset}; its writer was killed, or is still writing")
            }
            Self::Torn { offset, bytes_dropped, reason } => {
                write!(f, "torn at byte {offset}, {bytes_dropped} bytes dropped: {reason}")
            }
        }
    }
}

impl fmt::Display for TornReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutInFrame => f.write_str("the file ends inside a frame"),
            Self::Damaged(error) => error.fmt(f),
        }
    }
}
