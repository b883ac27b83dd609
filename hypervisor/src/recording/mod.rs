//! A recording as something to move about in: any moment of it, from a snapshot nearby.
//!
//! ```text
//!   Recording ── parts ──► Part       one log: a file, or a segment of a log directory
//!                           │  └ Index    snapshots that a reader has made, in a file beside it
//!                           ▼
//!   Target ── seek ──► Replay: a machine at the target, which goes on entry by entry
//!                           │
//!                           └─ scan: a range, cut at snapshots and replayed on all cores
//! ```
//! A log is believed as far as its frames are whole and its replay agrees with it. An index is
//! believed only as far as it is proved: each of its snapshots names the log's frame before it by
//! its digest, and the machine made of a snapshot must have the digest that was noted. An index
//! that fails a check is told by name, and left out.
//!
//! Reading changes nothing: not the log, and not the directory of a VM that runs. What readers
//! write is beside the log: `LOG.ftindex` and `LOG.ftmarks`; for a directory `DIR`, in the
//! directory `DIR.ftindex` and in `DIR.ftmarks`.

mod entries;
pub mod index;
pub mod marks;
mod part;
mod position;
mod replay;
mod scan;
mod seek;
mod stretch;

pub use entries::Entries;
pub use part::{Part, Place};
pub use position::{Moment, Position, PositionError, PositionRange, Target, parse_number};
pub use replay::{Replay, Step};
pub use scan::{Observer, Span, scan};
pub use seek::Seeker;
pub(crate) use stretch::{Continuation, Stretch, continuations};

use self::part::link;
use crate::node::log::restore::RestoreError;
use crate::node::log::{LogDirectoryError, segments};
use ft::divergence::Divergence;
use logchannel::entry::LogSeq;
use logchannel::file::LogFileError;
use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use vm::InstructionCount;

/// Why a recording can't be used, or not further.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The host refuses.
    #[error("can't read {}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no file.
    #[error("{} is no regular file: the commands that look around in a log read it here and there; copy it to a file",
        .0.display())]
    NoFile(PathBuf),
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] LogDirectoryError),
    /// There is no log in it.
    #[error("{} has no log that can be read{}", .path.display(),
        .skipped.iter().map(|why| format!("; {why}")).collect::<String>())]
    Empty {
        /// Which directory.
        path: PathBuf,
        /// What is wrong with the segments in it.
        skipped: Vec<String>,
    },
    /// A log can't be read.
    #[error("{}: {source}", .path.display())]
    Log {
        /// Which log.
        path: PathBuf,
        /// Why.
        source: LogFileError,
    },
    /// No machine can be made of the beginning of a log.
    #[error("{}: {source}", .path.display())]
    Restore {
        /// Which log.
        path: PathBuf,
        /// Why.
        source: Box<RestoreError>,
    },
    /// The replay differs from the log.
    #[error("{}: {divergence}", .path.display())]
    Diverged {
        /// Which log.
        path: PathBuf,
        /// How.
        divergence: Box<Divergence>,
    },
    /// The position is before the recording or after it.
    #[error("{target} is not in the recording, which has instructions {} to {}, entries {first} to {last}",
        .begins.0, .ends.0)]
    Outside {
        /// The position.
        target: Target,
        /// Where the recording begins.
        begins: InstructionCount,
        /// Where it ends.
        ends: InstructionCount,
        /// The first entry.
        first: LogSeq,
        /// One past the last entry.
        last: LogSeq,
    },
    /// There is no such packet or output in the recording.
    #[error("there is no {target} in the recording; the next is {found}, at instruction {}", .at.0)]
    Skipped {
        /// The position.
        target: Target,
        /// The number of the next.
        found: u64,
        /// Where that is.
        at: InstructionCount,
    },
    /// The operator has interrupted the work.
    #[error("interrupted")]
    Interrupted,
}

/// Hears how far long work has come, and may end it. Threads share it.
pub trait Monitor: Sync {
    /// The replay has done `steps` more; `Break` ends the work with
    /// [`RecordingError::Interrupted`].
    fn advanced(&self, steps: u64) -> ControlFlow<()>;
}

/// A log, or the logs in the directory of a VM that follow each other.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    parts: Vec<Part>,
    /// Logs of the directory that don't belong to the rest, and why.
    skipped: Vec<String>,
}

impl Recording {
    /// Opens the log at `path`, or the directory of one. The writer may be at work there.
    ///
    /// # Errors
    /// [`RecordingError`] if there is nothing to replay.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        if !path.is_dir() {
            let index = beside(path, "ftindex");
            return Ok(Self { path: path.into(), parts: vec![Part::open(path, index)?], skipped: Vec::new() });
        }
        let indices = beside(path, "ftindex");
        let (mut parts, mut skipped) = (Vec::new(), Vec::new());
        for segment in segments(path)? {
            let name = segment.file_name().map_or_else(OsString::new, ToOwned::to_owned);
            match Part::open(&segment, beside(&indices.join(name), "ftindex")) {
                Ok(part) => parts.push(part),
                Err(error) => skipped.push(error.to_string()),
            }
        }
        let parts = link(parts, &mut skipped)?;
        if parts.is_empty() {
            return Err(RecordingError::Empty { path: path.into(), skipped });
        }
        Ok(Self { path: path.into(), parts, skipped })
    }

    /// What was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The logs, oldest first; at least one.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Logs of the directory that can't be read or don't belong to the rest, and why.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Where the marks are kept.
    #[must_use]
    pub fn marks_path(&self) -> PathBuf {
        beside(&self.path, "ftmarks")
    }

    /// All entries, from the beginning.
    ///
    /// # Errors
    /// [`RecordingError`] if the log can't be read.
    pub fn entries(&self) -> Result<Entries<'_>, RecordingError> {
        Entries::begin(self, 0, self.parts[0].begin())
    }
}

/// The path of a file beside `path`, with another extension behind its name.
fn beside(path: &Path, extension: &str) -> PathBuf {
    // A directory may be named with a slash behind it.
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}
