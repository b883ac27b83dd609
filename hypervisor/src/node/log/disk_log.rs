//! The vCPU thread's end of the log on disk: passes entries and memory to the writer, and never
//! waits for the disk.

use super::identity::{LogWriterKind, WriterNote};
use super::joining::JoiningLog;
use super::progress::{DiskLogWatch, LogProgress, StuckDisk};
use super::side_log::LogWait;
use super::storage::Storage;
use super::sync::{SyncStep, Unsynced};
use super::writer::{Batch, WriterOrder, WriterStep};
use super::{HostDirectory, LogDirectory, LogDirectoryError};
use ft::page_copy;
use ft::page_copy::PageCopying;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use logchannel::snapshot::{Pages, Snapshot};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vm::{Event, InstructionCount, Machine, OutputId, OutputOperation, PAGE_BYTES, PageCopy};

/// The limit of the queue to the writer, in bytes, beyond which no more memory is copied.
const COPY_AHEAD_BYTES: usize = 4 << 20;

/// About what a segment's entry takes beyond its payload, in bytes.
const ENTRY_BYTES: usize = 6;

/// The pieces of memory that one call copies for a guest that stands still until its first snapshot
/// is complete: a megabyte.
const PIECES_AT_ONCE: usize = 16;

/// The steps of one log: its writer's, and the sync.
const STEPS: usize = 2;

/// Limits and intervals of a log on disk. The default is for production; tests use others.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// A new segment begins after this many bytes of entries, and no earlier than after as many
    /// bytes as the last snapshot had.
    pub segment_bytes: u64,
    /// A new segment begins after this many steps of the guest, which bounds the work of a restart.
    pub segment_steps: u64,
    /// The limit of the queue to the disk, in bytes, beyond which the guest must not run.
    pub queue_bytes_max: usize,
    /// The time between the beginnings of two syncs.
    pub sync_interval: Duration,
    /// How long the writer lets entries collect, because waking it for each costs the vCPU thread
    /// some microseconds.
    pub gather: Duration,
    /// What outputs wait for; the directory records it.
    pub wait: LogWait,
    /// How long an ending process waits for a disk that takes nothing.
    pub patience: Duration,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segment_steps: 20_000_000_000,
            queue_bytes_max: 32 << 20,
            sync_interval: Duration::from_millis(50),
            gather: Duration::from_millis(1),
            wait: LogWait::Written,
            patience: Duration::from_secs(10),
        }
    }
}

/// The log of a live VM in a directory. [`super`] says what it guarantees.
///
/// A backup's entries come from its receiving thread ([`JoiningLog`]); this end follows the machine
/// that consumes them, of which later snapshots are made.
///
/// A failure ends only the logging: [`DiskLog::take_failure`] returns it once, and all other
/// methods do nothing from then on. The directory is marked, because it lacks what the VM does
/// afterwards.
#[derive(Debug)]
pub struct DiskLog<S: Storage = HostDirectory> {
    session: SessionHeader,
    limits: DiskLimits,
    orders: crossbeam_channel::Sender<Batch>,
    progress: Arc<LogProgress>,
    directory: LogDirectory<S>,
    /// Orders that the writer hasn't been sent yet.
    pending: Vec<WriterOrder>,
    pending_bytes: usize,
    /// The snapshot in progress.
    copying: Option<PageCopying>,
    /// The guest doesn't run until the first snapshot is complete.
    is_beginning: bool,
    /// The current segment; `None` before the first snapshot is complete.
    segment: Option<CurrentSegment>,
    /// The last snapshot's memory, in bytes.
    snapshot_bytes: u64,
    /// The number of complete snapshots sent to the writer.
    snapshots: u64,
    entries_lost: u64,
}

/// The two steps of a log, which the host calls until they are done. They may wait for the disk.
#[derive(Debug)]
pub struct DiskLogSteps<S: Storage> {
    /// Writes.
    pub writer: WriterStep<S>,
    /// Makes durable.
    pub sync: SyncStep<S>,
}

#[derive(Debug)]
struct CurrentSegment {
    start: InstructionCount,
    /// The bytes of its entries, about.
    bytes: u64,
}

impl<S: Storage> LogDirectory<S> {
    /// Begins the log of a VM with its first snapshot. [`DiskLog::serve`] makes that while the
    /// guest runs, or before, after [`DiskLog::stand_until_begun`]. `node` writes the log; the
    /// session's generation is the owner's.
    #[must_use]
    pub fn begin(self, session: SessionHeader, node: NodeId, limits: DiskLimits) -> (DiskLog<S>, DiskLogSteps<S>) {
        self.begin_as(LogWriterKind::Owner, session, node, limits)
    }

    /// Begins the log of a VM that a backup joins. The channel's stream from the session on is the
    /// first segment: what is received goes to the [`JoiningLog`], what the machine consumes to the
    /// [`DiskLog`].
    #[must_use]
    pub fn begin_joining(
        self,
        session: SessionHeader,
        node: NodeId,
        limits: DiskLimits,
    ) -> (DiskLog<S>, JoiningLog, DiskLogSteps<S>) {
        let (log, steps) = self.begin_as(LogWriterKind::Joining, session, node, limits);
        let joining = JoiningLog::begin(log.orders.clone(), log.progress.clone(), limits.queue_bytes_max, &log.session);
        (log, joining, steps)
    }

    fn begin_as(
        self,
        kind: LogWriterKind,
        session: SessionHeader,
        node: NodeId,
        limits: DiskLimits,
    ) -> (DiskLog<S>, DiskLogSteps<S>) {
        let (progress, unsynced) = (Arc::new(LogProgress::new()), Arc::new(Unsynced::new()));
        // Unbounded, because the callers keep to `queue_bytes_max`.
        let (orders, queue) = crossbeam_channel::unbounded();
        let note = WriterNote { kind, wait: limits.wait, boot: self.storage.boot() };
        let storage = &self.storage;
        let steps = DiskLogSteps {
            writer: WriterStep::new(
                storage.clone(),
                (node, note),
                queue,
                (progress.clone(), unsynced.clone()),
                limits.gather,
            ),
            sync: SyncStep::new(storage.clone(), progress.clone(), unsynced, limits.sync_interval),
        };
        let log = DiskLog {
            session,
            limits,
            orders,
            progress,
            directory: self,
            pending: Vec::new(),
            pending_bytes: 0,
            copying: None,
            is_beginning: false,
            segment: None,
            snapshot_bytes: 0,
            snapshots: 0,
            entries_lost: 0,
        };
        (log, steps)
    }
}

impl<S: Storage> DiskLog<S> {
    /// Makes the guest stand still until the first snapshot is complete: while
    /// [`DiskLog::is_beginning`], [`DiskLog::serve`] copies memory as fast as the queue takes it.
    pub const fn stand_until_begun(&mut self) {
        self.is_beginning = true;
    }

    /// `true` while the guest must not run because the first snapshot isn't complete.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.is_beginning && !self.has_failed()
    }

    /// Takes an entry: every one since the first call of [`DiskLog::serve`], in order. Costs no
    /// system call; the next [`DiskLog::serve`] passes it to the writer.
    pub fn on_entry(&mut self, entry: &LogEntry) {
        if self.has_failed() {
            self.entries_lost += 1;
            return;
        }
        self.on_consumed(entry);
        // The first snapshot has the effects of entries before it.
        if self.segment.is_some() {
            self.push(WriterOrder::Entry(entry.clone()), payload_bytes(entry));
        }
    }

    /// A backup's machine has consumed an entry, which the log has from [`JoiningLog::entries`].
    pub fn on_consumed(&mut self, entry: &LogEntry) {
        if let EntryBody::Generation(generation) = entry.body {
            self.session.generation = generation;
            // A snapshot in progress names the generation before this entry but would end after it,
            // so it is begun anew.
            self.copying = None;
        }
        if let Some(segment) = &mut self.segment {
            segment.bytes += (ENTRY_BYTES + payload_bytes(entry)) as u64;
        }
    }

    /// A backup's machine has been restored from the snapshot that begins the log. Its memory had
    /// `snapshot_bytes` bytes.
    pub const fn on_restored(&mut self, machine: &Machine, snapshot_bytes: u64) {
        self.segment = Some(CurrentSegment { start: machine.instruction_count(), bytes: 0 });
        (self.snapshot_bytes, self.snapshots) = (snapshot_bytes, 1);
    }

    /// Makes the directory record that its writer is of this kind now.
    pub fn become_kind(&mut self, kind: LogWriterKind) {
        self.push(WriterOrder::Become(kind), 0);
        self.submit();
    }

    /// Passes entries to the writer. Also copies a piece of the guest's memory if a segment is
    /// beginning. Call it between slices of the guest, after sending their entries to the backup,
    /// because it may wake a thread.
    ///
    /// `machine` stands at `next_seq`, the position of the next entry, and its outputs have been
    /// taken. `unsent` returns all earlier outputs that may not have left, also held ones, ordered
    /// by id; it is called when a snapshot is complete.
    pub fn serve(
        &mut self,
        machine: &mut Machine,
        next_seq: LogSeq,
        unsent: impl FnOnce() -> Vec<(OutputId, Arc<OutputOperation>)>,
    ) {
        if self.has_failed() {
            return;
        }
        if self.copying.is_none() && self.is_segment_due(machine) {
            self.begin_snapshot(machine);
        }
        self.copy_some(machine, next_seq, unsent);
        // While the writer has an incomplete snapshot, it must remember the entries after that
        // one's position.
        if self.progress.snapshots.load(Ordering::Acquire) == self.snapshots {
            self.progress.remember_from.store(next_seq.0, Ordering::Release);
        }
        self.submit();
    }

    /// `true` while a segment is beginning, so that [`DiskLog::serve`] should be called soon also
    /// if the guest sleeps.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    /// `true` if [`DiskLog::serve`] would copy memory now.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.copying.is_some() && self.progress.queued_bytes.load(Ordering::Acquire) < COPY_AHEAD_BYTES
    }

    /// How many of `steps` the guest may run now while its memory is copied; `None` if it must
    /// stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        if self.has_failed() { Some(steps) } else { page_copy::steps_allowed(steps, machine, self.copying.as_ref()) }
    }

    /// `true` while the queue to the disk is full, so that the guest must not run.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.has_failed() && self.progress.queued_bytes.load(Ordering::Acquire) >= self.limits.queue_bytes_max
    }

    /// One past the last entry in the page cache, which survives the death of this process; `None`
    /// before the first snapshot is written.
    #[must_use]
    pub fn in_cache(&self) -> Option<LogSeq> {
        self.progress.in_cache()
    }

    /// One past the last entry on disk, which survives the host's loss of power; `None` before the
    /// first snapshot is on disk.
    #[must_use]
    pub fn durable(&self) -> Option<LogSeq> {
        self.progress.durable()
    }

    /// Why logging has failed; returned once. The VM goes on without its log.
    #[must_use]
    pub fn take_failure(&mut self) -> Option<LogDirectoryError> {
        if self.has_failed() { self.progress.take_failure() } else { None }
    }

    /// The number of entries after a failure.
    #[must_use]
    pub const fn entries_lost(&self) -> u64 {
        self.entries_lost
    }

    /// Ends the log with an end mark. [`FinishingLog::step`] returns when it is durable.
    #[must_use]
    pub fn finish(mut self) -> FinishingLog<S> {
        self.push(WriterOrder::Finish, 0);
        self.submit();
        let Self { progress, directory, limits, .. } = self;
        FinishingLog { directory: Some(directory), progress, patience: limits.patience, stuck: None }
    }

    /// Calls `listener` now, and from the log's steps whenever [`DiskLog::in_cache`] or
    /// [`DiskLog::durable`] has changed or logging has failed.
    pub fn listen(&self, listener: impl Fn() + Send + 'static) {
        self.progress.listen(Box::new(listener));
    }

    /// A handle for other threads to watch the log's progress.
    #[must_use]
    pub fn watch(&self) -> DiskLogWatch {
        DiskLogWatch(self.progress.clone())
    }

    fn has_failed(&self) -> bool {
        self.progress.has_failed()
    }

    fn is_segment_due(&self, machine: &Machine) -> bool {
        self.segment.as_ref().is_none_or(|segment| {
            segment.bytes >= self.limits.segment_bytes.max(self.snapshot_bytes)
                || machine.instruction_count().since(segment.start) >= self.limits.segment_steps
        })
    }

    fn begin_snapshot(&mut self, machine: &mut Machine) {
        self.copying = Some(PageCopying::begin(PageCopy::Log, machine));
        self.snapshot_bytes = 0;
        self.push(WriterOrder::Begin(Box::new(self.session.clone())), 0);
    }

    /// Copies a piece of the memory, or several for a guest that stands still, while the queue has
    /// room.
    fn copy_some(
        &mut self,
        machine: &mut Machine,
        next_seq: LogSeq,
        unsent: impl FnOnce() -> Vec<(OutputId, Arc<OutputOperation>)>,
    ) {
        let pieces = if self.is_beginning { PIECES_AT_ONCE } else { 1 };
        for _ in 0..pieces {
            if !self.wants_copy() {
                return;
            }
            let Some(mut copying) = self.copying.take() else { return };
            if copying.copy_piece(machine, |pages| self.push_pages(pages)) {
                copying.copy_rest(machine, |pages| self.push_pages(pages));
                return self.complete(machine, next_seq, unsent());
            }
            self.copying = Some(copying);
        }
    }

    /// Completes the snapshot once the memory is copied.
    fn complete(&mut self, machine: &mut Machine, seq: LogSeq, unsent: Vec<(OutputId, Arc<OutputOperation>)>) {
        for (id, operation) in unsent {
            let bytes = operation.bytes().len();
            self.push(WriterOrder::UnsentOutput(id, operation), bytes);
        }
        let snapshot = Snapshot { seq, digest: machine.digest(), state: machine.state() };
        let bytes = snapshot.state.len();
        self.push(WriterOrder::Complete(snapshot), bytes);
        self.snapshots += 1;
        self.segment = Some(CurrentSegment { start: machine.instruction_count(), bytes: 0 });
        self.is_beginning = false;
    }

    fn push_pages(&mut self, pages: Pages) {
        let bytes = pages.count() * PAGE_BYTES;
        self.snapshot_bytes += bytes as u64;
        self.push(WriterOrder::Pages(pages), bytes);
    }

    fn push(&mut self, order: WriterOrder, payload_bytes: usize) {
        self.pending_bytes += size_of::<WriterOrder>() + payload_bytes;
        self.pending.push(order);
    }

    /// Passes all pending orders to the writer; outputs may wait for their entries.
    pub fn submit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.pending_bytes);
        self.progress.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        let orders = std::mem::take(&mut self.pending);
        // Fails only after logging has failed.
        let _ = self.orders.send(Batch { orders, bytes });
    }
}

/// A log that is ending.
#[derive(Debug)]
pub struct FinishingLog<S: Storage = HostDirectory> {
    /// Returned at the end.
    directory: Option<LogDirectory<S>>,
    progress: Arc<LogProgress>,
    patience: Duration,
    stuck: Option<StuckDisk>,
}

impl<S: Storage> FinishingLog<S> {
    /// The directory, once the log is durable; `None` before.
    ///
    /// # Errors
    /// If writing fails. If logging had failed before, unless [`DiskLog::take_failure`] has
    /// returned that. [`LogDirectoryError::Stuck`] if the disk takes nothing for
    /// [`DiskLimits::patience`]; the log's steps are left running then.
    pub fn step(&mut self, now_ns: u64) -> Option<Result<LogDirectory<S>, LogDirectoryError>> {
        let stuck = self.stuck.get_or_insert(StuckDisk::since(now_ns));
        let stuck_ns = stuck.update(now_ns, self.progress.done.load(Ordering::Relaxed), true);
        let is_stuck = u128::from(stuck_ns) >= self.patience.as_nanos();
        let is_done = self.progress.steps_done.load(Ordering::Acquire) == STEPS;
        if !is_done && !is_stuck {
            return None;
        }
        let directory = self.directory.take()?;
        if !is_done {
            let seconds = self.patience.as_secs();
            return Some(Err(LogDirectoryError::Stuck { path: directory.path().into(), seconds }));
        }
        Some(self.progress.take_failure().map_or(Ok(directory), Err))
    }
}

pub(super) fn payload_bytes(entry: &LogEntry) -> usize {
    match &entry.body {
        EntryBody::Event(Event::Packet { packet, .. }) => packet.len(),
        EntryBody::Event(Event::ConsoleInput { bytes } | Event::RandomBytes { bytes }) => bytes.len(),
        EntryBody::Output { .. } => 8,
        EntryBody::Digest(_) | EntryBody::PartDigest { .. } | EntryBody::Stopped(_) => 16,
        EntryBody::Event(
            Event::ClockRead { .. }
            | Event::Entropy { .. }
            | Event::TimerInterrupt
            | Event::WallClock { .. }
            | Event::Alarm,
        )
        | EntryBody::Progress
        | EntryBody::Generation(_) => 0,
    }
}
