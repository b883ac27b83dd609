//! The Output Rule: outputs of the guest wait here until the backup has the log up to their
//! entries.

use crate::mutation::{Mutation, mutated};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use logchannel::entry::LogSeq;
use logchannel::message::Left;
use vm::{OutputId, OutputOperation};

/// When outputs in the gate, held or not yet taken, come to this many bytes, the guest stops until
/// some are taken.
pub const GATE_BYTES_MAX: usize = 64 << 20;

/// When console output that isn't known to have left comes to this many bytes, the guest stops: a
/// slow reader of the console slows the guest, so that what waits for it is bounded.
pub const CONSOLE_HELD_BYTES_MAX: usize = 256 << 10;

/// The most bytes of packets that are kept after they were taken, until the network has carried
/// them. Beyond that the gate gives up the oldest, as a network card with its cable out does: it is
/// counted, and never sent again. As long as no network has been attached the limit is
/// [`GATE_BYTES_MAX`]: a guest that goes live, with outputs that its predecessor may not have sent,
/// doesn't wait for its network.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;

/// What an output costs in the gate beyond its bytes, so that empty outputs are bounded too.
const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// The one way out of a guest.
///
/// ```text
///   hold ──► held ──(backup acknowledges, or none by a won claim)──► released ──take──► in flight ──────► left
///                                                                        ▲                  │  a packet: carried
///                                                                        └──send_again──────┘  console: console_left
/// An output enters with the sequence number of its log entry. Until an output has left, a
/// successor of this side must send it. Packets and console output leave independently of each
/// other, so that a console without a reader doesn't keep packets from counting as left. Invariant:
/// outputs are taken in the order of their ids.
#[derive(Clone, Debug, Hash)]
pub struct OutputGate {
    held: VecDeque<Held>,
    released: VecDeque<Released>,
    /// Packets taken, and not known to be carried.
    in_flight: VecDeque<Released>,
    /// Console output taken, and not known to be written or dropped.
    at_console: VecDeque<Released>,
    /// Bytes of `held` and `released`, by [`cost`].
    bytes: usize,
    in_flight_bytes: usize,
    in_flight_bytes_max: usize,
    /// Bytes of all console output in the gate.
    console_bytes: usize,
    /// All outputs with a smaller id have been taken.
    taken: OutputId,
    /// The network has carried all packets with a smaller id.
    carried: OutputId,
    /// One past the last output that entered.
    end: OutputId,
    /// One past the entry of the newest output that was released.
    released_entries: LogSeq,
    given_up: u64,
}

#[derive(Clone, Debug, Hash)]
struct Held {
    seq: LogSeq,
    id: OutputId,
    operation: Arc<OutputOperation>,
    /// When the guest produced it; `None` if a predecessor did, so that this gate's hold times
    /// leave it out.
    produced_ns: Option<u64>,
}

/// An output that may leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Released {
    /// Its id.
    pub id: OutputId,
    /// What the guest sent.
    pub operation: Arc<OutputOperation>,
    /// How long the gate held it, in nanoseconds; `None` if a predecessor produced it, or if it was
    /// taken before.
    pub held_ns: Option<u64>,
}

impl Released {
    /// An output that was never held.
    #[must_use]
    pub fn at_once(id: OutputId, operation: OutputOperation) -> Self {
        Self { id, operation: Arc::new(operation), held_ns: None }
    }
}

impl OutputGate {
    /// An empty gate. `next` is the id of the first output to come.
    #[must_use]
    pub fn new(next: OutputId) -> Self {
        Self {
            held: VecDeque::new(),
            released: VecDeque::new(),
            in_flight: VecDeque::new(),
            at_console: VecDeque::new(),
            bytes: 0,
            in_flight_bytes: 0,
            in_flight_bytes_max: GATE_BYTES_MAX,
            console_bytes: 0,
            taken: next,
            carried: next,
            end: next,
            released_entries: LogSeq(0),
            given_up: 0,
        }
    }

    /// Holds an output that a predecessor may not have sent until all entries up to `seq` may
    /// leave. It comes before those of [`OutputGate::hold`], in the order of the ids.
    ///
    /// # Panics
    /// If outputs come out of order: our own bug, because the order of unsent outputs is checked
    /// where it comes in.
    pub fn hold_unsent(&mut self, seq: LogSeq, id: OutputId, operation: OutputOperation) {
        let last = self.held.back().map(|held| held.id);
        assert!(last.is_none_or(|last| last < id), "unsent output {id:?} after {last:?}");
        self.enter(&operation);
        self.taken = self.taken.min(id);
        self.carried = self.carried.min(id);
        self.end = self.end.max(id.next());
        self.held.push_back(Held { seq, id, operation: Arc::new(operation), produced_ns: None });
    }

    /// `true` if an output may leave now.
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
        self.enter(&operation);
        self.end = id.next();
        self.held.push_back(Held { seq, id, operation: Arc::new(operation), produced_ns: Some(now_ns) });
    }

    fn enter(&mut self, operation: &OutputOperation) {
        self.bytes += cost(operation);
        if matches!(operation, OutputOperation::Console(_)) {
            self.console_bytes += cost(operation);
        }
    }

    /// Releases every held output whose log entry the backup has acknowledged: all with `seq <
    /// acked`.
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
        let last = self.released.back().map(|released| released.id);
        assert!(last.is_none_or(|last| last < held.id), "output {:?} is released after {last:?}", held.id);
        self.released_entries = held.seq.next();
        let held_ns = held.produced_ns.map(|produced_ns| now_ns.saturating_sub(produced_ns));
        self.released.push_back(Released { id: held.id, operation: held.operation, held_ns });
    }

    /// One past the greatest entry of which an output was released.
    #[must_use]
    pub const fn released(&self) -> LogSeq {
        self.released_entries
    }

    /// Drops everything that has not left: this side is fenced, or leaves the rest to its backup.
    pub fn discard_all(&mut self) {
        self.held.clear();
        self.released.clear();
        self.in_flight.clear();
        self.at_console.clear();
        (self.bytes, self.in_flight_bytes, self.console_bytes) = (0, 0, 0);
    }

    /// Takes the oldest output that may leave. It counts as in flight until
    /// [`OutputGate::carried`], for a packet, or [`OutputGate::console_left`], for console output,
    /// says that it has left.
    pub fn take_released(&mut self) -> Option<Released> {
        let released = self.released.pop_front()?;
        let taken = Released { held_ns: None, ..released.clone() };
        let cost = cost(&released.operation);
        self.bytes -= cost;
        self.taken = self.taken.max(released.id.next());
        match *released.operation {
            OutputOperation::Packet(_) => {
                self.in_flight_bytes += cost;
                self.in_flight.push_back(taken);
                while self.in_flight_bytes > self.in_flight_bytes_max {
                    self.drop_first_in_flight();
                    self.given_up += 1;
                }
            }
            OutputOperation::Console(_) if mutated(Mutation::ConsoleLeftWhenTaken) => self.console_bytes -= cost,
            OutputOperation::Console(_) => self.at_console.push_back(taken),
        }
        Some(released)
    }

    /// All console output below `next` has been written, or dropped because it has no reader.
    /// Output that only waits to be written doesn't count: it dies with this process.
    pub fn console_left(&mut self, next: OutputId) {
        while let Some(left) = self.at_console.pop_front_if(|taken| taken.id < next) {
            self.console_bytes -= cost(&left.operation);
        }
    }

    /// The network has carried all packets below `next`.
    pub fn carried(&mut self, next: OutputId) {
        // No network can have carried what hasn't been made.
        self.carried = self.carried.max(next.min(self.end));
        while self.in_flight.front().is_some_and(|taken| taken.id < self.carried) {
            self.drop_first_in_flight();
        }
    }

    /// The network is attached (again) and has carried all packets below `next`: the gate gives out
    /// the later ones again.
    pub fn send_again(&mut self, next: OutputId) {
        self.carried(next);
        self.in_flight_bytes_max = IN_FLIGHT_BYTES_MAX;
        while let Some(taken) = self.in_flight.pop_back() {
            self.in_flight_bytes -= cost(&taken.operation);
            self.bytes += cost(&taken.operation);
            self.released.push_front(taken);
        }
    }

    fn drop_first_in_flight(&mut self) {
        if let Some(dropped) = self.in_flight.pop_front() {
            self.in_flight_bytes -= cost(&dropped.operation);
        }
    }

    /// Which outputs have left the host or were given up: a successor need not send them.
    #[must_use]
    pub fn left(&self) -> Left {
        let not_taken =
            self.released.front().map(|released| released.id).or_else(|| self.held.front().map(|held| held.id));
        let not_taken = not_taken.unwrap_or(self.taken.max(self.carried));
        let first = |taken: &VecDeque<Released>| taken.front().map_or(not_taken, |taken| taken.id);
        Left { packets: first(&self.in_flight), console: first(&self.at_console) }
    }

    /// Every output with a smaller id has left the host, or was given up.
    #[must_use]
    pub fn next_to_leave(&self) -> OutputId {
        let left = self.left();
        left.packets.min(left.console)
    }

    /// `true` if every output that entered has left the host, or was given up.
    #[must_use]
    pub fn has_all_left(&self) -> bool {
        self.next_to_leave() >= self.end
    }

    /// One past the last output that entered.
    #[must_use]
    pub const fn end(&self) -> OutputId {
        self.end
    }

    /// Released outputs that aren't known to have left, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = (OutputId, &OutputOperation)> {
        self.taken_or_released().into_iter().map(|output| (output.id, &*output.operation))
    }

    fn taken_or_released(&self) -> Vec<&Released> {
        let mut outputs: Vec<_> = self.in_flight.iter().chain(&self.at_console).chain(&self.released).collect();
        outputs.sort_by_key(|output| output.id);
        outputs
    }

    /// Every output that isn't known to have left, held ones too, oldest first.
    #[must_use]
    pub fn not_left(&self) -> Vec<(OutputId, Arc<OutputOperation>)> {
        let held = self.held.iter().map(|held| (held.id, held.operation.clone()));
        let others = self.taken_or_released().into_iter().map(|output| (output.id, output.operation.clone()));
        others.chain(held).collect()
    }

    /// How many outputs were given up because the network didn't carry them and
    /// [`IN_FLIGHT_BYTES_MAX`] was reached.
    #[must_use]
    pub const fn given_up(&self) -> u64 {
        self.given_up
    }

    /// How many outputs wait for an acknowledgement.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// `true` if the guest must stop until outputs have been taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= GATE_BYTES_MAX || self.console_bytes >= CONSOLE_HELD_BYTES_MAX
    }
}

/// How many bytes an output counts for, here and in a backup: its own, and what keeping it costs.
pub(crate) fn cost(operation: &OutputOperation) -> usize {
    operation.bytes().len() + OUTPUT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn packet(byte: u8) -> OutputOperation {
        OutputOperation::Packet(vec![byte; 60])
    }

    fn console(byte: u8) -> OutputOperation {
        OutputOperation::Console(vec![byte])
    }

    fn taken(gate: &mut OutputGate) -> Vec<u64> {
        core::iter::from_fn(|| gate.take_released()).map(|released| released.id.0).collect()
    }

    #[test]
    fn output_rule_releases_only_what_is_acknowledged() {
        let mut gate = OutputGate::new(OutputId(0));
        gate.hold(10, LogSeq(3), OutputId(0), packet(0));
        gate.hold(10, LogSeq(5), OutputId(1), packet(1));
        gate.release(20, LogSeq(3));
        assert_eq!(gate.take_released(), None, "entry 3 itself is not below the cursor 3");
        gate.release(20, LogSeq(5));
        assert_eq!(
            gate.take_released(),
            Some(Released { held_ns: Some(10), ..Released::at_once(OutputId(0), packet(0)) })
        );
        assert_eq!(gate.take_released(), None);
        assert_eq!((gate.held(), gate.next_to_leave()), (1, OutputId(0)), "taken, but not known to have left");
        gate.carried(OutputId(1));
        assert_eq!(gate.next_to_leave(), OutputId(1));
        gate.release(30, LogSeq(6));
        assert_eq!(
            gate.take_released(),
            Some(Released { held_ns: Some(20), ..Released::at_once(OutputId(1), packet(1)) })
        );
    }

    #[test]
    fn what_the_network_lost_is_sent_again_and_the_console_is_not() {
        let mut gate = OutputGate::new(OutputId(0));
        for (id, operation) in [(0, packet(0)), (1, console(1)), (2, packet(2)), (3, console(3)), (4, packet(4))] {
            gate.hold(0, LogSeq(id), OutputId(id), operation);
        }
        gate.release(0, LogSeq(4));
        assert_eq!(taken(&mut gate), [0, 1, 2, 3]);
        gate.console_left(OutputId(2));
        assert_eq!(gate.unsent().map(|(id, _)| id.0).collect::<Vec<_>>(), [0, 2, 3]);
        gate.send_again(OutputId(1));
        assert_eq!(gate.left(), Left { packets: OutputId(2), console: OutputId(3) });
        assert_eq!(gate.unsent().map(|(id, _)| id.0).collect::<Vec<_>>(), [2, 3]);
        gate.console_left(OutputId(4));
        gate.release(0, LogSeq(5));
        assert_eq!(taken(&mut gate), [2, 4]);
        gate.carried(OutputId(5));
        assert_eq!((gate.next_to_leave(), gate.unsent().count()), (OutputId(5), 0));
    }

    #[test]
    fn in_flight_is_bounded_and_what_is_given_up_is_counted() {
        let mut gate = OutputGate::new(OutputId(0));
        let big = OutputOperation::Packet(vec![0; IN_FLIGHT_BYTES_MAX / 2]);
        for id in 0..3 {
            gate.hold(0, LogSeq(id), OutputId(id), big.clone());
        }
        gate.release(0, LogSeq(3));
        assert_eq!(taken(&mut gate), [0, 1, 2]);
        assert_eq!((gate.given_up(), gate.next_to_leave()), (0, OutputId(0)), "no network has been there yet");
        gate.send_again(OutputId(0));
        assert_eq!(taken(&mut gate), [0, 1, 2]);
        assert_eq!((gate.given_up(), gate.next_to_leave()), (2, OutputId(2)));
    }

    #[test]
    fn fenced_gate_puts_out_nothing() {
        let mut gate = OutputGate::new(OutputId(0));
        for id in 0..3 {
            gate.hold(0, LogSeq(id), OutputId(id), packet(0));
        }
        gate.release(1, LogSeq(2));
        gate.take_released();
        gate.discard_all();
        gate.release_all(2);
        gate.send_again(OutputId(0));
        assert_eq!(gate.take_released(), None);
    }

    #[test]
    fn full_gate_empties_by_what_is_taken() {
        let mut gate = OutputGate::new(OutputId(0));
        let big = OutputOperation::Packet(vec![0; GATE_BYTES_MAX / 2]);
        gate.hold(0, LogSeq(0), OutputId(0), big.clone());
        assert!(!gate.is_full());
        gate.hold(0, LogSeq(1), OutputId(1), big);
        assert!(gate.is_full());
        gate.release(0, LogSeq(1));
        assert!(gate.is_full(), "a network that doesn't take them must not fill the memory");
        gate.take_released();
        assert!(!gate.is_full());
    }

    #[test]
    fn an_unread_console_keeps_no_packet_from_having_left() {
        let mut gate = OutputGate::new(OutputId(0));
        for (id, operation) in [(0, console(0)), (1, packet(1)), (2, console(2))] {
            gate.hold(0, LogSeq(id), OutputId(id), operation);
        }
        gate.release(0, LogSeq(3));
        assert_eq!(taken(&mut gate), [0, 1, 2]);
        gate.carried(OutputId(2));
        assert_eq!(gate.left(), Left { packets: OutputId(3), console: OutputId(0) });
        assert_eq!(gate.not_left().len(), 2, "what waits for its reader is a successor's to write");
        gate.console_left(OutputId(1));
        assert_eq!(gate.left(), Left { packets: OutputId(3), console: OutputId(2) });
    }

    #[test]
    fn a_slow_reader_of_the_console_stops_the_guest_until_it_has_read() {
        let mut gate = OutputGate::new(OutputId(0));
        for id in 0..2 {
            gate.hold(0, LogSeq(id), OutputId(id), OutputOperation::Console(vec![b'x'; CONSOLE_HELD_BYTES_MAX / 2]));
        }
        gate.release(0, LogSeq(2));
        assert_eq!(taken(&mut gate), [0, 1]);
        assert!(gate.is_full(), "taken is not written");
        gate.console_left(OutputId(1));
        assert!(!gate.is_full());
    }
}
