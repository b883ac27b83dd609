//! How a run begins: what its hosts, VMs and stations are, by its seed.

use super::course::Phase;
use super::{Host, LOOK_NS, MS, VmRun, World};
use crate::random::Random;
use crate::sim::client::{Station, guest_mac};
use crate::sim::disk::SimDisk;
use crate::sim::env::{Env, Event};
use crate::sim::host::address;
use crate::sim::lan::{HEARTBEAT_US, Lan};
use crate::sim::log::{LogOfOwner, options};
use crate::sim::plan::{Faults, Habit, Record, RunSpec};
use crate::sim::process::{Me, Process, Setup};
use crate::sim::vm::SimVm;
use ft::record::Intervals;
use ft::role::{DiskLogState, PrimaryRole, Timing};
use hypervisor::lan::port::PortTiming;
use hypervisor::node::io::lan::AttachmentTiming;
use hypervisor::node::log::LogWait;
use hypervisor::node::search::SearchTiming;
use hypervisor::node::start::claim_start;
use hypervisor::program::guest::Guest;
use logchannel::session::{NodeId, SessionHeader};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use vm::{Machine, MachineConfig};

/// The names of the VMs.
const VMS: [&str; 2] = ["tally", "other"];

/// The station that asks the second of them.
const STATION_OF_OTHER: u32 = 9;

/// A machine with the least RAM that there is.
const RAM_BYTES: u64 = 4 << 20;

impl World {
    pub(in crate::sim) fn new(spec: &RunSpec, record: Arc<Record>) -> Self {
        let seed = spec.seed;
        let faults = Faults::new(spec.clone(), record);
        let mut random = Random::new(seed);
        let mut disk_random = Random::new(!seed);
        let mut world_random = Random::new(seed.rotate_left(32) ^ 0x5eed);
        let setup = setup(&mut random, &mut disk_random, &faults);
        let clients = Some(random.below(3)).filter(|more| *more > 0 && faults.has(Habit::Clients));
        let third = Some(random.index(2)).filter(|more| *more > 0 && faults.has(Habit::ThirdHost));
        let mut stations: Vec<_> = (1..=1 + clients.unwrap_or(0)).map(|station| Station::new(0, station)).collect();
        let mut hosts = vec![0; 2 + third.unwrap_or(0)];
        let mut setups = vec![setup.clone()];
        if world_random.one_in(8) && faults.has(Habit::SecondVm) {
            // Another VM on hosts of its own, with the same arbiter and LAN.
            let vm = VMS[1].parse().unwrap_or_else(|error| panic!("{error}"));
            setups.push(Setup { vm, config: config(1), ..setup });
            hosts.extend([1, 1]);
            stations.push(Station::new(1, STATION_OF_OTHER));
        }
        let faults_ns = faults.end_ns(u64::from(400 + random.below(1_200)) * MS);
        let lan = Lan::new(random.next_u64(), stations);
        let mut env = Env::new(random, faults);
        env.vms = setups.iter().map(|setup| SimVm::new(setup.vm.clone())).collect();
        env.vm_of_host.clone_from(&hosts);
        env.disks = (0..hosts.len()).map(|host| SimDisk::new(host, Random::new(disk_random.next_u64()))).collect();
        let has_logs = setups.iter().any(|setup| setup.log_wait.is_some());
        env.has_slow_disks = disk_random.one_in(6) && has_logs && env.faults.has(Habit::SlowDisks);
        let mut world = Self {
            env,
            lan,
            hosts: hosts.into_iter().map(|vm| Host { vm, ..Host::default() }).collect(),
            vms: setups.into_iter().map(VmRun::new).collect(),
            phase: Phase::Faults { until_ns: faults_ns },
            nodes: 0,
            unpowered: BTreeSet::new(),
            has_disk_faults: disk_random.one_in(3),
            disk_random,
        };
        world.start();
        world
    }

    pub(super) fn me(&mut self, host: usize) -> Me {
        let run = &self.vms[self.hosts[host].vm];
        let vm = &mut self.env.vms[self.hosts[host].vm];
        self.nodes += 1;
        let node = NodeId((host as u128) << 64 | self.nodes);
        let is_mistaken = matches!(self.phase, Phase::Faults { .. })
            && run.has_started
            && self.env.random.one_in(8)
            && self.env.faults.has(Habit::Mistaken);
        if is_mistaken && let Some((flag, owner)) = vm.arbiter.last() {
            // It agrees on the number, and its operator says where the primary is.
            vm.other_arbiter.pretend(flag, owner.address.as_deref());
        }
        vm.judge.process_begins(node, is_mistaken);
        self.env.down.remove(&host);
        Me { host, node, is_mistaken, setup: run.setup.clone() }
    }

    /// The first host of each VM runs it, the others back it up.
    fn start(&mut self) {
        for vm in 0..self.vms.len() {
            self.start_vm(vm);
        }
        for host in 0..self.hosts.len() {
            self.env.at(0, Event::Host(host));
        }
        for station in 0..self.lan.stations.len() {
            self.env.at(5 * MS, Event::Station(station));
        }
        self.await_fault();
        self.env.at(LOOK_NS, Event::Look);
    }

    fn start_vm(&mut self, vm: usize) {
        let Some(host) = self.hosts_of(vm).next() else { return };
        let me = self.me(host);
        let setup = me.setup.clone();
        let log = options(&self.env, host, setup.log_wait).flatten();
        if let Some(log) = &log {
            log.directory.prepare_start(me.node).unwrap_or_else(|error| panic!("{error}"));
        }
        let arbiter = &self.env.vms[vm].arbiter;
        let generation = claim_start(arbiter, &setup.vm, me.node, &address(host).to_string(), false, |_| None)
            .unwrap_or_else(|error| panic!("the VM can't be started: {error}"));
        let guest = guest();
        let session = SessionHeader::new(setup.vm.clone(), generation, setup.config.clone(), &guest.name, &guest.image)
            .unwrap_or_else(|error| panic!("{error}"));
        let role = if self.env.random.one_in(4) {
            PrimaryRole::alone(me.node, session, setup.timing)
        } else {
            PrimaryRole::awaiting_backup(me.node, session, setup.timing)
        };
        let machine = self.machine(vm);
        let (log, role) = match log {
            Some(options) => (LogOfOwner::Begins(options), role.with_disk_log(DiskLogState::Promised)),
            None => (LogOfOwner::None, role),
        };
        self.hosts[host].process = Some(Process::running(&mut self.env, me, role, machine, (log, None)));
        self.vms[vm].has_started = true;
    }

    pub(super) fn machine(&self, vm: usize) -> Machine {
        Machine::new(&self.vms[vm].setup.config, &guest().image).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What the processes of the first VM have in common.
fn setup(random: &mut Random, disk_random: &mut Random, faults: &Faults) -> Setup {
    let waits = [LogWait::Written, LogWait::Durable, LogWait::Written, LogWait::Durable, LogWait::No];
    let log_wait = if disk_random.one_in(2) { Some(disk_random.pick(&waits)) } else { None };
    let timing = Timing {
        heartbeat_ns: 10 * MS,
        failure_timeout_ns: (50 + 10 * u64::from(random.below(10))) * MS,
        claim_retry_ns: 15 * MS,
        // With the longer one the full log buffer stops the guest, and not its slowness.
        lag_bound_ns: random.pick(&[50, 50, 50, 4_000]) * MS,
        claim_check_ns: 40 * MS,
    };
    Setup {
        vm: VMS[0].parse().unwrap_or_else(|error| panic!("{error}")),
        config: config(0),
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
        replay_factor: Some(random.pick(&[1, 1, 1, 1, 1, 1, 20, 300]))
            .filter(|factor| *factor > 1 && faults.has(Habit::SlowReplay))
            .unwrap_or(1),
        log_wait,
    }
}

/// The machine of a VM.
fn config(vm: usize) -> MachineConfig {
    MachineConfig { ram_bytes: RAM_BYTES, mac: guest_mac(vm), ..MachineConfig::default() }
}

fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::load("tally").unwrap_or_else(|error| panic!("{error}")))
}
