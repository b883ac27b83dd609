//! A live VM's log on disk, and what waits for it.

use super::{DiskLimits, DiskLog, DiskLogWatch, JoiningLog, LogDirectory, LogDirectoryError, LogWriterKind, StuckDisk};
use crate::node::reports::NodeReport;
use crate::node::waiting;
use crate::os::report::Reporter;
use clap::ValueEnum;
use ft::role::DiskLogState;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm::{Machine, OutputId, OutputOperation};

/// For what in the log on disk outputs wait, beside the backup's acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Waiting {
    /// Nothing: after the death of both sides clients may have seen what the resumed VM doesn't
    /// know of
    No,
    /// Their entries are in the host's page cache: the death of both processes takes back nothing
    /// that anybody has seen
    Written,
    /// Their entries are on disk: neither does a loss of power
    Durable,
}

/// The log that a side keeps.
#[derive(Debug)]
pub struct KeptLog {
    log: DiskLog,
    directory: PathBuf,
    waiting: Waiting,
    reporter: Reporter,
    /// That a restart is possible has been reported.
    usable_told: Arc<AtomicBool>,
    /// The first snapshot is to be made before the guest runs.
    at_once: bool,
}

/// Where and how a side keeps its log.
#[derive(Debug)]
pub struct Keeping {
    /// The directory, which is this process's.
    pub directory: LogDirectory,
    /// What waits for it.
    pub waiting: Waiting,
}

impl Keeping {
    fn limits(&self) -> DiskLimits {
        let default = DiskLimits { waiting: self.waiting, ..DiskLimits::default() };
        match self.waiting {
            Waiting::No => default,
            Waiting::Written => DiskLimits { gather: Duration::ZERO, ..default },
            Waiting::Durable => DiskLimits { gather: Duration::ZERO, sync_interval: Duration::ZERO, ..default },
        }
    }
}

impl KeptLog {
    /// Begins to keep the log of `session`, of which this node is the owner: with a snapshot that
    /// is made before the guest runs.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn begin(keeping: Keeping, session: SessionHeader, node: NodeId, reporter: Reporter) -> io::Result<Self> {
        let (limits, waiting) = (keeping.limits(), keeping.waiting);
        let path = keeping.directory.path().to_owned();
        let log = keeping.directory.begin(session, node, limits)?;
        Ok(Self::new(log, path, waiting, reporter, true))
    }

    /// Begins to keep the log of `session`, whose primary this node joins as a backup: the second
    /// of the two takes what is received, the first goes with the machine.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn begin_joining(
        keeping: Keeping,
        session: SessionHeader,
        node: NodeId,
        reporter: Reporter,
    ) -> io::Result<(Self, JoiningLog)> {
        let (limits, waiting) = (keeping.limits(), keeping.waiting);
        let path = keeping.directory.path().to_owned();
        let (log, joining) = keeping.directory.begin_joining(session, node, limits)?;
        Ok((Self::new(log, path, waiting, reporter, false), joining))
    }

    fn new(log: DiskLog, directory: PathBuf, waiting: Waiting, reporter: Reporter, at_once: bool) -> Self {
        Self { log, directory, waiting, reporter, at_once, usable_told: Arc::default() }
    }

    /// A function that says how far the log is.
    fn states(&self) -> impl Fn() -> DiskLogState + Send + 'static {
        let (watch, waiting) = (self.log.watch(), self.waiting);
        move || {
            let whole = match waiting {
                _ if watch.has_failed() => return DiskLogState::Failed,
                // Outputs wait for a segment from which a restart is possible, and for no entry.
                Waiting::No => watch.in_cache().map(|_| LogSeq(u64::MAX)),
                Waiting::Written => watch.in_cache(),
                Waiting::Durable => watch.durable(),
            };
            whole.map_or(DiskLogState::Promised, DiskLogState::UpTo)
        }
    }

    /// How far the log is, for the role.
    #[must_use]
    pub fn state(&self) -> DiskLogState {
        self.states()()
    }

    /// Calls `tell` with the log's state now and whenever it has changed, on the threads that
    /// change it, and reports when a restart from it is first possible. `tell` takes the place of
    /// the one before.
    pub fn listen(&self, tell: impl Fn(DiskLogState) + Send + 'static) {
        let (state, usable_told) = (self.states(), self.usable_told.clone());
        let (directory, reporter) = (self.directory.display().to_string(), self.reporter);
        self.log.listen(move || {
            let state = state();
            // The role first: whoever has read the report may count on it.
            tell(state);
            if matches!(state, DiskLogState::UpTo(_)) && !usable_told.swap(true, Ordering::AcqRel) {
                reporter.tell(&NodeReport::LogUsable { directory: directory.clone() });
            }
        });
    }

    /// A look at a disk that may hang, for the thread that tells of it.
    #[must_use]
    pub fn disk_watch(&self, now_ns: u64) -> DiskWatch {
        DiskWatch {
            log: self.log.watch(),
            waiting: self.waiting,
            directory: self.directory.display().to_string(),
            stuck: StuckDisk::since(now_ns),
            told: waiting::Waiting::since(now_ns),
        }
    }

    /// A backup's machine stands where the snapshot was made whose memory came to `snapshot_bytes`.
    pub const fn restored(&mut self, machine: &Machine, snapshot_bytes: u64) {
        self.log.on_restored(machine, snapshot_bytes);
    }

    /// A backup's machine has consumed an entry.
    pub fn consumed(&mut self, entry: &LogEntry) {
        self.log.on_consumed(entry);
    }

    /// This node owns the VM now: outputs wait for this log.
    pub fn owns(&mut self) {
        self.log.become_kind(LogWriterKind::Owner);
    }

    /// Takes an entry.
    pub fn append(&mut self, entry: &LogEntry) {
        self.log.on_entry(entry);
    }

    /// Outputs wait for the entries that have come.
    pub fn flush(&mut self) {
        if self.waiting != Waiting::No {
            self.log.hand_over();
        }
    }

    /// To be called between slices of the guest, as [`DiskLog::serve`]; tells if logging has
    /// failed. The first call may wait for the disk, unless `is_over`.
    pub fn serve(
        &mut self,
        machine: &mut Machine,
        next: LogSeq,
        unsent: impl FnOnce() -> Vec<(OutputId, Arc<OutputOperation>)>,
        is_over: impl Fn() -> bool,
    ) {
        if std::mem::take(&mut self.at_once) {
            self.log.snapshot_now(machine, next, unsent, is_over);
        } else {
            self.log.serve(machine, next, unsent);
        }
        if let Some(error) = self.log.take_failure() {
            self.reporter.tell(&NodeReport::LogLost { reason: error.to_string() });
        }
    }

    /// Whether memory is being copied, so that [`KeptLog::serve`] should be called soon.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        self.log.is_copying()
    }

    /// How many of `steps` steps the guest may run now, as far as the copy of its memory is
    /// concerned: `None` if it has to stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        self.log.steps_allowed(steps, machine)
    }

    /// Whether [`KeptLog::serve`] would copy memory now.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.log.wants_copy()
    }

    /// Whether the guest must wait for the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.log.is_full()
    }

    /// Writes the end mark, and makes all of it durable, if it can be resumed.
    ///
    /// # Errors
    /// [`LogDirectoryError`] if that fails.
    pub fn finish(self) -> Result<(), LogDirectoryError> {
        if self.state().is_promised() {
            // Nothing can be resumed from it, and nothing has left that would be missing: its disk
            // isn't waited for.
            return Ok(());
        }
        self.log.finish().map(drop)
    }
}

/// Finds out that outputs wait for a disk that doesn't get on.
#[derive(Debug)]
pub struct DiskWatch {
    log: DiskLogWatch,
    waiting: Waiting,
    directory: String,
    stuck: StuckDisk,
    told: waiting::Waiting,
}

impl DiskWatch {
    /// What to tell, after a second without progress and then rarely.
    pub fn look(&mut self, now_ns: u64) -> Option<NodeReport> {
        let is_unsynced = self.waiting == Waiting::Durable && self.log.durable() != self.log.in_cache();
        let is_pending = self.log.is_pending() || is_unsynced;
        if self.stuck.look(now_ns, self.log.taken(), is_pending) == 0 {
            self.told = waiting::Waiting::since(now_ns);
        }
        let seconds = self.told.due(now_ns)?;
        Some(NodeReport::DiskWaits { directory: self.directory.clone(), seconds })
    }
}
