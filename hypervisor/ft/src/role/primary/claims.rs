//! The primary and the arbiter: who goes on when the pair breaks, and how the VM ends.

use super::standing::Standing;
use super::{Mode, PrimaryAction, PrimaryEnd, PrimaryRole};
use crate::claim::{ClaimKind, Verdict};
use crate::mutation::{Mutation, mutated};
use crate::role::{ClaimAnswer, ClaimRequest, Claiming, DiskLogState, LossReason};
use logchannel::entry::Generation;
use logchannel::message::Message;

impl PrimaryRole {
    /// The answer to [`PrimaryAction::Claim`].
    pub fn handle_claim(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Mode::Claiming(claiming) = &mut self.mode else { return };
        match answer {
            ClaimAnswer::Unreachable => claiming.retry(now_ns, &self.timing),
            ClaimAnswer::Decided(Verdict::Lost(holder)) => self.fence(now_ns, holder),
            ClaimAnswer::Decided(Verdict::NotSuccessor(holder)) => self.claim_refused(now_ns, holder),
            ClaimAnswer::Decided(Verdict::Won) => {
                let kind = claiming.request.kind;
                self.session.generation = Generation(claiming.request.generation.0 + 1);
                self.standing = Standing::new();
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
                        self.end_if_stopped(now_ns);
                    }
                }
            }
        }
    }

    /// The operator wants this process to end. Protected, it leaves the VM to its backup; alone, it ends the VM.
    pub fn handle_retire(&mut self, now_ns: u64) {
        match self.mode {
            // Nothing of this incarnation has left. The log that it goes on from is whole, and can be resumed again.
            Mode::Alone
                if self.is_resumed && self.disk_log.is_promised() && !mutated(Mutation::EndResumedOnPromise) =>
            {
                self.gate.discard_all();
                self.end(PrimaryEnd::Interrupted);
            }
            Mode::AwaitingBackup | Mode::Alone => {
                self.stop.get_or_insert(PrimaryEnd::Retired);
                self.claim(ClaimKind::Ended);
            }
            // The guest has ended, and the end mark is this side's to leave, once the backup knows.
            Mode::Protected if self.stop.is_some() => {}
            Mode::Protected => {
                self.handle_flush(now_ns);
                let reason = "the operator stopped the primary".into();
                Message::Goodbye { reason }.encode(&mut self.outgoing);
                // What is still held is the backup's to send.
                self.gate.discard_all();
                self.mode = Mode::Ended;
                self.actions.push_back(PrimaryAction::HandOver);
            }
            // Whether this node may end the VM is what can't be known.
            Mode::Claiming(_) if self.is_stranded() => self.end(PrimaryEnd::Stranded),
            // The arbiter has the word already; the end follows its answer.
            Mode::Claiming(_) => {
                self.stop.get_or_insert(PrimaryEnd::Retired);
            }
            Mode::Ended => {}
        }
    }

    /// The operator wants this process to end, and the VM not, if that can be: a protected VM goes on at its backup, and one
    /// whose log is on disk keeps its claim, so that it can be resumed. Any other VM ends as by [`PrimaryRole::handle_retire`].
    pub fn handle_leave(&mut self, now_ns: u64) {
        match self.mode {
            Mode::Alone | Mode::Claiming(_)
                if matches!(self.disk_log, DiskLogState::UpTo(_)) && self.stop.is_none() =>
            {
                if self.join.is_some() {
                    self.lose_backup(LossReason::PrimaryStopped);
                }
                // What is held is in the log, and is sent when the VM is resumed.
                self.gate.discard_all();
                self.end(PrimaryEnd::Left);
            }
            Mode::AwaitingBackup | Mode::Alone | Mode::Protected | Mode::Claiming(_) | Mode::Ended => {
                self.handle_retire(now_ns);
            }
        }
    }

    pub(super) fn claim(&mut self, kind: ClaimKind) {
        if self.join.is_some() {
            self.lose_backup(LossReason::VmEnds);
        }
        let request =
            ClaimRequest { node: self.node, generation: self.session.generation, kind, predecessor: Some(self.node) };
        if mutated(Mutation::PrimarySkipsTestAndSet) {
            self.mode = Mode::Claiming(Claiming::asked(request));
            return self.handle_claim(0, ClaimAnswer::Decided(Verdict::Won));
        }
        if self.standing.may_claim() {
            self.mode = Mode::Claiming(Claiming::asked(request));
            self.actions.push_back(PrimaryAction::Claim(request));
        } else {
            self.mode = Mode::Claiming(Claiming::put_off(request));
        }
        self.tell_if_stranded();
    }

    /// A guest that has ended leaves its end mark, once its last words are out and the backup knows that this is no failure:
    /// nobody sends anything any more who finds the mark.
    pub(super) fn end_if_stopped(&mut self, now_ns: u64) {
        if self.stop.is_none() || !self.has_said_last_words(now_ns) {
            return;
        }
        match self.mode {
            Mode::Alone => self.claim(ClaimKind::Ended),
            Mode::Protected if self.log.is_acknowledged() => self.claim(ClaimKind::Ended),
            Mode::AwaitingBackup | Mode::Protected | Mode::Claiming(_) | Mode::Ended => {}
        }
    }

    /// Whether all that the guest has sent has left, or has had its time to: a VM whose network is gone ends too.
    fn has_said_last_words(&self, now_ns: u64) -> bool {
        let has_left = self.gate.next_to_leave() >= self.gate.end();
        has_left || now_ns.saturating_sub(self.stopped_ns) >= self.timing.failure_timeout_ns
    }

    pub(super) fn end(&mut self, end: PrimaryEnd) {
        self.mode = Mode::Ended;
        self.actions.push_back(PrimaryAction::End(end));
    }
}
