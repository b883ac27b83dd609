//! How a backup takes the VM over: it claims the pair's flag, consumes the rest of the log, and
//! goes live.

use super::mode::{AfterReplay, Following, Listening, Mode, Stage, TakeOver};
use super::{BackupAction, BackupEnd, BackupRole};
use crate::claim::{ClaimKind, Verdict};
use crate::guest_clock::GuestClock;
use crate::mutation::{Mutation, mutated};
use crate::role::{ClaimAnswer, ClaimRequest, Claiming, LossReason};

impl BackupRole {
    /// The connection to the primary is gone.
    pub fn handle_disconnect(&mut self, now_ns: u64, reason: &str) {
        self.lose_primary(now_ns, LossReason::Disconnected(reason.into()));
    }

    /// Gives the primary up, and claims the VM if this side was told that it protects it.
    pub(super) fn lose_primary(&mut self, now_ns: u64, reason: LossReason) {
        let Mode::Listening(Listening { stage, .. }) = &self.mode else { return };
        match stage {
            Stage::Following(Following { is_told: true, .. }) => self.claim(now_ns, reason),
            Stage::Waiting => self.end(BackupEnd::NoPlace { reason }),
            Stage::Connecting | Stage::Joining(_) | Stage::Following(_) => self.end(BackupEnd::Unprotected { reason }),
        }
    }

    /// Asks for the pair's flag.
    fn claim(&mut self, now_ns: u64, reason: LossReason) {
        let Mode::Listening(Listening { stage: Stage::Following(following), .. }) =
            core::mem::replace(&mut self.mode, Mode::Done(None))
        else {
            return;
        };
        self.moments.loss_noticed_ns = now_ns;
        let Following { pair, log, .. } = following;
        if mutated(Mutation::BackupSkipsTestAndSet) {
            self.mode = Mode::Draining(AfterReplay::GoLive(pair.generation.next()), log);
            return self.finish_if_drained();
        }
        let request = ClaimRequest {
            node: self.node,
            generation: pair.generation,
            kind: ClaimKind::Owner,
            predecessor: Some(pair.owner),
        };
        if log.guest_end.is_none() {
            self.actions.push_back(BackupAction::Lost { reason });
        }
        self.mode = Mode::Claiming(TakeOver { claiming: Claiming::asked(request), log, has_told_claims_lost: false });
        self.actions.push_back(BackupAction::Claim(request));
    }

    /// The answer to [`BackupAction::Claim`].
    pub fn handle_claim(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Mode::Claiming(TakeOver { claiming, log, has_told_claims_lost }) = &mut self.mode else { return };
        let generation = claiming.request.generation;
        match answer {
            ClaimAnswer::Unreachable => claiming.retry(now_ns, &self.timing),
            // Another node holds the flag before: this arbiter's owner isn't the primary that this
            // side followed.
            ClaimAnswer::Decided(Verdict::NotSuccessor(Some(holder))) => self.end(BackupEnd::Fenced { holder }),
            // The arbiter has lost the primary's claim. A primary that lives claims it again; if it
            // is dead, nobody can know which other claims are lost.
            ClaimAnswer::Decided(Verdict::NotSuccessor(None)) => {
                claiming.retry(now_ns, &self.timing);
                if !core::mem::replace(has_told_claims_lost, true) {
                    self.actions.push_back(BackupAction::ClaimsLost(generation));
                }
            }
            ClaimAnswer::Decided(Verdict::Won) => {
                self.moments.test_and_set_won_ns = now_ns;
                self.drain(AfterReplay::GoLive(generation.next()));
            }
            ClaimAnswer::Decided(Verdict::Lost(holder)) => match (holder.kind, log.guest_end) {
                (ClaimKind::Ended, Some(reason)) => self.drain(AfterReplay::End(reason)),
                (ClaimKind::Ended, None) | (ClaimKind::Owner, _) => self.end(BackupEnd::Fenced { holder }),
            },
        }
    }

    /// Goes on as `then` says once the log is consumed.
    fn drain(&mut self, then: AfterReplay) {
        if let Some(log) = core::mem::replace(&mut self.mode, Mode::Done(None)).into_log() {
            self.mode = Mode::Draining(then, log);
        }
        self.finish_if_drained();
    }

    pub(super) fn finish_if_drained(&mut self) {
        let Mode::Draining(then, log) = &self.mode else { return };
        if !log.is_drained() && !mutated(Mutation::GoLiveBeforeLastEntry) {
            return;
        }
        match *then {
            AfterReplay::GoLive(generation) => {
                self.finish();
                self.actions.push_back(BackupAction::GoLive(generation));
            }
            AfterReplay::End(reason) => self.end(BackupEnd::GuestStopped(reason)),
        }
    }

    pub(super) fn end(&mut self, end: BackupEnd) {
        self.finish();
        self.actions.push_back(BackupAction::End(end));
    }

    /// Ends the mode, and keeps the log: its cursors can still be asked for.
    fn finish(&mut self) {
        let log = core::mem::replace(&mut self.mode, Mode::Done(None)).into_log();
        self.mode = Mode::Done(log);
    }

    /// The clock with which this node goes on with a guest that has read `last_ticks`.
    #[must_use]
    pub fn take_over_clock(&mut self, now_ns: u64, last_ticks: u64) -> GuestClock {
        let Some(clock) = &mut self.clock else { return GuestClock::running(last_ticks, now_ns) };
        clock.take_over(now_ns, last_ticks)
    }
}
