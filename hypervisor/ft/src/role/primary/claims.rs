//! The primary and the arbiter: who goes on when the pair breaks, and how the VM ends.

use super::mode::{Backup, Mode};
use super::standing::Standing;
use super::{PrimaryAction, PrimaryEnd, PrimaryRole, Stop};
use crate::claim::{ClaimKind, Verdict};
use crate::mutation::{Mutation, mutated};
use crate::role::{ClaimAnswer, ClaimRequest, Claiming, DiskLogState, LossReason};
use logchannel::message::Message;

impl PrimaryRole {
    /// The answer to [`PrimaryAction::Claim`].
    pub fn handle_claim(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Some(claiming) = self.mode.claiming_mut() else { return };
        match answer {
            ClaimAnswer::Unreachable => claiming.retry(now_ns, &self.timing),
            ClaimAnswer::Decided(Verdict::Lost(holder)) => self.fence(now_ns, holder),
            ClaimAnswer::Decided(Verdict::NotSuccessor(holder)) => self.claim_refused(now_ns, holder),
            ClaimAnswer::Decided(Verdict::Won) => {
                let kind = claiming.request.kind;
                self.session.generation = claiming.request.generation.next();
                self.standing = Standing::new();
                match (kind, self.stop.take()) {
                    (ClaimKind::Ended, Some(Stop { end, .. })) => {
                        self.gate.release_all(now_ns);
                        self.end(end);
                    }
                    (_, stop) => {
                        self.stop = stop;
                        self.mode = Mode::Alone(None);
                        self.release(now_ns);
                        self.actions.push_back(PrimaryAction::Owner(self.session.generation));
                        self.end_if_stopped(now_ns);
                    }
                }
            }
        }
    }

    /// The operator ends this process: a protected primary leaves the VM to its backup, and a
    /// primary that is alone ends the VM.
    pub fn handle_retire(&mut self, now_ns: u64) {
        match &self.mode {
            // No output of this incarnation has left. The log that it went on from is whole, and
            // can be resumed again.
            Mode::Alone(_)
                if self.is_resumed && self.disk_log.is_promised() && !mutated(Mutation::EndResumedOnPromise) =>
            {
                self.gate.discard_all();
                self.end(PrimaryEnd::Interrupted);
            }
            Mode::AwaitingBackup(_) | Mode::Alone(_) => {
                self.stop_retired(now_ns);
                self.claim(ClaimKind::Ended);
            }
            // The guest has ended, and the end mark is this side's to leave, once the backup knows.
            Mode::Protected(_) if self.stop.is_some() => {}
            Mode::Protected(_) => self.hand_over(now_ns),
            // Nobody can know whether this node still owns the VM, so it may not end it.
            Mode::Claiming(_) | Mode::MarkingEnd(..) if self.is_stranded() => self.end(PrimaryEnd::Stranded),
            // The arbiter has been asked already; the end follows its answer.
            Mode::Claiming(_) | Mode::MarkingEnd(..) => self.stop_retired(now_ns),
            Mode::Ended(_) => {}
        }
    }

    /// Leaves the VM to the backup, which gets the whole log first.
    fn hand_over(&mut self, now_ns: u64) {
        let Mode::Protected(backup) = &mut self.mode else { return };
        let Backup { link, stream, .. } = &mut **backup;
        stream.flush(now_ns, link);
        link.put(&Message::Goodbye { reason: "the operator stopped the primary".into() });
        // The backup sends what is still held.
        self.gate.discard_all();
        self.mode = Mode::Ended(core::mem::take(&mut link.outgoing));
        self.actions.push_back(PrimaryAction::HandOver);
    }

    /// The operator ends the VM, which doesn't wait for outputs as a guest that ends by itself
    /// does.
    fn stop_retired(&mut self, now_ns: u64) {
        self.stop.get_or_insert(Stop { end: PrimaryEnd::Retired, outputs_until_ns: now_ns });
    }

    /// The operator ends this process and keeps the VM if possible: a protected VM goes on at its
    /// backup, and a VM whose log is on disk keeps its claim, so that it can be resumed. Any other
    /// VM ends as by [`PrimaryRole::handle_retire`].
    pub fn handle_leave(&mut self, now_ns: u64) {
        match &self.mode {
            Mode::Alone(_) | Mode::Claiming(_)
                if matches!(self.disk_log, DiskLogState::UpTo(_)) && self.stop.is_none() =>
            {
                if self.mode.joiner().is_some() {
                    self.lose_backup(LossReason::PrimaryStopped);
                }
                // What is held is in the log, and is sent when the VM is resumed.
                self.gate.discard_all();
                self.end(PrimaryEnd::Left);
            }
            Mode::AwaitingBackup(_)
            | Mode::Alone(_)
            | Mode::Protected(_)
            | Mode::Claiming(_)
            | Mode::MarkingEnd(..)
            | Mode::Ended(_) => self.handle_retire(now_ns),
        }
    }

    /// Asks for the pair's flag, after the backup is lost.
    pub(super) fn claim(&mut self, kind: ClaimKind) {
        if self.mode.joiner().is_some() {
            self.lose_backup(LossReason::VmEnds);
        }
        self.mode = Mode::Claiming(self.request_flag(kind));
        self.flag_requested();
    }

    /// Asks for the pair's flag as the end mark, once the backup has the whole log.
    fn mark_end(&mut self) {
        let claiming = self.request_flag(ClaimKind::Ended);
        self.mode = match core::mem::replace(&mut self.mode, Mode::Claiming(claiming)) {
            Mode::Protected(backup) => Mode::MarkingEnd(claiming, backup),
            Mode::AwaitingBackup(_) | Mode::Alone(_) | Mode::Claiming(_) | Mode::MarkingEnd(..) | Mode::Ended(_) => {
                Mode::Claiming(claiming)
            }
        };
        self.flag_requested();
    }

    fn request_flag(&mut self, kind: ClaimKind) -> Claiming {
        let request =
            ClaimRequest { node: self.node, generation: self.session.generation, kind, predecessor: Some(self.node) };
        if mutated(Mutation::PrimarySkipsTestAndSet) {
            return Claiming::asked(request);
        }
        if !self.standing.may_claim() {
            return Claiming::put_off(request);
        }
        self.actions.push_back(PrimaryAction::Claim(request));
        Claiming::asked(request)
    }

    fn flag_requested(&mut self) {
        if mutated(Mutation::PrimarySkipsTestAndSet) {
            return self.handle_claim(0, ClaimAnswer::Decided(Verdict::Won));
        }
        self.tell_if_stranded();
    }

    /// Asks for the flag again, if it may be claimed and it is time to.
    pub(super) fn ask_again_if_due(&mut self, now_ns: u64) {
        let Some(claiming) = self.mode.claiming_mut() else { return };
        claiming.pass_time(now_ns);
        if self.standing.may_claim() {
            let request = claiming.poll(now_ns);
            self.actions.extend(request.map(PrimaryAction::Claim));
        }
    }

    /// Sets the end mark of a guest that has ended, once its outputs have left and the backup has
    /// the whole log. Not before, because no node that finds the mark sends any output of the VM.
    pub(super) fn end_if_stopped(&mut self, now_ns: u64) {
        if !self.has_sent_last_outputs(now_ns) {
            return;
        }
        match &self.mode {
            Mode::Alone(_) => self.claim(ClaimKind::Ended),
            Mode::Protected(backup) if backup.stream.is_acknowledged() => self.mark_end(),
            Mode::AwaitingBackup(_)
            | Mode::Protected(_)
            | Mode::Claiming(_)
            | Mode::MarkingEnd(..)
            | Mode::Ended(_) => {}
        }
    }

    /// `true` if the VM is to end and all of the guest's outputs have left, or have had their time
    /// to: a VM whose network is gone ends too.
    fn has_sent_last_outputs(&self, now_ns: u64) -> bool {
        self.stop.as_ref().is_some_and(|stop| self.gate.has_all_left() || now_ns >= stop.outputs_until_ns)
    }

    /// Ends the role. Bytes that wait for the channel are still sent.
    pub(super) fn end(&mut self, end: PrimaryEnd) {
        let farewell = self.mode.outgoing_mut().map(core::mem::take).unwrap_or_default();
        self.mode = Mode::Ended(farewell);
        self.actions.push_back(PrimaryAction::End(end));
    }
}
