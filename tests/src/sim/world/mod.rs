//! One run: hosts with processes, the LAN, and all that goes wrong, by a seed.

mod faults;
mod operator;

use super::disk::SimDisk;
use super::env::{Death, Env, Event};
use super::host::address;
use super::lan::{HEARTBEAT_US, Lan};
use super::log::{LogOfOwner, options};
use super::process::{Exit, Me, Process, Setup};
use super::sightings::{Sighting, Sightings};
use super::trace::{Kind, Lane, Recorder, State};
use crate::random::Random;
use ft::record::Intervals;
use ft::role::{DiskLogState, PrimaryRole, Timing};
use hypervisor::lan::port::PortTiming;
use hypervisor::node::io::lan::AttachmentTiming;
use hypervisor::node::log::LogWait;
use hypervisor::node::search::SearchTiming;
use hypervisor::node::start::claim_start;
use hypervisor::program::guest::Guest;
use logchannel::session::{NodeId, SessionHeader};
use operator::Operator;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use vm::{Machine, MachineConfig};

const MS: u64 = 1_000_000;

/// A machine with the least RAM that there is.
const RAM_BYTES: u64 = 4 << 20;

/// After the last fault, the pair is to be protected and every request answered within this time,
/// in nanoseconds.
const RECOVERY_NS: u64 = 2_000 * MS;

/// How long nobody goes on with a VM whose claims were lost before it counts as lost, in
/// nanoseconds.
const STUCK_NS: u64 = 800 * MS;

/// From one look at how a run goes to the next.
const LOOK_NS: u64 = 5 * MS;

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Things go wrong until this time.
    Faults { until_ns: u64 },
    /// Everything works again; service has to resume before this time, when so many requests have
    /// been answered.
    Recovery { until_ns: u64, answered: u32 },
    /// Nobody asks anything new; all is to be answered before this time, and then perhaps the guest
    /// is to power off.
    Draining { until_ns: u64, powers_off: bool },
    /// The guest was asked to power off; everybody is to be gone before this time.
    PoweringOff { until_ns: u64 },
    /// Everybody is gone; what they sent last arrives until this time.
    Leaving { until_ns: u64 },
    /// It is over. `is_settled`: nothing is under way any more.
    Over { is_settled: bool },
}

impl Phase {
    /// The same, with all its time left: the VM has been dead.
    const fn again(self, now_ns: u64, answered: u32) -> Self {
        match self {
            Self::Recovery { .. } | Self::Draining { .. } => {
                Self::Recovery { until_ns: now_ns + RECOVERY_NS, answered }
            }
            Self::Faults { .. } | Self::PoweringOff { .. } | Self::Leaving { .. } | Self::Over { .. } => self,
        }
    }
}

#[derive(Default)]
struct Host {
    process: Option<Process>,
    /// When its next step is due.
    scheduled_ns: Option<u64>,
    paused_until_ns: u64,
    was_paused_long: bool,
    restart_ns: u64,
}

/// One run.
pub(super) struct World {
    env: Env,
    lan: Lan,
    hosts: Vec<Host>,
    setup: Arc<Setup>,
    phase: Phase,
    nodes: u128,
    /// Since when no owner has gone on with the VM.
    stuck_since_ns: Option<u64>,
    /// Who goes on from logs on disk, while nobody owns the VM.
    operator: Option<Operator>,
    /// Hosts that have lost their power, with what wasn't synced.
    unpowered: BTreeSet<usize>,
    resumed: u32,
    /// What goes wrong with disks: its own numbers, so that the runs without logs are what they
    /// were.
    disk_random: Random,
    has_disk_faults: bool,
}

impl World {
    pub(super) fn new(seed: u64, recorder: Option<Recorder>) -> Self {
        let mut random = Random::new(seed);
        let mut disk_random = Random::new(!seed);
        let waits = [LogWait::Written, LogWait::Durable, LogWait::Written, LogWait::Durable, LogWait::No];
        let log_wait = if disk_random.one_in(2) { Some(disk_random.pick(&waits)) } else { None };
        let timing = Timing {
            heartbeat_ns: 10 * MS,
            failure_timeout_ns: (50 + 10 * u64::from(random.below(10))) * MS,
            claim_retry_ns: 15 * MS,
            // With the longer one the full log buffer stops the guest, and not its slowness.
            lag_bound_ns: random.pick(&[50, 50, 50, 4_000]) * MS,
            look_ns: 40 * MS,
        };
        let config = MachineConfig { ram_bytes: RAM_BYTES, mac: super::client::GUEST_MAC, ..MachineConfig::default() };
        let setup = Arc::new(Setup {
            vm: "tally".parse().unwrap_or_else(|error| panic!("{error}")),
            config,
            timing,
            attachment: AttachmentTiming {
                port: PortTiming { heartbeat_us: HEARTBEAT_US, answer_ns: 60 * MS, stuck_ns: 30 * MS },
                retry_ns: 20 * MS,
                retry_refused_ns: 200 * MS,
                full_ns: MS,
            },
            search: SearchTiming { retry_ns: 20 * MS, no_place_ns: 30 * MS },
            intervals: Intervals { digest_steps: 200_000, digest_ns: 200 * MS, progress_ns: 2 * MS },
            slice_steps: random.pick(&[300, 1_000, 5_000, 20_000]),
            ns_per_step: 7,
            replay_factor: random.pick(&[1, 1, 1, 1, 1, 1, 20, 300]),
            log_wait,
        });
        let stations = 1 + random.below(3);
        let hosts = 2 + random.index(2);
        let faults_ns = u64::from(400 + random.below(1_200)) * MS;
        let lan = Lan::new(random.next_u64(), stations);
        let mut env = Env::new(random, recorder);
        env.disks = (0..hosts).map(|host| SimDisk::new(host, Random::new(disk_random.next_u64()))).collect();
        env.has_slow_disks = disk_random.one_in(6);
        let mut world = Self {
            env,
            lan,
            hosts: (0..hosts).map(|_| Host::default()).collect(),
            setup,
            phase: Phase::Faults { until_ns: faults_ns },
            nodes: 0,
            stuck_since_ns: None,
            operator: None,
            unpowered: BTreeSet::new(),
            resumed: 0,
            has_disk_faults: disk_random.one_in(3),
            disk_random,
        };
        world.start();
        world
    }

    fn me(&mut self, host: usize) -> Me {
        self.nodes += 1;
        let node = NodeId((host as u128) << 64 | self.nodes);
        let is_mistaken = matches!(self.phase, Phase::Faults { .. }) && self.nodes > 1 && self.env.random.one_in(8);
        if is_mistaken && let Some((flag, owner)) = self.env.arbiter.last() {
            // It agrees on the number, and its operator says where the primary is.
            self.env.other_arbiter.pretend(flag, owner.address.as_deref());
        }
        self.env.judge.process_begins(node, is_mistaken);
        self.env.down.remove(&host);
        Me { host, node, is_mistaken, setup: self.setup.clone() }
    }

    /// The first host runs the VM, the others back it up.
    fn start(&mut self) {
        let me = self.me(0);
        let vm = &self.setup.vm;
        let log = options(&self.env, 0, self.setup.log_wait).flatten();
        if let Some(log) = &log {
            log.directory.prepare_start(me.node).unwrap_or_else(|error| panic!("{error}"));
        }
        let generation = claim_start(&self.env.arbiter, vm, me.node, &address(0).to_string(), false, |_| None)
            .unwrap_or_else(|error| panic!("the VM can't be started: {error}"));
        let guest = guest();
        let session = SessionHeader::new(vm.clone(), generation, self.setup.config.clone(), &guest.name, &guest.image)
            .unwrap_or_else(|error| panic!("{error}"));
        let role = if self.env.random.one_in(4) {
            PrimaryRole::alone(me.node, session, self.setup.timing)
        } else {
            PrimaryRole::awaiting_backup(me.node, session, self.setup.timing)
        };
        let machine = self.machine();
        let (log, role) = match log {
            Some(options) => (LogOfOwner::Begins(options), role.with_disk_log(DiskLogState::Promised)),
            None => (LogOfOwner::None, role),
        };
        self.hosts[0].process = Some(Process::running(&mut self.env, me, role, machine, (log, None)));
        for host in 0..self.hosts.len() {
            self.env.at(0, Event::Host(host));
        }
        for station in 0..self.lan.stations.len() {
            self.env.at(5 * MS, Event::Station(station));
        }
        let fault_ns = self.fault_pause_ns();
        self.env.at(fault_ns, Event::Fault);
        self.env.at(LOOK_NS, Event::Look);
    }

    fn machine(&self) -> Machine {
        Machine::new(&self.setup.config, &guest().image).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs to the end. Returns a hash of all that happened, the time it took on the virtual clock,
    /// and what was seen.
    ///
    /// Panics if a rule is broken.
    pub(super) fn run(mut self) -> (u64, u64, Sightings) {
        let is_settled = loop {
            if let Phase::Over { is_settled } = self.phase {
                break is_settled;
            }
            match self.env.next() {
                Some(Event::Host(host)) => self.step_host(host),
                Some(Event::Lan) => self.lan.step(&mut self.env),
                Some(Event::Station(station)) => self.ask(station),
                Some(Event::Question(number)) => self.env.hear_question(number),
                Some(Event::Answer(number)) => {
                    if let Some(host) = self.env.answer_arrived(number) {
                        self.step_host(host);
                    }
                }
                Some(Event::Fault) => self.fault(),
                Some(Event::LanCut) => self.cut_lan(),
                Some(Event::Look) => self.look(),
                None => panic!("nothing will ever happen again"),
            }
        };
        if !self.env.judge.has_accepted_loss() {
            self.env.judge.compare_with_one_machine(self.machine(), is_settled);
        }
        (self.env.trace.hash(), self.env.now_ns, self.env.sightings)
    }

    fn step_host(&mut self, index: usize) {
        let now_ns = self.env.now_ns;
        let host = &mut self.hosts[index];
        if host.scheduled_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            host.scheduled_ns = None;
        }
        if now_ns < host.paused_until_ns {
            let until_ns = host.paused_until_ns;
            return self.schedule(index, until_ns);
        }
        let Some(mut process) = host.process.take() else { return self.restart(index) };
        let was_resuming = process.is_resuming();
        let stepped = process.step(&mut self.env);
        if self.env.is_dying(index) {
            let is_writing = self.env.has_died_writing(index);
            self.env.saw(if is_writing { Sighting::KilledWriting } else { Sighting::KilledBetweenSends });
            self.hosts[index].process = Some(process);
            return self.kill(index, Death::Kill);
        }
        match stepped {
            Ok(next_ns) => {
                if was_resuming && !process.is_resuming() {
                    self.has_resumed();
                }
                let is_joining = process.is_joining();
                let is_asking = process.is_asking();
                self.hosts[index].process = Some(process);
                self.schedule(index, next_ns);
                self.aim(index, is_joining, is_asking);
            }
            Err(exit) => self.process_exits(index, &process, exit),
        }
    }

    fn schedule(&mut self, index: usize, at_ns: u64) {
        let host = &mut self.hosts[index];
        if at_ns < u64::MAX && host.scheduled_ns.is_none_or(|scheduled_ns| at_ns < scheduled_ns) {
            host.scheduled_ns = Some(at_ns);
            self.env.at(at_ns, Event::Host(index));
        }
    }

    fn process_exits(&mut self, index: usize, process: &Process, exit: Exit) {
        self.env.note_role(index, State::Down, exit_name(exit), &[]);
        self.env.judge.process_ends(process.me.node);
        self.env.end_process(index, Death::Exit);
        if exit == Exit::Fenced && self.hosts[index].was_paused_long {
            self.env.saw(Sighting::FencedAfterPause);
        }
        if process.is_resuming() && matches!(exit, Exit::NoLog | Exit::LogOfBackup) {
            self.env.saw(Sighting::LogRefused);
            self.log_is_refused(index, exit);
        }
        let is_over = exit == Exit::GuestEnded;
        let host = &mut self.hosts[index];
        host.was_paused_long = false;
        host.restart_ns = if is_over { u64::MAX } else { self.env.now_ns + 30 * MS };
        let restart_ns = host.restart_ns;
        self.schedule(index, restart_ns);
    }

    /// Starts a process that wants to back the VM up, if it is time to.
    fn restart(&mut self, index: usize) {
        let restart_ns = self.hosts[index].restart_ns;
        if self.env.now_ns < restart_ns {
            return self.schedule(index, restart_ns);
        }
        let me = self.me(index);
        let what = if me.is_mistaken { "a process starts, with another arbiter" } else { "a process starts" };
        self.env.note_role(index, State::Seeking, what, &[]);
        self.hosts[index].process = Some(Process::seeking(me));
        self.schedule(index, self.env.now_ns);
    }

    /// A station asks the guest, and will again.
    fn ask(&mut self, station: usize) {
        if matches!(self.phase, Phase::Faults { .. } | Phase::Recovery { .. }) {
            if self.env.judge.is_on_lan()
                && let Some(packet) = self.lan.stations[station].ask(&mut self.env.random)
            {
                self.lan.station_sends(&mut self.env, station, &packet);
            }
            let pause_ns = u64::from(1 + self.env.random.below(20)) * MS;
            self.env.at(self.env.now_ns + pause_ns, Event::Station(station));
        }
    }

    fn answered(&self) -> u32 {
        self.lan.stations.iter().map(super::client::Station::answered).sum()
    }

    fn is_all_answered(&self) -> bool {
        self.lan.stations.iter().all(|station| station.open() == 0)
    }

    fn is_protected(&mut self) -> bool {
        let mut primaries = self.hosts.iter_mut().filter_map(|host| host.process.as_mut()?.primary());
        primaries.any(|primary| primary.role().is_protected())
    }

    /// Whether nobody has a part in the VM any more.
    fn is_everybody_gone(&self) -> bool {
        self.hosts.iter().all(|host| host.process.as_ref().is_none_or(Process::is_seeking))
    }

    /// Whether everybody waits for an operator, as happens when the arbiter loses its claims at the
    /// wrong moment: safe, and not available.
    fn is_stuck(&mut self) -> bool {
        let mut primaries = self.hosts.iter_mut().filter_map(|host| host.process.as_mut()?.primary());
        let goes_on = primaries.any(|primary| !primary.role().is_stranded());
        if goes_on || !self.env.has_forgotten {
            self.stuck_since_ns = None;
            return false;
        }
        let now_ns = self.env.now_ns;
        now_ns >= *self.stuck_since_ns.get_or_insert(now_ns) + STUCK_NS
    }

    /// Looks how the run goes, and goes on to its next phase.
    fn look(&mut self) {
        self.env.at(self.env.now_ns + LOOK_NS, Event::Look);
        let now_ns = self.env.now_ns;
        let is_lost = !self.env.judge.survives(&self.env.arbiter, &[]) || self.is_stuck();
        let phase = self.phase;
        self.phase = match phase {
            _ if is_lost && self.operate() => phase.again(now_ns, self.answered()),
            Phase::Faults { .. } | Phase::Recovery { .. } | Phase::Draining { .. } if is_lost => {
                self.env.note(Lane::World, Kind::Course, "the VM is lost: nobody can go on", &[]);
                self.env.saw(Sighting::VmLost);
                Phase::Over { is_settled: false }
            }
            Phase::Recovery { until_ns, answered } => {
                let serves = self.answered() > answered + 20;
                if serves && self.is_protected() {
                    self.env.note(Lane::World, Kind::Course, "clients are served again, and the VM is protected", &[]);
                    Phase::Draining { until_ns: now_ns + 200 * MS, powers_off: self.env.random.one_in(2) }
                } else {
                    let protected = self.is_protected();
                    assert!(now_ns < until_ns, "no recovery: answers {serves}, protected {protected}");
                    self.phase
                }
            }
            Phase::Draining { powers_off: true, .. } if self.is_all_answered() => self.power_off(),
            Phase::Draining { .. } if self.is_all_answered() => Phase::Over { is_settled: false },
            Phase::Draining { until_ns, .. } => {
                assert!(now_ns < until_ns, "requests are not answered");
                self.phase
            }
            Phase::PoweringOff { .. } if self.is_everybody_gone() => {
                assert!(self.env.judge.guest_has_ended(), "everybody is gone and the guest has not ended");
                Phase::Leaving { until_ns: now_ns + 20 * MS }
            }
            Phase::Leaving { until_ns } if now_ns >= until_ns => Phase::Over { is_settled: true },
            Phase::PoweringOff { until_ns } => {
                assert!(now_ns < until_ns, "the guest's end doesn't end the VM");
                self.phase
            }
            Phase::Faults { .. } | Phase::Leaving { .. } | Phase::Over { .. } => self.phase,
        };
    }

    fn power_off(&mut self) -> Phase {
        let packet = self.lan.stations[0].power_off();
        self.lan.station_sends(&mut self.env, 0, &packet);
        if self.env.random.one_in(2) {
            // The guest's last words are on a connection that breaks.
            let at_ns = self.env.now_ns + u64::from(self.env.random.below(2_000_000));
            self.env.at(at_ns, Event::LanCut);
        }
        Phase::PoweringOff { until_ns: self.env.now_ns + 500 * MS }
    }
}

const fn exit_name(exit: Exit) -> &'static str {
    match exit {
        Exit::HandedOver => "ends: it has handed the VM over",
        Exit::GuestEnded => "ends: the guest has ended",
        Exit::Fenced => "ends: FENCED",
        Exit::Mistaken => "ends: it has another arbiter than the primary",
        Exit::StartsOver => "ends, to start over",
        Exit::NoLog => "ends: its log is none to go on from",
        Exit::LogOfBackup => "ends: its log is a backup's, and may lack something",
        Exit::Interrupted => "ends: interrupted before its log began",
    }
}

fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::load("tally").unwrap_or_else(|error| panic!("{error}")))
}
