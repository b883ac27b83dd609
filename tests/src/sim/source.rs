//! Where a running guest's events come from.

use super::env::Env;
use super::host::SimHost;
use crate::random::Random;
use ft::event_source::EventSource;
use ft::guest_clock::{GuestClock, WatchedClock};
use hypervisor::node::host::{GuestInput, Host};
use vm::{Event, Machine};

/// The guest's events, as the host makes them.
pub(super) struct SimSource {
    host: SimHost,
    clock: WatchedClock,
    random: Random,
}

impl SimSource {
    pub(super) fn new(host: SimHost, clock: GuestClock, env: &mut Env) -> Self {
        let clock = WatchedClock::new(clock, env.now_ns);
        Self { host, clock, random: Random::new(env.random.next_u64()) }
    }
}

impl GuestInput for SimSource {
    fn clock(&self) -> &GuestClock {
        self.clock.clock()
    }

    fn set_clock_running(&mut self, runs: bool) {
        self.clock.set_running(self.host.now_ns(), runs);
    }

    fn has_input(&self, machine: &Machine) -> bool {
        self.host.has_packet() && machine.can_receive_packet()
    }
}

impl EventSource for SimSource {
    fn now_ns(&mut self) -> u64 {
        let now_ns = self.host.now_ns();
        self.clock.look(now_ns);
        now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.clock.look(self.host.now_ns())
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
        self.host.take_packet().map(|(number, packet)| Event::Packet { number, packet })
    }
}
