//! The vCPU thread's end of the log on disk: it hands entries and memory over, and never waits for
//! the disk.

use super::identity::{LogWriterKind, WriterNote};
use super::joining::JoiningLog;
use super::progress::{DiskLogWatch, Progress, StuckDisk};
use super::side_log::LogWait;
use super::storage::Storage;
use super::sync::{SyncStep, Unsynced};
use super::writer::{Batch, Order, WriterStep};
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

/// Bytes that wait for the writer before no more memory is copied.
const COPY_AHEAD_BYTES: usize = 4 << 20;

/// What an entry takes in a segment beyond its payload, in bytes, roughly.
const ENTRY_BYTES: usize = 6;

/// Pieces of memory that are copied at one call for a guest that stands until its first snapshot is
/// made: a megabyte.
const PIECES_AT_ONCE: usize = 16;

/// Steps of a log: its writer, and what syncs.
const STEPS: usize = 2;

/// When what is done; the default is for use, others for tests.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Bytes of entries after which a new segment is begun, if they are more than the last snapshot
    /// had.
    pub segment_bytes: u64,
    /// Steps of the guest after which a new segment is begun: resuming has to do them again.
    pub segment_steps: u64,
    /// Bytes that wait for the disk before the guest has to.
    pub queue_bytes_max: usize,
    /// From one sync of what is written to the next.
    pub sync_interval: Duration,
    /// How long the writer lets entries gather: it needn't be woken for each, which costs the vCPU
    /// thread some microseconds.
    pub gather: Duration,
    /// What outputs wait for, as the directory is to say it.
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

/// Keeps the log of a live VM in a directory. What that is worth is said in [`super`].
///
/// The entries of a backup come from the thread that receives them ([`JoiningLog`]); this end
/// follows the machine that consumes them, of which the next snapshots are made.
///
/// A failure ends the logging and nothing else: [`DiskLog::take_failure`] tells it once, and from
/// then on everything here does nothing. The directory is marked, so that nobody goes on from it
/// unawares.
#[derive(Debug)]
pub struct DiskLog<S: Storage = HostDirectory> {
    session: SessionHeader,
    limits: DiskLimits,
    orders: crossbeam_channel::Sender<Batch>,
    progress: Arc<Progress>,
    directory: LogDirectory<S>,
    /// Not yet handed over.
    pending: Vec<Order>,
    pending_bytes: usize,
    /// The snapshot that is on its way.
    copying: Option<PageCopying>,
    /// The first snapshot is to be whole before the guest runs.
    is_beginning: bool,
    /// The segment that takes the entries; none before the first snapshot is complete.
    segment: Option<Segment>,
    /// Bytes of the last snapshot's memory.
    snapshot_bytes: u64,
    /// Snapshots that were handed over whole.
    snapshots: u64,
    entries_lost: u64,
}

/// What does the work of a log: to be called until they are done, by threads that may wait for a
/// disk.
#[derive(Debug)]
pub struct DiskLogSteps<S: Storage> {
    /// Writes.
    pub writer: WriterStep<S>,
    /// Makes durable.
    pub sync: SyncStep<S>,
}

#[derive(Debug)]
struct Segment {
    start: InstructionCount,
    /// Of its entries, roughly.
    bytes: u64,
}

impl<S: Storage> LogDirectory<S> {
    /// Begins to log a VM: with its first snapshot, which [`DiskLog::serve`] makes while the guest
    /// runs, or before if [`DiskLog::stand_until_begun`] says so. `node` is this incarnation; the
    /// session's generation is that of the VM's owner.
    #[must_use]
    pub fn begin(self, session: SessionHeader, node: NodeId, limits: DiskLimits) -> (DiskLog<S>, DiskLogSteps<S>) {
        self.begin_as(LogWriterKind::Owner, session, node, limits)
    }

    /// Begins to log a VM that a backup joins. The stream with which it joins is the first segment:
    /// what is received goes to the [`JoiningLog`], and what becomes of the machine to the
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
        let (progress, unsynced) = (Arc::new(Progress::new()), Arc::new(Unsynced::new()));
        // Its length is bounded by `queue_bytes_max`, which the caller keeps.
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
    /// Says that the guest stands until the first snapshot is handed over whole: while
    /// [`DiskLog::is_beginning`], [`DiskLog::serve`] copies memory as fast as the queue takes it.
    pub const fn stand_until_begun(&mut self) {
        self.is_beginning = true;
    }

    /// Whether the guest must not run yet, because the first snapshot isn't made.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.is_beginning && !self.has_failed()
    }

    /// Takes an entry: each one from the first call of [`DiskLog::serve`] on, in order. It costs no
    /// system call; the next [`DiskLog::serve`] hands it over.
    pub fn on_entry(&mut self, entry: &LogEntry) {
        if self.has_failed() {
            self.entries_lost += 1;
            return;
        }
        self.on_consumed(entry);
        // What came before the first snapshot is in it.
        if self.segment.is_some() {
            self.push(Order::Entry(entry.clone()), payload_bytes(entry));
        }
    }

    /// A backup's machine has consumed an entry, which the log has from [`JoiningLog::entries`].
    pub fn on_consumed(&mut self, entry: &LogEntry) {
        if let EntryBody::Generation(generation) = entry.body {
            self.session.generation = generation;
            // A snapshot on its way names the generation before, and the entry that says otherwise
            // comes before its end.
            self.copying = None;
        }
        if let Some(segment) = &mut self.segment {
            segment.bytes += (ENTRY_BYTES + payload_bytes(entry)) as u64;
        }
    }

    /// A backup's machine stands where the snapshot was made whose memory came to `snapshot_bytes`.
    pub const fn on_restored(&mut self, machine: &Machine, snapshot_bytes: u64) {
        self.segment = Some(Segment { start: machine.instruction_count(), bytes: 0 });
        (self.snapshot_bytes, self.snapshots) = (snapshot_bytes, 1);
    }

    /// From now on the log is one of this kind, as the directory says.
    pub fn become_kind(&mut self, kind: LogWriterKind) {
        self.push(Order::Become(kind), 0);
        self.hand_over();
    }

    /// Hands over what has come, and copies a piece of the guest's memory if a segment is being
    /// begun. To be called between slices of the guest, after what the slice sent to the backup: it
    /// may wake a thread.
    ///
    /// `machine` stands at `next_seq`, the place of the next entry, and its outputs have been
    /// taken. `unsent` gives all outputs below that may not have left, held ones too, in the order
    /// of their ids; it is asked for when a snapshot is complete.
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
        // A snapshot that the writer hasn't completed needs the entries behind it.
        if self.progress.snapshots.load(Ordering::Acquire) == self.snapshots {
            self.progress.remember_from.store(next_seq.0, Ordering::Release);
        }
        self.hand_over();
    }

    /// Whether a segment is being begun: the caller should come to [`DiskLog::serve`] again soon,
    /// though the guest sleeps.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    /// Whether [`DiskLog::serve`] would copy memory now.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.copying.is_some() && self.progress.queued_bytes.load(Ordering::Acquire) < COPY_AHEAD_BYTES
    }

    /// How many of `steps` steps the guest may run now, as far as the copy of its memory is
    /// concerned: `None` if it has to stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        if self.has_failed() { Some(steps) } else { page_copy::steps_allowed(steps, machine, self.copying.as_ref()) }
    }

    /// Whether so much waits for the disk that the guest must not run on.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.has_failed() && self.progress.queued_bytes.load(Ordering::Acquire) >= self.limits.queue_bytes_max
    }

    /// All entries before this would survive the death of this process; `None` before the first
    /// snapshot is written.
    #[must_use]
    pub fn in_cache(&self) -> Option<LogSeq> {
        self.progress.in_cache()
    }

    /// All entries before this would survive the host's loss of power; `None` before the first
    /// snapshot is on disk.
    #[must_use]
    pub fn durable(&self) -> Option<LogSeq> {
        self.progress.durable()
    }

    /// Why logging has ended, told once; the VM goes on without it.
    #[must_use]
    pub fn take_failure(&mut self) -> Option<LogDirectoryError> {
        if self.has_failed() { self.progress.take_failure() } else { None }
    }

    /// How many entries came after a failure.
    #[must_use]
    pub const fn entries_lost(&self) -> u64 {
        self.entries_lost
    }

    /// Writes what has come and the end mark, and makes it durable: [`FinishingLog::step`] says
    /// when that is done.
    #[must_use]
    pub fn finish(mut self) -> FinishingLog<S> {
        self.push(Order::Finish, 0);
        self.hand_over();
        let Self { progress, directory, limits, .. } = self;
        FinishingLog { directory: Some(directory), progress, patience: limits.patience, stuck: None }
    }

    /// Calls `listener` now, whenever [`DiskLog::in_cache`] or [`DiskLog::durable`] has grown, and
    /// when logging has failed, within the steps that do it.
    pub fn listen(&self, listener: impl Fn() + Send + 'static) {
        self.progress.listen(Box::new(listener));
    }

    /// A look at how far it is, for other threads.
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
        self.push(Order::Begin(Box::new(self.session.clone())), 0);
    }

    /// Copies a piece of the memory, or several for a guest that stands, as far as the queue takes
    /// them.
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

    /// The memory is copied: what else belongs to the snapshot.
    fn complete(&mut self, machine: &mut Machine, seq: LogSeq, unsent: Vec<(OutputId, Arc<OutputOperation>)>) {
        for (id, operation) in unsent {
            let bytes = operation.bytes().len();
            self.push(Order::UnsentOutput(id, operation), bytes);
        }
        let snapshot = Snapshot { seq, digest: machine.digest(), state: machine.state() };
        let bytes = snapshot.state.len();
        self.push(Order::Complete(snapshot), bytes);
        self.snapshots += 1;
        self.segment = Some(Segment { start: machine.instruction_count(), bytes: 0 });
        self.is_beginning = false;
    }

    fn push_pages(&mut self, pages: Pages) {
        let bytes = pages.count() * PAGE_BYTES;
        self.snapshot_bytes += bytes as u64;
        self.push(Order::Pages(pages), bytes);
    }

    fn push(&mut self, order: Order, payload_bytes: usize) {
        self.pending_bytes += size_of::<Order>() + payload_bytes;
        self.pending.push(order);
    }

    /// Hands over what has come: outputs wait for it.
    pub fn hand_over(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.pending_bytes);
        self.progress.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        let orders = std::mem::take(&mut self.pending);
        // Fails only when logging has failed.
        let _ = self.orders.send(Batch { orders, bytes });
    }
}

/// A log that ends.
#[derive(Debug)]
pub struct FinishingLog<S: Storage = HostDirectory> {
    /// Given back at the end.
    directory: Option<LogDirectory<S>>,
    progress: Arc<Progress>,
    patience: Duration,
    stuck: Option<StuckDisk>,
}

impl<S: Storage> FinishingLog<S> {
    /// The directory, once all is durable; `None` while that isn't so.
    ///
    /// # Errors
    /// If writing fails or logging had failed before, unless [`DiskLog::take_failure`] has told it;
    /// [`LogDirectoryError::Stuck`] if the disk takes nothing for [`DiskLimits::patience`]: then
    /// the log's steps are left behind.
    pub fn step(&mut self, now_ns: u64) -> Option<Result<LogDirectory<S>, LogDirectoryError>> {
        let stuck = self.stuck.get_or_insert(StuckDisk::since(now_ns));
        let stuck_ns = stuck.look(now_ns, self.progress.done.load(Ordering::Relaxed), true);
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
        EntryBody::Event(Event::ConsoleInput { bytes }) => bytes.len(),
        EntryBody::Output { .. } => 8,
        EntryBody::Digest(_) | EntryBody::PartDigest { .. } | EntryBody::Stopped(_) => 16,
        EntryBody::Event(Event::ClockRead { .. } | Event::Entropy { .. } | Event::TimerInterrupt)
        | EntryBody::Progress
        | EntryBody::Generation(_) => 0,
    }
}
