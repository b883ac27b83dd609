//! The primary: it runs the guest, streams the log, and releases no output before the backup has
//! acknowledged its entry.

mod claims;
mod join;
mod lag;
mod link;
mod mode;
mod outputs;
mod pairing;

mod standing;

pub use join::SnapshotCopy;
pub use lag::FULL_SHARE;
pub use standing::stand_in;

use super::{ClaimRequest, DiskLogState, LossReason, Timing};
use crate::claim::{Claim, ClaimKind};
use crate::guest_clock::GuestClock;
use crate::output_gate::OutputGate;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use logchannel::entry::{Generation, LogSeq};
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader};
use mode::Mode;
use standing::Standing;
use vm::{OutputId, OutputOperation, StopReason};

/// When this many bytes wait for the channel, the guest must stop: the backup, or its log buffer,
/// is slow.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// What a primary asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrimaryAction {
    /// Do a test-and-set, and pass the answer to [`PrimaryRole::handle_claim`].
    Claim(ClaimRequest),
    /// Ask the arbiter for the VM's latest claim, and pass the answer to
    /// [`PrimaryRole::handle_latest`].
    CheckClaim,
    /// Do a test-and-set of a flag that the arbiter has lost, and pass the answer to
    /// [`PrimaryRole::handle_refill`].
    Refill(ClaimRequest),
    /// The arbiter has lost this owner's claim; `latest` is the latest that it knows. The role
    /// claims the flags again.
    ClaimsLost {
        /// Its latest flag, if it has any.
        latest: Option<Generation>,
    },
    /// The arbiter knows this owner of this generation again.
    ClaimsRestored(Generation),
    /// The arbiter says that this node owns the VM as this generation, though a LAN refuses it.
    Confirmed(Generation),
    /// The pair of this generation has broken after the arbiter had lost its claims. The backup may
    /// own the VM, so this node stands still.
    Stranded(Generation),
    /// Drop the connection to the backup.
    CloseChannel {
        /// Why the backup is lost.
        reason: LossReason,
    },
    /// This node owns the VM alone, as this generation, and names it when it attaches to the
    /// network next.
    Owner(Generation),
    /// The backup has joined: the pair is protected, and the guest may run.
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
    /// The operator ended a stranded primary, which couldn't know whether its backup owns the VM.
    /// There is no end mark.
    Stranded,
    /// The operator ended the process and kept the VM: its log is on disk, its claim stays this
    /// node's, and it can be resumed.
    Left,
    /// The operator ended `--resume` before it had a log of its own. There is no end mark: the VM
    /// can be resumed again.
    Interrupted,
    /// Another node owns the VM now: nothing more may leave.
    Fenced {
        /// The claim that won the flag.
        holder: Claim,
    },
}

/// The end of the VM, which waits for the guest's outputs.
#[derive(Clone, Debug, Hash)]
struct Stop {
    end: PrimaryEnd,
    /// When it stops waiting for outputs that haven't left.
    outputs_until_ns: u64,
}

/// What a predecessor leaves to the primary that takes over: a backup that goes live, or a log that
/// is resumed.
#[derive(Clone, Debug)]
pub struct Inheritance {
    /// The guest's clock as it goes on; not below the last logged value.
    pub clock: GuestClock,
    /// The next entry of the log.
    pub first: LogSeq,
    /// The next output that the guest makes.
    pub next_output: OutputId,
    /// Outputs before it that the predecessor may not have sent, oldest first.
    pub unsent: VecDeque<(OutputId, OutputOperation)>,
    /// This side's log on disk.
    pub disk_log: DiskLogState,
}

/// The primary's state machine. What any driver of a role must do is said
/// [above](crate::role#the-contract).
///
/// | input | when |
/// |---|---|
/// | [`handle_join`](Self::handle_join) | a backup has connected and wants to join; its connection is the channel from now on |
/// | [`handle_message`](Self::handle_message), [`handle_disconnect`](Self::handle_disconnect) | the channel |
/// | [`handle_entry`](Self::handle_entry) | the recorder has logged something, maybe with an output |
/// | [`handle_flush`](Self::handle_flush) | the entries of a step with an output are all there, or the guest sleeps |
/// | [`handle_copy`](Self::handle_copy) | the copy that was lent is back |
/// | [`handle_carried`](Self::handle_carried), [`handle_attachment`](Self::handle_attachment) | the LAN |
/// | [`handle_console_left`](Self::handle_console_left) | the console's writer |
/// | [`handle_disk_log`](Self::handle_disk_log) | this side's log on disk has got further |
/// | [`handle_clock`](Self::handle_clock) | the guest's clock was started, stopped or set |
/// | [`handle_claim`](Self::handle_claim), [`handle_latest`](Self::handle_latest), [`handle_refill`](Self::handle_refill) | the arbiter's answer to the action of that name |
/// | [`handle_refusal`](Self::handle_refusal) | a LAN says that another owns the VM |
/// | [`handle_retire`](Self::handle_retire), [`handle_leave`](Self::handle_leave) | the operator |
/// | [`handle_tick`](Self::handle_tick) | time has passed |
///
/// What the driver must do beyond that:
/// - The guest runs only while [`may_run`](Self::may_run), with [`share`](Self::share) of the
///   vCPU's time, and for as many steps as [`steps_allowed`](Self::steps_allowed); its clock stands
///   while [`clock_stands`](Self::clock_stands). Each entry reaches the role before the guest does
///   its next step.
/// - An output leaves only by [`poll_released`](Self::poll_released), in that order.
/// - The copy that [`poll_copy`](Self::poll_copy) lends is made of a machine that has consumed all
///   that was appended and whose outputs were taken, and comes back by
///   [`handle_copy`](Self::handle_copy) before the guest runs on.
/// - After [`PrimaryAction::End`] or [`PrimaryAction::HandOver`] the bytes that are left go out;
///   then the role is dropped.
///
/// Invariants: an output is released only while the backup has acknowledged its entry, or in a
/// generation that this node owns alone by a won claim; of a protected pair, `released <= acked <=
/// sent <= appended`, but for what left before the backup had joined, which is `sent` before it is
/// told that it may claim.
#[derive(Clone, Debug, Hash)]
pub struct PrimaryRole {
    mode: Mode,
    node: NodeId,
    session: SessionHeader,
    standing: Standing,
    timing: Timing,
    /// All entries before this are in the log.
    appended: LogSeq,
    gate: OutputGate,
    /// The longest that any backup's replay was behind.
    lag_max_ns: u64,
    /// This side's log on disk.
    disk_log: DiskLogState,
    /// The VM goes on from a log after the death of both sides.
    is_resumed: bool,
    actions: VecDeque<PrimaryAction>,
    /// The guest's clock, as the vCPU thread last changed it.
    clock: GuestClock,
    stop: Option<Stop>,
}

impl PrimaryRole {
    /// A primary that owns generation `session.generation` by a won claim and waits for its backup.
    #[must_use]
    pub fn awaiting_backup(node: NodeId, session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::AwaitingBackup(None), node, session, timing, GuestClock::standing(0), LogSeq(0), OutputId(0))
    }

    /// A primary that owns generation `session.generation` by a won claim and runs alone from the
    /// start.
    #[must_use]
    pub fn alone(node: NodeId, session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::Alone(None), node, session, timing, GuestClock::standing(0), LogSeq(0), OutputId(0))
    }

    /// Takes over from a predecessor as generation `session.generation`. Its unsent outputs wait
    /// until this side's log on disk has all entries below `first`, because the death of both sides
    /// would take back what depends on them.
    #[must_use]
    pub fn gone_live(node: NodeId, session: SessionHeader, timing: Timing, inheritance: Inheritance) -> Self {
        let Inheritance { clock, first, next_output, unsent, disk_log } = inheritance;
        let mut role =
            Self::new(Mode::Alone(None), node, session, timing, clock, first, next_output).with_disk_log(disk_log);
        for (id, operation) in unsent {
            role.gate.hold_unsent(LogSeq(first.0.saturating_sub(1)), id, operation);
        }
        role.release(0);
        role
    }

    /// A primary that goes on from a log on disk after the death of both sides.
    #[must_use]
    pub fn resumed(node: NodeId, session: SessionHeader, timing: Timing, inheritance: Inheritance) -> Self {
        let role = Self::gone_live(node, session, timing, inheritance);
        Self { is_resumed: true, ..role }
    }

    /// Sets the state of this side's log on disk, before any input. Without this call no log is
    /// kept.
    #[must_use]
    pub fn with_disk_log(self, disk_log: DiskLogState) -> Self {
        Self { disk_log, ..self }
    }

    fn new(
        mode: Mode,
        node: NodeId,
        session: SessionHeader,
        timing: Timing,
        clock: GuestClock,
        first: LogSeq,
        next_output: OutputId,
    ) -> Self {
        Self {
            mode,
            node,
            session,
            standing: Standing::new(),
            timing,
            appended: first,
            gate: OutputGate::new(next_output),
            lag_max_ns: 0,
            disk_log: DiskLogState::None,
            is_resumed: false,
            actions: VecDeque::new(),
            clock,
            stop: None,
        }
    }

    /// The session header: the VM, and the generation that this node owns.
    #[must_use]
    pub const fn session(&self) -> &SessionHeader {
        &self.session
    }

    /// The generation that this node owns, alone or with its backup.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.session.generation
    }

    /// This side's intervals and timeouts.
    #[must_use]
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// `true` if a backup acknowledges the log.
    #[must_use]
    pub const fn is_protected(&self) -> bool {
        matches!(self.mode, Mode::Protected(_))
    }

    /// `true` if the guest hasn't run yet because its first backup hasn't joined.
    #[must_use]
    pub const fn is_awaiting_backup(&self) -> bool {
        matches!(self.mode, Mode::AwaitingBackup(_))
    }

    /// `true` if the guest may run now: not before the first backup has joined, not while the gate
    /// or the channel is full or its backup is far behind, and not when the VM is to end.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let is_allowed = match &self.mode {
            Mode::AwaitingBackup(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => false,
            Mode::Alone(_) => true,
            Mode::Protected(backup) => !backup.stream.lag.is_stopped(),
            Mode::Claiming(claiming) => claiming.request.kind == ClaimKind::Owner && !self.is_stranded(),
        };
        is_allowed && !self.gate.is_full() && self.mode.outgoing().len() < OUTGOING_BYTES_MAX
    }

    /// The guest's clock, as [`PrimaryRole::handle_clock`] last changed it.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        &self.clock
    }

    /// `true` if the guest's clock stands because the VM is paused: it hasn't started, or it waits
    /// for the arbiter. A guest that is slowed or stopped because its backup, the channel or the
    /// gate can't take more isn't paused, and neither is a VM in an ordinary failover.
    #[must_use]
    pub fn clock_stands(&self, now_ns: u64) -> bool {
        match &self.mode {
            Mode::AwaitingBackup(_) | Mode::MarkingEnd(..) => true,
            // A side that has handed the VM over, or lost it, says nothing about its clock any
            // more.
            Mode::Alone(_) | Mode::Protected(_) | Mode::Ended(_) => false,
            Mode::Claiming(claiming) => match claiming.request.kind {
                ClaimKind::Owner => claiming.is_pause(now_ns) && !self.may_run(),
                ClaimKind::Ended => true,
            },
        }
    }

    /// The vCPU thread has started or stopped the guest's clock, or left a pause out of it.
    pub fn handle_clock(&mut self, clock: GuestClock) {
        self.clock = clock;
        if let Some(link) = self.mode.link_mut() {
            link.clock_told_ns = None;
        }
    }

    /// The part of the vCPU's time that the guest may have, of [`FULL_SHARE`]: less than all of it
    /// while its backup is behind.
    #[must_use]
    pub const fn share(&self) -> u32 {
        match &self.mode {
            Mode::Protected(backup) => backup.stream.lag.share(),
            Mode::AwaitingBackup(_) | Mode::Alone(_) | Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => {
                FULL_SHARE
            }
        }
    }

    /// The execution lag of the backup, in nanoseconds: now, and the greatest so far.
    #[must_use]
    pub const fn lag_ns(&self) -> (u64, u64) {
        let now_ns = match &self.mode {
            Mode::Protected(backup) => backup.stream.lag.lag_ns(),
            Mode::AwaitingBackup(_) | Mode::Alone(_) | Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => 0,
        };
        (now_ns, self.lag_max_ns)
    }

    /// The output gate, for callers that report its figures.
    #[must_use]
    pub const fn gate(&self) -> &OutputGate {
        &self.gate
    }

    /// Entries appended so far.
    #[must_use]
    pub const fn appended(&self) -> LogSeq {
        self.appended
    }

    /// Time has passed: heartbeats, timeouts, entries that have waited long enough.
    pub fn handle_tick(&mut self, now_ns: u64) {
        self.lose_overdue_backup(now_ns);
        self.check_claim_if_due(now_ns);
        self.ask_again_if_due(now_ns);
        self.flush_if_due(now_ns);
        // Not only with heartbeats: under load there are none, and a backup that goes live sends
        // again what it doesn't know to have left.
        self.tell_left();
        self.correct_lag(now_ns);
        self.end_if_stopped(now_ns);
        self.tell_clock_if_due(now_ns);
    }

    /// Corrects the guest's share of the vCPU. A backup that is still joining doesn't slow the
    /// guest.
    fn correct_lag(&mut self, now_ns: u64) {
        if let Mode::Protected(backup) = &mut self.mode {
            let lag = &mut backup.stream.lag;
            lag.appended(now_ns, self.appended);
            lag.correct(now_ns);
            self.lag_max_ns = self.lag_max_ns.max(lag.lag_ns());
        }
    }

    fn tell_clock_if_due(&mut self, now_ns: u64) {
        let heartbeat_ns = self.timing.heartbeat_ns;
        if self.mode.link_mut().is_some_and(|link| link.is_clock_due(now_ns, heartbeat_ns)) {
            self.tell_clock(now_ns);
        }
    }

    /// Tells the backup what the guest's clock reads; the message is a heartbeat too.
    ///
    /// The clock counts as running as soon as the role lets it run, though the vCPU thread may
    /// start it a moment later. If the primary died in that moment after it had said that its clock
    /// stands, the backup's clock would lose the whole failover.
    fn tell_clock(&mut self, now_ns: u64) {
        let clock = Message::Clock { ticks: self.clock.ticks(now_ns), runs: !self.clock_stands(now_ns) };
        if let Some(link) = self.mode.link_mut() {
            link.tell_clock(now_ns, &clock);
        }
    }

    /// `true` if there are bytes to send to the backup.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.mode.outgoing().is_empty()
    }

    /// Bytes to send to the backup, moved to the end of `out`.
    pub fn poll_outgoing(&mut self, out: &mut Vec<u8>) {
        if let Some(outgoing) = self.mode.outgoing_mut() {
            out.append(outgoing);
        }
    }

    /// The next action for the driver.
    pub fn poll_action(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }
}
