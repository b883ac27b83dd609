//! What can be wrong with a log, and how one ends.

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
        /// How far it had been read.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The file doesn't begin like a log.
    #[error("not a log: it does not begin with FTLOG")]
    NotALog,
    /// The log was written by another version.
    #[error("the log has format version {found}, this build reads up to {FORMAT_VERSION}: use the build that wrote it")]
    Version {
        /// As it says.
        found: u32,
    },
    /// The file ends before its first entry could come.
    #[error("the log ends at byte {offset}, inside its {part}: there is nothing to replay")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// What it should have had.
        part: &'static str,
    },
    /// A frame before the first entry is damaged.
    #[error("the log's {part} is damaged: {source}")]
    DamagedHead {
        /// What is damaged.
        part: &'static str,
        /// How.
        source: FrameError,
    },
    /// The session header can't be understood.
    #[error("the log's session header is unreadable: {0}")]
    Header(CodecError),
    /// The image is not the one that the header names.
    #[error("the log's image is not the one its header names: {0}")]
    Image(#[from] ImageError),
    /// A frame where it doesn't belong.
    #[error("the frame at byte {offset} has kind {}, which does not belong in the log's {part}", .kind.0)]
    UnexpectedFrame {
        /// Where it begins.
        offset: u64,
        /// What it is.
        kind: FrameKind,
        /// What was expected.
        part: &'static str,
    },
    /// A damaged frame with whole ones behind it. It wasn't the writer's end that did this, but the
    /// storage.
    #[error(
        "the log is corrupt at byte {offset}, after entry {before}: whole frames follow from byte {whole_offset}; \
         restore it from a copy"
    )]
    Corrupt {
        /// Where the damaged frame begins.
        offset: u64,
        /// All entries before this place are whole.
        before: LogSeq,
        /// Where the next whole frame begins.
        whole_offset: u64,
    },
    /// A whole frame whose content is wrong: whoever wrote it was faulty.
    #[error("the frame at byte {offset} is wrong: {source}")]
    BadFrame {
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        source: CodecError,
    },
    /// A whole frame whose entries are wrong: whoever wrote it was faulty.
    #[error("the entries at byte {offset} are wrong: {source}")]
    BadEntries {
        /// Where their frame begins.
        offset: u64,
        /// What is wrong.
        source: ChannelError,
    },
    /// The end mark counts other entries than there are.
    #[error("the log's end mark counts {counted} entries, but there are {found}")]
    WrongEnd {
        /// As the end mark says.
        counted: LogSeq,
        /// As were found.
        found: LogSeq,
    },
    /// Something follows the end.
    #[error("the log goes on after its end mark, at byte {offset}")]
    TrailingBytes {
        /// Where.
        offset: u64,
    },
}

/// How a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its end mark: these are all entries.
    Finished,
    /// Behind a whole frame, without its end mark: its writer was killed, or is still writing.
    /// Nothing that reached the file is missing.
    Unfinished {
        /// Where its last whole frame ends: the file's length.
        offset: u64,
    },
    /// Inside a frame, or with a damaged one: what its writer wrote last is lost.
    Torn {
        /// Where its last whole frame ends.
        offset: u64,
        /// What follows there and is no whole frame.
        bytes_dropped: u64,
        /// How that is known.
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
