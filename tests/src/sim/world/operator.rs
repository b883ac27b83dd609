//! The operator, who goes on from a log on disk when both sides are dead, and what goes wrong with
//! disks.

use super::course::Phase;
use super::{MS, World};
use crate::sim::disk::DiskFault;
use crate::sim::env::Death;
use crate::sim::host::address;
use crate::sim::process::{Exit, Process};
use crate::sim::sightings::Sighting;
use crate::sim::trace::{Lane, State};
use crate::sim::vm::SimVm;
use hypervisor::node::log::LogWait;

/// How an operator goes about it.
#[derive(Debug)]
pub(super) struct Operator {
    /// Hosts whose logs are to be tried yet.
    left: Vec<usize>,
    /// The one that is being tried.
    tries: Option<usize>,
    accepts_loss: bool,
}

impl World {
    /// Nobody owns the VM: has an operator resume it. `false` if that can't be done.
    pub(super) fn operate(&mut self, vm: usize) -> bool {
        let SimVm { has_forgotten, judge, .. } = &self.env.vms[vm];
        if self.vms[vm].setup.log_wait.is_none() || *has_forgotten || judge.guest_has_ended() {
            return false;
        }
        let hosts: Vec<_> = self.hosts_of(vm).collect();
        let random = &mut self.disk_random;
        let operator = self.vms[vm].operator.get_or_insert_with(|| {
            let first = random.index(hosts.len());
            let mut left = hosts;
            left.rotate_left(first);
            Operator { left, tries: None, accepts_loss: false }
        });
        if let Some(host) = operator.tries
            && self.hosts[host].process.as_ref().is_some_and(Process::is_resuming)
        {
            return true;
        }
        // One that was killed is tried again.
        let next = operator.tries.or_else(|| operator.left.pop());
        let Some(host) = next else { return self.nothing_is_left(vm) };
        operator.tries = Some(host);
        let accepts_loss = operator.accepts_loss;
        self.start_resuming(host, accepts_loss);
        true
    }

    fn start_resuming(&mut self, host: usize, accepts_loss: bool) {
        // Its directory may be in use.
        if let Some(process) = self.hosts[host].process.take() {
            self.env.judge_of(host).process_ends(process.me.node);
            drop(process);
            self.env.end_process(host, Death::Exit);
        }
        let mut me = self.me(host);
        me.is_mistaken = false;
        let what = if accepts_loss { "the operator says --resume --accept-loss" } else { "the operator says --resume" };
        self.env.note_role(host, State::Resuming, what, &[]);
        let now_ns = self.env.now_ns;
        self.hosts[host].paused_until_ns = 0;
        self.hosts[host].process = Some(Process::resuming(me, now_ns, accepts_loss));
        if matches!(self.phase, Phase::Faults { .. }) && self.disk_random.one_in(3) {
            self.strike_aimed(|world| {
                let calls = world.env.random.below(40);
                world.die_within_call(host, calls);
            });
        }
        self.schedule(host, now_ns);
    }

    /// A process that should resume the VM says that it can't go on from its log.
    pub(super) fn log_is_refused(&mut self, host: usize, exit: Exit) {
        // Who wins the flag is the last owner, and its log a backup's until it has all that it had
        // acknowledged: nothing is promised of it before.
        if exit != Exit::LogOfBackup {
            self.check_promise(host);
        }
        if let Some(operator) = &mut self.vms[self.hosts[host].vm].operator
            && operator.tries == Some(host)
        {
            operator.tries = None;
        }
    }

    /// The VM goes on.
    pub(super) fn has_resumed(&mut self, vm: usize) {
        let run = &mut self.vms[vm];
        run.operator = None;
        run.resumed += 1;
        if run.resumed == 2 {
            self.env.saw(Sighting::ResumedAgain);
        }
        // What was seen is undone: nothing that comes can be compared with it.
        if self.env.vms[vm].judge.has_accepted_loss() {
            self.vm_is_over(vm);
        }
    }

    /// What `--log-wait` promised of the last owner's log: it is one to go on from. Whether it has
    /// all that was seen is looked at when it does.
    fn check_promise(&self, host: usize) {
        let vm = &self.env.vms[self.hosts[host].vm];
        let Some((flag, owner)) = vm.arbiter.last() else { return };
        let is_owners = owner.address.as_deref() == Some(&*address(host).to_string());
        let survives = match self.setup_of(host).log_wait {
            Some(LogWait::Durable) => true,
            Some(LogWait::Written) => !self.unpowered.contains(&host),
            Some(LogWait::No) | None => false,
        };
        let was_seen = vm.judge.last_seen().is_some();
        assert!(
            !is_owners || !survives || !was_seen || self.env.disks[host].has_failed(),
            "the log of the VM's last owner, of flag {flag} on host {host}, is refused"
        );
    }

    /// All logs have been refused.
    fn nothing_is_left(&mut self, vm: usize) -> bool {
        let hosts = self.hosts_of(vm).collect();
        let Some(operator) = &mut self.vms[vm].operator else { return false };
        if operator.accepts_loss || self.disk_random.one_in(2) {
            return false;
        }
        operator.accepts_loss = true;
        operator.left = hosts;
        true
    }

    /// Something happens to a disk.
    pub(super) fn disk_fault(&mut self) {
        if self.vms.iter().all(|run| run.setup.log_wait.is_none()) {
            return;
        }
        let host = self.env.random.index(self.hosts.len());
        match self.env.random.below(if self.has_disk_faults { 12 } else { 9 }) {
            0..=1 => {
                let calls = self.env.random.below(60);
                let survives = self.survives_without(host) || self.env.random.one_in(3);
                if survives && self.hosts[host].process.is_some() {
                    self.die_within_call(host, calls);
                }
            }
            2 => {
                let pause_ns = u64::from(self.env.random.below(300)) * MS;
                self.env.note_fault(Lane::Host(host), "the disk does nothing for {ms}", &[pause_ns]);
                self.env.disks_hang_until_ns.insert(host, self.env.now_ns + pause_ns);
            }
            3 if self.env.random.one_in(3) => {
                // The power of all hosts.
                for host in 0..self.hosts.len() {
                    self.kill(host, Death::PowerCut);
                }
            }
            9 => self.set_disk_fault(host, Some(DiskFault::Full), "the disk is full"),
            10 => self.set_disk_fault(host, Some(DiskFault::SyncFails), "the disk can't sync any more"),
            11 => self.set_disk_fault(host, None, "the disk has room and syncs"),
            _ => {}
        }
    }

    fn die_within_call(&mut self, host: usize, calls: u32) {
        self.env.note_fault(Lane::Host(host), "is to die within call {} to its disk", &[calls.into()]);
        self.env.disks[host].die_after(calls);
    }

    fn set_disk_fault(&mut self, host: usize, fault: Option<DiskFault>, what: &'static str) {
        self.env.note_fault(Lane::Host(host), what, &[]);
        self.env.disks[host].set_fault(fault);
    }
}
