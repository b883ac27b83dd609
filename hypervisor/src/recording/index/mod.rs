//! An index: snapshots that a reader has made of a log, in a file beside it.
//!
//! ```text
//!   [magic "FTINDEX\n"] [format version u32 LE] frames:
//!
//!     BEGIN      the log's digest: which log it is of
//!     PAGES*     contents of pages, each stored once; numbered from 1 in the order of the file
//!     MAP*       which pages have other contents than at the snapshot before, and which contents
//!     SNAPSHOT   the place in the log, the machine's digest and the rest of its state
//!     PAGES* MAP* SNAPSHOT …
//! ```
//! Frames are those of the logging channel, with kinds of their own. A file that ends in the middle
//! is good up to its last whole snapshot, as its writer may have been killed, or be at work.
//!
//! # What is checked
//! When an index is opened: the log's digest, all frames but those of pages, all lengths and
//! numbers. When a snapshot is used: the digest of the log's frame before it, and the digest of the
//! machine, to which every page contributes. A snapshot that fails is left out; what it leads to is
//! never believed. [`format`] has the bytes.

mod format;
mod read;
mod write;

pub use read::{Index, SnapshotRecord};
pub use write::{BuildError, IndexLimits, Indexed, build};

use std::io;
use std::path::PathBuf;

/// Why an index can't be used, or not all of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    /// There is none.
    #[error("there is no index")]
    Missing,
    /// The host refuses.
    #[error("the index {} can't be used: {why}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is none.
    #[error("{} is no index of this build: {why}; it isn't used. `ft-replay index --rebuild` makes a new one", .path.display())]
    NotOurs {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is of another log.
    #[error("the index {} is of another log than {}; it isn't used. `ft-replay index --rebuild` makes a new one",
        .path.display(), .log.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// The log beside it.
        log: PathBuf,
    },
    /// A part of it is damaged.
    #[error(
        "the index {} is damaged at byte {offset} ({why}); only its {good} snapshots before are used. \
         `ft-replay index --rebuild` makes a new one", .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        why: String,
        /// How many snapshots come before.
        good: usize,
    },
    /// A snapshot of it is wrong.
    #[error(
        "the snapshot at instruction {count} of the index {} is wrong ({why}) and isn't used. \
         `ft-replay index --rebuild` makes a new one", .path.display()
    )]
    WrongSnapshot {
        /// Which file.
        path: PathBuf,
        /// Which snapshot.
        count: u64,
        /// What is wrong.
        why: String,
    },
    /// Another process writes it.
    #[error("the index {} is being written by another process", .0.display())]
    InUse(PathBuf),
}

impl IndexError {
    fn io(path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.into(), why: error.to_string() }
    }
}
