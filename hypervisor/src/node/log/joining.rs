//! The receiving thread's end of a backup's log on disk: the stream with which the backup joins is
//! the log's first segment.

use super::disk_log::payload_bytes;
use super::identity::LogWriterKind;
use super::progress::LogProgress;
use super::writer::{Batch, WriterOrder};
use logchannel::entry::LogEntry;
use logchannel::session::SessionHeader;
use logchannel::snapshot::{Pages, Snapshot};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm::{OutputId, OutputOperation};

/// Passes everything that a backup receives to the log's writer, in order, before the machine gets
/// it.
///
/// So the log lags behind the channel by what the disk hasn't taken, however far replay is behind.
#[derive(Debug)]
pub struct JoiningLog {
    orders: crossbeam_channel::Sender<Batch>,
    progress: Arc<LogProgress>,
    queue_bytes_max: usize,
}

impl JoiningLog {
    pub(super) fn begin(
        orders: crossbeam_channel::Sender<Batch>,
        progress: Arc<LogProgress>,
        queue_bytes_max: usize,
        session: &SessionHeader,
    ) -> Self {
        let log = Self { orders, progress, queue_bytes_max };
        log.give(vec![WriterOrder::Begin(Box::new(session.clone()))], 0);
        log
    }

    /// Memory pages of the snapshot.
    pub fn pages(&self, pages: &Pages) {
        self.give(vec![WriterOrder::Pages(pages.clone())], pages.bytes.len());
    }

    /// Completes the snapshot, with the outputs that may not have left.
    pub fn complete(&self, unsent: impl Iterator<Item = (OutputId, OutputOperation)>, snapshot: &Snapshot) {
        let mut bytes = snapshot.state.len();
        let unsent = unsent.map(|(id, operation)| {
            bytes += operation.bytes().len();
            WriterOrder::UnsentOutput(id, Arc::new(operation))
        });
        let mut orders: Vec<_> = unsent.collect();
        orders.push(WriterOrder::Complete(snapshot.clone()));
        self.give(orders, bytes);
    }

    /// The next entries.
    pub fn entries<'a>(&self, entries: impl Iterator<Item = &'a LogEntry>) {
        let mut bytes = 0;
        let entry = |entry: &LogEntry| {
            bytes += payload_bytes(entry);
            WriterOrder::Entry(entry.clone())
        };
        let orders = entries.map(entry).collect();
        self.give(orders, bytes);
    }

    /// The primary holds its outputs for this backup from now on.
    pub fn protects(&self) {
        self.give(vec![WriterOrder::Become(LogWriterKind::Backup)], 0);
    }

    /// `true` while the queue to the disk is full, so that nothing more may be received.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.has_failed() && self.progress.queued_bytes.load(Ordering::Acquire) >= self.queue_bytes_max
    }

    /// What the disk has taken so far: a number that grows while the disk makes progress.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.progress.done.load(Ordering::Relaxed)
    }

    fn has_failed(&self) -> bool {
        self.progress.has_failed()
    }

    fn give(&self, orders: Vec<WriterOrder>, payload_bytes: usize) {
        if orders.is_empty() || self.has_failed() {
            return;
        }
        let bytes = payload_bytes + orders.len() * size_of::<WriterOrder>();
        self.progress.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        // Fails only after logging has failed.
        let _ = self.orders.send(Batch { orders, bytes });
    }
}
