//! A process that runs the VM: the production side, called step by step.

use super::connection::SimConnection;
use super::env::Env;
use super::host::{LAN_ADDRESS, Part, SimHost, address};
use super::log::{LogOfOwner, LogWork};
use super::process::{Exit, Me};
use super::sightings::Sighting;
use super::sink::SimSink;
use super::source::SimSource;
use super::trace::State;
use super::wires::Place;
use ft::guest_clock::PAUSE_NS;
use ft::role::{FULL_SHARE, PrimaryEnd, PrimaryRole};
use hypervisor::node::host::{GuestInput, Host, Next, StepKind};
use hypervisor::node::io::lan::{AttachmentConfig, LanAttachment};
use hypervisor::node::log::SideDiskLog;
use hypervisor::node::primary::{
    Identity, LiveEnd, PendingConnection, PrimaryControl, PrimarySide, PrimaryStep, Sleeper, Vcpu, VcpuNext,
};
use std::sync::{Arc, MutexGuard};
use vm::Machine;

/// What copying a piece of the guest's memory costs.
const COPY_NS: u64 = 20_000;

/// From one question to the next of a vCPU that spins.
const SPIN_NS: u64 = 10_000;

/// A running VM.
pub(super) struct Primary {
    me: Me,
    host: SimHost,
    side: Arc<PrimarySide<SimHost>>,
    vcpu: Vcpu<SimHost>,
    control: PrimaryControl<SimHost>,
    lan: LanAttachment<SimConnection>,
    lan_ns: u64,
    log_work: Option<LogWork>,
    /// Each with when it is due.
    pending: Vec<(PendingConnection<SimHost>, u64)>,
    timers_ns: u64,
    control_ns: u64,
    vcpu_ns: u64,
    /// A word of the backup's is taken up at once.
    wakes_for_backup: bool,
    /// The guest sleeps until a packet comes.
    is_waiting: bool,
    /// When the guest's clock was looked at last.
    looked_ns: u64,
    /// It waits for its log to end before it ends itself.
    exit: Option<Exit>,
}

/// What a process does in a step, in an order that nobody knows.
#[derive(Clone, Copy, Debug)]
enum Job {
    Lan,
    Control,
    Print,
    Timers,
    Pending,
    Vcpu,
}

impl Primary {
    /// Runs `machine` as `role` says: both are fresh, or of a backup that goes live.
    /// Its log on disk, if one is kept, is `log`; `log_work` are the steps of one that goes on.
    pub(super) fn new(
        env: &mut Env,
        process: &SimHost,
        role: PrimaryRole,
        machine: Machine,
        (log, log_work): (LogOfOwner, Option<LogWork>),
    ) -> Self {
        let me = process.me().clone();
        env.judge_of(me.host).takes_over(me.node, role.appended());
        env.vm_of(me.host).owns(me.node, role.generation());
        let (generation, entries) = (role.generation().0, role.appended().0);
        let what = "PRIMARY of generation {}, with a log of {} entries";
        env.note_role(me.host, State::Primary(generation), what, &[generation, entries]);
        let host = process.become_part(Part::Primary(role.generation()));
        let session = role.session().clone();
        let config = AttachmentConfig {
            vm: me.setup.vm.clone(),
            node: me.node,
            booted: session.booted,
            mac: me.setup.config.mac,
            lan: LAN_ADDRESS,
        };
        let lan = LanAttachment::new(config, me.setup.attachment, machine.last_packet_number());
        let source = SimSource::new(host.clone(), *role.clock(), env);
        let sink = SimSink::new(host.clone());
        let disk_log = match log {
            LogOfOwner::None => None,
            LogOfOwner::GoesOn(log) => Some(*log),
            LogOfOwner::Begins(options) => {
                let begun = host.call(env, || SideDiskLog::begin(&host, options, session, me.node));
                Some(begun.unwrap_or_else(|error| panic!("{error}")))
            }
        };
        let log_work = host.take_log_work().or(log_work);
        let identity = Identity { vm: me.setup.vm.clone(), node: me.node, address: address(me.host).to_string() };
        let side = Arc::new(PrimarySide::new(host.clone(), identity, role, sink));
        let (control, vcpu) = host.call(env, || {
            let watch = disk_log.as_ref().map(|log| log.disk_watch(host.now_ns()));
            let control = side.control(me.setup.arbiter_client(&host), watch);
            (control, side.vcpu(machine, source, me.setup.intervals, disk_log, me.setup.slice_steps))
        });
        Self {
            host,
            side,
            vcpu,
            control,
            lan,
            lan_ns: env.now_ns,
            log_work,
            me,
            pending: Vec::new(),
            timers_ns: env.now_ns,
            control_ns: env.now_ns,
            vcpu_ns: env.now_ns,
            wakes_for_backup: false,
            is_waiting: false,
            looked_ns: env.now_ns,
            exit: None,
        }
    }

    pub(super) fn role(&self) -> MutexGuard<'_, PrimaryRole> {
        self.side.role()
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.control.is_asking()
    }

    /// The operator wants this process to end.
    pub(super) fn retire(&mut self, env: &mut Env) {
        self.host.call(env, || self.side.drive(PrimaryRole::handle_retire));
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it
    /// ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Exit> {
        let mut jobs = [Job::Lan, Job::Control, Job::Print, Job::Timers, Job::Pending, Job::Vcpu];
        for last in (1..jobs.len()).rev() {
            jobs.swap(last, env.random.index(last + 1));
        }
        if let Some(work) = &mut self.log_work {
            work.step(env, &self.host);
        }
        for job in jobs {
            // A process that has died within a call to its disk.
            if env.has_died_writing(self.me.host) {
                break;
            }
            match job {
                Job::Lan => self.attach(env),
                Job::Control => self.control(env)?,
                Job::Print => self.print(env),
                Job::Timers => self.look_at_timers(env),
                Job::Pending => self.receive_pending(env),
                Job::Vcpu => self.run_guest(env)?,
            }
        }
        Ok(self.due_ns(env))
    }

    fn due_ns(&self, env: &Env) -> u64 {
        let vcpu_ns = if self.host.was_woken(StepKind::Vcpu) { env.now_ns + 1 } else { self.vcpu_ns };
        let control_ns = if self.host.was_woken(StepKind::Control) { env.now_ns + 10_000 } else { self.control_ns };
        let pending_ns = self.pending.iter().map(|(_, due_ns)| *due_ns).min().unwrap_or(u64::MAX);
        let outlets_ns = self.side.sink().due_ns();
        let log_ns = self.log_work.as_ref().map_or(u64::MAX, |work| work.due_ns(env, &self.host));
        if self.exit.is_some() {
            return log_ns.min(self.vcpu_ns);
        }
        log_ns.min(vcpu_ns).min(control_ns).min(self.timers_ns).min(pending_ns).min(outlets_ns).min(self.lan_ns)
    }

    /// Attaches to the LAN, and takes what comes from it.
    fn attach(&mut self, env: &mut Env) {
        loop {
            self.lan_ns = match self.host.call(env, || self.lan.step(&*self.side)) {
                Next::Now => continue,
                Next::Wait { until_ns } | Next::Arrival { until_ns } | Next::Room { until_ns } => until_ns,
                Next::Done => u64::MAX,
            };
            break;
        }
        if self.is_waiting && self.host.has_packet() {
            self.vcpu_ns = env.now_ns;
        }
    }

    /// Writes what its reader takes of the console's queue.
    fn print(&mut self, env: &mut Env) {
        if let Some(next) = self.side.sink().print(env) {
            self.host.set_console_left(next);
            self.host.call(env, || self.side.console_left(next));
        }
    }

    fn look_at_timers(&mut self, env: &mut Env) {
        if self.timers_ns <= env.now_ns
            && let Next::Wait { until_ns } = self.host.call(env, || self.side.step_timers())
        {
            self.timers_ns = until_ns;
        }
    }

    /// Hears what pending want.
    fn receive_pending(&mut self, env: &mut Env) {
        while let Some(end) = env.accept(Place::Host(self.me.host)) {
            let connection = self.host.connection(end);
            self.pending.push((PendingConnection::new(connection, "a host".into(), env.now_ns), env.now_ns));
        }
        for (mut connection, _) in std::mem::take(&mut self.pending) {
            match self.host.call(env, || self.side.step_pending(&mut connection)) {
                Next::Now => self.pending.push((connection, env.now_ns + 1_000)),
                Next::Wait { until_ns } | Next::Arrival { until_ns } | Next::Room { until_ns } => {
                    self.pending.push((connection, until_ns));
                }
                Next::Done => {}
            }
        }
    }

    /// Does what takes time.
    fn control(&mut self, env: &mut Env) -> Result<(), Exit> {
        if self.exit.is_some() {
            return Ok(());
        }
        loop {
            match self.host.call(env, || self.side.step_control(&mut self.control)) {
                PrimaryStep::Next(Next::Wait { until_ns } | Next::Arrival { until_ns } | Next::Room { until_ns }) => {
                    self.control_ns = until_ns;
                    return Ok(());
                }
                PrimaryStep::Next(Next::Now | Next::Done) => {}
                PrimaryStep::End(end) => {
                    self.host.call(env, || self.side.end());
                    let exit = self.end(env, &end);
                    if self.log_work.is_none() {
                        return Err(exit);
                    }
                    self.exit = Some(exit);
                    (self.control_ns, self.vcpu_ns) = (u64::MAX, env.now_ns);
                    return Ok(());
                }
            }
        }
    }

    fn end(&mut self, env: &mut Env, end: &LiveEnd) -> Exit {
        // A process that ends writes the rest of its console's queue first.
        self.side.sink().drain();
        self.print(env);
        match end {
            LiveEnd::HandedOver => {
                env.saw(Sighting::HandOver);
                Exit::HandedOver
            }
            LiveEnd::Role(PrimaryEnd::GuestStopped(_)) => {
                env.saw(Sighting::PowerOff);
                if self.side.role().generation().0 > 2 {
                    env.saw(Sighting::PowerOffAfterFailover);
                }
                Exit::GuestEnded
            }
            LiveEnd::Role(PrimaryEnd::Retired | PrimaryEnd::Left) => Exit::GuestEnded,
            LiveEnd::Role(PrimaryEnd::Interrupted) => Exit::Interrupted,
            LiveEnd::Role(PrimaryEnd::Stranded) => panic!("no operator ends a primary that stands still"),
            LiveEnd::Role(PrimaryEnd::Fenced { holder }) => {
                env.judge_of(self.me.host).is_fenced(self.me.node, self.side.role().generation(), holder.node);
                env.saw(Sighting::PrimaryFenced);
                if self.host.made_below() > self.host.sent_below() {
                    env.saw(Sighting::HeldOutputsDiscarded);
                }
                Exit::Fenced
            }
        }
    }

    fn run_guest(&mut self, env: &mut Env) -> Result<(), Exit> {
        if self.vcpu_ns > env.now_ns && !self.wakes_for_backup && !self.host.was_woken(StepKind::Vcpu) {
            return Ok(());
        }
        self.look_at_clock(env);
        let before = self.vcpu.machine().instruction_count();
        let is_copying = self.side.role().is_copying();
        let is_slowed = self.side.role().share() < FULL_SHARE;
        let next = self.host.call(env, || self.side.step_vcpu(&mut self.vcpu));
        let ran = self.vcpu.machine().instruction_count().since(before);
        if is_slowed && ran > 0 {
            env.saw(Sighting::GuestSlowed);
        }
        let copy_ns = if is_copying { COPY_NS } else { 0 };
        let busy_ns = env.now_ns + 1_000 + copy_ns + ran * self.me.setup.ns_per_step;
        (self.wakes_for_backup, self.is_waiting) = (false, false);
        self.vcpu_ns = match next {
            VcpuNext::Now => busy_ns,
            VcpuNext::Spin => busy_ns + SPIN_NS,
            VcpuNext::Pause { until_ns } => until_ns.max(busy_ns),
            VcpuNext::Sleep { until_ns, sleeper, wakes_for_backup } => {
                self.wakes_for_backup = wakes_for_backup;
                self.is_waiting = sleeper == Sleeper::Waiting;
                let timer = self.vcpu.machine().timer_deadline().filter(|_| self.is_waiting);
                let timer_ns = timer.map_or(u64::MAX, |ticks| self.vcpu.source().clock().ns_of(ticks));
                timer_ns.min(until_ns).max(busy_ns)
            }
            // Its log has ended too.
            VcpuNext::Done => match self.exit {
                Some(exit) => return Err(exit),
                None => u64::MAX,
            },
        };
        Ok(())
    }

    /// What the judge has to know before the vCPU looks at the guest's clock again.
    fn look_at_clock(&mut self, env: &mut Env) {
        let gap_ns = env.now_ns - std::mem::replace(&mut self.looked_ns, env.now_ns);
        let has_stood = !self.vcpu.source().clock().is_running();
        if self.host.has_run() && (gap_ns > PAUSE_NS || has_stood) {
            env.saw(if has_stood { Sighting::ClockStood } else { Sighting::PauseLeftOut });
            env.judge_of(self.me.host).pauses(self.me.node, gap_ns);
        }
    }
}
