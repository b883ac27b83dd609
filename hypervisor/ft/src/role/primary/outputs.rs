//! Entries of the running guest go to the log, and its outputs leave.

use super::mode::Mode;
use super::{PrimaryEnd, PrimaryRole, Stop};
use crate::mutation::{Mutation, mutated};
use crate::output_gate::Released;
use crate::role::DiskLogState;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use vm::{OutputId, OutputOperation};

impl PrimaryRole {
    /// Appends an entry to the log, and holds its output.
    ///
    /// After the end the role ignores entries: what a fenced guest does has no consequence.
    pub fn handle_entry(&mut self, now_ns: u64, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) {
        if matches!(self.mode, Mode::Ended(_)) {
            return;
        }
        let seq = self.append(now_ns, entry);
        if let Some((id, operation)) = output {
            self.gate.hold(now_ns, seq, id, operation);
        }
        if let EntryBody::Stopped(reason) = entry.body {
            self.stop = Some(Stop {
                end: PrimaryEnd::GuestStopped(reason),
                outputs_until_ns: now_ns.saturating_add(self.timing.failure_timeout_ns),
            });
        }
        if mutated(Mutation::SkipOutputRule) {
            self.gate.release_all(now_ns);
        }
        self.release(now_ns);
        self.flush_if_due(now_ns);
        self.end_if_stopped(now_ns);
    }

    fn append(&mut self, now_ns: u64, entry: &LogEntry) -> LogSeq {
        let seq = self.appended;
        self.appended = LogSeq(seq.0.checked_add(1).expect("a log ends before the range of its sequence numbers"));
        if let Some((stream, _)) = self.mode.stream_mut() {
            let streamed = stream.append(now_ns, entry);
            assert!(streamed == seq, "entry {seq} of the log is entry {streamed} of what the backup gets");
        }
        seq
    }

    /// Moves all appended entries to [`poll_outgoing`](Self::poll_outgoing).
    pub fn handle_flush(&mut self, now_ns: u64) {
        if let Some((stream, link)) = self.mode.stream_mut() {
            stream.flush(now_ns, link);
        }
        if mutated(Mutation::ReleaseOnSend) {
            self.release(now_ns);
        }
    }

    pub(super) fn flush_if_due(&mut self, now_ns: u64) {
        if self.mode.stream_mut().is_some_and(|(stream, _)| stream.is_flush_due(now_ns)) {
            self.handle_flush(now_ns);
        }
    }

    /// Releases the outputs that may leave: those that the backup has acknowledged or, without a
    /// backup, all; and if a log is kept on disk, only those that it has.
    pub(super) fn release(&mut self, now_ns: u64) {
        let allowed = match &self.mode {
            Mode::Alone(_) => self.appended,
            Mode::Protected(backup) => backup.allows(),
            Mode::AwaitingBackup(_) | Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => return,
        };
        self.gate.release(now_ns, self.disk_log.limit(allowed));
        self.check_released();
    }

    /// Asserts that the log on disk, and the backup of a protected pair, have the entries of all
    /// released outputs.
    pub(super) fn check_released(&self) {
        let released = self.gate.released();
        assert!(released <= self.appended, "cursors out of order: released {released} appended {}", self.appended);
        if let Mode::Protected(backup) = &self.mode {
            backup.check_released(released);
        }
    }

    /// This side's log on disk has reached this state. Two threads may report it, so an earlier
    /// state may come after a later one.
    pub fn handle_disk_log(&mut self, now_ns: u64, disk_log: DiskLogState) {
        self.disk_log = self.disk_log.max(disk_log);
        self.release(now_ns);
    }

    /// The next output that may leave. When it has, the driver says so by
    /// [`PrimaryRole::handle_carried`] for a packet, and [`PrimaryRole::handle_console_left`] for
    /// console output.
    pub fn poll_released(&mut self) -> Option<Released> {
        self.gate.take_released()
    }

    /// All console output below `next` has been written, or dropped because nobody reads it.
    pub fn handle_console_left(&mut self, next: OutputId) {
        self.gate.console_left(next);
    }

    /// The network has carried all packets below `next`.
    pub fn handle_carried(&mut self, next: OutputId) {
        self.gate.carried(next);
    }

    /// The network is attached (again) and has carried all packets below `next`: the role gives out
    /// the later ones again.
    pub fn handle_attachment(&mut self, next: OutputId) {
        self.gate.send_again(next);
    }
}
