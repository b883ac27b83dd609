//! The Output Rule: what the guest sends waits here until the backup holds the log up to it.

use crate::distribution::histogram_ns;
use hdrhistogram::Histogram;
use logchannel::entry::LogSeq;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// How many bytes of outputs in the gate, held or not yet taken, stop the guest until some are taken.
pub const GATE_BYTES_MAX: usize = 64 << 20;

/// What an output costs in the gate beyond its bytes, so that empty outputs are bounded too.
const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// The one way out of a guest.
///
/// An output enters with the sequence number of its log entry and leaves, in order, when the backup has acknowledged
/// that entry or when the VM has no backup by a won claim.
/// Invariant: outputs leave in the order of their ids, each at most once.
/// Source: Scales et al. 2010, §2.2 "Output Rule".
#[derive(Debug)]
pub struct OutputGate {
    held: VecDeque<Held>,
    released: VecDeque<(OutputId, OutputOperation)>,
    /// Of both queues.
    bytes: usize,
    next_to_leave: OutputId,
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
    #[must_use]
    pub fn new(next: OutputId) -> Self {
        let hold_time_ns = histogram_ns();
        Self { held: VecDeque::new(), released: VecDeque::new(), bytes: 0, next_to_leave: next, hold_time_ns }
    }

    /// Lets an output pass at once: a new owner sends what its predecessor may not have sent.
    pub fn pass(&mut self, id: OutputId, operation: OutputOperation) {
        self.bytes += cost(&operation);
        self.next_to_leave = self.next_to_leave.min(id);
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
        self.bytes += cost(&operation);
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
        self.hold_time_ns.saturating_record(now_ns.saturating_sub(held.produced_ns));
        self.released.push_back((held.id, held.operation));
    }

    /// Drops everything, held or released and not yet taken: this side is fenced and must not put out anything more.
    pub fn discard_all(&mut self) {
        self.held.clear();
        self.released.clear();
        self.bytes = 0;
    }

    /// The oldest output that may leave now. Say [`OutputGate::has_left`] when it has.
    pub fn take_released(&mut self) -> Option<(OutputId, OutputOperation)> {
        let (id, operation) = self.released.pop_front()?;
        self.bytes -= cost(&operation);
        Some((id, operation))
    }

    /// Output `id` and all before it have been handed to the network or the console.
    pub fn has_left(&mut self, id: OutputId) {
        self.next_to_leave = self.next_to_leave.max(OutputId(id.0 + 1));
    }

    /// Every output with a smaller id has left the host: a successor need not send it.
    #[must_use]
    pub const fn next_to_leave(&self) -> OutputId {
        self.next_to_leave
    }

    /// How many outputs wait for an acknowledgement.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the guest must stop until outputs have been taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= GATE_BYTES_MAX
    }

    /// How long released outputs were held, in nanoseconds.
    #[must_use]
    pub fn hold_time_ns(&self) -> &Histogram<u64> {
        &self.hold_time_ns
    }
}

/// What an output adds to the gate's bytes.
fn cost(operation: &OutputOperation) -> usize {
    operation.bytes().len() + OUTPUT_OVERHEAD_BYTES
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
        assert_eq!((gate.held(), gate.next_to_leave()), (1, OutputId(0)), "taken, but not known to have left");
        gate.has_left(OutputId(0));
        assert_eq!(gate.next_to_leave(), OutputId(1));
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
    fn full_gate_empties_by_what_is_taken() {
        let mut gate = OutputGate::new(OutputId(0));
        let big = OutputOperation::Frame(vec![0; GATE_BYTES_MAX / 2]);
        gate.hold(0, LogSeq(0), OutputId(0), big.clone());
        assert!(!gate.is_full());
        gate.hold(0, LogSeq(1), OutputId(1), big);
        assert!(gate.is_full());
        gate.release(0, LogSeq(1));
        assert!(gate.is_full(), "a network that doesn't take them must not fill the memory");
        gate.take_released();
        assert!(!gate.is_full());
    }
}
