//! Where a running guest's events come from.

use crate::random::Random;
use ft::event_source::EventSource;
use ft::guest_clock::WatchedClock;
use std::collections::VecDeque;
use vm::{Event, Machine};

/// The guest's events, as the host makes them.
#[derive(Debug)]
pub(super) struct SimSource {
    pub(super) now_ns: u64,
    pub(super) clock: WatchedClock,
    pub(super) packets: VecDeque<(u64, Vec<u8>)>,
    pub(super) random: Random,
}

impl EventSource for SimSource {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.clock.look(self.now_ns)
    }

    fn entropy(&mut self) -> u16 {
        u16::try_from(self.random.below(1 << 16)).expect("below 2^16")
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        if machine.timer_deadline().is_some_and(|deadline| deadline <= self.ticks()) {
            return Some(Event::TimerInterrupt);
        }
        if !machine.can_receive_packet() {
            return None;
        }
        self.packets.pop_front().map(|(number, frame)| Event::Packet { number, frame })
    }
}
