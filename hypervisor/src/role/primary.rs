//! The primary: it runs the guest, streams the log, and lets nothing out that the backup hasn't acknowledged.

use super::join::Join;
use super::pace::Pace;
use super::{ClaimAnswer, ClaimRequest, Claiming, Timing, message_name};
use crate::arbiter::{Claim, ClaimKind, Verdict};
use crate::mutation::{Mutation, mutated};
use crate::output_gate::OutputGate;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::{SessionHeader, VmId};
use logchannel::stream::LogSender;
use std::collections::VecDeque;
use std::sync::Arc;
use vm::{Machine, OutputId, OutputOperation, StopReason};

/// Log bytes that are sent without waiting for an output or for [`FLUSH_NS`].
const FLUSH_BYTES: usize = 64 << 10;

/// The longest that an entry waits to be sent when no output asks for it, in nanoseconds.
const FLUSH_NS: u64 = 10_000_000;

/// Bytes that wait for the channel to take them before the guest must stop: it is the backup, or its log buffer, that is
/// slow.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// What a primary asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrimaryAction {
    /// Do a test-and-set and tell the role its answer.
    Claim(ClaimRequest),
    /// Drop the connection to the backup.
    CloseChannel {
        /// Why.
        reason: String,
    },
    /// This node owns the VM alone now, as this generation: whoever attaches to the network next says so.
    Owner(Generation),
    /// The pair is complete: the guest may run.
    Protected(Generation),
    /// End the process: its backup goes on.
    HandOver,
    /// End the process.
    End(PrimaryEnd),
}

/// How a primary came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrimaryEnd {
    /// The guest ended by itself; the arbiter has the end mark.
    GuestStopped(StopReason),
    /// The operator ended a VM without backup; the arbiter has the end mark.
    Retired,
    /// Another node owns the VM now: nothing more may leave.
    Fenced {
        /// Who won the flag.
        holder: Claim,
    },
}

/// The log as this side has it.
#[derive(Clone, Debug, Hash)]
enum Log {
    /// Nobody reads it: entries are only counted. The next one is this.
    Unread(LogSeq),
    /// A backup reads it.
    Streamed(LogSender),
}

impl Log {
    fn append(&mut self, entry: &LogEntry) -> LogSeq {
        match self {
            Self::Unread(next) => {
                let seq = *next;
                *next = LogSeq(seq.0 + 1);
                seq
            }
            Self::Streamed(sender) => sender.append(entry),
        }
    }

    const fn appended(&self) -> LogSeq {
        match self {
            Self::Unread(next) => *next,
            Self::Streamed(sender) => sender.appended(),
        }
    }

    fn is_acknowledged(&self) -> bool {
        match self {
            Self::Unread(_) => false,
            Self::Streamed(sender) => sender.acked() == sender.appended(),
        }
    }
}

#[derive(Clone, Debug, Hash)]
enum Mode {
    /// Owns the VM, has no backup, and the guest waits for one.
    AwaitingBackup,
    /// Owns the VM and runs it without backup.
    Alone,
    /// The log is acknowledged, outputs are held until then.
    Protected,
    /// Asks for the pair's flag. Outputs are held.
    Claiming(Claiming),
    /// Over.
    Ended,
}

/// The primary's state machine.
///
/// Invariant: an output is released only while the backup has acknowledged its entry, or in a generation that this node
/// owns alone by a won claim.
#[derive(Clone, Debug, Hash)]
pub struct PrimaryRole {
    mode: Mode,
    /// A backup on its way: while this node owns the VM alone.
    join: Option<Join>,
    session: SessionHeader,
    timing: Timing,
    log: Log,
    gate: OutputGate,
    pace: Pace,
    /// How far the log is on disk, if it is kept there.
    kept: Option<LogSeq>,
    outgoing: Vec<u8>,
    actions: VecDeque<PrimaryAction>,
    heard_ns: u64,
    /// When the backup that joins last took memory or entries.
    joined_ns: u64,
    spoke_ns: u64,
    /// When the oldest entry that isn't sent yet was appended.
    pending_since_ns: Option<u64>,
    told_released: OutputId,
    stop: Option<PrimaryEnd>,
}

impl PrimaryRole {
    /// A primary that owns generation `session.generation` by a won claim and waits for its backup.
    #[must_use]
    pub fn awaiting_backup(session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::AwaitingBackup, session, timing, LogSeq(0), OutputId(0))
    }

    /// A primary that owns generation `session.generation` by a won claim and runs alone from the start.
    #[must_use]
    pub fn alone(session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::Alone, session, timing, LogSeq(0), OutputId(0))
    }

    /// A backup that has gone live as generation `session.generation`: the next entry is `first`, the next output that
    /// the guest makes is `next_output`, and `tail` is what its predecessor may not have sent.
    #[must_use]
    pub fn gone_live(
        session: SessionHeader,
        timing: Timing,
        first: LogSeq,
        next_output: OutputId,
        tail: VecDeque<(OutputId, OutputOperation)>,
    ) -> Self {
        let mut role = Self::new(Mode::Alone, session, timing, first, next_output);
        for (id, operation) in tail {
            role.gate.pass(id, operation);
        }
        role
    }

    fn new(mode: Mode, session: SessionHeader, timing: Timing, first: LogSeq, next_output: OutputId) -> Self {
        Self {
            mode,
            join: None,
            session,
            log: Log::Unread(first),
            gate: OutputGate::new(next_output),
            pace: Pace::new(timing.lag_bound_ns),
            kept: None,
            timing,
            outgoing: Vec::new(),
            actions: VecDeque::new(),
            heard_ns: 0,
            joined_ns: 0,
            spoke_ns: 0,
            pending_since_ns: None,
            told_released: next_output,
            stop: None,
        }
    }

    /// What the VM is, of the generation that this node owns.
    #[must_use]
    pub const fn session(&self) -> &SessionHeader {
        &self.session
    }

    /// The generation that this node owns, alone or with its backup.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.session.generation
    }

    /// Whether a backup acknowledges the log.
    #[must_use]
    pub const fn is_protected(&self) -> bool {
        matches!(self.mode, Mode::Protected)
    }

    /// Whether the guest may run now: not before the first backup has come, not when the gate or the channel is full, not
    /// while its backup is far behind, not when it is to end.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let is_owner = match &self.mode {
            Mode::AwaitingBackup | Mode::Ended => false,
            Mode::Alone | Mode::Protected => true,
            Mode::Claiming(claiming) => claiming.request.kind == ClaimKind::Owner,
        };
        is_owner && !self.gate.is_full() && self.outgoing.len() < OUTGOING_BYTES_MAX && !self.pace.is_stopped()
    }

    /// The part of the vCPU's time that the guest may have, of [`FULL_SHARE`](super::FULL_SHARE): less while its backup is
    /// behind.
    #[must_use]
    pub const fn share(&self) -> u32 {
        self.pace.share()
    }

    /// How far the backup's replay is behind, now and at most so far, in nanoseconds.
    #[must_use]
    pub const fn lag_ns(&self) -> (u64, u64) {
        self.pace.lag_ns()
    }

    /// The gate, for its figures.
    #[must_use]
    pub const fn gate(&self) -> &OutputGate {
        &self.gate
    }

    /// Entries appended so far.
    #[must_use]
    pub const fn appended(&self) -> LogSeq {
        self.log.appended()
    }

    /// Appends an entry to the log, and holds its output.
    ///
    /// After the end nothing is taken any more: what a fenced guest does has no consequence.
    pub fn append(&mut self, now_ns: u64, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) {
        if matches!(self.mode, Mode::Ended) {
            return;
        }
        let seq = self.log.append(entry);
        if let Some((id, operation)) = output {
            self.gate.hold(now_ns, seq, id, operation);
        }
        if let EntryBody::Stopped(reason) = entry.body {
            self.stop = Some(PrimaryEnd::GuestStopped(reason));
        }
        if mutated(Mutation::SkipOutputRule) {
            self.gate.release_all(now_ns);
        }
        self.release(now_ns);
        if let Log::Streamed(sender) = &self.log {
            self.pending_since_ns.get_or_insert(now_ns);
            if sender.pending_bytes() >= FLUSH_BYTES {
                self.flush(now_ns);
            }
        }
        self.end_if_stopped();
    }

    /// Puts what has been appended into [`take_outgoing`](Self::take_outgoing).
    pub fn flush(&mut self, now_ns: u64) {
        if let Log::Streamed(sender) = &mut self.log {
            while sender.take_frame(&mut self.outgoing) {
                self.spoke_ns = now_ns;
            }
            if mutated(Mutation::ReleaseOnSend) {
                self.gate.release(now_ns, sender.sent());
            }
            self.pending_since_ns = None;
        }
    }

    /// Whether a backup of `vm` may join now.
    ///
    /// # Errors
    /// Why it may not, in words for its operator.
    pub fn can_take_backup(&self, vm: &VmId) -> Result<(), String> {
        if *vm != self.session.vm {
            return Err(format!("this is the primary of VM {}, not of {vm}", self.session.vm));
        }
        match self.mode {
            Mode::AwaitingBackup | Mode::Alone if self.join.is_none() => Ok(()),
            Mode::AwaitingBackup | Mode::Alone | Mode::Protected => Err("this primary has a backup already".into()),
            Mode::Claiming(_) => Err("this primary is not sure yet that the VM is its own: try again".into()),
            Mode::Ended => Err("this primary has ended".into()),
        }
    }

    /// A backup of `vm` joins: it gets the session, and then the guest's memory.
    ///
    /// # Errors
    /// As [`PrimaryRole::can_take_backup`].
    pub fn backup_joins(&mut self, now_ns: u64, vm: &VmId) -> Result<(), String> {
        self.can_take_backup(vm)?;
        Message::Session(self.session.clone()).encode(&mut self.outgoing);
        (self.heard_ns, self.spoke_ns, self.joined_ns) = (now_ns, now_ns, now_ns);
        self.join = Some(Join::Asked);
        Ok(())
    }

    /// Whether a backup is joining that hasn't got the guest's memory yet.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        matches!(&self.join, Some(join) if join.is_copying())
    }

    /// Whether the driver is to say [`PrimaryRole::copy_snapshot`]: a backup needs memory, and the channel has room.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.join.as_ref().is_some_and(|join| join.wants_copy(self.outgoing.len()))
    }

    /// Copies a piece of the machine for a backup that is joining. The machine must have consumed all that was appended, and
    /// its outputs must have been taken.
    pub fn copy_snapshot(&mut self, now_ns: u64, machine: &mut Machine) {
        let Some(join) = &mut self.join else { return };
        let seq = self.log.appended();
        if join.copy(machine, &self.gate, seq, &mut self.outgoing) {
            // What the backup can't know of, it gets from here on; what it knows of, it keeps until it is told.
            let first = if mutated(Mutation::SnapshotTooEarly) { LogSeq(seq.0 + 1) } else { seq };
            self.log = Log::Streamed(LogSender::new(first));
            self.told_released = self.gate.next_to_leave();
            self.pace.consumed(seq);
        }
        (self.spoke_ns, self.joined_ns) = (now_ns, now_ns);
    }

    /// The backup said something.
    pub fn backup_said(&mut self, now_ns: u64, message: Message) {
        // A primary that was suspended finds old acknowledgements in its socket. The backup may have gone live since.
        self.lose_silent_backup(now_ns);
        self.heard_ns = now_ns;
        match (message, &self.mode, &self.join) {
            (Message::Accepted, Mode::AwaitingBackup | Mode::Alone, Some(Join::Restoring)) => {
                // What has left unheld, the backup must have before it may claim.
                self.flush(now_ns);
                // From here on outputs are held; only after that is the backup told that it may claim.
                if !mutated(Mutation::TellBeforeHolding) {
                    self.mode = Mode::Protected;
                }
                self.join = None;
                let generation = self.session.generation;
                Message::Protected { generation }.encode(&mut self.outgoing);
                self.spoke_ns = now_ns;
                self.actions.push_back(PrimaryAction::Protected(generation));
            }
            (Message::Ack { received }, _, _) if self.is_streaming() => self.acknowledged(now_ns, received),
            (Message::Consumed { consumed, .. }, _, _) => self.pace.consumed(consumed),
            (Message::Heartbeat, _, _) => {}
            (Message::Refused { reason }, _, Some(_)) => {
                self.lose_backup(format!("the backup refused the session: {reason}"));
            }
            (Message::Goodbye { reason }, _, _) => self.lose_backup(format!("the backup left: {reason}")),
            (message, Mode::Protected, _) | (message, _, Some(_)) => {
                self.lose_backup(format!("the backup broke the protocol with {}", message_name(&message)));
            }
            // Late words of a backup that is lost already.
            (_, Mode::AwaitingBackup | Mode::Alone | Mode::Claiming(_) | Mode::Ended, None) => {}
        }
    }

    const fn is_streaming(&self) -> bool {
        matches!(self.log, Log::Streamed(_))
    }

    fn acknowledged(&mut self, now_ns: u64, received: LogSeq) {
        let Log::Streamed(sender) = &mut self.log else { return };
        match sender.acknowledge(received) {
            Ok(()) => {
                self.joined_ns = now_ns;
                self.release(now_ns);
                self.end_if_stopped();
            }
            Err(error) => self.lose_backup(error.to_string()),
        }
    }

    /// Lets out what may leave: what the backup has acknowledged or, of a VM without backup, all; if a log is kept on disk,
    /// only what it has too.
    fn release(&mut self, now_ns: u64) {
        let allowed = match (&self.mode, &self.log) {
            (Mode::Alone, log) => log.appended(),
            (Mode::Protected, Log::Streamed(sender)) => sender.acked(),
            _ => return,
        };
        self.gate.release(now_ns, self.kept.map_or(allowed, |kept| kept.min(allowed)));
    }

    /// All entries below `kept` are in the log on disk, and outputs wait for that from now on; with `None` they don't, as
    /// no log is kept any more.
    pub fn log_kept(&mut self, now_ns: u64, kept: Option<LogSeq>) {
        self.kept = kept;
        self.release(now_ns);
    }

    /// The connection to the backup is gone.
    pub fn backup_lost(&mut self, reason: &str) {
        self.lose_backup(reason.into());
    }

    /// The answer to [`PrimaryAction::Claim`].
    pub fn claim_answered(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Mode::Claiming(claiming) = &mut self.mode else { return };
        match answer {
            ClaimAnswer::Unreachable => claiming.retry(now_ns, &self.timing),
            ClaimAnswer::Decided(Verdict::Lost(holder)) => {
                if mutated(Mutation::ReleaseWhenFenced) {
                    self.gate.release_all(now_ns);
                } else {
                    self.gate.discard_all();
                }
                self.end(PrimaryEnd::Fenced { holder });
            }
            ClaimAnswer::Decided(Verdict::Won) => {
                let kind = claiming.request.kind;
                self.session.generation = Generation(claiming.request.generation.0 + 1);
                match (kind, self.stop.take()) {
                    (ClaimKind::Ended, Some(end)) => {
                        self.gate.release_all(now_ns);
                        self.end(end);
                    }
                    (_, stop) => {
                        self.stop = stop;
                        self.mode = Mode::Alone;
                        self.release(now_ns);
                        self.actions.push_back(PrimaryAction::Owner(self.session.generation));
                        self.end_if_stopped();
                    }
                }
            }
        }
    }

    /// The operator wants this process to end. Protected, it leaves the VM to its backup; alone, it ends the VM.
    pub fn retire(&mut self, now_ns: u64) {
        match self.mode {
            Mode::AwaitingBackup | Mode::Alone => {
                self.stop.get_or_insert(PrimaryEnd::Retired);
                self.claim(ClaimKind::Ended);
            }
            // The guest has ended, and the end mark is this side's to leave, once the backup knows.
            Mode::Protected if self.stop.is_some() => {}
            Mode::Protected => {
                self.flush(now_ns);
                let reason = "the operator stopped the primary".into();
                Message::Goodbye { reason }.encode(&mut self.outgoing);
                // What is still held is the backup's to send.
                self.gate.discard_all();
                self.mode = Mode::Ended;
                self.actions.push_back(PrimaryAction::HandOver);
            }
            // The arbiter has the word already; the end follows its answer.
            Mode::Claiming(_) => {
                self.stop.get_or_insert(PrimaryEnd::Retired);
            }
            Mode::Ended => {}
        }
    }

    /// Time has passed: heartbeats, timeouts, entries that have waited long enough.
    pub fn tick(&mut self, now_ns: u64) {
        self.lose_silent_backup(now_ns);
        if let Mode::Claiming(claiming) = &mut self.mode {
            let request = claiming.poll(now_ns);
            self.actions.extend(request.map(PrimaryAction::Claim));
        }
        if self.pending_since_ns.is_some_and(|since| now_ns >= since + FLUSH_NS) {
            self.flush(now_ns);
        }
        if self.is_streaming() {
            // Not only with heartbeats: under load there are none, and what isn't told is put out again at go-live.
            self.tell_released();
        }
        // A backup that takes its time to join costs nothing.
        if self.is_protected() {
            self.pace.appended(now_ns, self.log.appended());
            self.pace.correct(now_ns);
        }
        if self.has_backup() && now_ns.saturating_sub(self.spoke_ns) >= self.timing.heartbeat_ns {
            Message::Heartbeat.encode(&mut self.outgoing);
            self.spoke_ns = now_ns;
        }
    }

    /// Whether somebody is at the other end of the channel.
    const fn has_backup(&self) -> bool {
        matches!(self.mode, Mode::Protected) || self.join.is_some()
    }

    /// Whether there are bytes to send to the backup.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send to the backup, moved to the end of `out`.
    pub fn take_outgoing(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.outgoing);
    }

    /// The next output that may leave. Say [`PrimaryRole::put_out`] and [`PrimaryRole::carried`] of it.
    pub fn take_released(&mut self) -> Option<(OutputId, Arc<OutputOperation>)> {
        self.gate.take_released()
    }

    /// All outputs below `next` have been written to the console or handed to the network, as far as there is one.
    pub fn put_out(&mut self, next: OutputId) {
        self.gate.put_out(next);
    }

    /// The network has carried all frames below `next`.
    pub fn carried(&mut self, next: OutputId) {
        self.gate.carried(next);
    }

    /// The network is there (again) and has carried all frames below `next`: what follows is to be taken again.
    pub fn send_again(&mut self, next: OutputId) {
        self.gate.send_again(next);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }

    /// Tells the backup which outputs it will not have to send at go-live.
    fn tell_released(&mut self) {
        let next_output = OutputId(self.gate.next_to_leave().0 + u64::from(mutated(Mutation::TellReleasedTooEarly)));
        if next_output > self.told_released {
            self.told_released = next_output;
            Message::Released { next_output }.encode(&mut self.outgoing);
        }
    }

    /// Gives a backup up that hasn't been heard for too long.
    fn lose_silent_backup(&mut self, now_ns: u64) {
        let silent_ns = now_ns.saturating_sub(self.heard_ns);
        if self.has_backup() && silent_ns >= self.timing.failure_timeout_ns {
            self.lose_backup(format!("the backup was silent for {} ms", silent_ns / 1_000_000));
        }
        // One that lives and gets nowhere would keep the place from others.
        let stuck_ns = now_ns.saturating_sub(self.joined_ns);
        if self.join.is_some() && stuck_ns >= self.timing.join_timeout_ns() {
            self.lose_backup(format!("the backup has not got on with joining for {} ms", stuck_ns / 1_000_000));
        }
    }

    fn lose_backup(&mut self, reason: String) {
        if !self.has_backup() {
            return;
        }
        self.outgoing.clear();
        // Nobody will read the rest: whoever wins goes on alone.
        self.log = Log::Unread(self.log.appended());
        self.pending_since_ns = None;
        self.pace.forget();
        self.actions.push_back(PrimaryAction::CloseChannel { reason });
        // A backup that was joining can't claim, and costs nothing.
        if self.join.take().is_none() {
            let kind = if self.stop.is_some() { ClaimKind::Ended } else { ClaimKind::Owner };
            self.claim(kind);
        }
    }

    fn claim(&mut self, kind: ClaimKind) {
        if self.join.is_some() {
            self.lose_backup("the VM ends before the backup has joined".into());
        }
        let request = ClaimRequest { generation: self.session.generation, kind };
        if mutated(Mutation::PrimarySkipsTestAndSet) {
            self.mode = Mode::Claiming(Claiming::asked(request));
            return self.claim_answered(0, ClaimAnswer::Decided(Verdict::Won));
        }
        self.mode = Mode::Claiming(Claiming::asked(request));
        self.actions.push_back(PrimaryAction::Claim(request));
    }

    /// A guest that has ended leaves its end mark, once the backup knows that this is no failure.
    fn end_if_stopped(&mut self) {
        if self.stop.is_none() {
            return;
        }
        match self.mode {
            Mode::Alone => self.claim(ClaimKind::Ended),
            Mode::Protected if self.log.is_acknowledged() => self.claim(ClaimKind::Ended),
            Mode::AwaitingBackup | Mode::Protected | Mode::Claiming(_) | Mode::Ended => {}
        }
    }

    fn end(&mut self, end: PrimaryEnd) {
        self.mode = Mode::Ended;
        self.actions.push_back(PrimaryAction::End(end));
    }
}
