//! The writer step: writes a log's files as far as the page cache.

use super::identity::{LogWriterKind, WriterNote, mark_failed, replace_nodes, write_writer};
use super::progress::LogProgress;
use super::side_log::LogWait;
use super::storage::{Storage, StorageFile};
use super::sync::Unsynced;
use super::{LogDirectoryError, PART, failed, segment_name};
use crate::node::host::Next;
use crossbeam_channel::{Receiver, TryRecvError};
use ft::mutation::{Mutation, mutated};
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::file::{LogWriter, SnapshotWriter};
use logchannel::session::{NodeId, SessionHeader};
use logchannel::snapshot::{Pages, Snapshot};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufWriter};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vm::{OutputId, OutputOperation};

/// An order to the writer.
#[derive(Debug)]
pub(super) enum WriterOrder {
    /// Write an entry to the segment.
    Entry(LogEntry),
    /// Begin the next segment's snapshot.
    Begin(Box<SessionHeader>),
    /// Memory of the snapshot.
    Pages(Pages),
    /// An output that may not have left when the snapshot was made.
    UnsentOutput(OutputId, Arc<OutputOperation>),
    /// Complete the snapshot: its segment takes the entries from here on, and also the earlier ones
    /// after the snapshot's position.
    Complete(Snapshot),
    /// The directory's writer is of this kind from now on.
    Become(LogWriterKind),
    /// End the log.
    Finish,
}

/// Orders, and their bytes in the queue.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) orders: Vec<WriterOrder>,
    pub(super) bytes: usize,
}

type SegmentFile<S> = BufWriter<<S as Storage>::File>;

/// Does the orders.
pub struct WriterStep<S: Storage> {
    storage: S,
    node: NodeId,
    note: WriterNote,
    queue: Receiver<Batch>,
    /// The next batch, if [`WriterStep::wait`] has taken it from the queue.
    next: Option<Batch>,
    progress: Arc<LogProgress>,
    unsynced: Arc<Unsynced<S>>,
    gather: Duration,
    segment: Option<OpenSegment<S>>,
    part: Option<Part<S>>,
    /// The segment's last entries, from [`LogProgress::remember_from`] on. A backup's log has
    /// entries that its machine hasn't consumed: they belong to the next segment too, whose
    /// snapshot is of that machine.
    recent: VecDeque<LogEntry>,
    is_done: bool,
}

impl<S: Storage> fmt::Debug for WriterStep<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterStep").field("storage", &self.storage).field("node", &self.node).finish_non_exhaustive()
    }
}

struct OpenSegment<S: Storage> {
    log: LogWriter<SegmentFile<S>>,
    file: S::File,
    name: String,
}

/// A segment whose snapshot isn't complete.
struct Part<S: Storage> {
    snapshot: SnapshotWriter<SegmentFile<S>>,
    file: S::File,
    generation: Generation,
}

impl<S: Storage> WriterStep<S> {
    pub(super) fn new(
        storage: S,
        (node, note): (NodeId, WriterNote),
        queue: Receiver<Batch>,
        (progress, unsynced): (Arc<LogProgress>, Arc<Unsynced<S>>),
        gather: Duration,
    ) -> Self {
        Self {
            storage,
            node,
            note,
            queue,
            next: None,
            progress,
            unsynced,
            gather,
            segment: None,
            part: None,
            recent: VecDeque::new(),
            is_done: false,
        }
    }

    /// Does all queued orders. May wait for the page cache and, with `--log-wait durable`, for the
    /// disk to take the rest of a new snapshot. [`Next::Arrival`] means that the step has nothing
    /// to do until [`WriterStep::has_work`]. Done after the last order, or a failure.
    pub fn step(&mut self, now_ns: u64) -> Next {
        if self.is_done {
            return Next::Done;
        }
        let batch = match self.next.take().map_or_else(|| self.queue.try_recv(), Ok) {
            Ok(batch) if !self.progress.has_failed() => batch,
            Err(TryRecvError::Empty) if !self.progress.has_failed() => {
                return Next::Arrival { until_ns: u64::MAX };
            }
            // The senders are gone, or logging has failed.
            Ok(_) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => return self.end(),
        };
        match self.carry_out_all(batch) {
            Ok(()) if self.is_done => self.end(),
            Ok(()) if self.gather.is_zero() => Next::Now,
            Ok(()) => {
                let gather_ns = u64::try_from(self.gather.as_nanos()).unwrap_or(u64::MAX);
                Next::Wait { until_ns: now_ns.saturating_add(gather_ns) }
            }
            Err(error) => {
                // Marked before outputs leave that the log lacks.
                mark_failed(&self.storage, &error);
                self.progress.fail(error);
                self.end()
            }
        }
    }

    fn end(&mut self) -> Next {
        self.is_done = true;
        self.unsynced.end();
        self.progress.steps_done.fetch_add(1, Ordering::AcqRel);
        Next::Done
    }

    /// `true` if the step must be called again after [`Next::Arrival`].
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.is_done && (self.next.is_some() || !self.queue.is_empty())
    }

    /// Waits until [`WriterStep::has_work`], for a host with a thread for it.
    pub fn wait(&mut self) {
        if !self.is_done && self.next.is_none() {
            // Fails if the senders are gone, which the step notices too.
            self.next = self.queue.recv().ok();
        }
    }

    /// Does the orders of `batch` and of all queued batches, and flushes them to the page cache.
    fn carry_out_all(&mut self, batch: Batch) -> Result<(), LogDirectoryError> {
        let gathered = self.queue.len();
        let queue = self.queue.clone();
        for Batch { orders, bytes } in std::iter::once(batch).chain(queue.try_iter().take(gathered)) {
            for order in orders {
                self.carry_out(order)?;
            }
            self.progress.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.progress.done.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.forget_old_entries();
        let part = self.part.as_ref().map(|part| part.file.clone());
        let mut written = None;
        if let Some(OpenSegment { log, file, name }) = &mut self.segment {
            if !mutated(Mutation::WrittenBeforeFlush) {
                log.flush().map_err(failed_at("writing", &self.storage, name))?;
            }
            self.progress.set_in_cache(log.next_seq());
            written = Some((file.clone(), name.clone(), log.next_seq()));
        }
        self.unsynced.add(|unsynced| {
            unsynced.part = part;
            unsynced.segment = written.or_else(|| unsynced.segment.take());
        });
        Ok(())
    }

    fn carry_out(&mut self, order: WriterOrder) -> Result<(), LogDirectoryError> {
        let Self { storage, segment, part, .. } = self;
        match order {
            WriterOrder::Entry(entry) => {
                let OpenSegment { log, name, .. } = segment.as_mut().expect("entries come behind a snapshot");
                log.append(&entry).map_err(failed_at("writing", storage, name))?;
                self.recent.push_back(entry);
                Ok(())
            }
            WriterOrder::Become(kind) => {
                // Flushed before the note is written: an owner's log must have everything that it
                // acknowledged as a backup. With `--log-wait durable` that holds over a loss of
                // power, as the note does.
                if let Some(OpenSegment { log, name, file }) = segment {
                    log.flush().map_err(failed_at("writing", storage, name))?;
                    if kind == LogWriterKind::Owner && self.note.wait == LogWait::Durable {
                        file.sync().map_err(failed_at("syncing", storage, name))?;
                    }
                }
                self.note.kind = kind;
                write_writer(storage, &self.note)
            }
            WriterOrder::Begin(session) => {
                // Dropped before the file is created anew, because an abandoned part writes its
                // buffer when it is dropped.
                *part = None;
                *part = Some(begin_part(storage, &session).map_err(failed_at("writing", storage, PART))?);
                Ok(())
            }
            WriterOrder::Pages(pages) => {
                let snapshot = &mut begun(part).snapshot;
                snapshot.pages(pages.first, &pages.bytes).map_err(failed_at("writing", storage, PART))
            }
            WriterOrder::UnsentOutput(id, operation) => {
                begun(part).snapshot.unsent(id, &operation).map_err(failed_at("writing", storage, PART))
            }
            WriterOrder::Complete(snapshot) => self.complete(&snapshot),
            WriterOrder::Finish => self.finish(),
        }
    }

    /// Completes the part, which becomes the current segment.
    fn complete(&mut self, snapshot: &Snapshot) -> Result<(), LogDirectoryError> {
        let part_failed = failed_at("writing", &self.storage, PART);
        let Part { snapshot: writer, file, generation } =
            self.part.take().expect("a snapshot ends behind its beginning");
        let mut log = writer.finish(snapshot).map_err(&part_failed)?;
        let name = segment_name(generation, snapshot.seq);
        if let Some(old) = &self.segment {
            let end = old.log.next_seq();
            let from = if mutated(Mutation::SegmentWithoutReceivedEntries) { end } else { snapshot.seq };
            for entry in self.entries_from(from, end) {
                log.append(entry).map_err(&part_failed)?;
            }
        }
        // Flushed before the rename, which makes it the newest segment: a restart must be able to
        // read it.
        log.flush().map_err(&part_failed)?;
        if self.note.wait == LogWait::Durable && !mutated(Mutation::SegmentNamedBeforeSync) {
            file.sync().map_err(failed_at("syncing", &self.storage, PART))?;
        }
        self.storage.rename(PART, &name).map_err(failed_at("naming", &self.storage, &name))?;
        self.progress.snapshots.fetch_add(1, Ordering::AcqRel);
        match self.segment.replace(OpenSegment { log, file, name }) {
            Some(OpenSegment { log, name, .. }) => {
                log.finish().map(|_| ()).map_err(failed_at("writing", &self.storage, &name))
            }
            // From here on the directory's segments are this node's. Earlier nodes in its list
            // would be taken for nodes that sent nothing that the segments lack.
            None => {
                write_writer(&self.storage, &self.note)?;
                if mutated(Mutation::WriterNotNamed) { Ok(()) } else { replace_nodes(&self.storage, self.node) }
            }
        }
    }

    /// The segment's entries from `from` on; `end` is one past its last.
    fn entries_from(&self, from: LogSeq, end: LogSeq) -> impl Iterator<Item = &LogEntry> {
        let first = end.0 - self.recent.len() as u64;
        assert!(first <= from.0 && from <= end, "a snapshot at {from}, entries {first} to {end}");
        let skip = usize::try_from(from.0 - first).expect("no more than there are");
        self.recent.iter().skip(skip)
    }

    fn forget_old_entries(&mut self) {
        let Some(segment) = &self.segment else { return };
        let first = segment.log.next_seq().0 - self.recent.len() as u64;
        let old = self.progress.remember_from.load(Ordering::Acquire).saturating_sub(first);
        let old = usize::try_from(old).unwrap_or(usize::MAX).min(self.recent.len());
        self.recent.drain(..old);
    }

    /// Ends the current segment with an end mark.
    fn finish(&mut self) -> Result<(), LogDirectoryError> {
        self.is_done = true;
        let Some(OpenSegment { log, file, name }) = self.segment.take() else { return Ok(()) };
        let end = log.next_seq();
        log.finish().map_err(failed_at("writing", &self.storage, &name))?;
        self.unsynced.add(|written| written.segment = Some((file, name, end)));
        Ok(())
    }
}

fn begun<S: Storage>(part: &mut Option<Part<S>>) -> &mut Part<S> {
    part.as_mut().expect("a snapshot's pieces come behind its beginning")
}

fn failed_at<S: Storage>(action: &'static str, storage: &S, name: &str) -> impl Fn(io::Error) -> LogDirectoryError {
    move |source| failed(action, &storage.path_of(name))(source)
}

fn begin_part<S: Storage>(storage: &S, session: &SessionHeader) -> io::Result<Part<S>> {
    let file = storage.create(PART)?;
    let snapshot = SnapshotWriter::create(BufWriter::new(file.clone()), session)?;
    Ok(Part { snapshot, file, generation: session.generation })
}
