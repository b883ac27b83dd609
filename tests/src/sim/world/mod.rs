//! One run: hosts with processes, the LAN, and all that goes wrong, by a seed.

mod course;
mod faults;
mod operator;
mod start;

use super::env::{Death, Env, Event};
use super::lan::Lan;
use super::process::{Exit, Process, Setup};
use super::sightings::{Sighting, Sightings};
use super::trace::State;
use crate::random::Random;
use course::Phase;
use operator::Operator;
use std::collections::BTreeSet;
use std::sync::Arc;

const MS: u64 = 1_000_000;

/// After the last fault, the pair is to be protected and every request answered within this time,
/// in nanoseconds.
const RECOVERY_NS: u64 = 2_000 * MS;

/// From one look at how a run goes to the next.
const LOOK_NS: u64 = 5 * MS;

#[derive(Default)]
struct Host {
    /// Which VM's.
    vm: usize,
    process: Option<Process>,
    /// When its next step is due.
    scheduled_ns: Option<u64>,
    paused_until_ns: u64,
    was_paused_long: bool,
    restart_ns: u64,
}

/// How it goes with one VM.
struct VmRun {
    setup: Arc<Setup>,
    has_started: bool,
    /// How many requests had been answered when everything worked again.
    answered_before: u32,
    /// Since when no owner has gone on with it.
    stuck_since_ns: Option<u64>,
    /// Who goes on from logs on disk, while nobody owns it.
    operator: Option<Operator>,
    resumed: u32,
    /// Nobody goes on with it: it is lost, or what was seen of it was given up.
    is_over: bool,
}

/// One run.
pub(super) struct World {
    env: Env,
    lan: Lan,
    hosts: Vec<Host>,
    vms: Vec<VmRun>,
    phase: Phase,
    nodes: u128,
    /// Hosts that have lost their power, with what wasn't synced.
    unpowered: BTreeSet<usize>,
    /// What goes wrong with disks: its own numbers, so that the runs without logs are what they
    /// were.
    disk_random: Random,
    has_disk_faults: bool,
}

impl World {
    /// The hosts of a VM.
    fn hosts_of(&self, vm: usize) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.hosts.len()).filter(move |host| self.hosts[*host].vm == vm)
    }

    fn setup_of(&self, host: usize) -> &Setup {
        &self.vms[self.hosts[host].vm].setup
    }

    /// The VMs that somebody may go on with.
    fn vms_left(&self) -> impl Iterator<Item = usize> + use<> {
        let left: Vec<_> = (0..self.vms.len()).filter(|vm| !self.vms[*vm].is_over).collect();
        left.into_iter()
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
        for (index, vm) in self.env.vms.iter().enumerate() {
            if !vm.judge.has_accepted_loss() {
                let is_settled = is_settled && !self.vms[index].is_over;
                vm.judge.compare_with_one_machine(self.machine(index), is_settled);
            }
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
                let has_resumed = was_resuming && !process.is_resuming();
                let is_joining = process.is_joining();
                let is_asking = process.is_asking();
                if is_joining && process.backup().is_some() {
                    self.env.joining.insert(index);
                } else {
                    self.env.joining.remove(&index);
                }
                self.hosts[index].process = Some(process);
                self.schedule(index, next_ns);
                self.aim(index, is_joining, is_asking);
                self.aim_at_disk(index);
                if has_resumed {
                    self.has_resumed(self.hosts[index].vm);
                }
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
        self.env.judge_of(index).process_ends(process.me.node);
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
            let vm = self.lan.stations[station].vm();
            if !self.vms[vm].is_over
                && self.env.vms[vm].judge.is_on_lan()
                && let Some(packet) = self.lan.stations[station].ask(&mut self.env.random)
            {
                self.lan.station_sends(&mut self.env, station, &packet);
            }
            let pause_ns = u64::from(1 + self.env.random.below(20)) * MS;
            self.env.at(self.env.now_ns + pause_ns, Event::Station(station));
        }
    }
}

impl VmRun {
    fn new(setup: Setup) -> Self {
        Self {
            setup: Arc::new(setup),
            has_started: false,
            answered_before: 0,
            stuck_since_ns: None,
            operator: None,
            resumed: 0,
            is_over: false,
        }
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
