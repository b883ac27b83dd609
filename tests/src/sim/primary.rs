//! A process that runs the VM: what `hypervisor::node::primary` does with threads, sockets and clocks. It decides nothing.

use super::cable::Cable;
use super::claims::Claims;
use super::env::Env;
use super::process::{Exit, Me};
use super::side::{Side, Sink};
use super::sightings::Sighting;
use super::source::SimSource;
use crate::random::Random;
use ft::guest_clock::{PAUSE_NS, WatchedClock};
use ft::record::{Recorder, Slice};
use ft::role::{FULL_SHARE, PrimaryRole};
use logchannel::entry::Generation;
use std::collections::VecDeque;
use vm::Machine;

/// From one look at heartbeats and timeouts to the next.
const TICK_NS: u64 = 5_000_000;

/// How many steps the guest runs at once while outputs are held.
const STEPS_WHILE_HOLDING: u64 = 300;

/// What copying a piece of the guest's memory costs.
const COPY_NS: u64 = 20_000;

/// A running VM.
pub(super) struct Primary {
    recorder: Recorder<SimSource>,
    side: Side,
    /// The generation that the log was last told of; `None` as long as the guest hasn't begun to run here.
    logged_generation: Option<Generation>,
    vcpu_ns: u64,
    /// It sleeps, until then or until a frame comes.
    is_asleep: bool,
    copy_ns: u64,
    tick_ns: u64,
    /// When the last step was.
    step_ns: u64,
}

/// What a process does in a step, in an order that nobody knows.
#[derive(Clone, Copy, Debug)]
enum Job {
    Hear,
    Cable,
    Conduct,
    Print,
    Tick,
    Accept,
    Vcpu,
}

impl Primary {
    /// Runs `machine` as `role` says: both are fresh, or of a backup that goes live.
    pub(super) fn new(env: &mut Env, me: Me, role: PrimaryRole, machine: Machine) -> Self {
        env.judge.takes_over(me.node, role.appended());
        env.judge.owns(&env.arbiter, env.has_forgotten, me.node, role.generation());
        env.note(
            "primary: owns as generation, at entry, of host",
            &[role.generation().0, role.appended().0, me.host as u64],
        );
        let cable = Cable::new(machine.last_packet_number(), role.session().booted);
        let source = SimSource {
            now_ns: env.now_ns,
            clock: WatchedClock::new(*role.clock(), env.now_ns),
            packets: VecDeque::new(),
            random: Random::new(env.random.next_u64()),
        };
        let intervals = me.setup.intervals;
        let side = Side::new(me.clone(), role, cable, Claims::new(me));
        Self {
            recorder: Recorder::new(machine, source, intervals),
            side,
            logged_generation: None,
            vcpu_ns: env.now_ns,
            is_asleep: false,
            copy_ns: env.now_ns,
            tick_ns: env.now_ns,
            step_ns: env.now_ns,
        }
    }

    pub(super) const fn role(&self) -> &PrimaryRole {
        &self.side.role
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.side.is_asking()
    }

    /// The operator wants this process to end.
    pub(super) fn retire(&mut self, env: &mut Env) {
        self.side.role.handle_retire(env.now_ns);
        self.side.carry_out(env);
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Exit> {
        let mut jobs = [Job::Hear, Job::Cable, Job::Conduct, Job::Print, Job::Tick, Job::Accept, Job::Vcpu];
        for last in (1..jobs.len()).rev() {
            jobs.swap(last, env.random.index(last + 1));
        }
        for job in jobs {
            match job {
                Job::Hear => self.side.hear(env),
                Job::Cable => self.plug(env),
                Job::Conduct => self.side.conduct(env),
                Job::Print => self.side.print(env),
                Job::Tick => self.tick(env),
                Job::Accept => self.side.accept(env),
                Job::Vcpu => self.run_guest(env),
            }
            self.side.carry_out(env);
            if let Some(exit) = self.side.exit.take() {
                self.side.drain(env);
                return Err(exit);
            }
        }
        Ok(self.due_ns(env))
    }

    fn due_ns(&self, env: &mut Env) -> u64 {
        let copy_ns = if self.wants_copy(env) { self.copy_ns } else { u64::MAX };
        let vcpu_ns = if self.side.role.may_run() { self.vcpu_ns } else { u64::MAX };
        vcpu_ns.min(copy_ns).min(self.tick_ns).min(self.side.due_ns(env.now_ns))
    }

    fn plug(&mut self, env: &mut Env) {
        self.side.plug(env);
        if !self.side.cable.packets.is_empty() {
            self.recorder.source_mut().packets.append(&mut self.side.cable.packets);
            if self.is_asleep {
                self.vcpu_ns = env.now_ns;
            }
        }
    }

    fn tick(&mut self, env: &mut Env) {
        if self.tick_ns <= env.now_ns {
            self.tick_ns = env.now_ns + TICK_NS;
            self.side.role.handle_tick(env.now_ns);
        }
    }

    /// Lets the guest's clock run or stand as the role says, and tells the role when the clock has changed its course.
    fn keep_time(&mut self, env: &mut Env) {
        let gap_ns = env.now_ns - self.step_ns;
        self.step_ns = env.now_ns;
        let source = self.recorder.source_mut();
        source.now_ns = env.now_ns;
        let stands = self.side.role.clock_stands(env.now_ns);
        let has_stood = !source.clock.clock().is_running();
        if self.logged_generation.is_some() && (gap_ns > PAUSE_NS || has_stood) {
            env.saw(if has_stood { Sighting::ClockStood } else { Sighting::PauseLeftOut });
            env.judge.pauses(self.side.me.node, gap_ns);
        }
        source.clock.look(env.now_ns);
        source.clock.set_running(env.now_ns, !stands);
        if source.clock.clock() != self.side.role.clock() {
            self.side.role.handle_clock(*source.clock.clock());
        }
    }

    fn run_guest(&mut self, env: &mut Env) {
        self.keep_time(env);
        if self.side.role.may_run() && self.vcpu_ns <= env.now_ns {
            self.run_slice(env);
        }
        // What a predecessor had not logged is logged first; a guest that has never run has nothing to log.
        let has_logged_all = self.logged_generation.is_some() || self.recorder.machine().instruction_count().0 == 0;
        if self.wants_copy(env) && has_logged_all && self.copy_ns <= env.now_ns {
            self.copy_ns = env.now_ns + COPY_NS;
            self.side.role.copy_snapshot(env.now_ns, self.recorder.machine_mut());
        }
    }

    fn wants_copy(&self, env: &mut Env) -> bool {
        self.side.role.wants_copy() && self.side.has_room(env)
    }

    fn run_slice(&mut self, env: &mut Env) {
        let mut sink = Sink { side: &mut self.side, env };
        let generation = sink.side.role.generation();
        if self.logged_generation != Some(generation) {
            self.logged_generation = Some(generation);
            let Ok(()) = self.recorder.log_generation(&mut sink, generation);
        }
        let is_holding = sink.side.role.gate().held() > 0;
        let steps = if is_holding { STEPS_WHILE_HOLDING } else { sink.side.me.setup.slice_steps };
        let Some(steps) = sink.side.role.steps_allowed(steps, self.recorder.machine()) else {
            self.vcpu_ns = sink.env.now_ns + COPY_NS;
            return;
        };
        let before = self.recorder.machine().instruction_count();
        let Ok(slice) = self.recorder.run_slice(&mut sink, steps);
        let ran = self.recorder.machine().instruction_count().since(before);
        // A slowed guest gets less of the time.
        let share = u64::from(self.side.role.share());
        let busy_ns = 1_000 + ran * self.side.me.setup.ns_per_step * u64::from(FULL_SHARE) / share.max(1);
        if share < u64::from(FULL_SHARE) {
            env.saw(Sighting::GuestSlowed);
        }
        self.is_asleep = matches!(slice, Slice::Waiting);
        self.vcpu_ns = match slice {
            Slice::Ran => env.now_ns + busy_ns,
            Slice::Waiting => {
                let timer_ns = self.recorder.machine().timer_deadline();
                let timer_ns = timer_ns.map_or(u64::MAX, |ticks| self.recorder.source().clock.clock().ns_of(ticks));
                timer_ns.max(env.now_ns + busy_ns)
            }
            Slice::Stopped(_) => u64::MAX,
        };
    }
}
