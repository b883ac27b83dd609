//! What goes wrong in a run, and when.

use super::course::Phase;
use super::{Host, MS, RECOVERY_NS, World};
use crate::sim::env::{Death, Event};
use crate::sim::process::Process;
use crate::sim::sightings::Sighting;
use crate::sim::trace::{Kind, Lane, Note, State};
use crate::sim::wires::Place;
use ft::guest_clock::PAUSE_NS;

impl World {
    /// The next planned fault strikes in a while, or everything works from then on.
    pub(super) fn await_fault(&mut self) {
        let Phase::Faults { until_ns } = self.phase else { return };
        let next_ns = (self.env.now_ns + self.env.faults.pause_ns()).min(until_ns);
        self.env.at(next_ns, Event::Fault);
    }

    /// Something goes wrong.
    pub(super) fn fault(&mut self) {
        let Phase::Faults { until_ns } = self.phase else { return };
        if self.env.now_ns >= until_ns {
            return self.heal();
        }
        // Each with a name and numbers of its own, also where the other is left out.
        for strike in [Self::disk_fault, Self::planned_fault] {
            if let Some(struck) = self.env.begin_planned() {
                strike(self);
                self.env.end_fault(struck);
            }
        }
        self.await_fault();
    }

    fn planned_fault(&mut self) {
        let host = self.env.random.index(self.hosts.len());
        match self.env.random.below(20) {
            0..=4 => self.kill_if_survived(host),
            5..=7 => self.pause(host),
            8..=11 => self.part(host),
            12..=13 => self.cut_channel(host),
            14..=15 => self.cut_cable(host),
            16..=17 => {
                let pause_ns = u64::from(self.env.random.below(150)) * MS;
                self.env.note_fault(Lane::Arbiter, "is down for {ms}", &[pause_ns]);
                self.env.arbiter_down_until_ns = self.env.now_ns + pause_ns;
            }
            18 if self.env.random.one_in(6) => self.env.forget_claims(),
            _ => self.retire(),
        }
    }

    /// Whether the VM goes on without the process on `index` and those that are to die anyway.
    pub(super) fn survives_without(&mut self, index: usize) -> bool {
        let doomed = self.env.dies_after_sends.keys().copied().chain([index]);
        let dead: Vec<_> = doomed.filter_map(|host| Some(self.hosts[host].process.as_ref()?.me.node)).collect();
        self.env.vm_of(index).survives(&dead)
    }

    /// Kills a process, mostly one without which the VM goes on.
    fn kill_if_survived(&mut self, index: usize) {
        // With logs on disk the death of both sides isn't the VM's.
        let odds = if self.setup_of(index).log_wait.is_some() { 3 } else { 100 };
        if self.hosts[index].process.is_none() || (!self.survives_without(index) && !self.env.random.one_in(odds)) {
            return;
        }
        if self.env.random.one_in(2) {
            let sends = self.env.random.below(12);
            self.env.note_fault(Lane::Host(index), "is to die after {} more sends", &[sends.into()]);
            // It dies when it would send once more.
            self.env.dies_after_sends.insert(index, sends + 1);
        } else {
            let death = if self.env.random.one_in(3) { Death::PowerCut } else { Death::Kill };
            self.kill(index, death);
        }
    }

    /// Does harm at moments that are too short to be hit by chance.
    pub(super) fn aim(&mut self, index: usize, is_joining: bool, is_asking: bool) {
        if !matches!(self.phase, Phase::Faults { .. }) {
            return;
        }
        if is_asking && self.env.random.one_in(40) {
            // It hears late that it is fenced, and comes back to the LAN before.
            self.strike_aimed(|world| {
                world.cut_cable(index);
                world.part_from(index, Place::Arbiter);
            });
        }
        if (is_joining && self.env.random.one_in(30)) || (is_asking && self.env.random.one_in(400)) {
            self.strike_aimed(|world| world.aimed_fault(index, is_joining));
        }
    }

    /// All hosts of a VM lose their power just after one has named a segment of its log, one in so
    /// many times: what the name promises is on the disk already, or not.
    pub(super) fn aim_at_disk(&mut self, index: usize) {
        let is_time = self.env.disks[index].take_named() && self.env.random.one_in(5);
        if is_time && matches!(self.phase, Phase::Faults { .. }) {
            self.strike_aimed(|world| {
                for host in world.hosts_of(world.hosts[index].vm).collect::<Vec<_>>() {
                    world.kill(host, Death::PowerCut);
                }
            });
        }
    }

    /// A fault at a moment that has come, unless it is left out.
    pub(super) fn strike_aimed(&mut self, strike: impl FnOnce(&mut Self)) {
        if let Some(struck) = self.env.begin_aimed() {
            strike(self);
            self.env.end_fault(struck);
        }
    }

    fn aimed_fault(&mut self, index: usize, is_joining: bool) {
        match self.env.random.below(4) {
            0 => self.kill_if_survived(index),
            1 => self.part(index),
            // A backup that hasn't been told that it protects the VM loses its primary, which lives
            // on.
            2 => self.cut_channel(index),
            // What it has sent doesn't come to the LAN, and it doesn't live for long after the
            // join.
            _ => {
                self.part_from(index, Place::Lan);
                let sends = 5 + self.env.random.below(40);
                if self.survives_without(index) || (is_joining && self.env.random.one_in(3)) {
                    self.env.note_fault(Lane::Host(index), "is to die after {} more sends", &[sends.into()]);
                    self.env.dies_after_sends.insert(index, sends);
                }
            }
        }
    }

    pub(super) fn kill(&mut self, index: usize, death: Death) {
        let Some(process) = self.hosts[index].process.take() else { return };
        let what = if death == Death::PowerCut { "LOSES ITS POWER" } else { "KILLED" };
        self.env.tell(Note::new(Lane::Host(index), Kind::Fault, what, &[]).becomes(State::Down));
        self.see_killed(&process);
        if death == Death::PowerCut {
            self.unpowered.insert(index);
        }
        self.env.judge_of(index).process_ends(process.me.node);
        // What it had buffered for its disk is lost with it.
        self.env.disks[index].die_after(0);
        drop(process);
        self.env.end_process(index, death);
        let restart_ns = self.env.now_ns + u64::from(5 + self.env.random.below(150)) * MS;
        let host = &mut self.hosts[index];
        (host.restart_ns, host.paused_until_ns, host.was_paused_long) = (restart_ns, 0, false);
        self.schedule(index, restart_ns);
    }

    fn see_killed(&mut self, process: &Process) {
        if process.is_joining() {
            let is_backup = process.backup().is_some();
            self.env.saw(if is_backup { Sighting::BackupKilledInJoin } else { Sighting::PrimaryKilledInJoin });
        }
        if process.is_asking() {
            self.env.saw(Sighting::KilledWhileClaiming);
        }
        if process.is_resuming() {
            self.env.saw(Sighting::KilledWhileResuming);
        }
    }

    fn pause(&mut self, index: usize) {
        // Mostly one that runs its VM alone, if there is one: nobody takes over meanwhile.
        let runs_alone = |host: &mut Host| {
            host.process.as_mut().and_then(Process::primary).is_some_and(|primary| !primary.role().is_protected())
        };
        let alone = self.hosts.iter_mut().position(runs_alone).filter(|_| !self.env.random.one_in(3));
        let index = alone.unwrap_or(index);
        let mut pause_ns = u64::from(5 + self.env.random.below(400)) * MS;
        let primary = self.hosts[index].process.as_mut().and_then(Process::primary);
        if primary.is_some_and(|primary| !primary.role().is_protected()) && self.env.random.one_in(2) {
            pause_ns += PAUSE_NS;
        }
        self.env.note_fault(Lane::Host(index), "the process stands still for {ms}", &[pause_ns]);
        let is_long = pause_ns > self.setup_of(index).timing.failure_timeout_ns;
        let host = &mut self.hosts[index];
        if is_long {
            host.was_paused_long = true;
            self.env.saw(Sighting::LongPause);
        }
        host.paused_until_ns = self.env.now_ns + pause_ns;
    }

    fn part(&mut self, index: usize) {
        let other = match self.env.random.below(4) {
            0 => Place::Lan,
            1 => Place::Arbiter,
            _ => Place::Host((index + 1 + self.env.random.index(self.hosts.len() - 1)) % self.hosts.len()),
        };
        self.part_from(index, other);
    }

    fn part_from(&mut self, index: usize, other: Place) {
        let pause_ns = u64::from(1 + self.env.random.below(300)) * MS;
        let what = match other {
            Place::Lan => "can't reach the LAN for {ms}",
            Place::Arbiter => "can't reach the arbiter for {ms}",
            Place::Host(_) => "can't reach another host for {ms}: host {}",
        };
        let peer = if let Place::Host(host) = other { Some(host as u64) } else { None };
        let numbers: Vec<_> = [pause_ns].into_iter().chain(peer).collect();
        self.env.note_fault(Lane::Host(index), what, &numbers);
        self.env.saw(Sighting::Partition);
        self.env.wires.part(Place::Host(index), other, self.env.now_ns + pause_ns);
    }

    fn cut_channel(&mut self, index: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != index) {
            for wire in self.env.wires.between(Place::Host(index), Place::Host(other)) {
                self.env.note_fault(Lane::Host(index), "its channel to host {} is cut", &[other as u64]);
                self.env.saw(Sighting::ChannelCut);
                self.env.cut(wire);
            }
        }
    }

    fn cut_cable(&mut self, index: usize) {
        for wire in self.env.wires.between(Place::Host(index), Place::Lan) {
            if self.env.random.one_in(3) {
                self.env.note_fault(Lane::Host(index), "its connection to the LAN falls silent", &[]);
                self.env.saw(Sighting::CableDead);
                self.env.wires.kill(wire);
                continue;
            }
            self.env.note_fault(Lane::Host(index), "its connection to the LAN is cut", &[]);
            self.env.saw(Sighting::CableCut);
            self.env.cut(wire);
        }
    }

    /// The connections of all hosts to the LAN are cut.
    pub(super) fn cut_lan(&mut self) {
        for host in 0..self.hosts.len() {
            for wire in self.env.wires.between(Place::Host(host), Place::Lan) {
                self.env.note_fault(Lane::Host(host), "its connection to the LAN is cut, as all are", &[]);
                self.env.cut(wire);
            }
        }
    }

    /// An operator stops a protected primary.
    fn retire(&mut self) {
        for index in 0..self.hosts.len() {
            let survives = self.survives_without(index);
            let host = &mut self.hosts[index];
            if survives
                && host.paused_until_ns <= self.env.now_ns
                && let Some(primary) = host.process.as_mut().and_then(Process::primary)
                && primary.role().is_protected()
            {
                self.env.note(Lane::Host(index), Kind::Course, "the operator ends this primary", &[]);
                primary.retire(&mut self.env);
                let now_ns = self.env.now_ns;
                self.schedule(index, now_ns);
            }
        }
    }

    /// From now on everything works.
    fn heal(&mut self) {
        self.env.note(Lane::World, Kind::Course, "everything works again", &[]);
        self.env.is_faulty = false;
        self.env.arbiter_down_until_ns = 0;
        let by_ns = self.env.now_ns + 5 * MS;
        self.env.wires.heal(by_ns);
        self.env.at(by_ns, Event::Lan);
        self.env.dies_after_sends.clear();
        for disk in &self.env.disks {
            disk.heal();
        }
        for host in &mut self.hosts {
            host.paused_until_ns = host.paused_until_ns.min(self.env.now_ns);
        }
        for index in 0..self.hosts.len() {
            self.env.at(self.env.now_ns, Event::Host(index));
            self.env.at(by_ns, Event::Host(index));
        }
        for vm in self.vms_left() {
            self.vms[vm].answered_before = self.answered(vm);
        }
        self.phase = Phase::Recovery { until_ns: self.env.now_ns + RECOVERY_NS };
    }
}
