//! The Output Rule: what the guest sends waits here until the backup holds the log up to it.

use hdrhistogram::Histogram;
use logchannel::entry::LogSeq;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// How many bytes of held outputs stop the guest until some are released.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// What an output costs in the gate beyond its bytes, so that empty outputs are bounded too.
const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// The longest hold time that is told apart from longer ones, in nanoseconds.
const HOLD_NS_MAX: u64 = 60_000_000_000;

/// The one way out of a guest.
///
/// An output enters with the sequence number of its log entry and leaves, in order, when the backup has acknowledged
/// that entry or when the VM has no backup by a won claim.
/// Invariant: outputs leave in the order of their ids, each at most once.
/// Source: Scales et al. 2010, §2.2 "Output Rule".
#[derive(Debug)]
pub struct OutputGate {
    held: VecDeque<Held>,
    held_bytes: usize,
    released: VecDeque<(OutputId, OutputOperation)>,
    next_unreleased: OutputId,
    hold_time_ns: Histogram<u64>,
}

#[derive(Debug)]
struct Held {
    seq: LogSeq,
    id: OutputId,
    operation: OutputOperation,
    produced_ns: u64,
}

impl OutputGate {
    /// An empty gate. `next` is the id of the first output to come.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants in range.
    #[must_use]
    pub fn new(next: OutputId) -> Self {
        let hold_time_ns = Histogram::new_with_bounds(1, HOLD_NS_MAX, 3).expect("constant bounds are in range");
        Self { held: VecDeque::new(), held_bytes: 0, released: VecDeque::new(), next_unreleased: next, hold_time_ns }
    }

    /// Lets an output pass at once: a new owner sends what its predecessor may not have sent.
    pub fn pass(&mut self, id: OutputId, operation: OutputOperation) {
        self.next_unreleased = OutputId(id.0 + 1);
        self.released.push_back((id, operation));
    }

    /// Whether an output may leave now.
    #[must_use]
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Holds an output whose log entry is `seq`.
    ///
    /// # Panics
    /// If outputs come out of order: our own bug.
    pub fn hold(&mut self, now_ns: u64, seq: LogSeq, id: OutputId, operation: OutputOperation) {
        let last = self.held.back().map(|held| (held.seq, held.id));
        assert!(last.is_none_or(|last| last < (seq, id)), "output {id:?} of entry {seq} after {last:?}");
        self.held_bytes += operation.bytes().len() + OUTPUT_OVERHEAD_BYTES;
        self.held.push_back(Held { seq, id, operation, produced_ns: now_ns });
    }

    /// Releases every held output whose log entry the backup has acknowledged: all with `seq < acked`.
    pub fn release(&mut self, now_ns: u64, acked: LogSeq) {
        while self.held.front().is_some_and(|held| held.seq < acked) {
            self.release_first(now_ns);
        }
    }

    /// Releases everything: the VM has no backup, and its owner is alone by a won claim.
    pub fn release_all(&mut self, now_ns: u64) {
        while !self.held.is_empty() {
            self.release_first(now_ns);
        }
    }

    fn release_first(&mut self, now_ns: u64) {
        let Some(held) = self.held.pop_front() else { return };
        self.held_bytes -= held.operation.bytes().len() + OUTPUT_OVERHEAD_BYTES;
        self.next_unreleased = OutputId(held.id.0 + 1);
        self.hold_time_ns.saturating_record(now_ns.saturating_sub(held.produced_ns));
        self.released.push_back((held.id, held.operation));
    }

    /// Drops everything, held or released and not yet taken: this side is fenced and must not put out anything more.
    pub fn discard_all(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.released.clear();
    }

    /// The oldest output that may leave now.
    pub fn take_released(&mut self) -> Option<(OutputId, OutputOperation)> {
        self.released.pop_front()
    }

    /// Every output with a smaller id has been released.
    #[must_use]
    pub fn next_unreleased(&self) -> OutputId {
        self.next_unreleased
    }

    /// The id of the next output to leave the host; every one with a smaller id has been taken.
    #[must_use]
    pub fn next_to_leave(&self) -> OutputId {
        self.released.front().map_or(self.next_unreleased, |(id, _)| *id)
    }

    /// How many outputs wait for an acknowledgement.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the guest must stop until outputs have been released.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.held_bytes >= HELD_BYTES_MAX
    }

    /// How long released outputs were held, in nanoseconds.
    #[must_use]
    pub fn hold_time_ns(&self) -> &Histogram<u64> {
        &self.hold_time_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8) -> OutputOperation {
        OutputOperation::Frame(vec![byte; 60])
    }

    #[test]
    fn output_rule_releases_only_what_is_acknowledged() {
        let mut gate = OutputGate::new(OutputId(0));
        gate.hold(10, LogSeq(3), OutputId(0), frame(0));
        gate.hold(10, LogSeq(5), OutputId(1), frame(1));
        gate.release(20, LogSeq(3));
        assert_eq!(gate.take_released(), None, "entry 3 itself is not below the cursor 3");
        gate.release(20, LogSeq(5));
        assert_eq!(gate.take_released(), Some((OutputId(0), frame(0))));
        assert_eq!(gate.take_released(), None);
        assert_eq!((gate.held(), gate.next_unreleased()), (1, OutputId(1)));
        gate.release(30, LogSeq(6));
        assert_eq!(gate.take_released(), Some((OutputId(1), frame(1))));
        assert_eq!(gate.hold_time_ns().max(), 20);
    }

    #[test]
    fn fenced_gate_puts_out_nothing() {
        let mut gate = OutputGate::new(OutputId(0));
        gate.hold(0, LogSeq(0), OutputId(0), frame(0));
        gate.hold(0, LogSeq(1), OutputId(1), frame(1));
        gate.release(1, LogSeq(1));
        gate.discard_all();
        gate.release_all(2);
        assert_eq!(gate.take_released(), None);
    }

    #[test]
    fn full_gate_empties_by_release() {
        let mut gate = OutputGate::new(OutputId(0));
        let big = OutputOperation::Frame(vec![0; HELD_BYTES_MAX / 2]);
        gate.hold(0, LogSeq(0), OutputId(0), big.clone());
        assert!(!gate.is_full());
        gate.hold(0, LogSeq(1), OutputId(1), big);
        assert!(gate.is_full());
        gate.release(0, LogSeq(1));
        assert!(!gate.is_full());
    }
}
