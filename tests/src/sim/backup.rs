//! A process that backs the VM up: the production side, called step by step.

use super::connection::SimConnection;
use super::disk::SimDisk;
use super::env::Env;
use super::host::{Part, SimHost};
use super::log::{LogOfOwner, LogWork};
use super::process::Me;
use super::sightings::Sighting;
use ft::role::{BackupEnd, BackupRole, Expectation, PrimaryRole};
use hypervisor::node::backup::{BackupControl, BackupSide, Control, FaultInjection, Replay, Succession};
use hypervisor::node::host::{Next, StepKind};
use hypervisor::node::log::DiskLogOptions;
use logchannel::entry::Generation;
use std::sync::Arc;
use vm::Machine;

/// What may wait to be replayed before this side stops reading, in bytes.
const BUFFER_BYTES_MAX: usize = 32 << 10;

/// What replaying an entry costs, beyond the guest's steps.
const ENTRY_NS: u64 = 500;

/// A backup.
pub(super) struct Backup {
    me: Me,
    host: SimHost,
    side: Arc<BackupSide<SimHost>>,
    replay: Replay<SimHost>,
    control: BackupControl<SimHost>,
    log_work: Option<LogWork>,
    /// When each step is due that says so itself.
    timers_ns: u64,
    receive_ns: u64,
    /// When what was replayed last is done, and how much later if the host is slow.
    replay_ns: u64,
    slowness_ns: u64,
    has_replay_to_do: bool,
    /// When the last step was.
    step_ns: u64,
}

/// How a backup's time as a backup ends.
pub(super) enum Ended {
    /// It goes on as the primary that this role is.
    Live(Box<Live>),
    Over(BackupEnd),
}

/// What a backup goes on with as the VM's owner.
pub(super) struct Live {
    pub(super) role: PrimaryRole,
    pub(super) machine: Machine,
    pub(super) log: (LogOfOwner, Option<LogWork>),
}

impl Backup {
    /// A backup that has connected to a primary.
    pub(super) fn new(
        env: &mut Env,
        process: &SimHost,
        connection: Arc<SimConnection>,
        log: Option<DiskLogOptions<SimDisk>>,
    ) -> Self {
        let me = process.me().clone();
        let expectation = Expectation { vm: me.setup.vm.clone(), image: None };
        let role = BackupRole::new(env.now_ns, me.node, expectation, me.setup.timing);
        let host = process.become_part(Part::Backup);
        let side = host.call(env, || {
            let log = log.map(|options| (me.node, options));
            Arc::new(BackupSide::new(host.clone(), role, connection, log, BUFFER_BYTES_MAX))
        });
        let control = BackupControl::new(me.setup.arbiter_client(&host));
        Self {
            control,
            log_work: None,
            me,
            host,
            side,
            replay: Replay::new(FaultInjection::default()),
            timers_ns: env.now_ns,
            receive_ns: env.now_ns,
            replay_ns: env.now_ns,
            slowness_ns: 0,
            has_replay_to_do: false,
            step_ns: env.now_ns,
        }
    }

    /// Whether it has begun to receive a VM and isn't told yet that it protects it.
    pub(super) fn is_joining(&self) -> bool {
        self.host.is_joining()
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.control.is_asking()
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it
    /// ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Ended> {
        let waited_ns = env.now_ns - std::mem::replace(&mut self.step_ns, env.now_ns);
        env.judge_of(self.me.host).guest_time.waits(self.me.node, waited_ns);
        let mut control_ns = u64::MAX;
        let first = env.random.index(4);
        self.step_log(env);
        for job in 0..4 {
            // A process that has died within a call to its disk.
            if env.has_died_writing(self.me.host) {
                break;
            }
            match (first + job) % 4 {
                0 => self.receive(env),
                1 => control_ns = self.control(env)?,
                2 => self.replay(env),
                _ => self.tick(env),
            }
        }
        self.has_replay_to_do |= self.host.was_woken(StepKind::Replay);
        if self.host.was_woken(StepKind::Control) {
            control_ns = env.now_ns + 10_000;
        }
        let replay_ns = if self.has_replay_to_do { self.replay_due_ns(env).max(env.now_ns + 1) } else { u64::MAX };
        self.log_work = self.host.take_log_work().or(self.log_work.take());
        let log_ns = self.log_work.as_ref().map_or(u64::MAX, |work| work.due_ns(env, &self.host));
        Ok(replay_ns.min(log_ns).min(self.timers_ns).min(self.receive_ns).min(control_ns))
    }

    fn step_log(&mut self, env: &mut Env) {
        if let Some(work) = &mut self.log_work {
            work.step(env, &self.host);
        }
    }

    fn receive(&mut self, env: &mut Env) {
        match self.host.call(env, || self.side.step_receive()) {
            Next::Now => self.receive_ns = env.now_ns + 1_000,
            Next::Wait { until_ns } => {
                if self.replay.replayer().is_some() {
                    env.saw(Sighting::BackupSlow);
                }
                self.receive_ns = until_ns;
            }
            Next::Arrival { until_ns } | Next::Room { until_ns } => self.receive_ns = until_ns,
            Next::Done => self.receive_ns = u64::MAX,
        }
    }

    fn tick(&mut self, env: &mut Env) {
        if self.timers_ns <= env.now_ns {
            let next = self.host.call(env, || self.side.step_timers());
            self.timers_ns = due_ns(env, &next);
        }
    }

    /// When replay can go on: the host isn't slow any more once everything works again.
    const fn replay_due_ns(&self, env: &Env) -> u64 {
        self.replay_ns + if env.is_faulty { self.slowness_ns } else { 0 }
    }

    fn replay(&mut self, env: &mut Env) {
        if self.replay_due_ns(env) > env.now_ns {
            return;
        }
        let progress = |replay: &Replay<SimHost>| {
            let replayer = replay.replayer()?;
            Some((replayer.consumed().0, replayer.machine().instruction_count().0, replayer.digests_checked()))
        };
        let before = progress(&self.replay);
        let next = self.host.call(env, || self.side.step_replay(&mut self.replay));
        self.has_replay_to_do = matches!(next, Next::Now);
        let (Some((entries, steps, digests)), Some(after)) = (before, progress(&self.replay)) else { return };
        if after.2 > digests {
            env.saw(Sighting::DigestCompared);
        }
        let cost_ns = (after.0 - entries) * ENTRY_NS + (after.1 - steps) * self.me.setup.ns_per_step;
        self.replay_ns = env.now_ns + cost_ns;
        self.slowness_ns = cost_ns * (self.me.setup.replay_factor - 1);
    }

    /// Does what takes time. Returns when there is more of it.
    fn control(&mut self, env: &mut Env) -> Result<u64, Ended> {
        loop {
            let step = self.host.call(env, || self.side.step_control(&mut self.control));
            if self.host.take_won() {
                let (received, consumed) = self.side.role().cursors();
                if consumed < received {
                    env.saw(Sighting::DrainedAfterWin);
                }
            }
            match step {
                Control::Next(Next::Now) => {}
                Control::Next(next) => return Ok(due_ns(env, &next)),
                Control::GoLive(generation) => return Err(self.go_live(env, generation)),
                Control::End(end) => {
                    match &end {
                        BackupEnd::Fenced { .. } => env.saw(Sighting::BackupFenced),
                        BackupEnd::NoPlace { .. } => env.saw(Sighting::NoPrimaryThere),
                        BackupEnd::GuestStopped(_)
                        | BackupEnd::Diverged
                        | BackupEnd::Unprotected { .. }
                        | BackupEnd::Refused { .. } => {}
                    }
                    return Err(Ended::Over(end));
                }
            }
        }
    }

    fn go_live(&mut self, env: &mut Env, generation: Generation) -> Ended {
        let next = self.host.call(env, || self.side.step_replay(&mut self.replay));
        assert!(matches!(next, Next::Done), "the replay goes on: {next:?}");
        let replay = std::mem::replace(&mut self.replay, Replay::new(FaultInjection::default()));
        let Some(following) = replay.into_finished() else { panic!("live without a machine") };
        let succession = Succession::new(&mut self.side.role(), following, generation, env.now_ns);
        env.saw(if env.sightings.count(Sighting::Failover) > 0 {
            Sighting::SecondFailover
        } else {
            Sighting::Failover
        });
        if env.is_other_joining(self.me.host) {
            env.saw(Sighting::FailoverWhileOtherJoins);
        }
        if !succession.unsent.is_empty() {
            env.saw(Sighting::UnsentOutputsAtGoLive);
        }
        let moments = succession.moments;
        env.judge_of(self.me.host)
            .guest_time
            .waits(self.me.node, moments.test_and_set_won_ns.saturating_sub(moments.loss_noticed_ns));
        let (role, machine, log) = succession.take_over(self.me.node, self.me.setup.timing);
        let log = log.map_or(LogOfOwner::None, |log| LogOfOwner::GoesOn(Box::new(log)));
        let log = (log, self.log_work.take());
        Ended::Live(Box::new(Live { role, machine, log }))
    }
}

/// When a step is to be called again.
fn due_ns(env: &Env, next: &Next) -> u64 {
    match next {
        Next::Now => env.now_ns,
        Next::Wait { until_ns } | Next::Arrival { until_ns } | Next::Room { until_ns } => *until_ns,
        Next::Done => u64::MAX,
    }
}
