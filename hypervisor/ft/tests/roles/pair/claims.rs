//! The two sides' claims at the arbiter, and their results.

use super::Pair;
use crate::world::{G, PRIMARY};
use ft::claim::ClaimKind;
use ft::role::{BackupAction, BackupEnd, ClaimRequest, PrimaryAction, PrimaryEnd};
use logchannel::entry::Generation;
use logchannel::session::NodeId;

impl Pair {
    /// The claim that the primary asks for, if that is its only action since the channel was
    /// closed.
    pub(crate) fn primary_claim(&mut self) -> Option<ClaimRequest> {
        while let Some(action) = self.primary_actions.pop_front() {
            match action {
                PrimaryAction::Claim(request) => return Some(request),
                PrimaryAction::CloseChannel { .. } => {}
                other @ (PrimaryAction::Owner(_)
                | PrimaryAction::CheckClaim
                | PrimaryAction::Refill(_)
                | PrimaryAction::ClaimsLost { .. }
                | PrimaryAction::ClaimsRestored(_)
                | PrimaryAction::Confirmed(_)
                | PrimaryAction::Stranded(_)
                | PrimaryAction::Protected(_)
                | PrimaryAction::HandOver
                | PrimaryAction::End(_)) => panic!("instead of a claim: {other:?}"),
            }
        }
        None
    }

    /// The claim that the backup asks for, if that is its only action.
    pub(crate) fn backup_claim(&mut self) -> Option<ClaimRequest> {
        let action = self.backup_actions.pop_front()?;
        let BackupAction::Claim(request) = action else { panic!("instead of a claim: {action:?}") };
        Some(request)
    }

    /// The primary's request goes to the arbiter, and the answer returns if there is one.
    pub(crate) fn answer_primary(&mut self, request: ClaimRequest) {
        let answer = self.arbiter.borrow_mut().ask(request);
        self.primary.handle_claim(self.now_ns, answer);
        self.collect();
    }

    /// The backup's request goes to the arbiter, and the answer returns if there is one.
    pub(crate) fn answer_backup(&mut self, request: ClaimRequest) {
        let answer = self.arbiter.borrow_mut().ask(request);
        self.backup.handle_claim(self.now_ns, answer);
        self.collect();
    }

    /// The backup is lost, and the primary goes on alone as `generation`.
    pub(crate) fn primary_goes_on(&mut self, generation: Generation) {
        self.backup_lost();
        let request = self.primary_claim().unwrap();
        self.answer_primary(request);
        assert_eq!(self.primary_actions.pop_front(), Some(PrimaryAction::Owner(generation)));
    }

    /// The primary is lost, and the backup goes live as `generation`. Returns the pair of which it
    /// is the primary.
    pub(crate) fn backup_goes_live(&mut self, generation: Generation, next_backup: NodeId) -> Self {
        self.backup_actions.retain(|action| !matches!(action, BackupAction::Protected(_)));
        self.primary_lost();
        let request = self.backup_claim().unwrap();
        self.answer_backup(request);
        self.replay();
        assert_eq!(self.backup_actions.pop_front(), Some(BackupAction::GoLive(generation)));
        self.succeeded(generation, next_backup)
    }

    /// The primary's end, if that is its last action.
    pub(crate) fn primary_end(&mut self) -> Option<PrimaryEnd> {
        match self.primary_actions.pop_back() {
            Some(PrimaryAction::End(end)) => Some(end),
            _ => None,
        }
    }

    /// The backup's end, if that is its last action.
    pub(crate) fn backup_end(&mut self) -> Option<BackupEnd> {
        match self.backup_actions.pop_back() {
            Some(BackupAction::End(end)) => Some(end),
            _ => None,
        }
    }

    /// The ids of the outputs that the backup would send first at go-live.
    pub(crate) fn unsent(&mut self) -> Vec<u64> {
        self.backup.take_unsent().into_iter().map(|(id, _)| id.0).collect()
    }
}

/// The claim that decides a pair.
pub(crate) const fn owner_claim(node: NodeId) -> ClaimRequest {
    ClaimRequest { node, generation: G, kind: ClaimKind::Owner, predecessor: Some(PRIMARY) }
}

/// The claim that ends a VM in order.
pub(crate) const fn end_claim(generation: Generation, owner: NodeId) -> ClaimRequest {
    ClaimRequest { node: owner, generation, kind: ClaimKind::Ended, predecessor: Some(owner) }
}
