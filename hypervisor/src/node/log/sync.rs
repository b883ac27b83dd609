//! The sync step: makes a log durable, so that its writer never waits for the disk.

use super::identity::mark_failed;
use super::progress::LogProgress;
use super::storage::{Storage, StorageFile, remove_if_there};
use super::{LogDirectoryError, PART, STOPPED, failed, segment_names};
use crate::node::channel::lock;
use crate::node::host::Next;
use ft::mutation::{Mutation, mutated};
use logchannel::entry::LogSeq;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What the writer has written and the sync step has to make durable.
#[derive(Debug)]
pub(super) struct Unsynced<S: Storage> {
    written: Mutex<Written<S>>,
    changed: Condvar,
}

/// The files to make durable.
#[derive(Clone, Debug)]
pub(super) struct Written<S: Storage> {
    /// Something was written since the last sync.
    is_new: bool,
    /// The current segment's file and name, and one past its last entry.
    pub(super) segment: Option<(S::File, String, LogSeq)>,
    /// The incomplete next segment.
    pub(super) part: Option<S::File>,
    /// The writer is done.
    is_over: bool,
}

impl<S: Storage> Unsynced<S> {
    pub(super) fn new() -> Self {
        let written = Written { is_new: false, segment: None, part: None, is_over: false };
        Self { written: Mutex::new(written), changed: Condvar::new() }
    }

    /// The writer has written something.
    pub(super) fn add(&self, change: impl FnOnce(&mut Written<S>)) {
        let mut written = lock(&self.written);
        change(&mut written);
        written.is_new = true;
        drop(written);
        self.changed.notify_one();
    }

    /// The writer is done.
    pub(super) fn end(&self) {
        lock(&self.written).is_over = true;
        self.changed.notify_one();
    }

    fn has_changes(&self) -> bool {
        let written = lock(&self.written);
        written.is_new || written.is_over
    }

    /// The files, if something was written since the last call, or the writer is done.
    fn take(&self) -> Option<Written<S>> {
        let mut written = lock(&self.written);
        if !written.is_new && !written.is_over {
            return None;
        }
        let found = written.clone();
        written.is_new = false;
        Some(found)
    }

    fn wait(&self) {
        let mut written = lock(&self.written);
        while !written.is_new && !written.is_over {
            written = self.changed.wait(written).expect("a thread that panics ends the process");
        }
    }
}

/// Makes durable what the writer has written.
#[derive(Debug)]
pub struct SyncStep<S: Storage> {
    storage: S,
    progress: Arc<LogProgress>,
    unsynced: Arc<Unsynced<S>>,
    /// The time between the beginnings of two syncs.
    interval: Duration,
    /// The name of the newest segment with a durable snapshot.
    safe: Option<String>,
    is_done: bool,
}

impl<S: Storage> SyncStep<S> {
    pub(super) const fn new(
        storage: S,
        progress: Arc<LogProgress>,
        unsynced: Arc<Unsynced<S>>,
        interval: Duration,
    ) -> Self {
        Self { storage, progress, unsynced, interval, safe: None, is_done: false }
    }

    /// Syncs what was written since the last call; may wait for the disk. [`Next::Arrival`] means
    /// that the step has nothing to do until [`SyncStep::has_work`].
    pub fn step(&mut self, now_ns: u64) -> Next {
        if self.is_done {
            return Next::Done;
        }
        let Some(written) = self.unsynced.take() else { return Next::Arrival { until_ns: u64::MAX } };
        let synced = if self.progress.has_failed() { Ok(()) } else { self.sync(&written) };
        self.progress.done.fetch_add(1, Ordering::Relaxed);
        self.is_done = written.is_over || synced.is_err();
        if let Err(error) = synced {
            mark_failed(&self.storage, &error);
            self.progress.fail(error);
        }
        if self.is_done {
            self.progress.steps_done.fetch_add(1, Ordering::AcqRel);
            return Next::Done;
        }
        let interval_ns = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX);
        Next::Wait { until_ns: now_ns.saturating_add(interval_ns) }
    }

    /// `true` if the step must be called again after [`Next::Arrival`].
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.is_done && self.unsynced.has_changes()
    }

    /// Waits until [`SyncStep::has_work`], for a host with a thread for it.
    pub fn wait(&self) {
        if !self.is_done {
            self.unsynced.wait();
        }
    }

    fn sync(&mut self, written: &Written<S>) -> Result<(), LogDirectoryError> {
        let Self { storage, progress, .. } = self;
        if let Some((file, name, end)) = &written.segment {
            if !mutated(Mutation::DurableBeforeSync) {
                file.sync().map_err(failed("syncing", &storage.path_of(name)))?;
            }
            if self.safe.as_ref() != Some(name) {
                if !mutated(Mutation::SegmentNameNotSynced) {
                    storage.sync_directory().map_err(failed("syncing", storage.path()))?;
                }
                if self.safe.is_none() {
                    remove(storage, STOPPED)?;
                }
                remove_older(storage, name)?;
                self.safe = Some(name.clone());
            }
            progress.set_durable(*end);
        }
        if let Some(part) = &written.part {
            part.sync().map_err(failed("syncing", &storage.path_of(PART)))?;
        }
        Ok(())
    }
}

/// Removes all segments except `newest` and the one before it.
fn remove_older(storage: &impl Storage, newest: &str) -> Result<(), LogDirectoryError> {
    let mut older = segment_names(storage)?;
    older.retain(|name| name.as_str() < newest);
    older.pop();
    older.iter().try_for_each(|name| remove(storage, name))
}

fn remove(storage: &impl Storage, name: &str) -> Result<(), LogDirectoryError> {
    remove_if_there(storage, name).map_err(failed("removing", &storage.path_of(name)))
}
