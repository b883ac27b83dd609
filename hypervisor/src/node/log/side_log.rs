//! A side's log on disk: what outputs wait for, and what the operator is told.

use super::{
    DiskLimits, DiskLog, DiskLogWatch, FinishingLog, JoiningLog, LogDirectory, LogWriterKind, Storage, StuckDisk,
};
use crate::node::host::Host;
use crate::node::reports::NodeReport;
use crate::node::wait_reports::WaitReports;
use clap::ValueEnum;
use ft::role::DiskLogState;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm::{Machine, OutputId, OutputOperation};

/// What in the log on disk outputs wait for, in addition to the backup's acknowledgement. The
/// variants' documentation is the option's help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogWait {
    /// Nothing: after the death of both sides clients may have seen what the resumed VM doesn't
    /// know of
    No,
    /// Their entries are in the host's page cache: the death of both processes takes back nothing
    /// that anybody has seen
    Written,
    /// Their entries are on disk: neither does a loss of power
    Durable,
}

/// The log on disk of one side.
pub struct SideDiskLog<H: Host> {
    log: DiskLog<H::Storage>,
    directory: PathBuf,
    wait: LogWait,
    host: H,
    /// It has been reported that a restart from the log is possible.
    usable_reported: Arc<AtomicBool>,
}

impl<H: Host> fmt::Debug for SideDiskLog<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SideDiskLog").field("log", &self.log).field("wait", &self.wait).finish_non_exhaustive()
    }
}

/// Where and how a side logs.
#[derive(Debug)]
pub struct DiskLogOptions<S: Storage> {
    /// The directory, locked by this process.
    pub directory: LogDirectory<S>,
    /// Limits, intervals, and what outputs wait for.
    pub limits: DiskLimits,
}

impl<S: Storage> DiskLogOptions<S> {
    /// A log in `directory`; outputs wait as `wait` says.
    #[must_use]
    pub fn new(directory: LogDirectory<S>, wait: LogWait) -> Self {
        let default = DiskLimits { wait, ..DiskLimits::default() };
        let limits = match wait {
            LogWait::No => default,
            LogWait::Written => DiskLimits { gather: Duration::ZERO, ..default },
            LogWait::Durable => DiskLimits { gather: Duration::ZERO, sync_interval: Duration::ZERO, ..default },
        };
        Self { directory, limits }
    }
}

impl<H: Host> SideDiskLog<H> {
    /// Begins the owner's log of a VM, with a snapshot that is complete before the guest runs.
    ///
    /// # Errors
    /// If the host can't run the log's steps.
    pub fn begin(
        host: &H,
        options: DiskLogOptions<H::Storage>,
        session: SessionHeader,
        node: NodeId,
    ) -> io::Result<Self> {
        let (limits, wait) = (options.limits, options.limits.wait);
        let directory = options.directory.path().to_owned();
        let (mut log, steps) = options.directory.begin(session, node, limits);
        log.stand_until_begun();
        host.run_disk_log(steps)?;
        Ok(Self { log, directory, wait, host: host.clone(), usable_reported: Arc::default() })
    }

    /// Begins the log of a backup that joins. The [`JoiningLog`] takes what is received; the other
    /// end follows the machine.
    ///
    /// # Errors
    /// If the host can't run the log's steps.
    pub fn begin_joining(
        host: &H,
        options: DiskLogOptions<H::Storage>,
        session: SessionHeader,
        node: NodeId,
    ) -> io::Result<(Self, JoiningLog)> {
        let (limits, wait) = (options.limits, options.limits.wait);
        let directory = options.directory.path().to_owned();
        let (log, joining, steps) = options.directory.begin_joining(session, node, limits);
        host.run_disk_log(steps)?;
        Ok((Self { log, directory, wait, host: host.clone(), usable_reported: Arc::default() }, joining))
    }

    /// A function that returns the log's state.
    fn states(&self) -> impl Fn() -> DiskLogState + Send + 'static {
        let (watch, wait) = (self.log.watch(), self.wait);
        move || {
            let whole = match wait {
                _ if watch.has_failed() => return DiskLogState::Failed,
                // Outputs wait for the first segment, from which a restart is possible, and for no
                // entry.
                LogWait::No => watch.in_cache().map(|_| LogSeq(u64::MAX)),
                LogWait::Written => watch.in_cache(),
                LogWait::Durable => watch.durable(),
            };
            whole.map_or(DiskLogState::Promised, DiskLogState::UpTo)
        }
    }

    /// The log's state for the role.
    #[must_use]
    pub fn state(&self) -> DiskLogState {
        self.states()()
    }

    /// Calls `notify` with the log's state now, and from the log's steps whenever it has changed.
    /// Reports when a restart from the log is first possible. Replaces the previous listener.
    pub fn listen(&self, notify: impl Fn(DiskLogState) + Send + 'static) {
        let (state, usable_reported) = (self.states(), self.usable_reported.clone());
        let (directory, host) = (self.directory.display().to_string(), self.host.clone());
        self.log.listen(move || {
            let state = state();
            // The role first: a reader of the report may rely on the state.
            notify(state);
            if matches!(state, DiskLogState::UpTo(_)) && !usable_reported.swap(true, Ordering::AcqRel) {
                host.report(&NodeReport::LogUsable { directory: directory.clone() });
            }
        });
    }

    /// Watches for a disk that makes no progress, for the control step.
    #[must_use]
    pub fn disk_watch(&self, now_ns: u64) -> DiskWatch {
        DiskWatch {
            log: self.log.watch(),
            wait: self.wait,
            directory: self.directory.display().to_string(),
            stuck: StuckDisk::since(now_ns),
            reports: WaitReports::since(now_ns),
        }
    }

    /// A backup's machine has been restored from the snapshot that begins the log. Its memory had
    /// `snapshot_bytes` bytes.
    pub const fn restored(&mut self, machine: &Machine, snapshot_bytes: u64) {
        self.log.on_restored(machine, snapshot_bytes);
    }

    /// A backup's machine has consumed an entry.
    pub fn consumed(&mut self, entry: &LogEntry) {
        self.log.on_consumed(entry);
    }

    /// This node owns the VM now, so outputs wait for this log.
    pub fn owns(&mut self) {
        self.log.become_kind(LogWriterKind::Owner);
    }

    /// Takes an entry.
    pub fn append(&mut self, entry: &LogEntry) {
        self.log.on_entry(entry);
    }

    /// Passes entries to the writer at once if outputs wait for them.
    pub fn flush(&mut self) {
        if self.wait != LogWait::No {
            self.log.submit();
        }
    }

    /// As [`DiskLog::serve`], between slices of the guest. Reports a failure of logging.
    pub fn serve(
        &mut self,
        machine: &mut Machine,
        next: LogSeq,
        unsent: impl FnOnce() -> Vec<(OutputId, Arc<OutputOperation>)>,
    ) {
        self.log.serve(machine, next, unsent);
        if let Some(error) = self.log.take_failure() {
            self.host.report(&NodeReport::LogLost { reason: error.to_string() });
        }
    }

    /// `true` while the guest must not run because the first snapshot isn't complete; call
    /// [`SideDiskLog::serve`] meanwhile.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.log.is_beginning()
    }

    /// `true` while memory is being copied, so that [`SideDiskLog::serve`] should be called soon.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        self.log.is_copying()
    }

    /// How many of `steps` the guest may run now while its memory is copied; `None` if it must
    /// stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        self.log.steps_allowed(steps, machine)
    }

    /// `true` if [`SideDiskLog::serve`] would copy memory now.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.log.wants_copy()
    }

    /// `true` while the queue to the disk is full, so that the guest must not run.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.log.is_full()
    }

    /// Ends the log, if it can be resumed from.
    #[must_use]
    pub fn finish(self) -> Option<FinishingLog<H::Storage>> {
        // Nothing can be resumed from a log without a segment, and no output has left yet: there is
        // no reason to wait for its disk.
        (!self.state().is_promised()).then(|| self.log.finish())
    }
}

/// Detects that outputs wait for a disk that makes no progress.
#[derive(Debug)]
pub struct DiskWatch {
    log: DiskLogWatch,
    wait: LogWait,
    directory: String,
    stuck: StuckDisk,
    reports: WaitReports,
}

impl DiskWatch {
    /// The report, after a second without progress and then ever more rarely.
    pub fn poll_report(&mut self, now_ns: u64) -> Option<NodeReport> {
        let is_unsynced = self.wait == LogWait::Durable && self.log.durable() != self.log.in_cache();
        let is_pending = self.log.is_pending() || is_unsynced;
        if self.stuck.update(now_ns, self.log.taken(), is_pending) == 0 {
            self.reports = WaitReports::since(now_ns);
        }
        let seconds = self.reports.due(now_ns)?;
        Some(NodeReport::DiskWaits { directory: self.directory.clone(), seconds })
    }
}
