//! Where a running guest's events come from.

use super::env::Env;
use super::host::SimHost;
use super::sightings::Sighting;
use crate::random::Random;
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use hypervisor::node::host::{GuestInput, Host};
use hypervisor::node::io::guest_inputs::{GuestInputs, InputQueues};
use vm::{Event, Machine};

/// One in so many looks for input finds that somebody has typed something.
const LOOKS_PER_KEY: u32 = 2000;

/// The time of day at which a run starts, in nanoseconds since 1970.
const WALL_START_NS: u64 = 1_700_000_000_000_000_000;

/// The guest's events, as the host makes them.
pub(super) struct SimSource {
    host: SimHost,
    inputs: GuestInputs<SimQueues>,
    random: Random,
}

/// The packets that the host has, and the keys of a person at its console.
struct SimQueues {
    host: SimHost,
    random: Random,
}

impl InputQueues for SimQueues {
    fn has_packet(&self) -> bool {
        self.host.has_packet()
    }

    fn take_packet(&mut self) -> Option<(u64, Vec<u8>)> {
        self.host.take_packet()
    }

    fn has_typed(&self) -> bool {
        false
    }

    fn take_typed(&mut self) -> Option<Vec<u8>> {
        self.random.one_in(LOOKS_PER_KEY).then(|| {
            self.host.env().saw(Sighting::Typed);
            vec![b'k'; 1 + self.random.index(40)]
        })
    }
}

impl SimSource {
    pub(super) fn new(host: SimHost, clock: GuestClock, env: &mut Env) -> Self {
        let queues = SimQueues { host: host.clone(), random: Random::new(env.random.next_u64()) };
        let inputs = GuestInputs::new(queues, clock, env.now_ns);
        Self { host, inputs, random: Random::new(env.random.next_u64()) }
    }
}

impl GuestInput for SimSource {
    fn clock(&self) -> &GuestClock {
        self.inputs.clock()
    }

    fn set_clock_running(&mut self, runs: bool) {
        self.inputs.set_clock_running(self.host.now_ns(), runs);
    }

    fn has_input(&self, machine: &Machine) -> bool {
        self.inputs.has_input(machine)
    }
}

impl EventSource for SimSource {
    fn now_ns(&mut self) -> u64 {
        let now_ns = self.host.now_ns();
        self.inputs.read_clock(now_ns);
        now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.inputs.read_clock(self.host.now_ns())
    }

    fn wall_ns(&mut self) -> u64 {
        WALL_START_NS + self.host.now_ns()
    }

    fn entropy(&mut self) -> u16 {
        u16::try_from(self.random.below(1 << 16)).expect("below 2^16")
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        self.inputs.poll(machine, self.host.now_ns())
    }
}
