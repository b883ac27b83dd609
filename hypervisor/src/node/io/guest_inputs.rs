//! Which event a running guest gets next, of those that wait for it.

use ft::guest_clock::{GuestClock, WatchedClock};
use std::collections::VecDeque;
use vm::{Event, Machine};

/// The longest piece of console input in one event, in bytes.
const CONSOLE_BYTES_MAX: usize = 256;

/// What waits for a guest: the queues of a process, or those of a simulator.
pub trait InputQueues {
    /// Whether a packet waits.
    fn has_packet(&self) -> bool;

    /// Takes the oldest packet, and its number if the LAN gave it one.
    fn take_packet(&mut self) -> Option<(u64, Vec<u8>)>;

    /// Whether something typed waits.
    fn has_typed(&self) -> bool;

    /// Takes the oldest piece of what was typed.
    fn take_typed(&mut self) -> Option<Vec<u8>>;
}

/// A running guest's inputs, and its clock.
///
/// A timer that is due comes first, because the guest has waited for it; then packets; then what
/// was typed, as much as the guest's console has room for.
#[derive(Debug)]
pub struct GuestInputs<Q> {
    queues: Q,
    /// What is left of the last piece of console input.
    typed: VecDeque<u8>,
    clock: WatchedClock,
}

impl<Q: InputQueues> GuestInputs<Q> {
    /// The inputs of a guest whose clock goes on as `clock`, as of `now_ns`.
    pub const fn new(queues: Q, clock: GuestClock, now_ns: u64) -> Self {
        Self { queues, typed: VecDeque::new(), clock: WatchedClock::new(clock, now_ns) }
    }

    /// The guest's clock, as of the last look at it.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        self.clock.clock()
    }

    /// Makes the guest's clock run or stand from now on.
    pub fn set_clock_running(&mut self, now_ns: u64, runs: bool) {
        self.clock.set_running(now_ns, runs);
    }

    /// Looks at the guest's clock, and returns its ticks.
    pub fn look(&mut self, now_ns: u64) -> u64 {
        self.clock.look(now_ns)
    }

    /// Whether something waits that the guest can take now.
    #[must_use]
    pub fn has_input(&self, machine: &Machine) -> bool {
        let has_packet = self.queues.has_packet() && machine.can_receive_packet();
        let has_typed = !self.typed.is_empty() || self.queues.has_typed();
        has_packet || (has_typed && machine.console_room() > 0)
    }

    /// The event that the guest gets next, if there is one that it can take at `now_ns`.
    pub fn poll(&mut self, machine: &Machine, now_ns: u64) -> Option<Event> {
        if let Some(deadline) = machine.timer_deadline()
            && deadline <= self.look(now_ns)
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
