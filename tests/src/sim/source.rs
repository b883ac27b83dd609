//! Where a running guest's events come from.

use crate::random::Random;
use hypervisor::event_source::EventSource;
use std::collections::VecDeque;
use vm::{Event, Machine, TIMEBASE_HZ};

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// The guest's events, as the host makes them.
#[derive(Debug)]
pub(super) struct SimSource {
    pub(super) now_ns: u64,
    /// The guest's clock read `start_ticks` at `start_ns`.
    pub(super) start_ns: u64,
    pub(super) start_ticks: u64,
    pub(super) packets: VecDeque<(u64, Vec<u8>)>,
    pub(super) random: Random,
}

impl SimSource {
    /// When the guest's clock reads `ticks`.
    pub(super) const fn ns_of(&self, ticks: u64) -> u64 {
        self.start_ns.saturating_add(ticks.saturating_sub(self.start_ticks).saturating_mul(NS_PER_TICK))
    }
}

impl EventSource for SimSource {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.start_ticks + self.now_ns.saturating_sub(self.start_ns) / NS_PER_TICK
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
