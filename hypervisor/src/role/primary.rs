//! The primary: it runs the guest, streams the log, and lets nothing out that the backup hasn't acknowledged.

use super::{ClaimAnswer, ClaimRequest, Claiming, Timing, message_name};
use crate::arbiter::{Claim, ClaimKind, Verdict};
use crate::output_gate::OutputGate;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::{SessionHeader, image_chunks};
use logchannel::stream::LogSender;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation, StopReason};

/// Log bytes that are sent without waiting for an output or for [`FLUSH_NS`].
const FLUSH_BYTES: usize = 64 << 10;

/// The longest that an entry waits to be sent when no output asks for it, in nanoseconds.
const FLUSH_NS: u64 = 10_000_000;

/// Bytes that wait for the channel to take them before the guest must stop: it is the backup, or its log buffer, that is
/// slow.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// What a primary asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Debug)]
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

#[derive(Debug)]
enum Mode {
    /// Owns the VM, has no backup, and the guest waits for one.
    AwaitingBackup,
    /// Owns the VM and runs it without backup.
    Alone,
    /// A backup is receiving the session; it can't claim yet, and the guest waits.
    Pairing,
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
#[derive(Debug)]
pub struct PrimaryRole {
    mode: Mode,
    session: SessionHeader,
    timing: Timing,
    log: Log,
    gate: OutputGate,
    outgoing: Vec<u8>,
    actions: VecDeque<PrimaryAction>,
    heard_ns: u64,
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
            session,
            timing,
            log: Log::Unread(first),
            gate: OutputGate::new(next_output),
            outgoing: Vec::new(),
            actions: VecDeque::new(),
            heard_ns: 0,
            spoke_ns: 0,
            pending_since_ns: None,
            told_released: next_output,
            stop: None,
        }
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
    /// when it is to end.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let is_owner = match &self.mode {
            Mode::AwaitingBackup | Mode::Pairing | Mode::Ended => false,
            Mode::Alone | Mode::Protected => true,
            Mode::Claiming(claiming) => claiming.request.kind == ClaimKind::Owner,
        };
        is_owner && !self.gate.is_full() && self.outgoing.len() < OUTGOING_BYTES_MAX
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
        match self.mode {
            Mode::Alone => self.gate.release_all(now_ns),
            Mode::Protected => {
                self.pending_since_ns.get_or_insert(now_ns);
                if matches!(&self.log, Log::Streamed(sender) if sender.pending_bytes() >= FLUSH_BYTES) {
                    self.flush(now_ns);
                }
            }
            Mode::AwaitingBackup | Mode::Pairing | Mode::Claiming(_) | Mode::Ended => {}
        }
        self.end_if_stopped();
    }

    /// Puts what has been appended into [`take_outgoing`](Self::take_outgoing).
    pub fn flush(&mut self, now_ns: u64) {
        if let (Mode::Protected, Log::Streamed(sender)) = (&self.mode, &mut self.log) {
            while sender.take_frame(&mut self.outgoing) {
                self.spoke_ns = now_ns;
            }
            self.pending_since_ns = None;
        }
    }

    /// Whether a backup may connect now.
    ///
    /// # Errors
    /// Why it may not, in words for its operator.
    pub fn can_take_backup(&self) -> Result<(), String> {
        let reason = match self.mode {
            Mode::AwaitingBackup => return Ok(()),
            Mode::Pairing | Mode::Protected => "this primary has a backup already",
            Mode::Alone | Mode::Claiming(_) => {
                "this primary's guest is already running; a backup can join only before its start"
            }
            Mode::Ended => "this primary has ended",
        };
        Err(reason.into())
    }

    /// A backup has connected: it gets the session and the image.
    pub fn backup_connected(&mut self, now_ns: u64, image: &[u8]) {
        if self.can_take_backup().is_err() {
            return;
        }
        Message::Session(self.session.clone()).encode(&mut self.outgoing);
        for chunk in image_chunks(image) {
            Message::ImageChunk(chunk.to_vec()).encode(&mut self.outgoing);
        }
        self.heard_ns = now_ns;
        self.mode = Mode::Pairing;
    }

    /// The backup said something.
    pub fn backup_said(&mut self, now_ns: u64, message: Message) {
        // A primary that was suspended finds old acknowledgements in its socket. The backup may have gone live since.
        self.lose_silent_backup(now_ns);
        self.heard_ns = now_ns;
        match (message, &self.mode) {
            (Message::Accepted { .. }, Mode::Pairing) => {
                // From here on outputs are held; only after that is the backup told that it may claim.
                self.mode = Mode::Protected;
                self.log = Log::Streamed(LogSender::new(self.log.appended()));
                let generation = self.session.generation;
                Message::Protected { generation }.encode(&mut self.outgoing);
                self.spoke_ns = now_ns;
                self.actions.push_back(PrimaryAction::Protected(generation));
            }
            (Message::Refused { reason }, Mode::Pairing) => {
                self.lose_backup(format!("the backup refused the session: {reason}"));
            }
            (Message::Ack { received }, Mode::Protected) => self.acknowledged(now_ns, received),
            (Message::Goodbye { reason }, Mode::Pairing | Mode::Protected) => {
                self.lose_backup(format!("the backup left: {reason}"));
            }
            // How far the backup has replayed is for its operator's eyes so far; heartbeats only say that it lives.
            (Message::Consumed { .. } | Message::Heartbeat, _) => {}
            (message, Mode::Pairing | Mode::Protected) => {
                self.lose_backup(format!("the backup broke the protocol with {}", message_name(&message)));
            }
            // Late words of a backup that is lost already.
            (_, Mode::AwaitingBackup | Mode::Alone | Mode::Claiming(_) | Mode::Ended) => {}
        }
    }

    fn acknowledged(&mut self, now_ns: u64, received: LogSeq) {
        let Log::Streamed(sender) = &mut self.log else { unreachable!("a protected primary streams its log") };
        match sender.acknowledge(received) {
            Ok(()) => {
                self.gate.release(now_ns, received);
                self.end_if_stopped();
            }
            Err(error) => self.lose_backup(error.to_string()),
        }
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
                self.gate.discard_all();
                self.end(PrimaryEnd::Fenced { holder });
            }
            ClaimAnswer::Decided(Verdict::Won) => {
                let kind = claiming.request.kind;
                self.session.generation = Generation(claiming.request.generation.0 + 1);
                self.gate.release_all(now_ns);
                match (kind, self.stop.take()) {
                    (ClaimKind::Ended, Some(end)) => self.end(end),
                    (_, stop) => {
                        self.stop = stop;
                        self.mode = Mode::Alone;
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
            Mode::AwaitingBackup | Mode::Pairing | Mode::Alone => {
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
        match &mut self.mode {
            Mode::Protected => {
                if self.pending_since_ns.is_some_and(|since| now_ns >= since + FLUSH_NS) {
                    self.flush(now_ns);
                }
                // Not only with heartbeats: under load there are none, and what isn't told is put out again at go-live.
                self.tell_released();
                if now_ns.saturating_sub(self.spoke_ns) >= self.timing.heartbeat_ns {
                    Message::Heartbeat.encode(&mut self.outgoing);
                    self.spoke_ns = now_ns;
                }
            }
            Mode::Claiming(claiming) => {
                let request = claiming.poll(now_ns);
                self.actions.extend(request.map(PrimaryAction::Claim));
            }
            Mode::AwaitingBackup | Mode::Alone | Mode::Pairing | Mode::Ended => {}
        }
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

    /// The next output that may leave. Say [`PrimaryRole::has_left`] when it has.
    pub fn take_released(&mut self) -> Option<(OutputId, OutputOperation)> {
        self.gate.take_released()
    }

    /// Output `id` and all before it have been handed to the network or the console.
    pub fn has_left(&mut self, id: OutputId) {
        self.gate.has_left(id);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }

    /// Tells the backup which outputs it will not have to send at go-live.
    fn tell_released(&mut self) {
        let next_output = self.gate.next_to_leave();
        if next_output > self.told_released {
            self.told_released = next_output;
            Message::Released { next_output }.encode(&mut self.outgoing);
        }
    }

    /// Gives a backup up that hasn't been heard for too long.
    fn lose_silent_backup(&mut self, now_ns: u64) {
        let timeout_ns = match self.mode {
            Mode::Protected => self.timing.failure_timeout_ns,
            // A backup that takes its time to build its machine is not lost, only one that never answers.
            Mode::Pairing => self.timing.pairing_timeout_ns(),
            Mode::AwaitingBackup | Mode::Alone | Mode::Claiming(_) | Mode::Ended => return,
        };
        let silent_ns = now_ns.saturating_sub(self.heard_ns);
        if silent_ns >= timeout_ns {
            self.lose_backup(format!("the backup was silent for {} ms", silent_ns / 1_000_000));
        }
    }

    fn lose_backup(&mut self, reason: String) {
        self.outgoing.clear();
        match self.mode {
            Mode::Pairing => {
                self.actions.push_back(PrimaryAction::CloseChannel { reason });
                self.mode = Mode::AwaitingBackup;
            }
            Mode::Protected => {
                self.actions.push_back(PrimaryAction::CloseChannel { reason });
                // Nobody will read the rest: whoever wins goes on alone.
                self.log = Log::Unread(self.log.appended());
                self.pending_since_ns = None;
                let kind = if self.stop.is_some() { ClaimKind::Ended } else { ClaimKind::Owner };
                self.claim(kind);
            }
            Mode::AwaitingBackup | Mode::Alone | Mode::Claiming(_) | Mode::Ended => {}
        }
    }

    fn claim(&mut self, kind: ClaimKind) {
        let request = ClaimRequest { generation: self.session.generation, kind };
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
            Mode::AwaitingBackup | Mode::Pairing | Mode::Protected | Mode::Claiming(_) | Mode::Ended => {}
        }
    }

    fn end(&mut self, end: PrimaryEnd) {
        self.mode = Mode::Ended;
        self.actions.push_back(PrimaryAction::End(end));
    }
}
