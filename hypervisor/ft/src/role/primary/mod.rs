//! The primary: it runs the guest, streams the log, and lets nothing out that the backup hasn't acknowledged.

mod claims;
mod join;
mod log;
mod pace;
mod pairing;
mod standing;

pub use join::SnapshotCopy;
pub use pace::FULL_SHARE;
pub use standing::stand_in;

use super::{ClaimRequest, Claiming, DiskLogState, LossReason, Timing};
use crate::claim::{Claim, ClaimKind};
use crate::guest_clock::GuestClock;
use crate::mutation::{Mutation, mutated};
use crate::output_gate::{OutputGate, Released};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use join::Join;
use log::Log;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::{Left, Message};
use logchannel::session::{NodeId, SessionHeader};
use pace::Pace;
use standing::Standing;
use vm::{OutputId, OutputOperation, StopReason};

/// Log bytes that are sent without waiting for an output or for [`FLUSH_NS`].
const FLUSH_BYTES: usize = 64 << 10;

/// The longest that an entry waits to be sent when no output asks for it, in nanoseconds.
const FLUSH_NS: u64 = 10_000_000;

/// The longest from one message about the guest's clock to the next, in nanoseconds: under load there are no heartbeats.
const CLOCK_NS: u64 = 1_000_000_000;

/// Bytes that wait for the channel to take them before the guest must stop: it is the backup, or its log buffer, that is
/// slow.
const OUTGOING_BYTES_MAX: usize = 8 << 20;

/// What a primary asks its driver to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrimaryAction {
    /// Do a test-and-set and tell the role its answer.
    Claim(ClaimRequest),
    /// Ask the arbiter for the VM's latest claim, and say [`PrimaryRole::handle_latest`].
    Look,
    /// Do a test-and-set of a flag that the arbiter has lost, and say [`PrimaryRole::handle_refill`].
    Refill(ClaimRequest),
    /// The arbiter doesn't know this owner's claim any more; the latest that it knows is this. The flags are claimed again.
    ClaimsLost {
        /// Its latest flag, if it has any.
        latest: Option<Generation>,
    },
    /// The arbiter knows this owner of this generation again.
    ClaimsRestored(Generation),
    /// The arbiter says that this node owns the VM as this generation, though a LAN refuses it.
    Confirmed(Generation),
    /// The pair of this generation has broken after the arbiter had lost its claims: the backup may own the VM, so this node
    /// stands still.
    Stranded(Generation),
    /// Drop the connection to the backup.
    CloseChannel {
        /// Why.
        reason: LossReason,
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
    /// The operator ended a primary that couldn't know whether its backup owns the VM. There is no end mark.
    Stranded,
    /// The operator left a VM without backup whose log is on disk: it stays this node's, and can be resumed.
    Left,
    /// The operator ended `--resume` before it had a log of its own. There is no end mark: the VM can be resumed again.
    Interrupted,
    /// Another node owns the VM now: nothing more may leave.
    Fenced {
        /// Who won the flag.
        holder: Claim,
    },
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

/// What a predecessor leaves to the primary that takes over: a backup that goes live, or a log that is resumed.
#[derive(Clone, Debug)]
pub struct Inheritance {
    /// The guest's clock goes on as this, which isn't below the last logged value.
    pub clock: GuestClock,
    /// The next entry of the log.
    pub first: LogSeq,
    /// The next output that the guest makes.
    pub next_output: OutputId,
    /// Outputs before it that the predecessor may not have sent, oldest first.
    pub tail: VecDeque<(OutputId, OutputOperation)>,
    /// This side's log on disk.
    pub disk_log: DiskLogState,
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
    node: NodeId,
    session: SessionHeader,
    standing: Standing,
    timing: Timing,
    log: Log,
    gate: OutputGate,
    pace: Pace,
    /// This side's log on disk.
    disk_log: DiskLogState,
    /// The VM goes on from a log after the death of both sides.
    is_resumed: bool,
    outgoing: Vec<u8>,
    actions: VecDeque<PrimaryAction>,
    heard_ns: u64,
    /// When the backup last took memory, or acknowledged something, or had nothing to acknowledge.
    progress_ns: u64,
    spoke_ns: u64,
    /// The guest's clock, as the vCPU thread last changed it, and when the backup was told of it.
    clock: GuestClock,
    clock_told_ns: Option<u64>,
    /// When the oldest entry that isn't sent yet was appended.
    pending_since_ns: Option<u64>,
    told_released: Left,
    stop: Option<PrimaryEnd>,
    /// When the guest came to its end.
    stopped_ns: u64,
}

impl PrimaryRole {
    /// A primary that owns generation `session.generation` by a won claim and waits for its backup.
    #[must_use]
    pub fn awaiting_backup(node: NodeId, session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::AwaitingBackup, node, session, timing, GuestClock::standing(0), LogSeq(0), OutputId(0))
    }

    /// A primary that owns generation `session.generation` by a won claim and runs alone from the start.
    #[must_use]
    pub fn alone(node: NodeId, session: SessionHeader, timing: Timing) -> Self {
        Self::new(Mode::Alone, node, session, timing, GuestClock::standing(0), LogSeq(0), OutputId(0))
    }

    /// Takes over from a predecessor as generation `session.generation`. The tail waits until this side's log on disk has
    /// all entries below `first`, because the death of both sides would take back what depends on them.
    #[must_use]
    pub fn gone_live(node: NodeId, session: SessionHeader, timing: Timing, inheritance: Inheritance) -> Self {
        let Inheritance { clock, first, next_output, tail, disk_log } = inheritance;
        let mut role = Self::new(Mode::Alone, node, session, timing, clock, first, next_output).with_disk_log(disk_log);
        for (id, operation) in tail {
            role.gate.hold_tail(LogSeq(first.0.saturating_sub(1)), id, operation);
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

    /// The same, with the log on disk in this state before anything else is said of it; without it none is kept.
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
            join: None,
            node,
            session,
            standing: Standing::new(),
            log: Log::Unread(first),
            gate: OutputGate::new(next_output),
            pace: Pace::new(timing.lag_bound_ns),
            disk_log: DiskLogState::None,
            is_resumed: false,
            timing,
            outgoing: Vec::new(),
            actions: VecDeque::new(),
            heard_ns: 0,
            progress_ns: 0,
            spoke_ns: 0,
            clock,
            clock_told_ns: None,
            pending_since_ns: None,
            told_released: Left::all_below(next_output),
            stop: None,
            stopped_ns: 0,
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

    /// How long this side waits for what.
    #[must_use]
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Whether a backup acknowledges the log.
    #[must_use]
    pub const fn is_protected(&self) -> bool {
        matches!(self.mode, Mode::Protected)
    }

    /// Whether the guest hasn't run yet, as its first backup hasn't joined.
    #[must_use]
    pub const fn is_awaiting_backup(&self) -> bool {
        matches!(self.mode, Mode::AwaitingBackup)
    }

    /// Whether the guest may run now: not before the first backup has come, not when the gate or the channel is full, not
    /// while its backup is far behind, not when it is to end.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let is_owner = match &self.mode {
            Mode::AwaitingBackup | Mode::Ended => false,
            Mode::Alone | Mode::Protected => true,
            Mode::Claiming(claiming) => claiming.request.kind == ClaimKind::Owner && !self.is_stranded(),
        };
        is_owner && !self.gate.is_full() && self.outgoing.len() < OUTGOING_BYTES_MAX && !self.pace.is_stopped()
    }

    /// The guest's clock, as [`PrimaryRole::handle_clock`] last changed it.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        &self.clock
    }

    /// Whether the guest's clock stands, because the VM is paused: it hasn't started, or it waits for the arbiter. A guest that
    /// is slowed or stopped because its backup, the channel or the gate can't take more isn't paused, and neither is a VM in
    /// an ordinary failover.
    #[must_use]
    pub fn clock_stands(&self, now_ns: u64) -> bool {
        match &self.mode {
            Mode::AwaitingBackup => true,
            // Who has handed the VM over, or lost it, says nothing about its clock any more.
            Mode::Alone | Mode::Protected | Mode::Ended => false,
            Mode::Claiming(claiming) => match claiming.request.kind {
                ClaimKind::Owner => claiming.is_pause(now_ns) && !self.may_run(),
                ClaimKind::Ended => true,
            },
        }
    }

    /// The vCPU thread has started or stopped the guest's clock, or left a pause out.
    pub fn handle_clock(&mut self, clock: GuestClock) {
        self.clock = clock;
        self.clock_told_ns = None;
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
    pub fn handle_entry(&mut self, now_ns: u64, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) {
        if matches!(self.mode, Mode::Ended) {
            return;
        }
        let seq = self.log.append(entry);
        if let Some((id, operation)) = output {
            self.gate.hold(now_ns, seq, id, operation);
        }
        if let EntryBody::Stopped(reason) = entry.body {
            self.stop = Some(PrimaryEnd::GuestStopped(reason));
            self.stopped_ns = now_ns;
        }
        if mutated(Mutation::SkipOutputRule) {
            self.gate.release_all(now_ns);
        }
        self.release(now_ns);
        if let Log::Streamed(sender) = &self.log {
            self.pending_since_ns.get_or_insert(now_ns);
            if sender.pending_bytes() >= FLUSH_BYTES {
                self.handle_flush(now_ns);
            }
        }
        self.end_if_stopped(now_ns);
    }

    /// Puts what has been appended into [`poll_outgoing`](Self::poll_outgoing).
    pub fn handle_flush(&mut self, now_ns: u64) {
        if let Log::Streamed(sender) = &mut self.log {
            if sender.acked() == sender.sent() {
                self.progress_ns = now_ns;
            }
            while sender.take_frame(&mut self.outgoing) {
                self.spoke_ns = now_ns;
            }
            if mutated(Mutation::ReleaseOnSend) {
                self.gate.release(now_ns, sender.sent());
            }
            self.pending_since_ns = None;
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
        self.gate.release(now_ns, self.disk_log.limit(allowed));
    }

    /// The log on disk has got to this state. Two threads may tell it, so that an earlier state may come after a later one.
    pub fn handle_disk_log(&mut self, now_ns: u64, disk_log: DiskLogState) {
        self.disk_log = self.disk_log.max(disk_log);
        self.release(now_ns);
    }

    /// Time has passed: heartbeats, timeouts, entries that have waited long enough.
    pub fn handle_tick(&mut self, now_ns: u64) {
        self.lose_silent_backup(now_ns);
        self.look_if_due(now_ns);
        if let Mode::Claiming(claiming) = &mut self.mode {
            claiming.look(now_ns);
        }
        if let Mode::Claiming(claiming) = &mut self.mode
            && self.standing.may_claim()
        {
            let request = claiming.poll(now_ns);
            self.actions.extend(request.map(PrimaryAction::Claim));
        }
        if self.pending_since_ns.is_some_and(|since| now_ns >= since + FLUSH_NS) {
            self.handle_flush(now_ns);
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
        self.end_if_stopped(now_ns);
        let is_silent = now_ns.saturating_sub(self.spoke_ns) >= self.timing.heartbeat_ns;
        let is_clock_due = self.clock_told_ns.is_none_or(|told_ns| now_ns.saturating_sub(told_ns) >= CLOCK_NS);
        if self.has_backup() && (is_silent || is_clock_due) {
            self.tell_clock(now_ns);
        }
    }

    /// Tells the backup what the guest's clock reads, and with that that this side is still here.
    ///
    /// It runs as soon as the role lets it, though the vCPU thread may start it a moment later: a primary that dies in that
    /// moment would leave a clock behind that stands, and cost the guest the whole failover.
    fn tell_clock(&mut self, now_ns: u64) {
        Message::Clock { ticks: self.clock.ticks(now_ns), runs: !self.clock_stands(now_ns) }.encode(&mut self.outgoing);
        self.spoke_ns = now_ns;
        self.clock_told_ns = Some(now_ns);
    }

    /// Whether there are bytes to send to the backup.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send to the backup, moved to the end of `out`.
    pub fn poll_outgoing(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.outgoing);
    }

    /// The next output that may leave. Say [`PrimaryRole::handle_carried`] of a frame, and
    /// [`PrimaryRole::handle_console_left`] of console output.
    pub fn poll_released(&mut self) -> Option<Released> {
        self.gate.take_released()
    }

    /// All console output below `next` has been written, or dropped because nobody reads it.
    pub fn handle_console_left(&mut self, next: OutputId) {
        self.gate.console_left(next);
    }

    /// The network has carried all frames below `next`.
    pub fn handle_carried(&mut self, next: OutputId) {
        self.gate.carried(next);
    }

    /// The network is there (again) and has carried all frames below `next`: what follows is to be taken again.
    pub fn handle_attachment(&mut self, next: OutputId) {
        self.gate.send_again(next);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }
}
