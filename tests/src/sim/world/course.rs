//! How a run goes: its phases, and what has to be so in each of them.

use super::{LOOK_NS, MS, RECOVERY_NS, World};
use crate::sim::client::Station;
use crate::sim::env::{Death, Event};
use crate::sim::plan::Habit;
use crate::sim::primary::Primary;
use crate::sim::process::Process;
use crate::sim::sightings::Sighting;
use crate::sim::trace::{Kind, Lane};

/// How long nobody goes on with a VM whose claims were lost before it counts as lost, in
/// nanoseconds.
const STUCK_NS: u64 = 800 * MS;

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Things go wrong until this time.
    Faults { until_ns: u64 },
    /// Everything works again; service has to resume before this time.
    Recovery { until_ns: u64 },
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
    /// The same, with all its time left: a VM has been dead.
    pub(super) const fn again(self, now_ns: u64) -> Self {
        match self {
            Self::Recovery { .. } | Self::Draining { .. } => Self::Recovery { until_ns: now_ns + RECOVERY_NS },
            Self::Faults { .. } | Self::PoweringOff { .. } | Self::Leaving { .. } | Self::Over { .. } => self,
        }
    }
}

impl World {
    pub(super) fn answered(&self, vm: usize) -> u32 {
        self.lan.stations.iter().filter(|station| station.vm() == vm).map(Station::answered).sum()
    }

    fn is_all_answered(&self) -> bool {
        self.lan.stations.iter().all(|station| self.vms[station.vm()].is_over || station.open() == 0)
    }

    /// Those who run a VM.
    pub(super) fn primaries(&mut self, vm: usize) -> impl Iterator<Item = &mut Primary> {
        let hosts = self.hosts.iter_mut().filter(move |host| host.vm == vm);
        hosts.filter_map(|host| host.process.as_mut()?.primary())
    }

    pub(super) fn is_protected(&mut self, vm: usize) -> bool {
        self.primaries(vm).any(|primary| primary.role().is_protected())
    }

    /// Whether nobody has a part in the VM any more.
    fn is_everybody_gone(&self) -> bool {
        self.hosts.iter().all(|host| host.process.as_ref().is_none_or(Process::is_seeking))
    }

    /// Whether everybody waits for an operator, as happens when the arbiter loses its claims at the
    /// wrong moment: safe, and not available.
    fn is_stuck(&mut self, vm: usize) -> bool {
        let goes_on = self.primaries(vm).any(|primary| !primary.role().is_stranded());
        let (run, now_ns) = (&mut self.vms[vm], self.env.now_ns);
        if goes_on || !self.env.vms[vm].has_forgotten {
            run.stuck_since_ns = None;
            return false;
        }
        now_ns >= *run.stuck_since_ns.get_or_insert(now_ns) + STUCK_NS
    }

    /// Nobody goes on with a VM: what is left of it ends.
    pub(super) fn vm_is_over(&mut self, vm: usize) {
        self.vms[vm].is_over = true;
        if self.vms_left().next().is_none() {
            self.phase = Phase::Over { is_settled: false };
            return;
        }
        for host in self.hosts_of(vm).collect::<Vec<_>>() {
            self.kill(host, Death::Kill);
            self.hosts[host].restart_ns = u64::MAX;
        }
    }

    /// Sees to the VMs that nobody owns.
    fn look_at_the_lost(&mut self) {
        for vm in self.vms_left() {
            if self.env.vms[vm].survives(&[]) && !self.is_stuck(vm) {
                continue;
            }
            if self.operate(vm) {
                self.phase = self.phase.again(self.env.now_ns);
                self.vms[vm].answered_before = self.answered(vm);
            } else if matches!(self.phase, Phase::Faults { .. } | Phase::Recovery { .. } | Phase::Draining { .. }) {
                self.env.note(Lane::World, Kind::Course, "the VM is lost: nobody can go on", &[]);
                self.env.saw(Sighting::VmLost);
                self.vm_is_over(vm);
            }
        }
    }

    /// Looks how the run goes, and goes on to its next phase.
    pub(super) fn look(&mut self) {
        self.env.at(self.env.now_ns + LOOK_NS, Event::Look);
        let now_ns = self.env.now_ns;
        self.look_at_the_lost();
        self.phase = match self.phase {
            Phase::Recovery { until_ns } => {
                let serves = self.vms_left().all(|vm| self.answered(vm) > self.vms[vm].answered_before + 20);
                let protected = self.vms_left().all(|vm| self.is_protected(vm));
                if serves && protected {
                    self.env.note(Lane::World, Kind::Course, "clients are served again, and the VM is protected", &[]);
                    Phase::Draining { until_ns: now_ns + 200 * MS, powers_off: self.env.random.one_in(2) }
                } else {
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
                let has_ended = |vm: usize| self.env.vms[vm].judge.guest_has_ended();
                assert!(self.vms_left().all(has_ended), "everybody is gone and the guest has not ended");
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
        for vm in self.vms_left() {
            let Some(station) = self.lan.stations.iter().position(|station| station.vm() == vm) else { continue };
            let packet = self.lan.stations[station].power_off();
            self.lan.station_sends(&mut self.env, station, &packet);
        }
        if self.env.random.one_in(2) && self.env.faults.has(Habit::LastCut) {
            // The guest's last words are on a connection that breaks.
            let at_ns = self.env.now_ns + u64::from(self.env.random.below(2_000_000));
            self.env.at(at_ns, Event::LanCut);
        }
        Phase::PoweringOff { until_ns: self.env.now_ns + 500 * MS }
    }
}
