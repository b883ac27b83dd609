//! How far a log on disk is: what the ends that hand over and the steps that write know of each
//! other.

use super::LogDirectoryError;
use crate::node::channel::lock;
use logchannel::entry::LogSeq;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Without a segment no entry is in one.
const NOTHING: u64 = u64::MAX;

/// Called when something is written or durable, or when logging has failed.
type Listener = Box<dyn Fn() + Send>;

/// The progress of one log.
pub(super) struct Progress {
    /// Orders carried out, in bytes, and syncs: it grows as long as the disk gets on.
    pub(super) done: AtomicU64,
    /// Snapshots completed.
    pub(super) snapshots: AtomicU64,
    /// No later snapshot stands before this entry: those below needn't be remembered.
    pub(super) remember_from: AtomicU64,
    /// Of orders not yet carried out.
    pub(super) queued_bytes: AtomicUsize,
    failed: AtomicBool,
    failure: Mutex<Option<LogDirectoryError>>,
    /// All entries before this are in the page cache: a [`LogSeq`], or [`NOTHING`].
    in_cache: AtomicU64,
    /// The same on disk.
    durable: AtomicU64,
    listener: Mutex<Option<Listener>>,
    /// Steps that are done.
    pub(super) steps_done: AtomicUsize,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("durable", &self.durable).finish_non_exhaustive()
    }
}

impl Progress {
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
        self.tell();
    }

    /// All entries before `end` are on disk.
    pub(super) fn set_durable(&self, end: LogSeq) {
        self.durable.store(end.0, Ordering::Release);
        self.tell();
    }

    /// Logging has failed. Whoever says so has marked the directory: outputs leave from here on
    /// that the log doesn't have.
    pub(super) fn fail(&self, error: LogDirectoryError) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            *lock(&self.failure) = Some(error);
            self.tell();
        }
    }

    pub(super) fn take_failure(&self) -> Option<LogDirectoryError> {
        lock(&self.failure).take()
    }

    pub(super) fn listen(&self, listener: Listener) {
        lock(&self.listener).insert(listener)();
    }

    fn tell(&self) {
        if let Some(listener) = &*lock(&self.listener) {
            listener();
        }
    }
}

/// One past the last entry, if there is a segment.
fn end(seq: &AtomicU64) -> Option<LogSeq> {
    Some(seq.load(Ordering::Acquire)).filter(|seq| *seq != NOTHING).map(LogSeq)
}

/// How far a log on disk is, for threads that give it nothing.
#[derive(Clone, Debug)]
pub struct DiskLogWatch(pub(super) Arc<Progress>);

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

    /// Whether logging has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.has_failed()
    }

    /// What the disk has taken so far: a number that grows as long as it gets on.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Whether something has been handed over that isn't written yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.has_failed() && self.0.queued_bytes.load(Ordering::Acquire) > 0
    }
}

/// Finds out that a disk doesn't get on. Times are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct StuckDisk {
    moved_ns: u64,
    taken: u64,
}

impl StuckDisk {
    /// A disk that gets on at `now_ns`.
    #[must_use]
    pub const fn since(now_ns: u64) -> Self {
        Self { moved_ns: now_ns, taken: 0 }
    }

    /// For how long it has taken nothing though there is something: `taken` grows as long as it
    /// gets on.
    pub const fn look(&mut self, now_ns: u64, taken: u64, is_pending: bool) -> u64 {
        if taken != self.taken || !is_pending {
            *self = Self { moved_ns: now_ns, taken };
        }
        now_ns.saturating_sub(self.moved_ns)
    }
}
