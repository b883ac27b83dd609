//! The backup: it acknowledges the log as it arrives, replays it behind, and goes live when it wins the pair's flag.

use super::{ClaimAnswer, ClaimRequest, Claiming, Timing, message_name};
use crate::arbiter::{Claim, ClaimKind, Verdict};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::{EntryBatch, Message};
use logchannel::session::{ImageAssembler, ImageDigest, NodeId, SessionHeader, VmId};
use logchannel::stream::LogReceiver;
use std::collections::VecDeque;
use vm::{InstructionCount, OutputId, OutputOperation, StopReason};

/// The most outputs that a backup keeps for its going live; the primary tells what it need not keep.
const TAIL_OUTPUTS_MAX: usize = 65_536;

/// What a backup's operator says about the VM beforehand.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Which VM.
    pub vm: VmId,
    /// Which image, if the operator named one, and how they named it.
    pub image: Option<(String, ImageDigest)>,
}

/// What a backup asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupAction {
    /// Build the machine, and say [`BackupRole::machine_built`].
    Build {
        /// What the log is about.
        session: SessionHeader,
        /// The guest.
        image: Vec<u8>,
    },
    /// The primary holds its outputs for this backup now.
    Protected(Generation),
    /// Replay these entries, in order.
    Consume(VecDeque<LogEntry>),
    /// The primary is lost: stop listening to it.
    Lost {
        /// How.
        reason: String,
    },
    /// Do a test-and-set and tell the role its answer.
    Claim(ClaimRequest),
    /// The flag is won and the log consumed: run the guest as this generation.
    GoLive(Generation),
    /// Stop everything.
    End(BackupEnd),
}

/// How a backup came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEnd {
    /// The guest ended by itself on the primary, and here too.
    GuestStopped(StopReason),
    /// The other node owns the VM.
    Fenced {
        /// Who won the flag.
        holder: Claim,
    },
    /// The primary was lost before it told this backup that it protects the VM: it must not claim.
    Unprotected {
        /// How the primary was lost.
        reason: String,
    },
    /// The two sides don't fit together.
    Refused {
        /// Why.
        reason: String,
    },
    /// Replay did something else than the log says: this side's state can't be trusted.
    Diverged,
}

#[derive(Debug)]
enum Mode {
    /// Waits for the session header.
    Connecting,
    /// Receives the image.
    Joining { session: SessionHeader, image: ImageAssembler },
    /// The driver builds the machine.
    Building,
    /// Replays. `told` is the pair's generation once the primary holds its outputs for this backup.
    Following { told: Option<Generation> },
    /// Has lost the primary and asks for the pair's flag, while the rest of the log is consumed.
    Claiming(Claiming),
    /// Has its answer, and consumes the rest of the log.
    Draining(Then),
    /// Runs the guest, or is over.
    Done,
}

/// What follows when the log is consumed.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// The flag is won.
    GoLive(Generation),
    /// The primary has set the end mark of a guest that ended by itself.
    End(StopReason),
}

/// When the steps of a failover happened, in nanoseconds of the driver's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupMoments {
    /// The last log entry arrived.
    pub last_entry_received_ns: u64,
    /// The primary was noticed to be lost.
    pub loss_noticed_ns: u64,
    /// The test-and-set was won.
    pub test_and_set_won_ns: u64,
    /// The last log entry was consumed.
    pub last_entry_consumed_ns: u64,
}

/// The backup's state machine.
///
/// Invariants: an acknowledgement names only entries that are in the log buffer; a claim is made only by a backup that
/// was told that it protects the VM and that hasn't diverged; it goes live only with a won claim and nothing left to
/// consume.
#[derive(Debug)]
pub struct BackupRole {
    mode: Mode,
    expectation: Expectation,
    timing: Timing,
    node: NodeId,
    /// The pair's, as the session says.
    generation: Generation,
    receiver: LogReceiver,
    consumed: LogSeq,
    /// The guest came to its end in the log. Whoever sets the end mark has sent the guest's last words; if the primary
    /// didn't live to do it, this side does both.
    guest_end: Option<StopReason>,
    outgoing: Vec<u8>,
    actions: VecDeque<BackupAction>,
    tail: VecDeque<(OutputId, OutputOperation)>,
    tail_dropped: u64,
    /// The primary has put out all outputs with a smaller id.
    released: OutputId,
    /// The output that replay will produce next.
    next_output: OutputId,
    heard_ns: u64,
    spoke_ns: u64,
    moments: BackupMoments,
}

impl BackupRole {
    /// A backup that has just connected to a primary.
    #[must_use]
    pub fn new(now_ns: u64, node: NodeId, expectation: Expectation, timing: Timing) -> Self {
        Self {
            mode: Mode::Connecting,
            expectation,
            timing,
            node,
            generation: Generation(0),
            receiver: LogReceiver::new(LogSeq(0)),
            consumed: LogSeq(0),
            guest_end: None,
            outgoing: Vec::new(),
            actions: VecDeque::new(),
            tail: VecDeque::new(),
            tail_dropped: 0,
            released: OutputId(0),
            next_output: OutputId(0),
            heard_ns: now_ns,
            spoke_ns: now_ns,
            moments: BackupMoments::default(),
        }
    }

    /// When the steps of the failover happened; complete when the role has gone live.
    #[must_use]
    pub const fn moments(&self) -> &BackupMoments {
        &self.moments
    }

    /// Entries received and consumed so far.
    #[must_use]
    pub const fn cursors(&self) -> (LogSeq, LogSeq) {
        (self.receiver.received(), self.consumed)
    }

    /// How many outputs were dropped from the tail because the primary never told that it had released them.
    #[must_use]
    pub const fn tail_dropped(&self) -> u64 {
        self.tail_dropped
    }

    /// The primary said something.
    pub fn primary_said(&mut self, now_ns: u64, message: Message) {
        self.heard_ns = now_ns;
        match (message, &mut self.mode) {
            (Message::Session(session), Mode::Connecting) => self.begin_joining(session),
            (Message::ImageChunk(chunk), Mode::Joining { image, .. }) => match image.push(&chunk) {
                Ok(()) => self.build_if_complete(),
                Err(error) => self.refuse(error.to_string()),
            },
            (Message::Protected { generation }, Mode::Following { told }) if generation == self.generation => {
                *told = Some(generation);
                self.actions.push_back(BackupAction::Protected(generation));
            }
            (Message::Entries(batch), Mode::Following { .. }) => self.receive(now_ns, &batch),
            (Message::Released { next_output }, Mode::Following { .. }) => {
                self.released = self.released.max(next_output);
                while self.tail.front().is_some_and(|(id, _)| *id < next_output) {
                    self.tail.pop_front();
                }
            }
            (Message::Heartbeat, _) => {}
            (Message::Refused { reason }, Mode::Connecting) => {
                self.end(BackupEnd::Refused { reason: format!("the primary refused: {reason}") });
            }
            (Message::Goodbye { reason }, _) => self.primary_lost(now_ns, &reason),
            // What a lost primary had still in the wire: it is after the point where this side stopped acknowledging.
            (_, Mode::Claiming(_) | Mode::Draining(_) | Mode::Done) => {}
            (message, Mode::Connecting | Mode::Joining { .. } | Mode::Building | Mode::Following { .. }) => {
                self.refuse(format!("the primary broke the protocol with {}", message_name(&message)));
            }
        }
    }

    fn begin_joining(&mut self, session: SessionHeader) {
        if session.vm != self.expectation.vm {
            return self
                .refuse(format!("this backup is for VM {}, the primary runs {}", self.expectation.vm, session.vm));
        }
        if let Some((name, digest)) = &self.expectation.image
            && *digest != session.image_digest
        {
            let reason = format!(
                "this backup was started with image {name} ({digest}), the primary runs {} ({})",
                session.image_name, session.image_digest
            );
            return self.refuse(reason);
        }
        if session.generation.0 == u64::MAX {
            return self.refuse("the VM has used up its generations".into());
        }
        self.generation = session.generation;
        let image = ImageAssembler::new(&session);
        self.mode = Mode::Joining { session, image };
        self.build_if_complete();
    }

    fn build_if_complete(&mut self) {
        if !matches!(&self.mode, Mode::Joining { image, .. } if image.is_complete()) {
            return;
        }
        let Mode::Joining { session, image } = std::mem::replace(&mut self.mode, Mode::Building) else { return };
        match image.finish() {
            Ok(image) => self.actions.push_back(BackupAction::Build { session, image }),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    /// The machine stands at the start of the log.
    pub fn machine_built(&mut self, now_ns: u64) {
        if matches!(self.mode, Mode::Building) {
            self.mode = Mode::Following { told: None };
            self.heard_ns = now_ns;
            self.say(now_ns, &Message::Accepted { node: self.node });
        }
    }

    /// The machine can't be built.
    pub fn build_failed(&mut self, reason: &str) {
        self.refuse(format!("the guest can't be started here: {reason}"));
    }

    fn receive(&mut self, now_ns: u64, batch: &EntryBatch) {
        let mut entries = VecDeque::new();
        match self.receiver.receive(batch, &mut entries) {
            Ok(received) => {
                self.say(now_ns, &Message::Ack { received });
                self.moments.last_entry_received_ns = now_ns;
                if let Some(EntryBody::Stopped(reason)) = entries.back().map(|entry| &entry.body) {
                    self.guest_end = Some(*reason);
                }
                self.actions.push_back(BackupAction::Consume(entries));
            }
            // A primary that sends nonsense is lost, and what it sent before is good.
            Err(error) => self.primary_lost(now_ns, &error.to_string()),
        }
    }

    /// The replayer has consumed all entries below `consumed`.
    pub fn consumed(&mut self, now_ns: u64, consumed: LogSeq) {
        assert!(
            self.consumed <= consumed && consumed <= self.receiver.received(),
            "consumed {} then {consumed} of {} entries received",
            self.consumed,
            self.receiver.received()
        );
        self.consumed = consumed;
        self.moments.last_entry_consumed_ns = now_ns;
        self.finish_if_drained();
    }

    /// Tells the primary how far this side has got.
    pub fn report_consumed(&mut self, now_ns: u64, count: InstructionCount) {
        if matches!(self.mode, Mode::Following { .. }) {
            let consumed = self.consumed;
            self.say(now_ns, &Message::Consumed { consumed, count });
        }
    }

    /// Replay produced an output, as the primary did. It is kept until the primary is known to have put it out.
    pub fn produced(&mut self, id: OutputId, operation: OutputOperation) {
        self.next_output = OutputId(id.0 + 1);
        if id < self.released {
            return;
        }
        if self.tail.len() == TAIL_OUTPUTS_MAX {
            self.tail.pop_front();
            self.tail_dropped += 1;
        }
        self.tail.push_back((id, operation));
    }

    /// The outputs that the primary may not have sent, oldest first: what the new owner has to send first.
    pub fn take_tail(&mut self) -> VecDeque<(OutputId, OutputOperation)> {
        std::mem::take(&mut self.tail)
    }

    /// The output behind all that replay has produced.
    #[must_use]
    pub const fn next_output(&self) -> OutputId {
        self.next_output
    }

    /// The replayer found a divergence: this side halts and never goes live.
    pub fn diverged(&mut self, now_ns: u64, reason: &str) {
        if matches!(self.mode, Mode::Done) {
            return;
        }
        self.say(now_ns, &Message::Goodbye { reason: reason.into() });
        self.end(BackupEnd::Diverged);
    }

    /// The primary is gone, or as good as gone.
    pub fn primary_lost(&mut self, now_ns: u64, reason: &str) {
        match &self.mode {
            Mode::Following { told: Some(generation) } => {
                self.moments.loss_noticed_ns = now_ns;
                let request = ClaimRequest { generation: *generation, kind: ClaimKind::Owner };
                self.mode = Mode::Claiming(Claiming::asked(request));
                if self.guest_end.is_none() {
                    self.actions.push_back(BackupAction::Lost { reason: reason.into() });
                }
                self.actions.push_back(BackupAction::Claim(request));
            }
            Mode::Connecting | Mode::Joining { .. } | Mode::Building | Mode::Following { told: None } => {
                self.end(BackupEnd::Unprotected { reason: reason.into() });
            }
            Mode::Claiming(_) | Mode::Draining(_) | Mode::Done => {}
        }
    }

    /// The answer to [`BackupAction::Claim`].
    pub fn claim_answered(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Mode::Claiming(claiming) = &mut self.mode else { return };
        match answer {
            ClaimAnswer::Unreachable => return claiming.retry(now_ns, &self.timing),
            ClaimAnswer::Decided(Verdict::Won) => {
                self.moments.test_and_set_won_ns = now_ns;
                self.mode = Mode::Draining(Then::GoLive(Generation(claiming.request.generation.0 + 1)));
            }
            ClaimAnswer::Decided(Verdict::Lost(holder)) => match (holder.kind, self.guest_end) {
                (ClaimKind::Ended, Some(reason)) => self.mode = Mode::Draining(Then::End(reason)),
                (ClaimKind::Ended, None) | (ClaimKind::Owner, _) => self.end(BackupEnd::Fenced { holder }),
            },
        }
        self.finish_if_drained();
    }

    /// Time has passed: heartbeats, timeouts, claims to ask again.
    pub fn tick(&mut self, now_ns: u64) {
        match &mut self.mode {
            Mode::Following { told: Some(_) } => {
                if !self.lose_silent_primary(now_ns, self.timing.failure_timeout_ns)
                    && now_ns.saturating_sub(self.spoke_ns) >= self.timing.heartbeat_ns
                {
                    self.say(now_ns, &Message::Heartbeat);
                }
            }
            Mode::Connecting | Mode::Joining { .. } | Mode::Following { told: None } => {
                self.lose_silent_primary(now_ns, self.timing.pairing_timeout_ns());
            }
            Mode::Claiming(claiming) => {
                let request = claiming.poll(now_ns);
                self.actions.extend(request.map(BackupAction::Claim));
            }
            // The silence of a build is this side's own.
            Mode::Building | Mode::Draining(_) | Mode::Done => {}
        }
    }

    /// Whether the primary has been silent for `timeout_ns`; it is lost then.
    fn lose_silent_primary(&mut self, now_ns: u64, timeout_ns: u64) -> bool {
        let silent_ns = now_ns.saturating_sub(self.heard_ns);
        let is_silent = silent_ns >= timeout_ns;
        if is_silent {
            self.primary_lost(now_ns, &format!("the primary was silent for {} ms", silent_ns / 1_000_000));
        }
        is_silent
    }

    /// The primary can't be heard because this side isn't listening: its log buffer is full.
    pub fn not_listening(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
    }

    /// Whether there are bytes to send to the primary.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send to the primary, moved to the end of `out`.
    pub fn take_outgoing(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.outgoing);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<BackupAction> {
        self.actions.pop_front()
    }

    fn say(&mut self, now_ns: u64, message: &Message) {
        message.encode(&mut self.outgoing);
        self.spoke_ns = now_ns;
    }

    fn refuse(&mut self, reason: String) {
        Message::Refused { reason: reason.clone() }.encode(&mut self.outgoing);
        self.end(BackupEnd::Refused { reason });
    }

    fn finish_if_drained(&mut self) {
        let Mode::Draining(then) = self.mode else { return };
        if self.consumed != self.receiver.received() {
            return;
        }
        match then {
            Then::GoLive(generation) => {
                self.mode = Mode::Done;
                self.actions.push_back(BackupAction::GoLive(generation));
            }
            Then::End(reason) => self.end(BackupEnd::GuestStopped(reason)),
        }
    }

    fn end(&mut self, end: BackupEnd) {
        self.mode = Mode::Done;
        self.actions.push_back(BackupAction::End(end));
    }
}
