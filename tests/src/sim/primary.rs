//! A process that runs the VM: what `hypervisor::host::live` does with threads, sockets and clocks. It decides nothing.

use super::cable::{Cable, News};
use super::channel::Channel;
use super::claims::Claims;
use super::env::Env;
use super::process::{Exit, Me};
use super::sightings::Sighting;
use super::wires::Place;
use hypervisor::event_source::EventSource;
use hypervisor::record::{LogSink, Recorder, Slice};
use hypervisor::role::{FULL_SHARE, PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::VmId;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use vm::{Event, Machine, OutputId, OutputOperation, TIMEBASE_HZ};

/// From one look at heartbeats and timeouts to the next.
const TICK_NS: u64 = 5_000_000;

/// How many steps the guest runs at once while outputs are held.
const STEPS_WHILE_HOLDING: u64 = 300;

/// How long a visitor may take to say what it wants.
const PATIENCE_NS: u64 = 100_000_000;

/// What copying a piece of the guest's memory costs.
const COPY_NS: u64 = 20_000;

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// The guest's events, as the host makes them.
#[derive(Debug)]
struct SimSource {
    now_ns: u64,
    /// The guest's clock read `start_ticks` at `start_ns`.
    start_ns: u64,
    start_ticks: u64,
    packets: VecDeque<(u64, Vec<u8>)>,
    random: crate::random::Random,
}

impl SimSource {
    const fn ns_of(&self, ticks: u64) -> u64 {
        self.start_ns.saturating_add(ticks.saturating_sub(self.start_ticks).saturating_mul(NS_PER_TICK))
    }
}

impl EventSource for SimSource {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.start_ticks + self.now_ns.saturating_sub(self.start_ns) / NS_PER_TICK
    }

    fn entropy(&mut self) -> u16 {
        u16::try_from(self.random.below(1 << 16)).expect("below 2^16")
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        if machine.timer_deadline().is_some_and(|deadline| deadline <= self.ticks()) {
            return Some(Event::TimerInterrupt);
        }
        if !machine.can_receive_packet() {
            return None;
        }
        self.packets.pop_front().map(|(number, frame)| Event::Packet { number, frame })
    }
}

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
}

/// All but the machine.
struct Side {
    me: Me,
    role: PrimaryRole,
    channel: Option<Channel>,
    /// Connected, and haven't said what they want; until when they may.
    visitors: Vec<(Channel, u64)>,
    cable: Cable,
    claims: Claims,
    todo: VecDeque<PrimaryAction>,
    /// Outputs below were sent to the LAN, or would have been.
    sent_below: OutputId,
    /// The places of the entries of outputs that were made here.
    seqs: BTreeMap<OutputId, LogSeq>,
    /// When each of the outputs held was made.
    made_ns: VecDeque<(OutputId, u64)>,
    has_lost_backup: bool,
    exit: Option<Exit>,
}

/// What a process does in a step, in an order that nobody knows.
#[derive(Clone, Copy, Debug)]
enum Job {
    Hear,
    Cable,
    Conduct,
    Tick,
    Accept,
    Vcpu,
}

impl Primary {
    /// Runs `machine` as `role` says: both are fresh if it `is_boot`, else they are of a backup that goes live.
    pub(super) fn new(env: &mut Env, me: Me, role: PrimaryRole, machine: Machine, is_boot: bool) -> Self {
        env.judge.takes_over(me.node, role.appended());
        env.judge.owns(&env.arbiter, me.node, role.generation());
        env.note(
            "primary: owns as generation, at entry, of host",
            &[role.generation().0, role.appended().0, me.host as u64],
        );
        let cable = Cable::new(machine.last_packet_number(), is_boot);
        let source = SimSource {
            now_ns: env.now_ns,
            start_ns: env.now_ns,
            start_ticks: machine.last_ticks(),
            packets: VecDeque::new(),
            random: crate::random::Random::new(env.random.next_u64()),
        };
        let intervals = me.setup.intervals;
        let side = Side {
            claims: Claims::new(me.clone()),
            me,
            role,
            channel: None,
            visitors: Vec::new(),
            cable,
            todo: VecDeque::new(),
            sent_below: OutputId(0),
            seqs: BTreeMap::new(),
            made_ns: VecDeque::new(),
            has_lost_backup: false,
            exit: None,
        };
        Self {
            recorder: Recorder::new(machine, source, intervals),
            side,
            logged_generation: None,
            vcpu_ns: env.now_ns,
            is_asleep: false,
            copy_ns: env.now_ns,
            tick_ns: env.now_ns,
        }
    }

    pub(super) const fn role(&self) -> &PrimaryRole {
        &self.side.role
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.side.claims.is_asking()
    }

    /// The operator wants this process to end.
    pub(super) fn retire(&mut self, env: &mut Env) {
        self.side.role.retire(env.now_ns);
        self.side.carry_out(env);
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Exit> {
        let mut jobs = [Job::Hear, Job::Cable, Job::Conduct, Job::Tick, Job::Accept, Job::Vcpu];
        for last in (1..jobs.len()).rev() {
            jobs.swap(last, env.random.index(last + 1));
        }
        for job in jobs {
            match job {
                Job::Hear => self.side.hear(env),
                Job::Cable => self.plug(env),
                Job::Conduct => self.side.conduct(env),
                Job::Tick => self.tick(env),
                Job::Accept => self.side.accept(env),
                Job::Vcpu => self.run_guest(env),
            }
            self.side.carry_out(env);
            if let Some(exit) = self.side.exit.take() {
                return Err(exit);
            }
        }
        Ok(self.due_ns(env))
    }

    fn due_ns(&self, env: &mut Env) -> u64 {
        let copy_ns = if self.wants_copy(env) { self.copy_ns } else { u64::MAX };
        let vcpu_ns = if self.side.role.may_run() { self.vcpu_ns } else { u64::MAX };
        let todo_ns = if self.side.todo.is_empty() { u64::MAX } else { env.now_ns + 10_000 };
        [vcpu_ns, copy_ns, self.tick_ns, self.side.cable.due_ns(), self.side.claims.due_ns(), todo_ns]
            .into_iter()
            .min()
            .unwrap_or(u64::MAX)
    }

    fn plug(&mut self, env: &mut Env) {
        let side = &mut self.side;
        let owner = (side.role.generation(), side.role.gate().next_to_leave()..side.role.gate().end());
        for news in side.cable.step(env, &side.me, owner) {
            match news {
                News::Attached(next) => {
                    let gate = side.role.gate();
                    if gate.tail().any(|(id, _)| id < next) {
                        env.saw(Sighting::TailAlreadyCarried);
                    }
                    if gate.tail().any(|(id, _)| id >= next && side.sent_below > id) {
                        env.saw(Sighting::SentAgain);
                    }
                    side.role.send_again(next);
                }
                News::Carried(next) => side.role.carried(next),
            }
        }
        let source = self.recorder.source_mut();
        if !side.cable.packets.is_empty() {
            source.packets.append(&mut side.cable.packets);
            if self.is_asleep {
                self.vcpu_ns = env.now_ns;
            }
        }
    }

    fn tick(&mut self, env: &mut Env) {
        if self.tick_ns <= env.now_ns {
            self.tick_ns = env.now_ns + TICK_NS;
            self.side.role.tick(env.now_ns);
        }
    }

    fn run_guest(&mut self, env: &mut Env) {
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
        self.recorder.source_mut().now_ns = env.now_ns;
        let mut sink = Sink { side: &mut self.side, env };
        let generation = sink.side.role.generation();
        if self.logged_generation != Some(generation) {
            if self.logged_generation.replace(generation).is_none() {
                self.recorder.source_mut().start_ns = sink.env.now_ns;
            }
            let Ok(()) = self.recorder.log_generation(&mut sink, generation);
        }
        let is_holding = sink.side.role.gate().held() > 0;
        let steps = if is_holding { STEPS_WHILE_HOLDING } else { sink.side.me.setup.slice_steps };
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
                let timer_ns = timer_ns.map_or(u64::MAX, |ticks| self.recorder.source().ns_of(ticks));
                timer_ns.max(env.now_ns + busy_ns)
            }
            Slice::Stopped(_) => u64::MAX,
        };
    }
}

impl Side {
    fn has_room(&self, env: &mut Env) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.has_room(env))
    }

    /// Gives the role what its backup has said.
    fn hear(&mut self, env: &mut Env) {
        let Some(channel) = &mut self.channel else { return };
        let arrived = channel.receive(env);
        for message in arrived.messages {
            self.role.backup_said(env.now_ns, message);
        }
        if let Some(reason) = arrived.end {
            self.role.backup_lost(&reason);
            if let Some(channel) = self.channel.take() {
                channel.close(env);
            }
        }
    }

    /// Hears what visitors want, and lets a backup in, if the role does.
    fn accept(&mut self, env: &mut Env) {
        while let Some(end) = env.accept(Place::Host(self.me.host)) {
            self.visitors.push((Channel::new(end), env.now_ns + PATIENCE_NS));
        }
        for (mut visitor, until_ns) in std::mem::take(&mut self.visitors) {
            let arrived = visitor.receive(env);
            match arrived.messages.into_iter().next() {
                Some(Message::Join { vm, .. }) => self.welcome(env, visitor, &vm),
                Some(other) => panic!("a backup begins with {other:?}"),
                None if arrived.end.is_some() || until_ns <= env.now_ns => visitor.close(env),
                None => self.visitors.push((visitor, until_ns)),
            }
        }
    }

    fn welcome(&mut self, env: &mut Env, visitor: Channel, vm: &VmId) {
        match self.role.backup_joins(env.now_ns, vm) {
            Ok(()) => {
                env.note("primary: a backup joins on host", &[self.me.host as u64]);
                self.channel = Some(visitor);
            }
            Err(reason) => {
                env.saw(Sighting::JoinRefused);
                let mut bytes = Vec::new();
                Message::Refused { reason }.encode(&mut bytes);
                visitor.send(env, self.me.host, &bytes);
                visitor.close(env);
            }
        }
    }

    /// Does what the role asks for that takes time.
    fn conduct(&mut self, env: &mut Env) {
        if let Some(answer) = self.claims.answer(env) {
            self.role.claim_answered(env.now_ns, answer);
        }
        self.carry_out(env);
        while !self.claims.is_asking()
            && let Some(action) = self.todo.pop_front()
        {
            match action {
                PrimaryAction::Claim(request) => self.claims.ask(env, request),
                PrimaryAction::CloseChannel { .. } => {}
                PrimaryAction::Owner(generation) => self.alone(env, generation),
                PrimaryAction::Protected(generation) => self.protected(env, generation),
                PrimaryAction::HandOver => {
                    env.saw(Sighting::HandOver);
                    self.exit = Some(Exit::HandedOver);
                }
                PrimaryAction::End(end) => self.exit = Some(self.end(env, &end)),
            }
        }
    }

    fn alone(&mut self, env: &mut Env, generation: Generation) {
        env.note("primary: goes on alone as generation, on host", &[generation.0, self.me.host as u64]);
        env.saw(Sighting::BackupLost);
        self.has_lost_backup = true;
    }

    fn protected(&mut self, env: &mut Env, generation: Generation) {
        env.note("primary: protected as generation, on host", &[generation.0, self.me.host as u64]);
        if generation.0 > 1 {
            env.saw(Sighting::Rejoin);
            if !self.has_lost_backup {
                env.saw(Sighting::JoinedSuccessor);
            }
        }
    }

    fn end(&self, env: &mut Env, end: &PrimaryEnd) -> Exit {
        match end {
            PrimaryEnd::GuestStopped(_) => {
                env.saw(Sighting::PowerOff);
                if self.role.generation().0 > 2 {
                    env.saw(Sighting::PowerOffAfterFailover);
                }
                Exit::GuestEnded
            }
            PrimaryEnd::Retired => Exit::GuestEnded,
            PrimaryEnd::Fenced { .. } => {
                env.saw(Sighting::PrimaryFenced);
                if !self.made_ns.is_empty() {
                    env.saw(Sighting::HeldOutputsDiscarded);
                }
                Exit::Fenced
            }
        }
    }

    /// Brings out what the role has for others.
    fn carry_out(&mut self, env: &mut Env) {
        while let Some(action) = self.role.poll_action() {
            if matches!(action, PrimaryAction::CloseChannel { .. })
                && let Some(channel) = self.channel.take()
            {
                channel.close(env);
            }
            if matches!(action, PrimaryAction::Owner(_)) {
                // Before anything leaves in the new generation.
                env.judge.owns(&env.arbiter, self.me.node, self.role.generation());
            }
            self.todo.push_back(action);
        }
        self.put_out(env);
        self.send(env);
    }

    fn put_out(&mut self, env: &mut Env) {
        let batch: Vec<_> = std::iter::from_fn(|| self.role.take_released()).collect();
        let Some((last, _)) = batch.last() else { return };
        let next = OutputId(last.0 + 1);
        for (id, operation) in &batch {
            let digest = operation.digest();
            let seq = self.seqs.get(id).copied();
            if env.is_dying(self.me.host) {
                return;
            }
            env.judge.leaves(self.me.node, self.role.generation(), seq, (*id, digest));
            if matches!(**operation, OutputOperation::Console(_)) {
                env.judge.prints(*id, digest);
            }
        }
        while let Some((_, made_ns)) = self.made_ns.pop_front_if(|(id, _)| *id < next) {
            if env.now_ns > made_ns + 1_000_000 {
                env.saw(Sighting::OutputHeld);
            }
        }
        let frames: Vec<_> = batch.iter().map(|(id, operation)| (*id, &**operation)).collect();
        self.cable.send(env, &self.me, &frames);
        self.sent_below = self.sent_below.max(next);
        self.role.put_out(next);
    }

    fn send(&mut self, env: &mut Env) {
        if !self.role.has_outgoing() {
            return;
        }
        match &self.channel {
            Some(channel) if !channel.has_room(env) => {}
            Some(channel) => {
                let mut bytes = Vec::new();
                self.role.take_outgoing(&mut bytes);
                channel.send(env, self.me.host, &bytes);
            }
            // Their reader is lost.
            None => self.role.take_outgoing(&mut Vec::new()),
        }
    }
}

/// The recorder's entries go to the role, and to the judge.
struct Sink<'a> {
    side: &'a mut Side,
    env: &'a mut Env,
}

impl LogSink for Sink<'_> {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        let Self { side, env } = self;
        let seq = side.role.appended();
        env.judge.appends(side.me.node, seq, entry);
        if let Some((id, _)) = &output {
            side.seqs.insert(*id, seq);
            side.made_ns.push_back((*id, env.now_ns));
        }
        side.role.append(env.now_ns, entry, output);
        side.send(env);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.side.role.flush(self.env.now_ns);
        self.side.carry_out(self.env);
        Ok(())
    }
}
