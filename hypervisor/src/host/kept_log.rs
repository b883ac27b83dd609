//! A live VM's log on disk, and what waits for it.

use super::log_directory::{DiskLimits, DiskLog, LogDirectory, LogDirectoryError};
use super::reports::NodeReport;
use crate::report::Reporter;
use clap::ValueEnum;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use vm::{Machine, OutputId, OutputOperation};

/// For what in the log on disk outputs wait, beside the backup's acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Waiting {
    /// Nothing: after the death of both sides clients may have seen what the resumed VM doesn't know of
    No,
    /// Their entries are in the host's page cache: the death of both processes takes back nothing that anybody has seen
    Written,
    /// Their entries are on disk: neither does a loss of power
    Durable,
}

/// The log that a side keeps.
#[derive(Debug)]
pub struct KeptLog {
    log: DiskLog,
    waiting: Waiting,
    reporter: Reporter,
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

impl KeptLog {
    /// Begins to keep the log of `session`. With `at_once` the first snapshot is made before the guest runs, and else while it
    /// runs.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn begin(
        Keeping { directory, waiting }: Keeping,
        session: SessionHeader,
        node: NodeId,
        reporter: Reporter,
        at_once: bool,
    ) -> io::Result<Self> {
        let default = DiskLimits::default();
        let limits = match waiting {
            Waiting::No => default,
            Waiting::Written => DiskLimits { gather: Duration::ZERO, ..default },
            Waiting::Durable => DiskLimits { gather: Duration::ZERO, sync_interval: Duration::ZERO, ..default },
        };
        Ok(Self { log: directory.begin(session, node, limits)?, waiting, reporter, at_once })
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

    /// To be called between slices of the guest, as [`DiskLog::serve`]; tells if logging has failed.
    pub fn serve(
        &mut self,
        machine: &mut Machine,
        next: LogSeq,
        tail: impl FnOnce() -> Vec<(OutputId, Arc<OutputOperation>)>,
    ) {
        if std::mem::take(&mut self.at_once) {
            self.log.snapshot_now(machine, next, tail);
        } else {
            self.log.serve(machine, next, tail);
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

    /// Whether the guest must wait for the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.log.is_full()
    }

    /// Calls `kept` with the place up to which outputs needn't wait any more, whenever it has moved: `None` if they don't
    /// wait at all, not yet or no more.
    pub fn listen(&self, kept: impl Fn(Option<LogSeq>) + Send + 'static) {
        let (watch, waiting) = (self.log.watch(), self.waiting);
        let tell = move || {
            kept(match waiting {
                _ if watch.has_failed() => None,
                Waiting::No => None,
                Waiting::Written => watch.in_cache(),
                Waiting::Durable => watch.durable(),
            });
        };
        tell();
        self.log.listen(tell);
    }

    /// Writes the end mark, and makes all of it durable.
    ///
    /// # Errors
    /// [`LogDirectoryError`] if that fails.
    pub fn finish(self) -> Result<(), LogDirectoryError> {
        self.log.finish().map(drop)
    }
}
