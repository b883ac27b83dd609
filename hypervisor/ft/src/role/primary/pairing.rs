//! The primary and its backup: how it joins, its messages, how it is lost.

use super::join::{Join, SnapshotCopy};
use super::link::{Link, Stream};
use super::mode::{Backup, Joiner, Mode};
use super::{PrimaryAction, PrimaryRole};
use crate::claim::ClaimKind;
use crate::mutation::{Mutation, mutated};
use crate::page_copy;
use crate::role::{LossReason, LostSide, message_name};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use logchannel::session::VmId;
use logchannel::snapshot::{Snapshot, UnsentOutput};
use vm::{Machine, StateDigest};

impl PrimaryRole {
    /// Checks that a backup of `vm` may join now.
    ///
    /// # Errors
    /// Why it may not, in words for its operator.
    pub fn can_take_backup(&self, vm: &VmId) -> Result<(), String> {
        if *vm != self.session.vm {
            return Err(format!("this is the primary of VM {}, not of {vm}", self.session.vm));
        }
        match &self.mode {
            Mode::AwaitingBackup(None) | Mode::Alone(None) => Ok(()),
            Mode::AwaitingBackup(Some(_)) | Mode::Alone(Some(_)) | Mode::Protected(_) => {
                Err("this primary has a backup already".into())
            }
            Mode::Claiming(_) | Mode::MarkingEnd(..) => {
                Err("this primary is not sure yet that the VM is its own: try again".into())
            }
            Mode::Ended(_) => Err("this primary has ended".into()),
        }
    }

    /// `true` if a backup of `vm` that may not join now may join later: this side has another
    /// backup, or it isn't decided yet whether this node owns the VM.
    #[must_use]
    pub fn may_take_backup_later(&self, vm: &VmId) -> bool {
        let is_taken = self.mode.has_backup() || self.mode.claiming().is_some();
        is_taken && *vm == self.session.vm
    }

    /// A backup of `vm` joins: the role sends it the session, and then the guest's memory.
    ///
    /// # Errors
    /// As [`PrimaryRole::can_take_backup`].
    pub fn handle_join(&mut self, now_ns: u64, vm: &VmId) -> Result<(), String> {
        self.can_take_backup(vm)?;
        let mut link = Link::new(now_ns);
        link.put(&Message::Session { header: self.session.clone(), owner: self.node });
        if let Mode::AwaitingBackup(joiner) | Mode::Alone(joiner) = &mut self.mode {
            *joiner = Some(Box::new(Joiner { link, join: Join::asked() }));
        }
        // The backup asks its arbiter the same question: a lost claim should be found here first.
        self.check_claim();
        Ok(())
    }

    /// `true` if a backup is joining that doesn't have the guest's memory yet.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.mode.joiner().is_some_and(|joiner| joiner.join.is_copying())
    }

    /// `true` if the driver is to call [`PrimaryRole::poll_copy`]: a backup needs memory, and the
    /// channel has room.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        self.mode.joiner().is_some_and(|joiner| joiner.join.wants_copy(joiner.link.outgoing.len()))
    }

    /// Lends the driver the copy for a joining backup. The driver copies a piece with it and
    /// returns it by [`PrimaryRole::handle_copy`]. Copying takes a while, in which the role can do
    /// everything else.
    pub fn poll_copy(&mut self) -> Option<SnapshotCopy> {
        if !self.wants_copy() {
            return None;
        }
        match &mut self.mode.joiner_mut()?.join {
            Join::Copying(copy) => copy.take(),
            Join::Restoring(_) => None,
        }
    }

    /// The driver has copied a piece. After the last one, the snapshot's position is the end of the
    /// log, and the snapshot has all outputs that aren't known to have left.
    ///
    /// If the backup has been lost meanwhile, the copy is dropped: the next backup's begins anew.
    pub fn handle_copy(&mut self, now_ns: u64, mut copy: SnapshotCopy) {
        let Some(Joiner { link, join: join @ Join::Copying(None) }) = self.mode.joiner_mut() else { return };
        link.outgoing.append(&mut copy.bytes);
        (link.spoke_ns, link.progress_ns) = (now_ns, now_ns);
        match copy.complete.take() {
            None => *join = Join::Copying(Some(copy)),
            Some((digest, state)) => self.end_snapshot(digest, state),
        }
    }

    /// Copies a piece of the machine for a joining backup; for drivers that don't share the role
    /// between threads.
    pub fn copy_snapshot(&mut self, now_ns: u64, machine: &mut Machine) {
        if let Some(mut copy) = self.poll_copy() {
            copy.copy_piece(machine);
            self.handle_copy(now_ns, copy);
        }
    }

    /// How many of `steps` steps the guest may run now while memory is copied for a joining backup;
    /// `None` if it has to stand still until more is copied.
    #[must_use]
    pub fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        match self.mode.joiner().map(|joiner| &joiner.join) {
            Some(Join::Copying(Some(copy))) => page_copy::steps_allowed(steps, machine, copy.pages()),
            Some(Join::Copying(None) | Join::Restoring(_)) | None => Some(steps),
        }
    }

    fn end_snapshot(&mut self, digest: StateDigest, state: Vec<u8>) {
        let seq = self.appended;
        if mutated(Mutation::SnapshotTooEarly) {
            self.appended = seq.next();
        }
        let Some(Joiner { link, join }) = self.mode.joiner_mut() else { return };
        // Outputs that only the log on disk still holds are among them: no later entry tells of
        // them.
        for (id, operation) in self.gate.not_left() {
            if !mutated(Mutation::ForgetUnsentInSnapshot) {
                link.put(&Message::UnsentOutput(UnsentOutput { id, operation: (*operation).clone() }));
            }
        }
        link.put(&Message::Snapshot(Snapshot { seq, digest, state }));
        // The stream has all entries that the snapshot doesn't; the backup keeps the snapshot's
        // outputs until it is told that they have left.
        *join = Join::Restoring(Stream::new(self.appended, self.gate.left(), self.timing.lag_bound_ns));
    }

    /// The backup said something.
    pub fn handle_message(&mut self, now_ns: u64, message: Message) {
        // A primary that was suspended finds old acknowledgements in its socket. Its backup may
        // have gone live since.
        self.lose_overdue_backup(now_ns);
        // A late message of a backup that is lost, or that this side doesn't wait for any more.
        let Some(link) = self.mode.link_mut() else { return };
        link.heard_ns = now_ns;
        match (message, self.is_protected()) {
            (Message::Heartbeat, _) => {}
            (Message::Goodbye { reason }, _) => {
                self.lose_backup(LossReason::Goodbye { side: LostSide::Backup, reason });
            }
            (Message::Ack { received }, true) => self.acknowledged(now_ns, received),
            (Message::Consumed { consumed, .. }, true) => self.consumed(consumed),
            (message, true) => self.lose_backup(LossReason::BrokeProtocol(message_name(&message))),
            (message, false) => self.hear_joiner(now_ns, message),
        }
    }

    /// Handles a message of a joining backup.
    fn hear_joiner(&mut self, now_ns: u64, message: Message) {
        let Some(Joiner { link, join }) = self.mode.joiner_mut() else { return };
        match (message, join) {
            (Message::Accepted, Join::Restoring(_)) => self.protect(now_ns),
            (Message::Ack { received }, Join::Restoring(_)) => self.acknowledged(now_ns, received),
            // A backup that waits for its disk makes progress.
            (Message::Storing, _) => link.progress_ns = now_ns,
            (Message::Refused { reason }, _) => self.lose_backup(LossReason::RefusedSession(reason)),
            (message, Join::Copying(_) | Join::Restoring(_)) => {
                self.lose_backup(LossReason::BrokeProtocol(message_name(&message)));
            }
        }
    }

    /// The joining backup has accepted this side: outputs are held from here on, and only after
    /// that the backup is told that it may claim.
    fn protect(&mut self, now_ns: u64) {
        // The backup must have the entries of outputs that left unheld before it may claim.
        self.handle_flush(now_ns);
        let (Mode::AwaitingBackup(joiner) | Mode::Alone(joiner)) = &mut self.mode else { return };
        let Some(Joiner { link, join: Join::Restoring(stream) }) = joiner.take().map(|joiner| *joiner) else { return };
        self.mode = Mode::Protected(Box::new(Backup { link, stream, settled: self.appended }));
        self.check_released();
        self.tell_clock(now_ns);
        let generation = self.session.generation;
        self.standing.backup_told();
        if let Some(link) = self.mode.link_mut() {
            link.put(&Message::Protected { generation });
        }
        self.actions.push_back(PrimaryAction::Protected(generation));
    }

    fn acknowledged(&mut self, now_ns: u64, received: LogSeq) {
        let Some((stream, link)) = self.mode.stream_mut() else { return };
        if let Err(error) = stream.acknowledge(received) {
            return self.lose_backup(LossReason::BadLog(error.to_string()));
        }
        link.progress_ns = now_ns;
        if let Mode::Protected(backup) = &mut self.mode {
            backup.settled = backup.settled.max(received);
        }
        self.standing.acknowledged(received);
        self.release(now_ns);
        self.end_if_stopped(now_ns);
    }

    /// Takes a report of the consumed position: it can't be beyond what the backup has
    /// acknowledged, and never goes back.
    fn consumed(&mut self, consumed: LogSeq) {
        let Some((stream, _)) = self.mode.stream_mut() else { return };
        let (before, acked) = (stream.lag.consumed(), stream.acked());
        if !(before..=acked).contains(&consumed) && !mutated(Mutation::ConsumedUnbounded) {
            return self.lose_backup(LossReason::BadLog(format!(
                "the backup has consumed all entries before {consumed}, after those before {before}, and has acknowledged \
                 those before {acked}"
            )));
        }
        stream.lag.consume(consumed);
    }

    /// The connection to the backup is gone.
    pub fn handle_disconnect(&mut self, reason: &str) {
        self.lose_backup(LossReason::Disconnected(reason.into()));
    }

    /// Gives up a backup that was silent, or made no progress, for too long.
    pub(super) fn lose_overdue_backup(&mut self, now_ns: u64) {
        if let Some(reason) = self.overdue(now_ns) {
            self.lose_backup(reason);
        }
    }

    fn overdue(&self, now_ns: u64) -> Option<LossReason> {
        let (link, is_waited_for, not_replaying_ns) = match &self.mode {
            Mode::AwaitingBackup(joiner) | Mode::Alone(joiner) => (&joiner.as_ref()?.link, true, 0),
            Mode::Protected(backup) => {
                let stream = &backup.stream;
                (&backup.link, stream.acked() < stream.sent(), stream.lag.stuck_ns(now_ns))
            }
            Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => return None,
        };
        let silent_ns = now_ns.saturating_sub(link.heard_ns);
        if silent_ns >= self.timing.failure_timeout_ns {
            return Some(LossReason::Silent { side: LostSide::Backup, for_ms: silent_ns / 1_000_000 });
        }
        // A backup that lives and makes no progress would keep other backups out, and outputs from
        // their receivers.
        let stuck_ns = now_ns.saturating_sub(link.progress_ns);
        if is_waited_for && stuck_ns >= self.timing.progress_timeout_ns() {
            return Some(LossReason::Stuck { for_ms: stuck_ns / 1_000_000 });
        }
        // A backup that receives and doesn't replay, because its disk hangs, for example, would
        // stop the guest for ever.
        (not_replaying_ns >= self.timing.progress_timeout_ns() && !mutated(Mutation::WaitForReplay))
            .then_some(LossReason::ReplaysNothing { for_ms: not_replaying_ns / 1_000_000 })
    }

    /// Loses the backup. Bytes that wait for the channel are dropped with it: nothing reads them
    /// any more, and the side that wins the flag goes on alone.
    pub(super) fn lose_backup(&mut self, reason: LossReason) {
        if !self.mode.has_backup() {
            return;
        }
        self.actions.push_back(PrimaryAction::CloseChannel { reason });
        match &mut self.mode {
            // A joining backup can't claim, so its loss costs nothing.
            Mode::AwaitingBackup(joiner) | Mode::Alone(joiner) => *joiner = None,
            Mode::Protected(_) | Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => {
                let kind = if self.stop.is_some() { ClaimKind::Ended } else { ClaimKind::Owner };
                self.claim(kind);
            }
        }
    }

    /// Tells the backup which outputs have left, so that it doesn't send them at go-live.
    pub(super) fn tell_left(&mut self) {
        let mut left = self.gate.left();
        left.packets.0 += u64::from(mutated(Mutation::TellReleasedTooEarly));
        if let Some((stream, link)) = self.mode.stream_mut() {
            stream.tell_left(left, link);
        }
    }
}
