//! The part of the log that a backup has received, and how far it has replayed it.

use alloc::collections::VecDeque;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::message::{EntryBatch, Message};
use logchannel::stream::{ChannelError, LogReceiver};
use vm::{InstructionCount, StopReason};

/// The shortest time from one report of the consumed position to the next, in nanoseconds.
const CONSUMED_REPORT_NS: u64 = 20_000_000;

/// The log from the snapshot on.
///
/// Invariant, asserted after every move: `consumed <= received`.
#[derive(Clone, Debug, Hash)]
pub(super) struct ReceivedLog {
    receiver: LogReceiver,
    consumed: LogSeq,
    /// The machine's instruction count.
    count: InstructionCount,
    /// The value of `consumed` that the primary was told last, and when.
    reported: (LogSeq, u64),
    /// Set when the log has the guest's end. The side that sets the end mark has sent all of the
    /// guest's outputs; if the primary dies before, this side does both.
    pub(super) guest_end: Option<StopReason>,
}

impl ReceivedLog {
    /// The log from a snapshot at `first` on.
    pub(super) fn new(now_ns: u64, first: LogSeq) -> Self {
        Self {
            receiver: LogReceiver::new(first),
            consumed: first,
            count: InstructionCount(0),
            reported: (first, now_ns),
            guest_end: None,
        }
    }

    pub(super) const fn received(&self) -> LogSeq {
        self.receiver.received()
    }

    pub(super) const fn consumed(&self) -> LogSeq {
        self.consumed
    }

    pub(super) fn is_drained(&self) -> bool {
        self.consumed == self.received()
    }

    /// Takes a batch of entries, which follow those received before.
    pub(super) fn receive(&mut self, batch: &EntryBatch) -> Result<VecDeque<LogEntry>, ChannelError> {
        let mut entries = VecDeque::new();
        self.receiver.receive(batch, &mut entries)?;
        if let Some(EntryBody::Stopped(reason)) = entries.back().map(|entry| &entry.body) {
            self.guest_end = Some(*reason);
        }
        self.check();
        Ok(entries)
    }

    /// All entries below `consumed` are replayed; the machine stands at `count`.
    ///
    /// # Panics
    /// If a cursor goes back or passes `received`: the driver's bug.
    pub(super) fn consume(&mut self, consumed: LogSeq, count: InstructionCount) {
        assert!(self.consumed <= consumed, "consumed {consumed} after {}", self.consumed);
        (self.consumed, self.count) = (consumed, count);
        self.check();
    }

    fn check(&self) {
        let received = self.received();
        assert!(self.consumed <= received, "cursors out of order: consumed {} received {received}", self.consumed);
    }

    /// The report of the consumed position, if it has changed and the last report is
    /// [`CONSUMED_REPORT_NS`] ago.
    pub(super) fn report(&mut self, now_ns: u64) -> Option<Message> {
        let (reported, at_ns) = self.reported;
        if self.consumed == reported || now_ns.saturating_sub(at_ns) < CONSUMED_REPORT_NS {
            return None;
        }
        self.reported = (self.consumed, now_ns);
        Some(Message::Consumed { consumed: self.consumed, count: self.count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "cursors out of order: consumed 4 received 3")]
    fn more_consumed_than_received_is_a_bug() {
        ReceivedLog::new(0, LogSeq(3)).consume(LogSeq(4), InstructionCount(0));
    }

    #[test]
    #[should_panic(expected = "consumed 2 after 3")]
    fn consumed_and_taken_back_is_a_bug() {
        ReceivedLog::new(0, LogSeq(3)).consume(LogSeq(2), InstructionCount(0));
    }
}
