//! A pair of roles with its whole environment in memory, in virtual nanoseconds.
//!
//! The guest has two parts: a log that this driver makes up, and a real machine that only writes
//! its RAM, so that there is something to copy. The guest's next output is a function of its log.

mod claims;

pub(crate) use claims::{end_claim, owner_claim};

use crate::host::{BackupHost, OutputRule, actions_of};
use crate::world::{
    Arbiter, BACKUP, Lan, MS, PRIMARY, STEPS_PER_PAGE, Wire, expectation, guest_image, machine, operation, session,
    writing_guest,
};
use ft::output_gate::Released;
use ft::role::{BackupAction, BackupRole, DiskLogState, Expectation, Inheritance, PrimaryAction, PrimaryRole, Timing};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use vm::{InstructionCount, Machine, OutputId, OutputOperation, StopReason};

/// A primary and a backup with their environment.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) now_ns: u64,
    pub(crate) timing: Timing,
    pub(crate) primary: PrimaryRole,
    pub(crate) backup: BackupRole,
    pub(crate) primary_node: NodeId,
    pub(crate) backup_node: NodeId,
    pub(crate) to_backup: Wire,
    pub(crate) to_primary: Wire,
    pub(crate) arbiter: Rc<RefCell<Arbiter>>,
    pub(crate) lan: Rc<RefCell<Lan>>,
    pub(crate) primary_actions: VecDeque<PrimaryAction>,
    pub(crate) backup_actions: VecDeque<BackupAction>,
    /// The ids of the outputs that the primary's host has sent.
    pub(crate) out: Vec<u64>,
    /// The generation under which the primary is attached to the LAN; `None` loses its packets.
    pub(crate) port: Option<Generation>,
    /// The LAN carries packets and doesn't report that.
    pub(crate) lan_is_silent: bool,
    /// The primary's log, with the outputs.
    pub(crate) history: Vec<(LogEntry, Option<OutputOperation>)>,
    output_rule: OutputRule,
    /// The entries that the backup must have when it is told that it may claim.
    told_from: LogSeq,
    pub(crate) machine: Machine,
    pub(crate) host: BackupHost,
    /// The backup's machine.
    pub(crate) restored: Option<Machine>,
    replayed: LogSeq,
    /// The primary has received the request to join.
    pub(crate) is_joined: bool,
    /// A killed side sends and receives nothing.
    pub(crate) is_primary_killed: bool,
    pub(crate) is_backup_killed: bool,
}

fn cut((to_backup, to_primary): (&mut Wire, &mut Wire)) {
    to_backup.is_cut = true;
    to_primary.is_cut = true;
}

impl Pair {
    /// A primary that waits for its first backup, and a backup that has connected and will join.
    pub(crate) fn new() -> Self {
        Self::with(PrimaryRole::awaiting_backup(PRIMARY, session(), Timing::default()), expectation())
    }

    /// A primary that runs without a backup.
    pub(crate) fn alone() -> Self {
        Self::with(PrimaryRole::alone(PRIMARY, session(), Timing::default()), expectation())
    }

    pub(crate) fn with(primary: PrimaryRole, expectation: Expectation) -> Self {
        let now_ns = 1_000 * MS;
        let port = Some(primary.generation());
        Self {
            now_ns,
            timing: Timing::default(),
            primary,
            backup: BackupRole::new(now_ns, BACKUP, expectation, Timing::default()),
            primary_node: PRIMARY,
            backup_node: BACKUP,
            to_backup: Wire::default(),
            to_primary: Wire::default(),
            arbiter: Rc::default(),
            lan: Rc::default(),
            primary_actions: VecDeque::new(),
            backup_actions: VecDeque::new(),
            out: Vec::new(),
            port,
            lan_is_silent: false,
            history: Vec::new(),
            output_rule: OutputRule::new(),
            told_from: LogSeq(0),
            machine: machine(&guest_image()),
            host: BackupHost::default(),
            restored: None,
            replayed: LogSeq(0),
            is_joined: false,
            is_primary_killed: false,
            is_backup_killed: false,
        }
    }

    /// Gives the guest `pages` pages (a power of 2), which it writes in turn, and has written once.
    pub(crate) fn with_memory(mut self, pages: u32) -> Self {
        self.machine = machine(&writing_guest(pages));
        self.write_pages(u64::from(pages) + 1);
        self
    }

    /// The guest writes to the next `pages` pages.
    pub(crate) fn write_pages(&mut self, pages: u64) {
        let count = self.machine.instruction_count();
        self.machine.run(count.plus(STEPS_PER_PAGE * pages));
    }

    /// The guest writes to the next `pages` pages, or to as many as the copy for a joining backup
    /// allows.
    pub(crate) fn write_pages_if_allowed(&mut self, pages: u64) {
        if let Some(steps) = self.primary.steps_allowed(STEPS_PER_PAGE * pages, &self.machine) {
            self.machine.run(self.machine.instruction_count().plus(steps));
        }
    }

    /// A pair that was just protected, with nothing in flight.
    pub(crate) fn protected() -> Self {
        let mut pair = Self::new();
        pair.become_protected();
        pair
    }

    /// The backup joins without disturbance.
    pub(crate) fn become_protected(&mut self) {
        self.connect();
        self.exchange();
        let generation = self.primary.generation();
        assert_eq!(self.primary_actions.pop_front(), Some(PrimaryAction::Protected(generation)));
        assert_eq!(self.backup_actions.pop_front(), Some(BackupAction::Protected(generation)));
        assert!(self.primary.is_protected() && self.primary.may_run());
    }

    /// Another backup connects; nothing of the previous one is left.
    pub(crate) fn next_backup(&mut self, node: NodeId) {
        self.backup = BackupRole::new(self.now_ns, node, expectation(), self.timing);
        self.backup_node = node;
        self.to_backup = Wire::default();
        self.to_primary = Wire::default();
        self.backup_actions.clear();
        (self.host, self.restored) = (BackupHost::default(), None);
        (self.is_joined, self.is_backup_killed) = (false, false);
    }

    /// The backup has gone live: returns the pair of which it is the primary, whose next backup is
    /// about to connect.
    pub(crate) fn succeeded(&mut self, generation: Generation, next_backup: NodeId) -> Self {
        let (received, consumed) = self.backup.cursors();
        assert_eq!((received, received), (consumed, self.replayed), "live with something left to consume");
        let session = SessionHeader { generation, ..session() };
        let (unsent, next) = (self.backup.take_unsent(), self.backup.next_output());
        assert_eq!(next, self.next_output_at(received));
        let machine = self.restored.take().unwrap();
        let clock = self.backup.take_over_clock(self.now_ns, machine.last_ticks());
        let inheritance =
            Inheritance { clock, first: received, next_output: next, unsent, disk_log: DiskLogState::None };
        let primary = PrimaryRole::gone_live(self.backup_node, session, self.timing, inheritance);
        let mut pair = Self {
            now_ns: self.now_ns,
            timing: self.timing,
            primary_node: self.backup_node,
            arbiter: self.arbiter.clone(),
            lan: self.lan.clone(),
            port: None,
            history: self.history[..index(received)].to_vec(),
            machine,
            ..Self::with(primary, expectation())
        };
        pair.next_backup(next_backup);
        pair.attach();
        pair
    }

    /// The backup's request to join arrives at the primary, which sends the session.
    pub(crate) fn connect(&mut self) {
        self.collect();
        self.deliver_to_primary();
    }

    /// The primary attaches to the LAN, perhaps again.
    pub(crate) fn attach(&mut self) {
        let generation = self.primary.generation();
        let Some(next) = self.lan.borrow_mut().attach(generation) else { return };
        self.port = Some(generation);
        self.primary.handle_attachment(next);
        self.collect();
    }

    /// The LAN reports what it has carried, if this primary is still attached.
    pub(crate) fn lan_tells(&mut self) {
        let next = self.port.and_then(|generation| self.lan.borrow_mut().attach(generation));
        if let Some(next) = next {
            self.primary.handle_carried(next);
        }
        self.collect();
    }

    /// Takes the actions and bytes of both roles, and does the actions that take no time: writes
    /// pages, queues entries for replay, closes connections. Restoring the machine takes time: call
    /// [`Pair::restore`].
    pub(crate) fn collect(&mut self) {
        if !self.is_primary_killed {
            self.collect_primary();
        }
        self.send();
        if !self.is_backup_killed {
            self.collect_backup();
        }
        // An action may have caused a refusal.
        self.send();
    }

    fn collect_primary(&mut self) {
        let wires = (&mut self.to_backup, &mut self.to_primary);
        for action in actions_of(&mut self.primary, || cut(wires)) {
            self.output_rule.note(&self.primary, &action);
            if matches!(action, PrimaryAction::Protected(_)) {
                self.told_from = self.primary.appended();
            }
            if matches!(action, PrimaryAction::CheckClaim) {
                let latest = self.arbiter.borrow().latest();
                self.primary.handle_latest(self.now_ns, latest);
                self.collect_primary();
            } else {
                self.primary_actions.push_back(action);
            }
        }
        self.write_released();
    }

    fn collect_backup(&mut self) {
        while let Some(action) = self.backup.poll_action() {
            let arbiter = self.arbiter.borrow();
            let Some(action) = self.host.act(&mut self.backup, self.now_ns, &arbiter, action) else { continue };
            drop(arbiter);
            if matches!(action, BackupAction::Protected(_)) {
                let ((received, _), from) = (self.backup.cursors(), self.told_from);
                assert!(received >= from, "told to be able to claim, with {received} of {from} entries");
            }
            if matches!(action, BackupAction::Lost { .. }) {
                self.cut();
            } else {
                self.backup_actions.push_back(action);
            }
        }
    }

    /// Moves the bytes of both roles to the wires.
    fn send(&mut self) {
        let mut bytes = Vec::new();
        if !self.is_primary_killed {
            self.primary.poll_outgoing(&mut bytes);
            self.to_backup.send(&bytes);
        }
        if !self.is_backup_killed {
            bytes.clear();
            self.backup.poll_outgoing(&mut bytes);
            self.to_primary.send(&bytes);
        }
    }

    /// The primary's host writes the released outputs.
    fn write_released(&mut self) {
        while let Some(Released { id, operation: found, .. }) = self.primary.poll_released() {
            let seq = self.history.iter().rposition(|(_, output)| output.as_ref() == Some(&*found));
            let seq = seq.unwrap_or_else(|| panic!("output {id:?} is not the guest's, or another on its way"));
            self.output_rule.check(id, LogSeq(seq as u64), self.backup.cursors().0);
            self.primary.handle_console_left(id.next());
            let Some(port) = self.port else { continue };
            self.out.push(id.0);
            let carried = self.lan.borrow_mut().carry(port, id, &found);
            if let (Some(next), false) = (carried, self.lan_is_silent) {
                self.primary.handle_carried(next);
            }
        }
    }

    /// The primary is killed. The first `bytes` of what it has in flight may still arrive.
    pub(crate) fn kill_primary(&mut self, bytes: usize) {
        self.collect();
        self.is_primary_killed = true;
        self.to_backup.lose_behind(bytes);
        self.cut();
    }

    /// The backup is killed. The first `bytes` of what it has in flight may still arrive.
    pub(crate) fn kill_backup(&mut self, bytes: usize) {
        self.collect();
        self.is_backup_killed = true;
        self.to_primary.lose_behind(bytes);
        self.cut();
    }

    /// Cuts the channel: nothing more is sent, what is in flight may still arrive.
    pub(crate) fn cut(&mut self) {
        cut((&mut self.to_backup, &mut self.to_primary));
    }

    /// Everything in flight to the backup arrives.
    pub(crate) fn deliver_to_backup(&mut self) {
        self.deliver_some_to_backup(usize::MAX);
    }

    pub(crate) fn deliver_some_to_backup(&mut self, bytes: usize) {
        for message in self.to_backup.deliver(bytes) {
            self.backup.handle_message(self.now_ns, message);
            self.collect();
        }
    }

    /// Everything in flight to the primary arrives.
    pub(crate) fn deliver_to_primary(&mut self) {
        self.deliver_some_to_primary(usize::MAX);
    }

    pub(crate) fn deliver_some_to_primary(&mut self, bytes: usize) {
        for message in self.to_primary.deliver(bytes) {
            self.hear(message);
        }
    }

    /// Delivers in both directions until nothing is in flight or waits to be copied or restored.
    pub(crate) fn exchange(&mut self) {
        self.collect();
        while self.to_backup.len() + self.to_primary.len() > 0 || self.primary.wants_copy() {
            self.copy();
            self.deliver_to_backup();
            self.restore();
            self.deliver_to_primary();
        }
    }

    /// Copies the guest's memory as far as the primary wants it now.
    pub(crate) fn copy(&mut self) {
        while self.primary.wants_copy() {
            self.copy_piece();
        }
    }

    /// Copies one piece of the guest's memory.
    pub(crate) fn copy_piece(&mut self) {
        self.primary.copy_snapshot(self.now_ns, &mut self.machine);
        self.collect();
    }

    /// Restores the backup's machine, once all of the snapshot has arrived.
    pub(crate) fn restore(&mut self) {
        match self.host.restore() {
            None => return,
            Some((seq, Ok(machine))) => {
                self.restored = Some(machine);
                self.replayed = seq;
                self.backup.handle_restored(self.now_ns, self.next_output_at(seq));
            }
            Some((_, Err(reason))) => self.backup.handle_restore_failure(&reason),
        }
        self.collect();
    }

    /// The id of the guest's next output when its log ends at `seq`.
    fn next_output_at(&self, seq: LogSeq) -> OutputId {
        let before = self.history.iter().take(index(seq));
        OutputId(before.filter(|(_, output)| output.is_some()).count() as u64)
    }

    /// The test plays the backup: `message` arrives at the primary at once.
    pub(crate) fn backup_says(&mut self, message: Message) {
        // What this backup has received isn't tracked.
        self.output_rule.suspend();
        self.hear(message);
    }

    fn hear(&mut self, message: Message) {
        if let Message::Join { vm, .. } = &message
            && !self.is_joined
        {
            self.join(vm);
        } else {
            self.primary.handle_message(self.now_ns, message);
        }
        self.collect();
    }

    fn join(&mut self, vm: &VmId) {
        self.is_joined = true;
        if let Err(reason) = self.primary.handle_join(self.now_ns, vm) {
            let mut bytes = Vec::new();
            Message::Refused { reason }.encode(&mut bytes);
            self.to_backup.send(&bytes);
            self.cut();
        }
    }

    /// The test plays the primary: `message` arrives at the backup at once.
    pub(crate) fn primary_says(&mut self, message: Message) {
        self.backup.handle_message(self.now_ns, message);
        self.collect();
    }

    /// The guest sends an output, and the log is flushed as by the vCPU.
    pub(crate) fn output(&mut self) -> OutputId {
        let id = self.unflushed_output();
        self.flush();
        id
    }

    /// The guest sends an output, and its vCPU is interrupted before the flush.
    pub(crate) fn unflushed_output(&mut self) -> OutputId {
        let id = self.next_output_at(LogSeq(self.history.len() as u64));
        let output = operation(self.primary_node, id);
        self.log(EntryBody::Output { id, digest: output.digest() }, Some((id, output)));
        id
    }

    pub(crate) fn flush(&mut self) {
        self.primary.handle_flush(self.now_ns);
        self.collect();
    }

    /// The guest ends.
    pub(crate) fn guest_stops(&mut self) -> StopReason {
        let reason = StopReason::PowerOff { code: 0 };
        self.log(EntryBody::Stopped(reason), None);
        self.flush();
        reason
    }

    /// The guest takes a step that is logged, after it has written to its memory.
    pub(crate) fn log(&mut self, body: EntryBody, output: Option<(OutputId, OutputOperation)>) {
        self.write_pages(1);
        let entry = LogEntry { count: InstructionCount(10 * self.history.len() as u64), body };
        let seq = self.primary.appended();
        // Recorded before the role gets it, because the output may leave at once.
        self.history.push((entry.clone(), output.as_ref().map(|(_, operation)| operation.clone())));
        self.primary.handle_entry(self.now_ns, &entry, output);
        if self.primary.appended() == seq {
            self.history.pop();
        }
        self.collect();
    }

    /// The backup's machine consumes at most `entries` received entries.
    pub(crate) fn replay_some(&mut self, entries: usize) {
        if self.restored.is_none() {
            return;
        }
        for entry in self.host.to_replay.drain(..entries.min(self.host.to_replay.len())) {
            let (expected, output) = &self.history[index(self.replayed)];
            assert_eq!(entry, *expected, "entry {}", self.replayed);
            if let (EntryBody::Output { id, .. }, Some(output)) = (&entry.body, output) {
                self.backup.handle_output(*id, output.clone());
            }
            self.replayed = self.replayed.next();
            self.backup.handle_consumed(self.now_ns, self.replayed, entry.count);
        }
        self.collect();
    }

    /// The backup's machine consumes all received entries.
    pub(crate) fn replay(&mut self) {
        self.replay_some(usize::MAX);
    }

    /// Time passes, and both sides handle their timers.
    pub(crate) fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        self.primary.handle_tick(self.now_ns);
        self.backup.handle_tick(self.now_ns);
        self.collect();
    }

    pub(crate) fn primary_lost(&mut self) {
        self.cut();
        self.backup.handle_disconnect(self.now_ns, "killed");
        self.collect();
    }

    pub(crate) fn backup_lost(&mut self) {
        self.cut();
        self.primary.handle_disconnect("killed");
        self.collect();
    }
}

fn index(seq: LogSeq) -> usize {
    usize::try_from(seq.0).unwrap_or(usize::MAX)
}
