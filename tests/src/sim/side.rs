//! A primary's process without its machine: the role, and what carries out its wishes.

use super::cable::{Cable, News};
use super::channel::Channel;
use super::claims::{Asked, Claims};
use super::env::Env;
use super::process::{Exit, Me};
use super::sightings::Sighting;
use super::wires::Place;
use ft::output_gate::Released;
use ft::record::LogSink;
use ft::role::{PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::VmId;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use vm::{OutputId, OutputOperation};

/// How long a visitor may take to say what it wants.
const PATIENCE_NS: u64 = 100_000_000;

/// How long the console's reader takes nothing, at most.
const SLOW_READER_NS: u32 = 30_000_000;

/// All but the machine.
pub(super) struct Side {
    pub(super) me: Me,
    pub(super) role: PrimaryRole,
    channel: Option<Channel>,
    /// Connected, and haven't said what they want; until when they may.
    visitors: Vec<(Channel, u64)>,
    pub(super) cable: Cable,
    claims: Claims,
    /// The flag that is asked for is one that the arbiter has lost.
    is_refilling: bool,
    /// What the role asks for that takes time.
    todo: VecDeque<PrimaryAction>,
    /// Outputs below were sent to the LAN, or would have been.
    sent_below: OutputId,
    /// The places of the entries of outputs that were made here.
    seqs: BTreeMap<OutputId, LogSeq>,
    /// When each of the outputs held was made.
    made_ns: VecDeque<(OutputId, u64)>,
    /// Console output that waits for its reader, who takes it at this time.
    console: VecDeque<(u64, OutputId, u64)>,
    has_lost_backup: bool,
    pub(super) exit: Option<Exit>,
}

impl Side {
    pub(super) const fn new(me: Me, role: PrimaryRole, cable: Cable, claims: Claims) -> Self {
        Self {
            me,
            role,
            channel: None,
            visitors: Vec::new(),
            cable,
            claims,
            is_refilling: false,
            todo: VecDeque::new(),
            sent_below: OutputId(0),
            seqs: BTreeMap::new(),
            made_ns: VecDeque::new(),
            console: VecDeque::new(),
            has_lost_backup: false,
            exit: None,
        }
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.claims.is_asking()
    }

    /// When there is something to do that no arrival announces.
    pub(super) fn due_ns(&self, now_ns: u64) -> u64 {
        let todo_ns = if self.todo.is_empty() { u64::MAX } else { now_ns + 10_000 };
        let console_ns = self.console.front().map_or(u64::MAX, |(due_ns, ..)| *due_ns);
        self.cable.due_ns().min(self.claims.due_ns()).min(todo_ns).min(console_ns)
    }

    pub(super) fn has_room(&self, env: &mut Env) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.has_room(env))
    }

    /// Gives the role what its backup has said.
    pub(super) fn hear(&mut self, env: &mut Env) {
        let Some(channel) = &mut self.channel else { return };
        let arrived = channel.receive(env);
        for message in arrived.messages {
            self.role.handle_message(env.now_ns, message);
        }
        if let Some(reason) = arrived.end {
            self.role.handle_disconnect(&reason);
            if let Some(channel) = self.channel.take() {
                channel.close(env);
            }
        }
    }

    /// Keeps attached to the LAN, and gives the role what it says.
    pub(super) fn plug(&mut self, env: &mut Env) {
        let owner = (self.role.generation(), self.role.gate().next_to_leave()..self.role.gate().end());
        for news in self.cable.step(env, &self.me, owner) {
            match news {
                News::Attached(next) => self.send_again(env, next),
                News::Carried(next) => self.role.handle_carried(next),
            }
        }
    }

    fn send_again(&mut self, env: &mut Env, next: OutputId) {
        let gate = self.role.gate();
        if gate.tail().any(|(id, _)| id < next) {
            env.saw(Sighting::TailAlreadyCarried);
        }
        if gate.tail().any(|(id, _)| id >= next && self.sent_below > id) {
            env.saw(Sighting::SentAgain);
        }
        // Now and then as if the LAN had not said how far it has got: it drops what comes twice.
        let next = if env.random.one_in(4) { OutputId(0) } else { next };
        self.role.handle_attachment(next);
    }

    /// Hears what visitors want, and lets a backup in, if the role does.
    pub(super) fn accept(&mut self, env: &mut Env) {
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
        match self.role.handle_join(env.now_ns, vm) {
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
    pub(super) fn conduct(&mut self, env: &mut Env) {
        match self.claims.answer(env) {
            Some(Asked::Claim(answer)) if self.is_refilling => self.role.handle_refill(env.now_ns, answer),
            Some(Asked::Claim(answer)) => self.role.handle_claim(env.now_ns, answer),
            Some(Asked::Latest(latest)) => self.role.handle_latest(env.now_ns, latest),
            None => {}
        }
        self.carry_out(env);
        while !self.claims.is_asking()
            && let Some(action) = self.todo.pop_front()
        {
            match action {
                PrimaryAction::Claim(request) => {
                    self.is_refilling = false;
                    self.claims.ask(env, request);
                }
                PrimaryAction::Refill(request) => {
                    self.is_refilling = true;
                    self.claims.ask(env, request);
                }
                PrimaryAction::Look => self.claims.look(env),
                PrimaryAction::ClaimsLost { .. } => env.saw(Sighting::ClaimsLost),
                PrimaryAction::Confirmed(_) => {}
                PrimaryAction::ClaimsRestored(_) => env.saw(Sighting::ClaimsRestored),
                PrimaryAction::Stranded(_) => env.saw(Sighting::Stranded),
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
            PrimaryEnd::Retired | PrimaryEnd::Left => Exit::GuestEnded,
            PrimaryEnd::Interrupted => unreachable!("no log is resumed here"),
            PrimaryEnd::Stranded => panic!("no operator ends a primary that stands still"),
            PrimaryEnd::Fenced { holder } => {
                env.judge.is_fenced(self.me.node, self.role.generation(), holder.node);
                env.saw(Sighting::PrimaryFenced);
                if !self.made_ns.is_empty() {
                    env.saw(Sighting::HeldOutputsDiscarded);
                }
                Exit::Fenced
            }
        }
    }

    /// Brings out what the role has for others.
    pub(super) fn carry_out(&mut self, env: &mut Env) {
        while let Some(action) = self.role.poll_action() {
            if matches!(action, PrimaryAction::CloseChannel { .. })
                && let Some(channel) = self.channel.take()
            {
                channel.close(env);
            }
            if matches!(action, PrimaryAction::Owner(_)) {
                // Before anything leaves in the new generation.
                env.judge.owns(&env.arbiter, env.has_forgotten, self.me.node, self.role.generation());
            }
            self.todo.push_back(action);
        }
        self.put_out(env);
        self.send(env);
    }

    fn put_out(&mut self, env: &mut Env) {
        let batch: Vec<_> = std::iter::from_fn(|| self.role.poll_released()).collect();
        let Some(last) = batch.last() else { return };
        let next = OutputId(last.id.0 + 1);
        for Released { id, operation, .. } in &batch {
            let digest = operation.digest();
            let seq = self.seqs.get(id).copied();
            if env.is_dying(self.me.host) {
                return;
            }
            env.judge.leaves(self.me.node, self.role.generation(), seq, (*id, digest));
            if matches!(**operation, OutputOperation::Console(_)) {
                // A reader that is slow now and then.
                let delay_ns = if env.random.one_in(8) { u64::from(env.random.below(SLOW_READER_NS)) } else { 0 };
                let due_ns = self.console.back().map_or(0, |(due_ns, ..)| *due_ns).max(env.now_ns + delay_ns);
                self.console.push_back((due_ns, *id, digest));
            }
        }
        while let Some((_, made_ns)) = self.made_ns.pop_front_if(|(id, _)| *id < next) {
            if env.now_ns > made_ns + 1_000_000 {
                env.saw(Sighting::OutputHeld);
            }
        }
        let frames: Vec<_> = batch.iter().map(|released| (released.id, &*released.operation)).collect();
        self.cable.send(env, &self.me, &frames);
        self.sent_below = self.sent_below.max(next);
        self.print(env);
    }

    /// A process that ends writes the rest of its console's queue first.
    pub(super) fn drain(&mut self, env: &mut Env) {
        self.console.iter_mut().for_each(|(due_ns, ..)| *due_ns = 0);
        self.print(env);
    }

    /// Writes what its reader takes of the console's queue.
    pub(super) fn print(&mut self, env: &mut Env) {
        while let Some((_, id, digest)) = self.console.pop_front_if(|(due_ns, ..)| *due_ns <= env.now_ns) {
            if env.is_dying(self.me.host) {
                return;
            }
            env.judge.prints(self.me.node, id, digest);
            self.role.handle_console_left(OutputId(id.0 + 1));
        }
    }

    fn send(&mut self, env: &mut Env) {
        if !self.role.has_outgoing() {
            return;
        }
        match &self.channel {
            Some(channel) if !channel.has_room(env) => {}
            Some(channel) => {
                let mut bytes = Vec::new();
                self.role.poll_outgoing(&mut bytes);
                channel.send(env, self.me.host, &bytes);
            }
            // Their reader is lost.
            None => self.role.poll_outgoing(&mut Vec::new()),
        }
    }
}

/// The recorder's entries go to the role, and to the judge.
pub(super) struct Sink<'a> {
    pub(super) side: &'a mut Side,
    pub(super) env: &'a mut Env,
}

impl LogSink for Sink<'_> {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        let Self { side, env } = self;
        let seq = side.role.appended();
        env.judge.appends(env.now_ns, side.me.node, seq, entry);
        if let Some((id, _)) = &output {
            side.seqs.insert(*id, seq);
            side.made_ns.push_back((*id, env.now_ns));
        }
        side.role.handle_entry(env.now_ns, entry, output);
        side.send(env);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.side.role.handle_flush(self.env.now_ns);
        self.side.carry_out(self.env);
        Ok(())
    }
}
