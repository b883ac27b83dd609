//! The two threads behind a log on disk: one writes files, one makes them durable, so that no entry
//! waits in this process for the disk.

use super::identity::{LogWriterKind, Standing, forget_nodes, replace_nodes, write_standing};
use super::{LogDirectoryError, PART, STOPPED, failed, segment_name, segments};
use crate::node::channel::lock;
use crate::os::clock;
use crossbeam_channel::Receiver;
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::file::{LogWriter, SnapshotWriter};
use logchannel::session::{NodeId, SessionHeader};
use logchannel::snapshot::{Pages, Snapshot};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use vm::{OutputId, OutputOperation};

/// What the writer is to do, in order.
#[derive(Debug)]
pub(in crate::node) enum Order {
    /// Write this to the segment.
    Entry(LogEntry),
    /// Begin the snapshot of the next segment.
    Begin(Box<SessionHeader>),
    /// Memory of the snapshot.
    Pages(Pages),
    /// An output for the unsent outputs of a snapshot.
    UnsentOutput(OutputId, Arc<OutputOperation>),
    /// The snapshot ends with this, and entries go to its segment from here on; those behind it
    /// that came before this order go there too.
    Complete(Snapshot),
    /// The directory is from now on that of a writer of this kind.
    Become(LogWriterKind),
    /// No more will come.
    Finish,
}

/// Orders, and what they count for in the queue.
#[derive(Debug)]
pub(in crate::node) struct Batch {
    pub(in crate::node) orders: Vec<Order>,
    pub(in crate::node) bytes: usize,
}

/// Called when something is written or durable, or when logging has failed.
type Listener = Box<dyn Fn() + Send>;

/// What the threads that give orders and those that carry them out know of each other.
pub(in crate::node) struct Progress {
    directory: PathBuf,
    /// Orders carried out, in bytes, and syncs: it grows as long as the disk gets on.
    pub(in crate::node) done: AtomicU64,
    /// Snapshots completed.
    pub(in crate::node) snapshots: AtomicU64,
    /// No later snapshot stands before this entry: those below needn't be remembered.
    pub(in crate::node) remember_from: AtomicU64,
    /// Of orders not yet carried out.
    pub(in crate::node) queued_bytes: AtomicUsize,
    pub(in crate::node) failed: AtomicBool,
    failure: Mutex<Option<LogDirectoryError>>,
    /// All entries before this are in the page cache: a [`LogSeq`], or [`NOTHING`].
    in_cache: AtomicU64,
    /// The same on disk.
    durable: AtomicU64,
    listener: Mutex<Option<Listener>>,
    written: Mutex<Written>,
    changed: Condvar,
}

/// Without a segment there is no place in it.
const NOTHING: u64 = u64::MAX;

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("durable", &self.durable).finish_non_exhaustive()
    }
}

/// What is to be made durable.
#[derive(Clone, Debug, Default)]
struct Written {
    /// There is something new.
    is_new: bool,
    /// The segment, and the place behind its last entry.
    segment: Option<(Arc<File>, PathBuf, LogSeq)>,
    /// The part of the next one.
    part: Option<Arc<File>>,
    /// No more will come.
    is_over: bool,
}

impl Progress {
    pub(in crate::node) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
            done: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            remember_from: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            in_cache: AtomicU64::new(NOTHING),
            durable: AtomicU64::new(NOTHING),
            listener: Mutex::default(),
            written: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(in crate::node) fn in_cache(&self) -> Option<LogSeq> {
        place(&self.in_cache)
    }

    pub(in crate::node) fn durable(&self) -> Option<LogSeq> {
        place(&self.durable)
    }

    pub(in crate::node) fn listen(&self, listener: Listener) {
        lock(&self.listener).insert(listener)();
    }

    fn tell(&self) {
        if let Some(listener) = &*lock(&self.listener) {
            listener();
        }
    }

    pub(in crate::node) fn take_failure(&self) -> Option<LogDirectoryError> {
        lock(&self.failure).take()
    }

    /// Ends the logging, and marks the directory as far as the disk still lets itself be written:
    /// before outputs leave that the log doesn't have.
    fn fail(&self, error: LogDirectoryError) {
        if !self.failed.load(Ordering::Acquire) {
            let _ = fs::write(self.directory.join(STOPPED), error.to_string());
            // A full disk still removes files.
            forget_nodes(&self.directory);
        }
        if !self.failed.swap(true, Ordering::AcqRel) {
            *lock(&self.failure) = Some(error);
            self.tell();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        change(&mut lock(&self.written));
        self.changed.notify_one();
    }

    /// Waits for something new.
    fn wait(&self) -> Written {
        let mut written = lock(&self.written);
        while !written.is_new && !written.is_over {
            written = self.changed.wait(written).expect("a thread that panics ends the process");
        }
        let found = written.clone();
        written.is_new = false;
        found
    }
}

/// A place in the log, if there is one.
fn place(seq: &AtomicU64) -> Option<LogSeq> {
    Some(seq.load(Ordering::Acquire)).filter(|seq| *seq != NOTHING).map(LogSeq)
}

type SegmentFile = BufWriter<Arc<File>>;

/// Carries out orders.
pub(in crate::node) struct Writer {
    directory: PathBuf,
    node: NodeId,
    standing: Standing,
    queue: Receiver<Batch>,
    progress: Arc<Progress>,
    gather: Duration,
    segment: Option<Segment>,
    part: Option<Part>,
    /// The last entries that the segment has, from [`Progress::remember_from`] on. A backup's log
    /// has entries that its machine, of which the next snapshot is made, hasn't consumed: they
    /// belong to the next segment too.
    recent: VecDeque<LogEntry>,
}

struct Segment {
    log: LogWriter<SegmentFile>,
    file: Arc<File>,
    path: PathBuf,
}

/// A segment whose snapshot isn't complete.
struct Part {
    snapshot: SnapshotWriter<SegmentFile>,
    file: Arc<File>,
    generation: Generation,
}

impl Writer {
    pub(in crate::node) fn new(
        directory: PathBuf,
        (node, standing): (NodeId, Standing),
        queue: Receiver<Batch>,
        progress: Arc<Progress>,
        gather: Duration,
    ) -> Self {
        Self { directory, node, standing, queue, progress, gather, segment: None, part: None, recent: VecDeque::new() }
    }

    /// Carries out what is in the queue until it is closed or something fails.
    pub(in crate::node) fn run(mut self) {
        while let Ok(batch) = self.queue.recv()
            && !self.progress.failed.load(Ordering::Acquire)
        {
            if let Err(error) = self.carry_out_all(batch) {
                self.progress.fail(error);
                break;
            }
            if !self.gather.is_zero() {
                thread::sleep(self.gather);
            }
        }
        self.progress.change(|written| written.is_over = true);
    }

    /// Carries out `batch` and what else has gathered, and lets it all reach the page cache.
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
        if let Some(segment) = &mut self.segment {
            segment.log.flush().map_err(failed("writing", &segment.path))?;
            let end = segment.log.next_seq();
            let found = (segment.file.clone(), segment.path.clone(), end);
            self.progress.change(|written| written.segment = Some(found));
            self.progress.in_cache.store(end.0, Ordering::Release);
            self.progress.tell();
        }
        let part = self.part.as_ref().map(|part| part.file.clone());
        self.progress.change(|written| (written.part, written.is_new) = (part, true));
        Ok(())
    }

    fn carry_out(&mut self, order: Order) -> Result<(), LogDirectoryError> {
        let part_path = self.directory.join(PART);
        match order {
            Order::Entry(entry) => {
                let segment = self.segment.as_mut().expect("entries come behind a snapshot");
                segment.log.append(&entry).map_err(failed("writing", &segment.path))?;
                self.recent.push_back(entry);
                Ok(())
            }
            Order::Become(kind) => {
                self.standing.kind = kind;
                write_standing(&self.directory, &self.standing)
            }
            Order::Begin(session) => {
                // One that was given up writes what it has buffered when it is dropped.
                self.part = None;
                self.part = Some(begin_part(&part_path, &session).map_err(failed("writing", &part_path))?);
                Ok(())
            }
            Order::Pages(pages) => {
                self.part().snapshot.pages(pages.first, &pages.bytes).map_err(failed("writing", &part_path))
            }
            Order::UnsentOutput(id, operation) => {
                self.part().snapshot.unsent(id, &operation).map_err(failed("writing", &part_path))
            }
            Order::Complete(snapshot) => self.complete(&snapshot),
            Order::Finish => self.finish(),
        }
    }

    fn part(&mut self) -> &mut Part {
        self.part.as_mut().expect("a snapshot's pieces come behind its beginning")
    }

    /// Makes the part the segment that takes the entries.
    fn complete(&mut self, snapshot: &Snapshot) -> Result<(), LogDirectoryError> {
        let part_path = self.directory.join(PART);
        let Part { snapshot: writer, file, generation } =
            self.part.take().expect("a snapshot ends behind its beginning");
        let mut log = writer.finish(snapshot).map_err(failed("writing", &part_path))?;
        let path = self.directory.join(segment_name(generation, snapshot.seq));
        if let Some(old) = &self.segment {
            for entry in self.entries_from(snapshot.seq, old.log.next_seq()) {
                log.append(entry).map_err(failed("writing", &part_path))?;
            }
            log.flush().map_err(failed("writing", &part_path))?;
        }
        fs::rename(&part_path, &path).map_err(failed("naming", &path))?;
        self.progress.snapshots.fetch_add(1, Ordering::AcqRel);
        match self.segment.replace(Segment { log, file, path }) {
            Some(old) => old.log.finish().map(|_| ()).map_err(failed("writing", &old.path)),
            // From here on this incarnation is who the segments are of: its predecessors' names
            // would say that they let out nothing that isn't in them.
            None => {
                write_standing(&self.directory, &self.standing)?;
                replace_nodes(&self.directory, self.node)
            }
        }
    }

    /// The entries from `from` on of a segment that ends before `end`.
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

    fn finish(&mut self) -> Result<(), LogDirectoryError> {
        let Some(Segment { log, file, path }) = self.segment.take() else { return Ok(()) };
        let end = log.next_seq();
        log.finish().map_err(failed("writing", &path))?;
        self.progress.change(|written| written.segment = Some((file, path, end)));
        Ok(())
    }
}

fn begin_part(path: &Path, session: &SessionHeader) -> io::Result<Part> {
    let file = Arc::new(File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?);
    let snapshot = SnapshotWriter::create(BufWriter::new(file.clone()), session)?;
    Ok(Part { snapshot, file, generation: session.generation })
}

/// Makes durable what is written, each `interval`, until no more will come or something fails.
pub(in crate::node) fn run_sync(directory: &Path, progress: &Progress, interval: Duration) {
    let mut safe = None;
    loop {
        let written = progress.wait();
        let started_ns = clock::now_ns();
        if let Err(error) = sync(directory, progress, &written, &mut safe) {
            return progress.fail(error);
        }
        progress.done.fetch_add(1, Ordering::Relaxed);
        if written.is_over {
            return;
        }
        thread::sleep(interval.saturating_sub(Duration::from_nanos(clock::now_ns() - started_ns)));
    }
}

/// `safe` is the newest segment whose snapshot is durable.
fn sync(
    directory: &Path,
    progress: &Progress,
    written: &Written,
    safe: &mut Option<PathBuf>,
) -> Result<(), LogDirectoryError> {
    if let Some((file, path, end)) = &written.segment {
        file.sync_data().map_err(failed("syncing", path))?;
        if safe.as_ref() != Some(path) {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing", directory))?;
            if safe.is_none() {
                remove(&directory.join(STOPPED))?;
            }
            remove_older(directory, path)?;
            *safe = Some(path.clone());
        }
        progress.durable.store(end.0, Ordering::Release);
        progress.tell();
    }
    if let Some(part) = &written.part {
        part.sync_data().map_err(failed("syncing", &directory.join(PART)))?;
    }
    Ok(())
}

/// Removes all segments but `newest` and the one before.
fn remove_older(directory: &Path, newest: &Path) -> Result<(), LogDirectoryError> {
    let older = segments(directory)?.into_iter().filter(|segment| segment.as_path() < newest);
    let mut older: Vec<_> = older.collect();
    older.pop();
    older.iter().try_for_each(|segment| remove(segment))
}

fn remove(path: &Path) -> Result<(), LogDirectoryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
