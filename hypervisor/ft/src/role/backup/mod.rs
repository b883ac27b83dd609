//! The backup: it acknowledges the log as it arrives, replays it, and goes live when it wins the
//! pair's flag.

mod joining;
mod log;
mod mode;
mod take_over;
mod unsent;

use super::{ClaimRequest, DiskLogState, LossReason, LostSide, Timing, message_name};
use crate::claim::Claim;
use crate::guest_clock::{GuestClock, PrimaryClock};
use crate::mutation::{Mutation, mutated};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use joining::{Joining, Progress};
use log::ReceivedLog;
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::message::{EntryBatch, Message};
use logchannel::session::{ImageDigest, NodeId, SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot};
use mode::{Following, Listening, Mode, Stage, TakeOver};
use unsent::UnsentOutputs;
use vm::{InstructionCount, OutputId, OutputOperation, StopReason};

/// The most bytes that wait for the primary to read them. Acknowledgements of a whole log buffer
/// are fewer, so that a primary behind which more waits isn't reading.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// What a backup's operator expects of the VM.
#[derive(Clone, Debug, Hash)]
pub struct Expectation {
    /// The VM to back up.
    pub vm: VmId,
    /// The guest's image, if the operator named one, and how they named it.
    pub image: Option<(String, ImageDigest)>,
}

/// What a backup asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackupAction {
    /// The primary has a backup already; this side waits until it is gone.
    Waits,
    /// Begin to restore a machine of this session.
    Begin(SessionHeader),
    /// Ask this side's arbiter for the VM's latest claim, and pass the answer to
    /// [`BackupRole::handle_owner`].
    CheckOwner,
    /// The machine is restored, the arbiter knows the primary as the owner, and the primary is told
    /// so.
    Joined,
    /// Put these pages into the machine's memory.
    Pages(Pages),
    /// Restore the machine's other state, then call [`BackupRole::handle_restored`] or
    /// [`BackupRole::handle_restore_failure`].
    Restore(Snapshot),
    /// The primary holds its outputs for this backup now.
    Protected(Generation),
    /// Replay these entries, in order.
    Consume(VecDeque<LogEntry>),
    /// The primary is lost: stop listening to it.
    Lost {
        /// How it was lost.
        reason: LossReason,
    },
    /// Do a test-and-set, and pass the answer to [`BackupRole::handle_claim`].
    Claim(ClaimRequest),
    /// The arbiter has lost the claim of the primary that is gone. Whether that primary has won the
    /// pair's flag can't be known, so this side waits. Reported once.
    ClaimsLost(Generation),
    /// The flag is won and the log consumed: run the guest as this generation.
    GoLive(Generation),
    /// Stop: this side is over.
    End(BackupEnd),
}

/// How a backup came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackupEnd {
    /// The guest ended by itself on the primary, and here too.
    GuestStopped(StopReason),
    /// The other node owns the VM.
    Fenced {
        /// The claim that won the flag.
        holder: Claim,
    },
    /// The primary was lost before it told this backup that it protects the VM: it must not claim.
    Unprotected {
        /// How the primary was lost.
        reason: LossReason,
    },
    /// This side isn't needed: the peer is no primary, or was lost while this side waited for
    /// another backup to go. The driver looks for a primary again.
    NoPlace {
        /// How the peer was lost.
        reason: LossReason,
    },
    /// The session, the snapshot or the owner is not what this side can back up.
    Refused {
        /// Why, for the operator.
        reason: String,
    },
    /// Replay did something else than the log says: this side's state can't be trusted.
    Diverged,
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

/// The backup's state machine. What any driver of a role must do is said
/// [above](crate::role#the-contract).
///
/// | input | when |
/// |---|---|
/// | [`handle_message`](Self::handle_message), [`handle_disconnect`](Self::handle_disconnect) | the channel |
/// | [`handle_not_listening`](Self::handle_not_listening) | the driver doesn't read the channel, because its buffer is full |
/// | [`handle_owner`](Self::handle_owner), [`handle_claim`](Self::handle_claim) | the arbiter's answer to [`BackupAction::CheckOwner`] and [`BackupAction::Claim`] |
/// | [`handle_restored`](Self::handle_restored), [`handle_restore_failure`](Self::handle_restore_failure) | the machine of [`BackupAction::Restore`] stands, or can't |
/// | [`handle_output`](Self::handle_output) | the replay has made an output |
/// | [`handle_consumed`](Self::handle_consumed) | the replay has consumed entries |
/// | [`handle_divergence`](Self::handle_divergence) | the replay did something else than the log says |
/// | [`handle_disk_log`](Self::handle_disk_log), [`handle_disk_wait`](Self::handle_disk_wait) | this side's log on disk has got further, or is waited for |
/// | [`handle_tick`](Self::handle_tick) | time has passed |
///
/// What the driver must do beyond that:
/// - Memory, snapshot and entries are restored and replayed in the order of the actions. The
///   acknowledgement that the role sends doesn't wait for that: it goes first.
/// - The outputs of an entry come by [`handle_output`](Self::handle_output), in the order of their
///   ids, before the entry counts as consumed.
/// - At [`BackupAction::GoLive`] the machine has consumed the last entry. The driver builds the
///   primary's [`Inheritance`](super::Inheritance) from [`take_unsent`](Self::take_unsent),
///   [`next_output`](Self::next_output), [`cursors`](Self::cursors) and
///   [`take_over_clock`](Self::take_over_clock), and drops this role.
/// - After [`BackupAction::End`] the bytes that are left go out; then the role is dropped.
///
/// Invariants: an acknowledgement names only entries that are in the log buffer; a primary is
/// accepted only when the arbiter knows it, by its node, as the owner of its generation; a claim is
/// made only by a backup that was told that it protects the VM and that hasn't diverged; it goes
/// live only with a won claim and nothing left to consume.
#[derive(Clone, Debug, Hash)]
pub struct BackupRole {
    mode: Mode,
    node: NodeId,
    expectation: Expectation,
    timing: Timing,
    /// Bytes that wait for the channel. They are sent even after the end, so that the primary hears
    /// of a refusal.
    outgoing: Vec<u8>,
    actions: VecDeque<BackupAction>,
    unsent: UnsentOutputs,
    /// This side's log on disk.
    disk_log: DiskLogState,
    /// The guest's clock, once the primary has told it: it does before it tells this side that it
    /// is protected.
    clock: Option<PrimaryClock>,
    moments: BackupMoments,
}

impl BackupRole {
    /// A backup that has just connected to a primary.
    #[must_use]
    pub fn new(now_ns: u64, node: NodeId, expectation: Expectation, timing: Timing) -> Self {
        let mut outgoing = Vec::new();
        Message::Join { vm: expectation.vm.clone(), node }.encode(&mut outgoing);
        Self {
            mode: Mode::Listening(Listening { heard_ns: now_ns, spoke_ns: now_ns, stage: Stage::Connecting }),
            node,
            expectation,
            timing,
            outgoing,
            actions: VecDeque::new(),
            unsent: UnsentOutputs::new(),
            disk_log: DiskLogState::None,
            clock: None,
            moments: BackupMoments::default(),
        }
    }

    /// Sets the state of this side's log on disk, before any input. Without this call no log is
    /// kept.
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
    pub fn cursors(&self) -> (LogSeq, LogSeq) {
        self.mode.log().map_or((LogSeq(0), LogSeq(0)), |log| (log.received(), log.consumed()))
    }

    /// How many outputs were dropped because the primary never told that it had
    /// released them.
    #[must_use]
    pub const fn unsent_dropped(&self) -> u64 {
        self.unsent.dropped()
    }

    /// Takes the outputs that the primary may not have sent, oldest first: the new owner sends them
    /// before any other.
    pub fn take_unsent(&mut self) -> VecDeque<(OutputId, OutputOperation)> {
        self.unsent.take()
    }

    /// The outputs that the primary may not have sent, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = &(OutputId, OutputOperation)> {
        self.unsent.outputs()
    }

    /// One past the last output that replay has produced.
    #[must_use]
    pub const fn next_output(&self) -> OutputId {
        self.unsent.next()
    }

    /// The primary said something.
    pub fn handle_message(&mut self, now_ns: u64, message: Message) {
        // What a lost primary still had in flight comes after the point where this side stopped
        // acknowledging.
        let Mode::Listening(listening) = &mut self.mode else { return };
        listening.heard_ns = now_ns;
        match (message, &mut listening.stage) {
            (Message::Heartbeat, _) => {}
            (Message::Goodbye { reason }, _) => {
                self.lose_primary(now_ns, LossReason::Goodbye { side: LostSide::Primary, reason });
            }
            (Message::Session { header, owner }, Stage::Connecting | Stage::Waiting) => self.begin(header, owner),
            (Message::Wait, Stage::Waiting) => {}
            (Message::Wait, stage @ Stage::Connecting) => {
                *stage = Stage::Waiting;
                self.actions.push_back(BackupAction::Waits);
            }
            (Message::NoPrimary, Stage::Connecting) => {
                self.end(BackupEnd::NoPlace { reason: LossReason::NoPrimary });
            }
            (Message::Refused { reason }, Stage::Connecting | Stage::Waiting) => {
                self.end(BackupEnd::Refused { reason: format!("the primary refused: {reason}") });
            }
            (Message::Clock { ticks, runs }, Stage::Joining(_) | Stage::Following(_)) => {
                self.hear_clock(now_ns, ticks, runs);
            }
            (message, Stage::Joining(Joining { progress: Progress::Receiving, .. })) => {
                self.receive_memory(now_ns, message);
            }
            (Message::Entries(batch), Stage::Joining(_) | Stage::Following(_)) => self.receive(now_ns, &batch),
            (Message::Released(left), Stage::Joining(_) | Stage::Following(_)) => self.unsent.forget(left),
            (Message::Protected { generation }, Stage::Following(following))
                if generation == following.pair.generation =>
            {
                following.is_told = true;
                self.actions.push_back(BackupAction::Protected(generation));
            }
            (message, Stage::Connecting | Stage::Waiting | Stage::Joining(_) | Stage::Following(_)) => {
                self.refuse_message(&message);
            }
        }
    }

    fn hear_clock(&mut self, now_ns: u64, ticks: u64, runs: bool) {
        let told = if runs { GuestClock::running(ticks, now_ns) } else { GuestClock::standing(ticks) };
        match &mut self.clock {
            Some(clock) => clock.hear(told, now_ns),
            None => self.clock = Some(PrimaryClock::new(told, now_ns)),
        }
    }

    fn receive(&mut self, now_ns: u64, batch: &EntryBatch) {
        let Some(log) = self.mode.log_mut() else { return };
        match log.receive(batch) {
            Ok(entries) => {
                let received = log.received();
                self.say(now_ns, &Message::Ack { received });
                self.moments.last_entry_received_ns = now_ns;
                self.actions.push_back(BackupAction::Consume(entries));
            }
            // A primary that sends nonsense is lost, and what it sent before is good.
            Err(error) => self.lose_primary(now_ns, LossReason::BadLog(error.to_string())),
        }
    }

    /// The replayer has consumed all entries below `consumed`; its machine stands at `count`.
    ///
    /// # Panics
    /// If that takes something back, or is more than was received: the driver's bug.
    pub fn handle_consumed(&mut self, now_ns: u64, consumed: LogSeq, count: InstructionCount) {
        let Some(log) = self.mode.log_mut() else { return };
        log.consume(consumed, count);
        self.moments.last_entry_consumed_ns = now_ns;
        self.report_consumed(now_ns);
        self.finish_if_drained();
    }

    /// Reports the consumed position to the primary, when it is time to.
    fn report_consumed(&mut self, now_ns: u64) {
        if let Mode::Listening(Listening { stage: Stage::Following(Following { log, .. }), .. }) = &mut self.mode
            && let Some(report) = log.report(now_ns)
        {
            self.say(now_ns, &report);
        }
    }

    /// Replay produced an output, as the primary did. The role keeps it until the primary is known
    /// to have sent it.
    pub fn handle_output(&mut self, id: OutputId, operation: OutputOperation) {
        self.unsent.keep(id, operation);
    }

    /// The replayer found a divergence: this side halts and never goes live.
    pub fn handle_divergence(&mut self, now_ns: u64, reason: &str) {
        if matches!(self.mode, Mode::Done(_)) {
            return;
        }
        self.say(now_ns, &Message::Goodbye { reason: reason.into() });
        self.end(BackupEnd::Diverged);
    }

    /// Time has passed: heartbeats, timeouts, claims to ask again.
    pub fn handle_tick(&mut self, now_ns: u64) {
        let is_paused = matches!(&self.mode, Mode::Claiming(TakeOver { claiming, .. }) if claiming.is_pause(now_ns));
        if let Some(clock) = &mut self.clock {
            clock.pass(now_ns, is_paused);
        }
        match &mut self.mode {
            Mode::Listening(_) => self.keep_in_touch(now_ns),
            Mode::Claiming(TakeOver { claiming, .. }) => {
                claiming.pass_time(now_ns);
                let request = claiming.poll(now_ns);
                self.actions.extend(request.map(BackupAction::Claim));
            }
            Mode::Draining(..) | Mode::Done(_) => {}
        }
    }

    /// Gives up a primary that was silent too long, and sends it heartbeats.
    fn keep_in_touch(&mut self, now_ns: u64) {
        let Mode::Listening(Listening { heard_ns, .. }) = self.mode else { return };
        self.check_again_if_due(now_ns);
        let silent_ns = now_ns.saturating_sub(heard_ns);
        if silent_ns >= self.timing.failure_timeout_ns {
            let reason = LossReason::Silent { side: LostSide::Primary, for_ms: silent_ns / 1_000_000 };
            return self.lose_primary(now_ns, reason);
        }
        if mutated(Mutation::AckBeforeReceive) {
            let received = self.mode.log().map_or(LogSeq(0), ReceivedLog::received);
            self.say(now_ns, &Message::Ack { received: received.next() });
        }
        if self.outgoing.len() > OUTGOING_BYTES_MAX {
            return self.lose_primary(now_ns, LossReason::ReadsNothing);
        }
        self.report_consumed(now_ns);
        if let Mode::Listening(Listening { spoke_ns, .. }) = self.mode
            && now_ns.saturating_sub(spoke_ns) >= self.timing.heartbeat_ns
        {
            self.say(now_ns, &Message::Heartbeat);
        }
    }

    /// The primary can't be heard because this side isn't listening: its log buffer is full.
    pub fn handle_not_listening(&mut self, now_ns: u64) {
        if let Mode::Listening(listening) = &mut self.mode {
            listening.heard_ns = now_ns;
        }
    }

    /// `true` if there are bytes to send to the primary.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send to the primary, moved to the end of `out`.
    pub fn poll_outgoing(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.outgoing);
    }

    /// The next action for the driver.
    pub fn poll_action(&mut self) -> Option<BackupAction> {
        self.actions.pop_front()
    }

    fn say(&mut self, now_ns: u64, message: &Message) {
        message.encode(&mut self.outgoing);
        if let Mode::Listening(listening) = &mut self.mode {
            listening.spoke_ns = now_ns;
        }
    }

    fn refuse(&mut self, reason: String) {
        Message::Refused { reason: reason.clone() }.encode(&mut self.outgoing);
        self.end(BackupEnd::Refused { reason });
    }

    fn refuse_message(&mut self, message: &Message) {
        self.refuse(format!("the primary broke the protocol with {}", message_name(message)));
    }
}
