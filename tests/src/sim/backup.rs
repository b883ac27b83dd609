//! A process that backs the VM up: what `hypervisor::node::backup` does with threads and sockets. It decides nothing.

use super::channel::Channel;
use super::claims::{Asked, Claims};
use super::env::Env;
use super::process::Me;
use super::sightings::Sighting;
use ft::claim::Verdict;
use ft::replay::{Consumed, Replayer};
use ft::role::{BackupAction, BackupEnd, BackupRole, ClaimAnswer, DiskLogState, Expectation, Inheritance, PrimaryRole};
use logchannel::entry::{Generation, LogEntry};
use logchannel::message::Message;
use logchannel::session::SessionHeader;
use logchannel::snapshot::Snapshot;
use std::collections::VecDeque;
use vm::{Machine, Restoration};

/// From one look at heartbeats and timeouts to the next.
const TICK_NS: u64 = 5_000_000;

/// Entries that may wait to be replayed before this side stops reading.
const WAITING_MAX: usize = 400;

/// Entries replayed at a time.
const PIECE_ENTRIES: usize = 16;

/// What replaying an entry costs, beyond the guest's steps.
const ENTRY_NS: u64 = 500;

/// A backup.
pub(super) struct Backup {
    me: Me,
    role: BackupRole,
    channel: Option<Channel>,
    claims: Claims,
    todo: VecDeque<BackupAction>,
    session: Option<SessionHeader>,
    restoration: Option<Restoration>,
    replayer: Option<Replayer>,
    waiting: VecDeque<LogEntry>,
    /// When what was replayed last is done, and how much later if the host is slow.
    replay_ns: u64,
    slowness_ns: u64,
    tick_ns: u64,
    /// When the last step was.
    step_ns: u64,
    is_told: bool,
    ended: Option<Ended>,
}

/// How a backup's time as a backup ends.
pub(super) enum Ended {
    /// It goes on as the primary that this role is.
    Live(Box<PrimaryRole>, Box<Machine>),
    Over(BackupEnd),
}

impl Backup {
    /// A backup that has connected to a primary.
    pub(super) fn new(env: &Env, me: Me, channel: Channel) -> Self {
        let expectation = Expectation { vm: me.setup.vm.clone(), image: None };
        Self {
            role: BackupRole::new(env.now_ns, me.node, expectation, me.setup.timing),
            channel: Some(channel),
            claims: Claims::new(me.clone()),
            me,
            todo: VecDeque::new(),
            session: None,
            restoration: None,
            replayer: None,
            waiting: VecDeque::new(),
            replay_ns: env.now_ns,
            slowness_ns: 0,
            tick_ns: env.now_ns,
            step_ns: env.now_ns,
            is_told: false,
            ended: None,
        }
    }

    /// Whether it has begun to receive a VM and isn't told yet that it protects it.
    pub(super) const fn is_joining(&self) -> bool {
        self.session.is_some() && !self.is_told
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.claims.is_asking()
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Ended> {
        env.judge.guest_time.waits(self.me.node, env.now_ns - self.step_ns);
        self.step_ns = env.now_ns;
        let first = env.random.index(4);
        for job in 0..4 {
            match (first + job) % 4 {
                0 => self.hear(env),
                1 => self.conduct(env),
                2 => self.replay(env),
                _ => self.tick(env),
            }
            self.carry_out(env);
            if let Some(ended) = self.ended.take() {
                if let Some(channel) = self.channel.take() {
                    channel.close(env);
                }
                return Err(ended);
            }
        }
        let replay_ns = if self.waiting.is_empty() { u64::MAX } else { self.replay_due_ns(env).max(env.now_ns + 1) };
        let todo_ns = if self.todo.is_empty() { u64::MAX } else { env.now_ns + 10_000 };
        Ok(replay_ns.min(self.tick_ns).min(self.claims.due_ns()).min(todo_ns))
    }

    fn hear(&mut self, env: &mut Env) {
        let Some(channel) = &mut self.channel else { return };
        if self.waiting.len() > WAITING_MAX {
            env.saw(Sighting::BackupSlow);
            return self.role.handle_not_listening(env.now_ns);
        }
        let arrived = channel.receive(env);
        for message in arrived.messages {
            if let Message::Clock { ticks, .. } = message {
                env.judge.guest_time.is_told(env.now_ns, self.me.node, ticks);
            }
            self.role.handle_message(env.now_ns, message);
        }
        if let Some(reason) = arrived.end {
            self.role.handle_disconnect(env.now_ns, &reason);
            if let Some(channel) = self.channel.take() {
                channel.close(env);
            }
        }
    }

    fn tick(&mut self, env: &Env) {
        if self.tick_ns <= env.now_ns {
            self.tick_ns = env.now_ns + TICK_NS;
            self.role.handle_tick(env.now_ns);
        }
    }

    /// Brings out what the role has for others.
    fn carry_out(&mut self, env: &mut Env) {
        while let Some(action) = self.role.poll_action() {
            match action {
                BackupAction::Waits => {}
                BackupAction::Begin(session) => self.begin(env, session),
                BackupAction::Pages(pages) => self.put_pages(pages.first, &pages.bytes),
                BackupAction::Restore(snapshot) => self.restore(env, &snapshot),
                BackupAction::Consume(entries) => {
                    env.judge.receives(self.me.node, entries.iter().cloned());
                    self.waiting.extend(entries);
                }
                BackupAction::Protected(generation) => {
                    self.is_told = true;
                    env.judge.is_told(self.me.node, generation);
                }
                BackupAction::Lost { .. } => {
                    env.note("backup: the primary is lost, on host", &[self.me.host as u64]);
                    if let Some(channel) = self.channel.take() {
                        channel.close(env);
                    }
                }
                BackupAction::Joined => env.note("backup: accepts, on host", &[self.me.host as u64]),
                BackupAction::ClaimsLost(_) => env.saw(Sighting::BackupWaitsForClaim),
                BackupAction::CheckOwner | BackupAction::Claim(_) | BackupAction::GoLive(_) | BackupAction::End(_) => {
                    self.todo.push_back(action);
                }
            }
        }
        if self.role.has_outgoing() {
            let mut bytes = Vec::new();
            self.role.poll_outgoing(&mut bytes);
            if let Some(channel) = &self.channel {
                channel.send(env, self.me.host, &bytes);
            }
        }
    }

    fn begin(&mut self, env: &mut Env, session: SessionHeader) {
        env.note("backup: begins to receive, on host", &[self.me.host as u64]);
        match Restoration::new(&session.config) {
            Ok(restoration) => self.restoration = Some(restoration),
            Err(error) => panic!("no machine can be restored: {error}"),
        }
        self.session = Some(session);
    }

    fn put_pages(&mut self, first: u64, bytes: &[u8]) {
        let Some(restoration) = &mut self.restoration else { panic!("pages without a session") };
        restoration.put_pages(first, bytes).unwrap_or_else(|error| panic!("pages at {first}: {error}"));
    }

    fn restore(&mut self, env: &mut Env, snapshot: &Snapshot) {
        let Some(restoration) = self.restoration.take() else { panic!("a snapshot without a session") };
        let mut machine =
            restoration.finish(&snapshot.state).unwrap_or_else(|error| panic!("a snapshot can't be restored: {error}"));
        assert_eq!(machine.digest(), snapshot.digest, "the snapshot at entry {} is another machine", snapshot.seq);
        env.judge.joins(self.me.node, snapshot.seq);
        env.note("backup: restored at entry, on host", &[snapshot.seq.0, self.me.host as u64]);
        self.role.handle_restored(env.now_ns, machine.next_output_id());
        self.replayer = Some(Replayer::new(machine, snapshot.seq));
    }

    /// When replay can go on: the host isn't slow any more once everything works again.
    const fn replay_due_ns(&self, env: &Env) -> u64 {
        self.replay_ns + if env.is_faulty { self.slowness_ns } else { 0 }
    }

    fn replay(&mut self, env: &mut Env) {
        let due_ns = self.replay_due_ns(env);
        let Some(replayer) = &mut self.replayer else { return };
        if self.waiting.is_empty() || due_ns > env.now_ns {
            return;
        }
        let before = replayer.machine().instruction_count();
        let checked = replayer.digests_checked();
        let pieces = self.waiting.len().min(PIECE_ENTRIES);
        for entry in self.waiting.drain(..pieces) {
            match replayer.consume(&entry) {
                Ok(Consumed::Output(id, operation)) => self.role.handle_output(id, operation),
                Ok(Consumed::Nothing | Consumed::Stopped(_)) => {}
                Err(divergence) => panic!("a backup diverges: {divergence}"),
            }
        }
        if replayer.digests_checked() > checked {
            env.saw(Sighting::DigestCompared);
        }
        let count = replayer.machine().instruction_count();
        let steps = count.since(before);
        let cost_ns = pieces as u64 * ENTRY_NS + steps * self.me.setup.ns_per_step;
        self.replay_ns = env.now_ns + cost_ns;
        self.slowness_ns = cost_ns * (self.me.setup.replay_factor - 1);
        self.role.handle_consumed(env.now_ns, replayer.consumed(), count);
    }

    /// Does what the role asks for that takes time.
    fn conduct(&mut self, env: &mut Env) {
        let asked = self.claims.answer(env);
        if let Some(Asked::Latest(latest)) = asked {
            self.role.handle_owner(env.now_ns, latest);
        } else if let Some(Asked::Claim(answer)) = asked {
            let (received, consumed) = self.role.cursors();
            if consumed < received && matches!(answer, ClaimAnswer::Decided(Verdict::Won)) {
                env.saw(Sighting::DrainedAfterWin);
            }
            self.role.handle_claim(env.now_ns, answer);
        }
        self.carry_out(env);
        while !self.claims.is_asking()
            && let Some(action) = self.todo.pop_front()
        {
            match action {
                BackupAction::CheckOwner => self.claims.look(env),
                BackupAction::Claim(request) => self.claims.ask(env, request),
                BackupAction::GoLive(generation) => self.go_live(env, generation),
                BackupAction::End(end) => {
                    if matches!(end, BackupEnd::Fenced { .. }) {
                        env.saw(Sighting::BackupFenced);
                    }
                    self.ended = Some(Ended::Over(end));
                }
                BackupAction::Waits
                | BackupAction::Begin(_)
                | BackupAction::Joined
                | BackupAction::ClaimsLost(_)
                | BackupAction::Pages(_)
                | BackupAction::Restore(_)
                | BackupAction::Protected(_)
                | BackupAction::Consume(_)
                | BackupAction::Lost { .. } => panic!("{action:?} takes no time"),
            }
        }
    }

    fn go_live(&mut self, env: &mut Env, generation: Generation) {
        let (Some(mut session), Some(replayer)) = (self.session.take(), self.replayer.take()) else {
            panic!("live without a machine")
        };
        session.generation = generation;
        let tail = self.role.take_tail();
        env.saw(if env.sightings.count(Sighting::Failover) > 0 {
            Sighting::SecondFailover
        } else {
            Sighting::Failover
        });
        if !tail.is_empty() {
            env.saw(Sighting::TailAtGoLive);
        }
        let entries = replayer.consumed();
        let next_output = self.role.next_output();
        let moments = self.role.moments();
        env.judge.guest_time.waits(self.me.node, moments.test_and_set_won_ns.saturating_sub(moments.loss_noticed_ns));
        let clock = self.role.take_over_clock(env.now_ns, replayer.machine().last_ticks());
        let inheritance = Inheritance { clock, first: entries, next_output, tail, disk_log: DiskLogState::None };
        let role = PrimaryRole::gone_live(self.me.node, session, self.me.setup.timing, inheritance);
        self.ended = Some(Ended::Live(Box::new(role), Box::new(replayer.into_machine())));
    }
}
