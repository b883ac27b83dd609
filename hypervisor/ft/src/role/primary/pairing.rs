//! The primary and its backup: how one joins, what it says, how it is lost.

use super::join::{Join, SnapshotCopy};
use super::log::Log;
use super::{Mode, PrimaryAction, PrimaryRole};
use crate::claim::ClaimKind;
use crate::mutation::{Mutation, mutated};
use crate::page_copy;
use crate::role::{LossReason, LostSide, message_name};
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use logchannel::session::VmId;
use logchannel::snapshot::{Snapshot, TailOutput};
use logchannel::stream::LogSender;
use vm::{Machine, StateDigest};

impl PrimaryRole {
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

    /// Whether a backup of `vm` that may not join now may later: there is one already, or it is open for the moment whether this
    /// node owns the VM.
    #[must_use]
    pub fn may_take_backup_later(&self, vm: &VmId) -> bool {
        let is_taken = self.has_backup() || matches!(self.mode, Mode::Claiming(_));
        is_taken && *vm == self.session.vm
    }

    /// A backup of `vm` joins: it gets the session, and then the guest's memory.
    ///
    /// # Errors
    /// As [`PrimaryRole::can_take_backup`].
    pub fn handle_join(&mut self, now_ns: u64, vm: &VmId) -> Result<(), String> {
        self.can_take_backup(vm)?;
        Message::Session { header: self.session.clone(), owner: self.node }.encode(&mut self.outgoing);
        // The backup asks its arbiter the same: a claim that is lost is better found before it does.
        self.look();
        (self.heard_ns, self.spoke_ns, self.progress_ns) = (now_ns, now_ns, now_ns);
        // It needs the clock only when it may claim.
        self.clock_told_ns = Some(now_ns);
        self.join = Some(Join::asked());
        Ok(())
    }

    /// Whether a backup is joining that hasn't got the guest's memory yet.
    #[must_use]
    pub const fn is_copying(&self) -> bool {
        matches!(&self.join, Some(join) if join.is_copying())
    }

    /// Whether the driver is to say [`PrimaryRole::poll_copy`]: a backup needs memory, and the channel has room.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.join.as_ref().is_some_and(|join| join.wants_copy(self.outgoing.len()))
    }

    /// Lends the copy for a backup that is joining to the driver, which copies a piece with it and then says
    /// [`PrimaryRole::handle_copy`]. It takes a while, in which the role can do everything else.
    pub fn poll_copy(&mut self) -> Option<SnapshotCopy> {
        if !self.wants_copy() {
            return None;
        }
        match &mut self.join {
            Some(Join::Copying(copy)) => copy.take(),
            Some(Join::Restoring) | None => None,
        }
    }

    /// The driver has copied a piece. If it was the last, the snapshot stands at the end of the log, and has all outputs that
    /// aren't known to have left.
    ///
    /// A backup that has been lost meanwhile needs it no more, and its successor begins anew.
    pub fn handle_copy(&mut self, now_ns: u64, mut copy: SnapshotCopy) {
        let Some(join @ Join::Copying(None)) = &mut self.join else { return };
        self.outgoing.append(&mut copy.bytes);
        match copy.complete.take() {
            None => *join = Join::Copying(Some(copy)),
            Some((digest, state)) => {
                *join = Join::Restoring;
                self.end_snapshot(digest, state);
            }
        }
        (self.spoke_ns, self.progress_ns) = (now_ns, now_ns);
    }

    /// Copies a piece of the machine for a backup that is joining, for drivers whose role nobody else waits for.
    pub fn copy_snapshot(&mut self, now_ns: u64, machine: &mut Machine) {
        if let Some(mut copy) = self.poll_copy() {
            copy.copy_piece(machine);
            self.handle_copy(now_ns, copy);
        }
    }

    /// How many of `steps` steps the guest may run now, as far as the copy for a backup that joins is concerned: `None` if it has
    /// to stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        match &self.join {
            Some(Join::Copying(Some(copy))) => page_copy::steps_allowed(steps, machine, copy.pages()),
            Some(Join::Copying(None) | Join::Restoring) | None => Some(steps),
        }
    }

    fn end_snapshot(&mut self, digest: StateDigest, state: Vec<u8>) {
        let seq = self.log.appended();
        // Also those that a log on disk still holds: the log from here on tells of none of them.
        for (id, operation) in self.gate.not_left() {
            if !mutated(Mutation::ForgetTailInSnapshot) {
                Message::Tail(TailOutput { id, operation: (*operation).clone() }).encode(&mut self.outgoing);
            }
        }
        Message::Snapshot(Snapshot { seq, digest, state }).encode(&mut self.outgoing);
        // What the backup can't know of, it gets from here on; what it knows of, it keeps until it is told.
        let first = if mutated(Mutation::SnapshotTooEarly) { LogSeq(seq.0 + 1) } else { seq };
        self.log = Log::Streamed(LogSender::new(first));
        self.told_released = self.gate.left();
        self.pace.consumed(seq);
    }

    /// The backup said something.
    pub fn handle_message(&mut self, now_ns: u64, message: Message) {
        // A primary that was suspended finds old acknowledgements in its socket. The backup may have gone live since.
        self.lose_silent_backup(now_ns);
        self.heard_ns = now_ns;
        match (message, &self.mode, &self.join) {
            (Message::Accepted, Mode::AwaitingBackup | Mode::Alone, Some(Join::Restoring)) => {
                // What has left unheld, the backup must have before it may claim.
                self.handle_flush(now_ns);
                // From here on outputs are held; only after that is the backup told that it may claim.
                if !mutated(Mutation::TellBeforeHolding) {
                    self.mode = Mode::Protected;
                }
                self.join = None;
                self.tell_clock(now_ns);
                let generation = self.session.generation;
                self.standing.backup_told();
                Message::Protected { generation }.encode(&mut self.outgoing);
                self.actions.push_back(PrimaryAction::Protected(generation));
            }
            (Message::Ack { received }, _, _) if self.is_streaming() => self.acknowledged(now_ns, received),
            (Message::Consumed { consumed, .. }, _, _) => self.pace.consumed(consumed),
            // A backup that waits for its disk gets on.
            (Message::Storing, _, Some(_)) => self.progress_ns = now_ns,
            (Message::Heartbeat, _, _) => {}
            (Message::Refused { reason }, _, Some(_)) => {
                self.lose_backup(LossReason::RefusedSession(reason));
            }
            (Message::Goodbye { reason }, _, _) => {
                self.lose_backup(LossReason::Goodbye { side: LostSide::Backup, reason });
            }
            (message, Mode::Protected, _) | (message, _, Some(_)) => {
                self.lose_backup(LossReason::BrokeProtocol(message_name(&message)));
            }
            // Late words of a backup that is lost already.
            (_, Mode::AwaitingBackup | Mode::Alone | Mode::Claiming(_) | Mode::Ended, None) => {}
        }
    }

    pub(super) fn acknowledged(&mut self, now_ns: u64, received: LogSeq) {
        let Log::Streamed(sender) = &mut self.log else { return };
        match sender.acknowledge(received) {
            Ok(()) => {
                self.progress_ns = now_ns;
                self.standing.acknowledged(received);
                self.release(now_ns);
                self.end_if_stopped(now_ns);
            }
            Err(error) => self.lose_backup(LossReason::BadLog(error.to_string())),
        }
    }

    /// The connection to the backup is gone.
    pub fn handle_disconnect(&mut self, reason: &str) {
        self.lose_backup(LossReason::Disconnected(reason.into()));
    }

    /// Gives a backup up that hasn't been heard for too long.
    pub(super) fn lose_silent_backup(&mut self, now_ns: u64) {
        let silent_ns = now_ns.saturating_sub(self.heard_ns);
        if self.has_backup() && silent_ns >= self.timing.failure_timeout_ns {
            self.lose_backup(LossReason::Silent { side: LostSide::Backup, for_ms: silent_ns / 1_000_000 });
        }
        // One that lives and gets nowhere would keep its place from others, and outputs from their receivers.
        let stuck_ns = now_ns.saturating_sub(self.progress_ns);
        let is_waited_for = match &self.log {
            Log::Streamed(sender) => self.join.is_some() || sender.acked() < sender.sent(),
            Log::Unread(_) => self.join.is_some(),
        };
        if self.has_backup() && is_waited_for && stuck_ns >= self.timing.progress_timeout_ns() {
            self.lose_backup(LossReason::Stuck { for_ms: stuck_ns / 1_000_000 });
        }
        // One that receives and doesn't replay, as with a disk that hangs, would stop the guest for ever.
        let stuck_ns = self.pace.stuck_ns(now_ns);
        if stuck_ns >= self.timing.progress_timeout_ns() && !mutated(Mutation::WaitForReplay) {
            self.lose_backup(LossReason::ReplaysNothing { for_ms: stuck_ns / 1_000_000 });
        }
    }

    pub(super) fn lose_backup(&mut self, reason: LossReason) {
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

    /// Whether somebody is at the other end of the channel.
    pub(super) const fn has_backup(&self) -> bool {
        matches!(self.mode, Mode::Protected) || self.join.is_some()
    }

    pub(super) const fn is_streaming(&self) -> bool {
        matches!(self.log, Log::Streamed(_))
    }

    /// Tells the backup which outputs it will not have to send at go-live.
    pub(super) fn tell_released(&mut self) {
        let mut left = self.gate.left();
        left.frames.0 += u64::from(mutated(Mutation::TellReleasedTooEarly));
        if left.frames > self.told_released.frames || left.console > self.told_released.console {
            self.told_released = left;
            Message::Released(left).encode(&mut self.outgoing);
        }
    }
}
