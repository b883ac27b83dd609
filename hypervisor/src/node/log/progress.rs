//! The progress of a log on disk, shared by the threads that log and the steps that write.

use super::LogDirectoryError;
use crate::node::channel::lock;
use logchannel::entry::LogSeq;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The value of a position before there is a segment.
const NOTHING: u64 = u64::MAX;

/// Called when a position has changed, or logging has failed.
type ProgressListener = Box<dyn Fn() + Send>;

/// The progress of one log.
pub(super) struct LogProgress {
    /// Bytes of orders done, plus syncs: it grows while the disk makes progress.
    pub(super) done: AtomicU64,
    /// The number of complete snapshots.
    pub(super) snapshots: AtomicU64,
    /// No later snapshot is at an earlier position, so the writer can forget the entries before.
    pub(super) remember_from: AtomicU64,
    /// Bytes of orders that the writer hasn't done yet.
    pub(super) queued_bytes: AtomicUsize,
    failed: AtomicBool,
    failure: Mutex<Option<LogDirectoryError>>,
    /// One past the last entry in the page cache: a [`LogSeq`], or [`NOTHING`].
    in_cache: AtomicU64,
    /// One past the last entry on disk, likewise.
    durable: AtomicU64,
    listener: Mutex<Option<ProgressListener>>,
    /// The number of steps that are done.
    pub(super) steps_done: AtomicUsize,
}

impl fmt::Debug for LogProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogProgress").field("durable", &self.durable).finish_non_exhaustive()
    }
}

impl LogProgress {
    pub(super) fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            remember_from: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            in_cache: AtomicU64::new(NOTHING),
            durable: AtomicU64::new(NOTHING),
            listener: Mutex::default(),
            steps_done: AtomicUsize::new(0),
        }
    }

    pub(super) fn in_cache(&self) -> Option<LogSeq> {
        end(&self.in_cache)
    }

    pub(super) fn durable(&self) -> Option<LogSeq> {
        end(&self.durable)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// All entries before `end` are in the page cache.
    pub(super) fn set_in_cache(&self, end: LogSeq) {
        self.in_cache.store(end.0, Ordering::Release);
        self.notify();
    }

    /// All entries before `end` are on disk.
    pub(super) fn set_durable(&self, end: LogSeq) {
        self.durable.store(end.0, Ordering::Release);
        self.notify();
    }

    /// Logging has failed. The caller has marked the directory before, because outputs that the log
    /// lacks leave from now on.
    pub(super) fn fail(&self, error: LogDirectoryError) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            *lock(&self.failure) = Some(error);
            self.notify();
        }
    }

    pub(super) fn take_failure(&self) -> Option<LogDirectoryError> {
        lock(&self.failure).take()
    }

    pub(super) fn listen(&self, listener: ProgressListener) {
        lock(&self.listener).insert(listener)();
    }

    fn notify(&self) {
        if let Some(listener) = &*lock(&self.listener) {
            listener();
        }
    }
}

/// A position; `None` before there is a segment.
fn end(seq: &AtomicU64) -> Option<LogSeq> {
    Some(seq.load(Ordering::Acquire)).filter(|seq| *seq != NOTHING).map(LogSeq)
}

/// Watches the progress of a log on disk, on threads that don't log.
#[derive(Clone, Debug)]
pub struct DiskLogWatch(pub(super) Arc<LogProgress>);

impl DiskLogWatch {
    /// As [`DiskLog::in_cache`](super::DiskLog::in_cache).
    #[must_use]
    pub fn in_cache(&self) -> Option<LogSeq> {
        self.0.in_cache()
    }

    /// As [`DiskLog::durable`](super::DiskLog::durable).
    #[must_use]
    pub fn durable(&self) -> Option<LogSeq> {
        self.0.durable()
    }

    /// `true` once logging has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.has_failed()
    }

    /// What the disk has taken so far: a number that grows while the disk makes progress.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// `true` while something waits to be written.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.has_failed() && self.0.queued_bytes.load(Ordering::Acquire) > 0
    }
}

/// Detects a disk that makes no progress. Times are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct StuckDisk {
    moved_ns: u64,
    taken: u64,
}

impl StuckDisk {
    /// A disk that makes progress at `now_ns`.
    #[must_use]
    pub const fn since(now_ns: u64) -> Self {
        Self { moved_ns: now_ns, taken: 0 }
    }

    /// For how many nanoseconds the disk has taken nothing, though something is pending. `taken`
    /// grows while it makes progress.
    pub const fn update(&mut self, now_ns: u64, taken: u64, is_pending: bool) -> u64 {
        if taken != self.taken || !is_pending {
            *self = Self { moved_ns: now_ns, taken };
        }
        now_ns.saturating_sub(self.moved_ns)
    }
}
