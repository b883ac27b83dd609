//! The order of a live guest's inputs: which event it gets next.

use ft::guest_clock::{GuestClock, WatchedClock};
use std::collections::VecDeque;
use vm::{Event, Machine};

/// The longest console input in one event, in bytes.
const CONSOLE_BYTES_MAX: usize = 256;

/// Queues of inputs: a process's or the simulator's.
pub trait InputQueues {
    /// `true` if a packet is queued.
    fn has_packet(&self) -> bool;

    /// Takes the oldest packet, with its number.
    fn take_packet(&mut self) -> Option<(u64, Vec<u8>)>;

    /// `true` if console input is queued.
    fn has_typed(&self) -> bool;

    /// Takes the oldest piece of console input.
    fn take_typed(&mut self) -> Option<Vec<u8>>;
}

/// A live guest's inputs and clock.
///
/// A due timer comes first, because the guest has waited for it; then packets; then console input,
/// as much as the guest has room for.
#[derive(Debug)]
pub struct GuestInputs<Q> {
    queues: Q,
    /// The rest of the last piece of console input.
    typed: VecDeque<u8>,
    clock: WatchedClock,
}

impl<Q: InputQueues> GuestInputs<Q> {
    /// The inputs of a guest whose clock continues as `clock`, at `now_ns`.
    pub const fn new(queues: Q, clock: GuestClock, now_ns: u64) -> Self {
        Self { queues, typed: VecDeque::new(), clock: WatchedClock::new(clock, now_ns) }
    }

    /// The guest's clock as of its last reading.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        self.clock.clock()
    }

    /// Starts or stops the guest's clock.
    pub fn set_clock_running(&mut self, now_ns: u64, runs: bool) {
        self.clock.set_running(now_ns, runs);
    }

    /// Reads the guest's clock and returns its ticks.
    pub fn read_clock(&mut self, now_ns: u64) -> u64 {
        self.clock.read(now_ns)
    }

    /// `true` if an input is queued that the guest can take now.
    #[must_use]
    pub fn has_input(&self, machine: &Machine) -> bool {
        let has_packet = self.queues.has_packet() && machine.can_receive_packet();
        let has_typed = !self.typed.is_empty() || self.queues.has_typed();
        has_packet || (has_typed && machine.console_room() > 0)
    }

    /// The guest's next event, if there is one that it can take now.
    pub fn poll(&mut self, machine: &Machine, now_ns: u64) -> Option<Event> {
        if let Some(deadline) = machine.timer_deadline()
            && deadline <= self.read_clock(now_ns)
        {
            return Some(Event::TimerInterrupt);
        }
        if machine.can_receive_packet()
            && let Some((number, packet)) = self.queues.take_packet()
        {
            return Some(Event::Packet { number, packet });
        }
        if self.typed.is_empty() {
            self.typed.extend(self.queues.take_typed().into_iter().flatten());
        }
        let room = machine.console_room().min(CONSOLE_BYTES_MAX).min(self.typed.len());
        (room > 0).then(|| Event::ConsoleInput { bytes: self.typed.drain(..room).collect() })
    }
}
