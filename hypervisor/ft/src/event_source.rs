//! Where a running guest's nondeterministic inputs come from.

use vm::{Event, Machine};

/// Supplies a live guest's events: the host, or a simulated one.
///
/// A replayed guest has no source: the [`Replayer`](crate::replay::Replayer) takes its events from
/// entries that a [`Recorder`](crate::record::Recorder) logged. Both pass events to the same
/// [`apply`](crate::apply::apply).
pub trait EventSource {
    /// The time for cursors and intervals, in nanoseconds; never goes back. The guest doesn't see
    /// it.
    fn now_ns(&mut self) -> u64;

    /// The guest's clock, in ticks of [`vm::TIMEBASE_HZ`]; never goes back.
    fn ticks(&mut self) -> u64;

    /// The time of day of the host, in nanoseconds of UTC since 1970. It may go back: the recorder
    /// sees to it that the guest's doesn't.
    fn wall_ns(&mut self) -> u64;

    /// Sixteen bits of entropy.
    fn entropy(&mut self) -> u16;

    /// An event that the machine can take now, if there is one. What it can't take yet stays with
    /// the source.
    fn poll(&mut self, machine: &Machine) -> Option<Event>;
}
