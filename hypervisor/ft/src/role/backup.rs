//! The backup: it acknowledges the log as it arrives, replays it behind, and goes live when it wins the pair's flag.

use super::{
    ClaimAnswer, ClaimRequest, Claiming, DiskLogState, LatestAnswer, LossReason, LostSide, Timing, message_name,
};
use crate::claim::{Claim, ClaimKind, Verdict};
use crate::guest_clock::{GuestClock, PrimaryClock};
use crate::mutation::{Mutation, mutated};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::{EntryBatch, Left, Message};
use logchannel::session::{ImageDigest, NodeId, SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot, TailOutput};
use logchannel::stream::LogReceiver;
use vm::{InstructionCount, OutputId, OutputOperation, StopReason};

/// The most bytes of outputs that a backup keeps for its going live; the primary tells what it need not keep. Beyond them
/// the oldest is dropped and counted.
const TAIL_BYTES_MAX: usize = 64 << 20;

/// What an output costs in the tail beyond its bytes.
const OUTPUT_OVERHEAD_BYTES: usize = 64;

/// The most bytes that wait for a primary to read them: acknowledgements of a whole log buffer are less.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// From one report of what is consumed to the next, in nanoseconds.
const CONSUMED_REPORT_NS: u64 = 20_000_000;

/// What a backup's operator says about the VM beforehand.
#[derive(Clone, Debug, Hash)]
pub struct Expectation {
    /// Which VM.
    pub vm: VmId,
    /// Which image, if the operator named one, and how they named it.
    pub image: Option<(String, ImageDigest)>,
}

/// What a backup asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackupAction {
    /// The primary has a backup already, and this side waits for its place.
    Waits,
    /// Begin to put a machine together.
    Begin(SessionHeader),
    /// Ask this side's arbiter for the VM's latest claim, and say [`BackupRole::handle_owner`].
    CheckOwner,
    /// The machine stands, the arbiter knows the primary as its owner, and the primary is told so.
    Joined,
    /// These are pages of its RAM.
    Pages(Pages),
    /// This is the rest of it: say [`BackupRole::handle_restored`] or [`BackupRole::handle_restore_failure`].
    Restore(Snapshot),
    /// The primary holds its outputs for this backup now.
    Protected(Generation),
    /// Replay these entries, in order.
    Consume(VecDeque<LogEntry>),
    /// The primary is lost: stop listening to it.
    Lost {
        /// How.
        reason: LossReason,
    },
    /// Do a test-and-set and tell the role its answer.
    Claim(ClaimRequest),
    /// The arbiter has lost the claim of the primary that is gone: whether it has won the pair's flag can't be known, so this
    /// side waits. Told once.
    ClaimsLost(Generation),
    /// The flag is won and the log consumed: run the guest as this generation.
    GoLive(Generation),
    /// Stop everything.
    End(BackupEnd),
}

/// How a backup came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
        reason: LossReason,
    },
    /// Nobody needs this side: what it asked is no primary, or was lost while this side waited for another backup's place. Look for
    /// a primary again.
    NoPlace {
        /// What became of it.
        reason: LossReason,
    },
    /// The two sides don't fit together.
    Refused {
        /// Why.
        reason: String,
    },
    /// Replay did something else than the log says: this side's state can't be trusted.
    Diverged,
}

#[derive(Clone, Debug, Hash)]
enum Mode {
    /// Has said that it wants to join, and waits for the session header.
    Connecting,
    /// The primary has a backup already: waits for its place.
    Waiting,
    /// Receives the guest's memory.
    Receiving,
    /// Has the whole snapshot, and receives the log while the driver puts the machine together.
    Restoring,
    /// The machine stands, and the arbiter hasn't said yet that the primary is its owner.
    Restored,
    /// Replays. `told` is the pair's generation once the primary holds its outputs for this backup.
    Following { told: Option<Generation> },
    /// Has lost the primary and asks for the pair's flag, while the rest of the log is consumed.
    Claiming(Claiming),
    /// Has its answer, and consumes the rest of the log.
    Draining(Then),
    /// Runs the guest, or is over.
    Done,
}

/// Whether this side's arbiter knows the primary as the VM's owner. With two arbiters, or a directory that isn't the shared
/// one, both sides could go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum OwnerCheck {
    /// The driver is asking.
    Asked,
    /// The arbiter could not be asked, which is no check; it is asked again at this time.
    AskAt(u64),
    /// It does.
    Passed,
}

/// What follows when the log is consumed.
#[derive(Clone, Copy, Debug, Hash)]
enum Then {
    /// The flag is won.
    GoLive(Generation),
    /// The primary has set the end mark of a guest that ended by itself.
    End(StopReason),
}

/// When the steps of a failover happened, in nanoseconds of the driver's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
/// Invariants: an acknowledgement names only entries that are in the log buffer; a primary is accepted only when the arbiter
/// knows it, by its node, as the owner of its generation; a claim is made only by a backup that
/// was told that it protects the VM and that hasn't diverged; it goes live only with a won claim and nothing left to
/// consume.
#[derive(Clone, Debug, Hash)]
pub struct BackupRole {
    mode: Mode,
    node: NodeId,
    expectation: Expectation,
    timing: Timing,
    /// The pair's, as the session says.
    generation: Generation,
    /// The primary, as the session says.
    owner: NodeId,
    check: OwnerCheck,
    has_told_claims_lost: bool,
    receiver: LogReceiver,
    consumed: LogSeq,
    /// Where the machine stands.
    count: InstructionCount,
    /// What the primary has been told of `consumed`, and when.
    reported: (LogSeq, u64),
    /// The guest came to its end in the log. Whoever sets the end mark has sent the guest's last words; if the primary
    /// didn't live to do it, this side does both.
    guest_end: Option<StopReason>,
    outgoing: Vec<u8>,
    actions: VecDeque<BackupAction>,
    tail: VecDeque<(OutputId, OutputOperation)>,
    tail_bytes: usize,
    tail_dropped: u64,
    /// What the primary has put out.
    released: Left,
    /// The output that replay will produce next.
    next_output: OutputId,
    /// This side's log on disk.
    disk_log: DiskLogState,
    disk_wait: DiskWait,
    heard_ns: u64,
    spoke_ns: u64,
    /// The guest's clock, once the primary has said what it reads: before it says that it is protected.
    clock: Option<PrimaryClock>,
    moments: BackupMoments,
}

/// A joining backup's wait for its own disk.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct DiskWait {
    /// What the disk had taken when it last took something.
    written_bytes: u64,
    /// When that was, or when the wait began.
    moved_ns: u64,
    /// When the driver last said that it waits.
    last_ns: u64,
    /// When the primary was last told: heartbeats between don't say it.
    told_ns: u64,
}

impl BackupRole {
    /// A backup that has just connected to a primary.
    #[must_use]
    pub fn new(now_ns: u64, node: NodeId, expectation: Expectation, timing: Timing) -> Self {
        let mut outgoing = Vec::new();
        Message::Join { vm: expectation.vm.clone(), node }.encode(&mut outgoing);
        Self {
            mode: Mode::Connecting,
            node,
            expectation,
            timing,
            generation: Generation(0),
            owner: NodeId(0),
            check: OwnerCheck::Asked,
            has_told_claims_lost: false,
            receiver: LogReceiver::new(LogSeq(0)),
            consumed: LogSeq(0),
            count: InstructionCount(0),
            reported: (LogSeq(0), now_ns),
            guest_end: None,
            outgoing,
            actions: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_dropped: 0,
            released: Left::default(),
            next_output: OutputId(0),
            disk_log: DiskLogState::None,
            disk_wait: DiskWait::default(),
            heard_ns: now_ns,
            spoke_ns: now_ns,
            clock: None,
            moments: BackupMoments::default(),
        }
    }

    /// The same, with the log on disk in this state before anything else is said of it; without it none is kept.
    #[must_use]
    pub fn with_disk_log(self, disk_log: DiskLogState) -> Self {
        Self { disk_log, ..self }
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
    pub fn handle_message(&mut self, now_ns: u64, message: Message) {
        self.heard_ns = now_ns;
        match (message, &mut self.mode) {
            (Message::Session { header, owner }, Mode::Connecting | Mode::Waiting) => self.begin(header, owner),
            (Message::Wait, Mode::Waiting) => {}
            (Message::Wait, Mode::Connecting) => {
                self.mode = Mode::Waiting;
                self.actions.push_back(BackupAction::Waits);
            }
            (Message::NoPrimary, Mode::Connecting) => {
                self.end(BackupEnd::NoPlace { reason: LossReason::NoPrimary });
            }
            (Message::Pages(pages), Mode::Receiving) => self.actions.push_back(BackupAction::Pages(pages)),
            (Message::Tail(output), Mode::Receiving) => self.receive_tail(output),
            (Message::Snapshot(snapshot), Mode::Receiving) => self.restore(snapshot),
            (Message::Protected { generation }, Mode::Following { told }) if generation == self.generation => {
                *told = Some(generation);
                self.actions.push_back(BackupAction::Protected(generation));
            }
            (Message::Entries(batch), Mode::Restoring | Mode::Restored | Mode::Following { .. }) => {
                self.receive(now_ns, &batch);
            }
            (Message::Released(left), Mode::Restoring | Mode::Restored | Mode::Following { .. }) => {
                self.released.frames = self.released.frames.max(left.frames);
                self.released.console = self.released.console.max(left.console);
                self.forget_released();
            }
            (Message::Heartbeat, _) => {}
            (
                Message::Clock { ticks, runs },
                Mode::Receiving | Mode::Restoring | Mode::Restored | Mode::Following { .. },
            ) => {
                let told = if runs { GuestClock::running(ticks, now_ns) } else { GuestClock::standing(ticks) };
                match &mut self.clock {
                    Some(clock) => clock.hear(told, now_ns),
                    None => self.clock = Some(PrimaryClock::new(told, now_ns)),
                }
            }
            (Message::Refused { reason }, Mode::Connecting | Mode::Waiting) => {
                self.end(BackupEnd::Refused { reason: format!("the primary refused: {reason}") });
            }
            (Message::Goodbye { reason }, _) => {
                self.lose_primary(now_ns, LossReason::Goodbye { side: LostSide::Primary, reason });
            }
            // What a lost primary had still in the wire: it is after the point where this side stopped acknowledging.
            (_, Mode::Claiming(_) | Mode::Draining(_) | Mode::Done) => {}
            (
                message,
                Mode::Connecting
                | Mode::Waiting
                | Mode::Receiving
                | Mode::Restoring
                | Mode::Restored
                | Mode::Following { .. },
            ) => {
                self.refuse(format!("the primary broke the protocol with {}", message_name(&message)));
            }
        }
    }

    fn begin(&mut self, session: SessionHeader, owner: NodeId) {
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
        if let Err(other) = session.behaviour.check() {
            return self.refuse(format!("{other}; run both sides from one build"));
        }
        if session.generation.0 == u64::MAX {
            return self.refuse("the VM has used up its generations".into());
        }
        (self.generation, self.owner) = (session.generation, owner);
        self.mode = Mode::Receiving;
        self.actions.push_back(BackupAction::Begin(session));
        self.actions.push_back(BackupAction::CheckOwner);
    }

    /// The answer to [`BackupAction::CheckOwner`]: generation, node and kind of the latest claim are the primary's, or it is
    /// refused. Who is accepted may be told the next moment that it protects the VM, and claim it.
    pub fn handle_owner(&mut self, now_ns: u64, answer: LatestAnswer) {
        if self.check != OwnerCheck::Asked || !matches!(self.mode, Mode::Receiving | Mode::Restoring | Mode::Restored) {
            return;
        }
        match answer {
            LatestAnswer::Unreachable if !mutated(Mutation::UnreachableCountsAsChecked) => {
                self.check = OwnerCheck::AskAt(now_ns.saturating_add(self.timing.claim_retry_ns));
            }
            LatestAnswer::Failed(reason) => self.refuse(format!("whether it owns the VM can't be checked: {reason}")),
            LatestAnswer::Known(latest) if !self.is_owner(latest.as_ref()) => {
                let known = latest.map_or_else(
                    || "nobody".into(),
                    |(flag, claim)| match claim.kind {
                        ClaimKind::Owner => format!("node {} as generation {}", claim.node, flag.0.saturating_add(1)),
                        ClaimKind::Ended => format!("nobody since node {} ended it in order", claim.node),
                    },
                );
                self.refuse(format!(
                    "the primary is node {} and runs generation {}, but this side's arbiter knows {known} as the VM's owner; \
                     do both sides have the same --arbiter?",
                    self.owner, self.generation
                ));
            }
            LatestAnswer::Known(_) | LatestAnswer::Unreachable => {
                self.check = OwnerCheck::Passed;
                self.accept(now_ns);
            }
        }
    }

    fn is_owner(&self, latest: Option<&(Generation, Claim)>) -> bool {
        latest.is_some_and(|(flag, claim)| {
            flag.0.checked_add(1) == Some(self.generation.0)
                && claim.kind == ClaimKind::Owner
                && (claim.node == self.owner || mutated(Mutation::OwnerNodeNotCompared))
        })
    }

    /// Accepts the primary, once the machine stands, the owner is checked and this side's log can be resumed: from then on
    /// this side may be told that it protects the VM, may go live, and may die.
    fn accept(&mut self, now_ns: u64) {
        let has_log = !self.disk_log.is_promised() || mutated(Mutation::AcceptOnPromise);
        if matches!(self.mode, Mode::Restored) && self.check == OwnerCheck::Passed && has_log {
            self.mode = Mode::Following { told: mutated(Mutation::ClaimUntold).then_some(self.generation) };
            self.actions.push_back(BackupAction::Joined);
            self.say(now_ns, &Message::Accepted);
        }
    }

    fn receive_tail(&mut self, TailOutput { id, operation }: TailOutput) {
        if id < self.next_output {
            return self.refuse(format!("output {} of the tail comes after output {}", id.0, self.next_output.0));
        }
        self.handle_output(id, operation);
    }

    fn restore(&mut self, snapshot: Snapshot) {
        self.receiver = LogReceiver::new(snapshot.seq);
        self.consumed = snapshot.seq;
        self.reported.0 = snapshot.seq;
        self.mode = Mode::Restoring;
        self.actions.push_back(BackupAction::Restore(snapshot));
    }

    /// The machine stands where the snapshot was made; its next output will be `next_output`.
    pub fn handle_restored(&mut self, now_ns: u64, next_output: OutputId) {
        if !matches!(self.mode, Mode::Restoring) {
            return;
        }
        if next_output < self.next_output {
            return self.refuse(format!(
                "the snapshot's machine makes output {} next, and the tail has output {} already",
                next_output.0, self.next_output.0
            ));
        }
        self.next_output = next_output;
        self.mode = Mode::Restored;
        self.accept(now_ns);
    }

    /// The log on disk has got to this state. Two threads may tell it, so that an earlier state may come after a later one.
    pub fn handle_disk_log(&mut self, now_ns: u64, disk_log: DiskLogState) {
        self.disk_log = self.disk_log.max(disk_log);
        self.accept(now_ns);
    }

    /// Whether nothing but the disk is missing for this side's acceptance: the driver says
    /// [`BackupRole::handle_disk_wait`] at each tick.
    #[must_use]
    pub const fn waits_for_disk(&self) -> bool {
        matches!(self.mode, Mode::Restored) && self.disk_log.is_promised()
    }

    /// This side can't go on before its disk does, which has taken `written_bytes` so far. The primary is told, so that it
    /// doesn't take this side for one that gets nowhere; a disk that itself gets nowhere ends the joining.
    pub fn handle_disk_wait(&mut self, now_ns: u64, written_bytes: u64) {
        if !matches!(self.mode, Mode::Receiving | Mode::Restoring | Mode::Restored) {
            return;
        }
        let wait = &mut self.disk_wait;
        if written_bytes != wait.written_bytes || now_ns.saturating_sub(wait.last_ns) > self.timing.heartbeat_ns {
            (wait.written_bytes, wait.moved_ns) = (written_bytes, now_ns);
        }
        wait.last_ns = now_ns;
        let stuck_ns = now_ns.saturating_sub(wait.moved_ns);
        if stuck_ns >= self.timing.disk_timeout_ns() {
            self.refuse(format!(
                "the disk of this backup's log has not got on for {} ms; choose another directory with --log",
                stuck_ns / 1_000_000
            ));
        } else if now_ns.saturating_sub(wait.told_ns) >= self.timing.heartbeat_ns {
            wait.told_ns = now_ns;
            self.say(now_ns, &Message::Storing);
        }
    }

    /// The machine can't be put together.
    pub fn handle_restore_failure(&mut self, reason: &str) {
        if matches!(self.mode, Mode::Receiving | Mode::Restoring | Mode::Restored) {
            self.refuse(format!("the guest can't be restored here: {reason}"));
        }
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
            Err(error) => self.lose_primary(now_ns, LossReason::BadLog(error.to_string())),
        }
    }

    /// The replayer has consumed all entries below `consumed`; its machine stands at `count`.
    pub fn handle_consumed(&mut self, now_ns: u64, consumed: LogSeq, count: InstructionCount) {
        assert!(
            self.consumed <= consumed && consumed <= self.receiver.received(),
            "consumed {} then {consumed} of {} entries received",
            self.consumed,
            self.receiver.received()
        );
        (self.consumed, self.count) = (consumed, count);
        self.moments.last_entry_consumed_ns = now_ns;
        self.report_consumed(now_ns);
        self.finish_if_drained();
    }

    /// Tells the primary how far this side has got, if there is news and the last report is some time ago.
    fn report_consumed(&mut self, now_ns: u64) {
        let (reported, at_ns) = self.reported;
        let is_due = self.consumed > reported && now_ns.saturating_sub(at_ns) >= CONSUMED_REPORT_NS;
        if is_due && matches!(self.mode, Mode::Following { .. }) {
            self.reported = (self.consumed, now_ns);
            self.say(now_ns, &Message::Consumed { consumed: self.consumed, count: self.count });
        }
    }

    /// Replay produced an output, as the primary did. It is kept until the primary is known to have put it out.
    pub fn handle_output(&mut self, id: OutputId, operation: OutputOperation) {
        self.next_output = OutputId(id.0.saturating_add(1));
        if self.released.has(id, &operation) {
            return;
        }
        self.tail_bytes += tail_cost(&operation);
        self.tail.push_back((id, operation));
        while self.tail_bytes > TAIL_BYTES_MAX {
            self.drop_first_of_tail();
            self.tail_dropped += 1;
        }
    }

    /// Drops what the primary is known to have put out from the tail.
    fn forget_released(&mut self) {
        let released = self.released;
        // Mostly all that has left is at the front.
        while self.tail.front().is_some_and(|(id, operation)| released.has(*id, operation)) {
            self.drop_first_of_tail();
        }
        if self.tail.front().is_some_and(|(id, _)| *id < released.frames.max(released.console)) {
            self.tail.retain(|(id, operation)| !released.has(*id, operation));
            self.tail_bytes = self.tail.iter().map(|(_, operation)| tail_cost(operation)).sum();
        }
    }

    fn drop_first_of_tail(&mut self) {
        if let Some((_, operation)) = self.tail.pop_front() {
            self.tail_bytes -= tail_cost(&operation);
        }
    }

    /// The outputs that the primary may not have sent, oldest first: what the new owner has to send first.
    pub fn take_tail(&mut self) -> VecDeque<(OutputId, OutputOperation)> {
        self.tail_bytes = 0;
        if mutated(Mutation::ForgetTail) {
            self.tail.clear();
        }
        core::mem::take(&mut self.tail)
    }

    /// Those outputs, oldest first.
    pub fn tail(&self) -> impl Iterator<Item = &(OutputId, OutputOperation)> {
        self.tail.iter()
    }

    /// The output behind all that replay has produced.
    #[must_use]
    pub const fn next_output(&self) -> OutputId {
        self.next_output
    }

    /// The replayer found a divergence: this side halts and never goes live.
    pub fn handle_divergence(&mut self, now_ns: u64, reason: &str) {
        if matches!(self.mode, Mode::Done) {
            return;
        }
        self.say(now_ns, &Message::Goodbye { reason: reason.into() });
        self.end(BackupEnd::Diverged);
    }

    /// The connection to the primary is gone.
    pub fn handle_disconnect(&mut self, now_ns: u64, reason: &str) {
        self.lose_primary(now_ns, LossReason::Disconnected(reason.into()));
    }

    /// The primary is gone, or as good as gone.
    fn lose_primary(&mut self, now_ns: u64, reason: LossReason) {
        match &self.mode {
            Mode::Following { told: Some(generation) } => {
                self.moments.loss_noticed_ns = now_ns;
                let request = ClaimRequest {
                    node: self.node,
                    generation: *generation,
                    kind: ClaimKind::Owner,
                    predecessor: Some(self.owner),
                };
                if mutated(Mutation::BackupSkipsTestAndSet) {
                    self.mode = Mode::Draining(Then::GoLive(Generation(generation.0 + 1)));
                    return self.finish_if_drained();
                }
                self.mode = Mode::Claiming(Claiming::asked(request));
                if self.guest_end.is_none() {
                    self.actions.push_back(BackupAction::Lost { reason });
                }
                self.actions.push_back(BackupAction::Claim(request));
            }
            Mode::Waiting => self.end(BackupEnd::NoPlace { reason }),
            Mode::Connecting | Mode::Receiving | Mode::Restoring | Mode::Restored | Mode::Following { told: None } => {
                self.end(BackupEnd::Unprotected { reason });
            }
            Mode::Claiming(_) | Mode::Draining(_) | Mode::Done => {}
        }
    }

    /// The answer to [`BackupAction::Claim`].
    pub fn handle_claim(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Mode::Claiming(claiming) = &mut self.mode else { return };
        match answer {
            ClaimAnswer::Unreachable => return claiming.retry(now_ns, &self.timing),
            // The flag before is another node's: this arbiter's owner isn't the primary that was followed.
            ClaimAnswer::Decided(Verdict::NotSuccessor(Some(holder))) => self.end(BackupEnd::Fenced { holder }),
            // The primary's claim is gone. It makes it again if it lives; if not, nobody knows what else is lost.
            ClaimAnswer::Decided(Verdict::NotSuccessor(None)) => {
                claiming.retry(now_ns, &self.timing);
                if !core::mem::replace(&mut self.has_told_claims_lost, true) {
                    self.actions.push_back(BackupAction::ClaimsLost(self.generation));
                }
                return;
            }
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

    /// The clock with which this node goes on with a guest that has read `last_ticks`.
    #[must_use]
    pub fn take_over_clock(&mut self, now_ns: u64, last_ticks: u64) -> GuestClock {
        let Some(clock) = &mut self.clock else { return GuestClock::running(last_ticks, now_ns) };
        clock.take_over(now_ns, last_ticks)
    }

    /// Time has passed: heartbeats, timeouts, claims to ask again.
    pub fn handle_tick(&mut self, now_ns: u64) {
        let is_paused = matches!(&self.mode, Mode::Claiming(claiming) if claiming.is_pause(now_ns));
        if let Some(clock) = &mut self.clock {
            clock.pass(now_ns, is_paused);
        }
        match &mut self.mode {
            Mode::Connecting
            | Mode::Waiting
            | Mode::Receiving
            | Mode::Restoring
            | Mode::Restored
            | Mode::Following { .. } => {
                if let OwnerCheck::AskAt(at_ns) = self.check
                    && now_ns >= at_ns
                {
                    self.check = OwnerCheck::Asked;
                    self.actions.push_back(BackupAction::CheckOwner);
                }
                let silent_ns = now_ns.saturating_sub(self.heard_ns);
                if silent_ns >= self.timing.failure_timeout_ns {
                    let reason = LossReason::Silent { side: LostSide::Primary, for_ms: silent_ns / 1_000_000 };
                    return self.lose_primary(now_ns, reason);
                }
                if mutated(Mutation::AckBeforeReceive) {
                    self.say(now_ns, &Message::Ack { received: LogSeq(self.receiver.received().0 + 1) });
                }
                if self.outgoing.len() > OUTGOING_BYTES_MAX {
                    return self.lose_primary(now_ns, LossReason::ReadsNothing);
                }
                self.report_consumed(now_ns);
                if now_ns.saturating_sub(self.spoke_ns) >= self.timing.heartbeat_ns {
                    self.say(now_ns, &Message::Heartbeat);
                }
            }
            Mode::Claiming(claiming) => {
                claiming.look(now_ns);
                let request = claiming.poll(now_ns);
                self.actions.extend(request.map(BackupAction::Claim));
            }
            Mode::Draining(_) | Mode::Done => {}
        }
    }

    /// The primary can't be heard because this side isn't listening: its log buffer is full.
    pub fn handle_not_listening(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
    }

    /// Whether there are bytes to send to the primary.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send to the primary, moved to the end of `out`.
    pub fn poll_outgoing(&mut self, out: &mut Vec<u8>) {
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
        if self.consumed != self.receiver.received() && !mutated(Mutation::GoLiveBeforeLastEntry) {
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

/// What an output adds to the tail's bytes.
fn tail_cost(operation: &OutputOperation) -> usize {
    operation.bytes().len() + OUTPUT_OVERHEAD_BYTES
}
