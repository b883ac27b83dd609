//! The log of a live VM on disk, from which the VM can go on after both sides have died.
//!
//! ```text
//!   DIR/vm                              the VM's name; a process that uses the directory locks this file
//!   DIR/node                            the nodes that have sent no outputs that the segments lack: the
//!                                       writer, and those that resumed and died before their first segment
//!   DIR/kept                            the newest segment's writer, and what outputs waited for
//!   DIR/<generation>-<first seq>.ftlog  segments: logs that begin with a snapshot and replay on their own
//!   DIR/snapshot.part                   the beginning of the next segment, while memory is copied
//!   DIR/stopped                         why logging has failed: the VM went on without its log
//! ```
//! The newest segment is enough for a restart. The one before is retained until there is a newer
//! one, in case the newest snapshot can't be read. Names sort by age, because a later owner has a
//! greater generation.
//!
//! # What is durable
//! The log reaches the host's page cache within about a millisecond, and the disk within
//! [`DiskLimits::sync_interval`] plus the time that the disk takes. [`DiskLog::in_cache`] and
//! [`DiskLog::durable`] are the positions that it has reached, for which outputs can wait
//! ([`LogWait`]).
//!
//! # The steps
//! ```text
//!   vCPU or replay ─ DiskLog ────┐
//!                                ├─► queue ─► WriterStep ─► page cache ─► SyncStep ─► disk
//!   receiver ────── JoiningLog ──┘
//! ```
//! The ends on the left never wait; the two steps on the right may wait for the disk.
//! [`Host::run_disk_log`](crate::node::host::Host::run_disk_log) gets them: a process has a thread
//! for each, the simulator calls them when it likes. Only a [`Storage`] reaches files.

mod disk_log;
mod files;
mod identity;
mod joining;
mod progress;
pub mod restore;
mod resume;
mod side_log;
mod storage;
mod sync;
mod writer;

pub use disk_log::{DiskLimits, DiskLog, DiskLogSteps, FinishingLog};
pub use files::{HostDirectory, HostFile};
pub use identity::{LogProvenance, LogWriterKind, PossibleLoss};
pub use joining::JoiningLog;
pub use progress::{DiskLogWatch, StuckDisk};
pub use resume::{ResumeProgress, Resumed, Survey};
pub use side_log::{DiskLogOptions, DiskWatch, LogWait, SideDiskLog};
pub use storage::{Storage, StorageFile};
pub use sync::SyncStep;
pub use writer::WriterStep;

use self::restore::RestoreError;
use self::storage::write_synced;
use ft::divergence::Divergence;
use logchannel::entry::{Generation, LogSeq};
use logchannel::file::{LogFileError, LogReader};
use logchannel::session::{VM_ID_BYTES_MAX, VmId};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const VM: &str = "vm";
const PART: &str = "snapshot.part";
const STOPPED: &str = "stopped";
const SEGMENT_EXTENSION: &str = "ftlog";

/// The most bytes that are read of each small file.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// Why a VM's log on disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LogDirectoryError {
    /// The host's file system fails.
    #[error("{action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Another process has locked the directory.
    #[error("the log directory {} is in use by another process; each side of a VM needs its own", .0.display())]
    InUse(PathBuf),
    /// The directory is another VM's.
    #[error(
        "the log directory {} belongs to VM {found}, not {wanted}; name another directory, or that VM (--vm {found})",
        .path.display()
    )]
    OtherVm {
        /// The directory.
        path: PathBuf,
        /// The VM whose it is.
        found: String,
        /// The VM that is to use it.
        wanted: VmId,
    },
    /// There is no directory to resume from.
    #[error(
        "there is no log directory {}: --resume goes on from a directory that a side of the VM has named with --log, and makes \
         none", .0.display()
    )]
    Missing(PathBuf),
    /// The path isn't a directory.
    #[error("{} is {what}, and the log of a VM that runs is a directory; {advice}", .path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        what: &'static str,
        /// What the operator can do.
        advice: String,
    },
    /// The directory isn't a log directory.
    #[error(
        "{} is no log directory of a VM: it has no file `{VM}`. Name the one that a side of the VM has named with --log",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// The log ended before its VM did.
    #[error(
        "the log in {} had failed ({reason}), and its VM went on without it: going on from there gives up what came \
         after. If that is what you want, remove {STOPPED} in it first", .path.display()
    )]
    Stopped {
        /// The directory.
        path: PathBuf,
        /// How logging had failed.
        reason: String,
    },
    /// No segment can be resumed from.
    #[error("the log directory {} has no segment with a whole snapshot: there is nothing to resume{}",
            .path.display(), .skipped.iter().map(|(path, why)| format!("; {}: {why}", path.display())).collect::<String>())]
    NoSegment {
        /// The directory.
        path: PathBuf,
        /// The segments in it, and why each is unusable.
        skipped: Vec<(PathBuf, RestoreError)>,
    },
    /// The disk takes too long.
    #[error(
        "the disk has not taken the end of the log in {} for {seconds} s, and isn't waited for: the log may lack its last entries",
        .path.display()
    )]
    Stuck {
        /// The directory.
        path: PathBuf,
        /// How long the process waited.
        seconds: u64,
    },
    /// A segment can't be read to its end.
    #[error("{}: {source}", .path.display())]
    Log {
        /// The segment.
        path: PathBuf,
        /// The reader's error.
        source: LogFileError,
    },
    /// The replay of a segment differs from it.
    #[error("{}: {divergence}", .path.display())]
    Diverged {
        /// The segment.
        path: PathBuf,
        /// Where and how.
        divergence: Box<Divergence>,
    },
}

/// A directory for the log of one VM, locked by this process while this value lives.
#[derive(Debug)]
pub struct LogDirectory<S: Storage = HostDirectory> {
    storage: S,
    vm: VmId,
    _lock: S::Lock,
}

impl LogDirectory {
    /// Opens the directory of `vm` at `path`, and creates it if it doesn't exist.
    ///
    /// # Errors
    /// [`LogDirectoryError::InUse`], [`LogDirectoryError::OtherVm`],
    /// [`LogDirectoryError::NoDirectory`], [`LogDirectoryError::Io`].
    pub fn open(path: &Path, vm: &VmId) -> Result<Self, LogDirectoryError> {
        refuse_other_files(path)?;
        let directory = HostDirectory::at(path);
        directory.make().map_err(failed("making the log directory", path))?;
        Self::lock(directory, vm)
    }

    /// Opens the directory of `vm` to resume from the log in it; creates nothing.
    ///
    /// # Errors
    /// As [`LogDirectory::open`]; [`LogDirectoryError::Missing`], [`LogDirectoryError::NotOurs`].
    pub fn open_existing(path: &Path, vm: &VmId) -> Result<Self, LogDirectoryError> {
        refuse_other_files(path)?;
        let taken = Self::lock_existing(HostDirectory::at(path), vm);
        if matches!(taken, Err(LogDirectoryError::NotOurs(_))) && !path.exists() {
            return Err(LogDirectoryError::Missing(path.into()));
        }
        taken
    }
}

impl<S: Storage> LogDirectory<S> {
    /// Locks a directory for the log of `vm`, and names the VM in it.
    ///
    /// # Errors
    /// [`LogDirectoryError::InUse`], [`LogDirectoryError::OtherVm`], [`LogDirectoryError::Io`].
    pub fn lock(storage: S, vm: &VmId) -> Result<Self, LogDirectoryError> {
        let lock = storage.lock(VM, true).map_err(failed("opening", &storage.path_of(VM)))?;
        Self::locked(storage, vm, lock)
    }

    /// Locks the directory of `vm` to resume from the log in it; creates nothing.
    ///
    /// # Errors
    /// As [`LogDirectory::lock`]; [`LogDirectoryError::NotOurs`].
    pub fn lock_existing(storage: S, vm: &VmId) -> Result<Self, LogDirectoryError> {
        match storage.lock(VM, false) {
            Ok(lock) => Self::locked(storage, vm, lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(LogDirectoryError::NotOurs(storage.path().into()))
            }
            Err(error) => Err(failed("opening", &storage.path_of(VM))(error)),
        }
    }

    /// Checks that a locked directory is of `vm`, or names the VM in it if it is new.
    fn locked(storage: S, vm: &VmId, lock: Option<S::Lock>) -> Result<Self, LogDirectoryError> {
        let Some(lock) = lock else { return Err(LogDirectoryError::InUse(storage.path().into())) };
        let path = storage.path_of(VM);
        let failed = failed("opening", &path);
        let mut name = Vec::new();
        let file = storage.read(VM).map_err(&failed)?;
        file.take(VM_ID_BYTES_MAX as u64 + 1).read_to_end(&mut name).map_err(&failed)?;
        if name.is_empty() {
            write_synced(&storage, VM, vm.as_str()).map_err(failed)?;
        } else if name != vm.as_str().as_bytes() {
            let found = String::from_utf8_lossy(&name).into_owned();
            return Err(LogDirectoryError::OtherVm { path: storage.path().into(), found, wanted: vm.clone() });
        }
        Ok(Self { storage, vm: vm.clone(), _lock: lock })
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.storage.path()
    }
}

/// Refuses a path to anything else than a directory, and says what is there.
fn refuse_other_files(path: &Path) -> Result<(), LogDirectoryError> {
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    if found.is_dir() {
        return Ok(());
    }
    let refused = |what, advice| Err(LogDirectoryError::NoDirectory { path: path.into(), what, advice });
    let is_log = found.is_file() && File::open(path).is_ok_and(|file| LogReader::open(BufReader::new(file)).is_ok());
    match path.parent().filter(|parent| is_log && parent.join(VM).is_file()) {
        Some(directory) => {
            refused("one segment of a VM's log", format!("it is in the directory {}: name that", directory.display()))
        }
        None if is_log => refused(
            "a recording, as ft-record makes them",
            format!("`ft-replay {}` replays it; a guest can't go on from it", path.display()),
        ),
        None => refused("no directory", "name the one that is to hold the log, or holds it".into()),
    }
}

/// The segments in a directory of this host, oldest first. Their writer may be running.
///
/// # Errors
/// [`LogDirectoryError::Io`].
pub fn segments(path: &Path) -> Result<Vec<PathBuf>, LogDirectoryError> {
    let directory = HostDirectory::at(path);
    Ok(segment_names(&directory)?.iter().map(|name| directory.path_of(name)).collect())
}

/// The names of the segments, oldest first.
fn segment_names(storage: &impl Storage) -> Result<Vec<String>, LogDirectoryError> {
    let mut names = storage.list().map_err(failed("reading the log directory", storage.path()))?;
    names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == SEGMENT_EXTENSION));
    names.sort();
    Ok(names)
}

fn segment_name(generation: Generation, first: LogSeq) -> String {
    format!("{:020}-{:020}.{SEGMENT_EXTENSION}", generation.0, first.0)
}

/// The text of a small file; `None` if there is no such file.
fn read_note(storage: &impl Storage, name: &str) -> Result<Option<String>, LogDirectoryError> {
    let mut text = Vec::new();
    match storage.read(name).and_then(|file| file.take(NOTE_BYTES_MAX).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&text).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("reading", &storage.path_of(name))(source)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> LogDirectoryError {
    move |source| LogDirectoryError::Io { action, path: path.into(), source }
}
