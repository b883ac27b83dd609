//! The owner's claim at the arbiter: the owner checks it now and then, and makes it again if the
//! arbiter has lost it.
//!
//! ```text
//!   sound ──look: own claim missing──► lost ──every missing flag claimed, ascending──► sound
//!                                       │
//!                                       └──flag G-1, or one behind it, is another node's──► Fenced
//! ```
//! An owner of generation G holds flag G-1. Its claims may vanish: a directory is cleaned, an
//! arbiter is restored from an older state. Absence fences nobody, as it may be the only live VM
//! that is asked for. The flags are claimed again from the first missing one on, because a start
//! that finds none claims the first: so both ask for the same flag, and one gets it. A lower flag
//! that another node has doesn't fence: the LAN serves the greater generation, and the other node
//! finds at its own look that it is fenced.
//!
//! The flags before its own it claims under another name. A backup of a pair that the owner
//! outlived may still be asking for flag G-1, with the owner's node as its predecessor: if it found
//! that node at flag G-2, it would win what the owner holds.
//!
//! The flag G is another matter. A backup that was told that it protects the VM may have won it in
//! the history that was lost, and run. So the primary claims it afterwards only if no backup was
//! told, or if its backup has acknowledged an entry that was appended after the flags were there
//! again: it hadn't claimed then. If the pair breaks before, the primary stands still.

use super::mode::Mode;
use super::{PrimaryAction, PrimaryEnd, PrimaryRole};
use crate::claim::{Claim, ClaimKind, Verdict};
use crate::mutation::{Mutation, mutated};
use crate::role::{ClaimAnswer, ClaimRequest, Claiming, LatestAnswer, LossReason};
use alloc::vec::Vec;
use logchannel::entry::{Generation, LogSeq};
use logchannel::session::NodeId;

/// The shortest time between two reports that the arbiter confirms an owner whom a LAN refuses.
const CONFIRMED_INTERVAL_NS: u64 = 60_000_000_000;

/// What the owner knows of its claim.
#[derive(Clone, Debug, Hash)]
pub(super) struct Standing {
    check: ClaimCheck,
    /// The own claim was found missing, and hasn't been made again yet.
    pub(super) is_lost: bool,
    /// The flag that is being claimed again.
    refill: Option<ClaimRequest>,
    /// A backup was told that it may claim the flag of this generation's pair.
    is_backup_told: bool,
    doubt: Option<Doubt>,
    has_told_stranded: bool,
    /// A LAN refuses this owner, and the arbiter hasn't answered since.
    is_questioned: bool,
    /// When it was last reported that the arbiter confirms the owner.
    told_confirmed_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ClaimCheck {
    /// Not planned yet, because the role hasn't been told the time.
    New,
    /// At this time.
    At(u64),
    /// The driver is asking.
    Asked,
}

/// The backup may have won the pair's flag in the history that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doubt {
    /// Until the lost flags have been claimed again.
    Lost,
    /// Until the backup has acknowledged an entry at this position, or a later one.
    Until(LogSeq),
}

/// The node id under which an owner refills the flags before its own: no node has it, so no claimer
/// names it as its predecessor. The stand-in of a stand-in is the node itself.
#[must_use]
pub const fn stand_in(node: NodeId) -> NodeId {
    NodeId(!node.0)
}

impl Standing {
    pub(super) const fn new() -> Self {
        Self {
            check: ClaimCheck::New,
            is_lost: false,
            refill: None,
            is_backup_told: false,
            doubt: None,
            has_told_stranded: false,
            is_questioned: false,
            told_confirmed_ns: None,
        }
    }

    /// `true` if the flag of this generation's pair may be claimed.
    pub(super) fn may_claim(&self) -> bool {
        !self.is_lost && (self.doubt.is_none() || mutated(Mutation::ClaimInDoubt))
    }

    pub(super) const fn backup_told(&mut self) {
        self.is_backup_told = true;
    }

    /// The backup has acknowledged all entries before `acked`.
    pub(super) fn acknowledged(&mut self, acked: LogSeq) {
        if let Some(Doubt::Until(seq)) = self.doubt
            && acked > seq
        {
            self.doubt = None;
        }
    }
}

impl PrimaryRole {
    /// The flag that this node holds.
    const fn own_flag(&self) -> Generation {
        Generation(self.session.generation.0.saturating_sub(1))
    }

    /// Checks the claim when it is time to.
    pub(super) fn check_claim_if_due(&mut self, now_ns: u64) {
        match self.standing.check {
            ClaimCheck::New => self.standing.check = ClaimCheck::At(now_ns.saturating_add(self.timing.claim_check_ns)),
            ClaimCheck::At(at_ns) if now_ns >= at_ns => self.check_claim(),
            ClaimCheck::At(_) | ClaimCheck::Asked => {}
        }
    }

    /// Asks for the latest claim, unless the driver is asking already or this owner never looks.
    pub(super) fn check_claim(&mut self) {
        let is_busy =
            self.standing.check == ClaimCheck::Asked || self.standing.refill.is_some() || self.is_claim_asked();
        if !is_busy && self.timing.claim_check_ns < u64::MAX && !matches!(self.mode, Mode::Ended(_)) {
            self.standing.check = ClaimCheck::Asked;
            self.actions.push_back(PrimaryAction::CheckClaim);
        }
    }

    /// A LAN refuses this owner. The arbiter's answer decides: another owner's claim ends this
    /// side. If the claim is this side's, that is reported, because the LAN or its operator is
    /// wrong then.
    pub fn handle_refusal(&mut self) {
        self.standing.is_questioned = true;
        self.check_claim();
    }

    /// The answer to [`PrimaryAction::CheckClaim`].
    pub fn handle_latest(&mut self, now_ns: u64, answer: LatestAnswer) {
        if self.standing.check != ClaimCheck::Asked || matches!(self.mode, Mode::Ended(_)) {
            return;
        }
        self.plan_check(now_ns, self.timing.claim_check_ns);
        // An arbiter that can't be asked tells nothing about the claim.
        let LatestAnswer::Known(latest) = answer else { return };
        let is_questioned = core::mem::take(&mut self.standing.is_questioned);
        match latest {
            Some((flag, holder)) if flag >= self.own_flag() => match holder.node == self.node {
                // The answer to the last refill may have been lost.
                true if self.standing.is_lost => self.claims_restored(now_ns),
                true if is_questioned => self.tell_confirmed(now_ns),
                true => {}
                false => self.fence(now_ns, holder),
            },
            // A claim of the pair's flag that is in progress must not find the flag before it made
            // again, because it was asked when the backup might have won already. Its answer
            // decides.
            _ if self.is_claim_asked() => {}
            latest => {
                self.lose_claims(latest.as_ref());
                if !matches!(self.mode, Mode::Ended(_)) {
                    let next = latest.as_ref().map_or(Generation(0), |(flag, _)| flag.next());
                    self.refill(next, latest.map(|(_, holder)| holder));
                }
            }
        }
    }

    /// Reports, rarely, that the arbiter confirms the owner whom a LAN refuses.
    fn tell_confirmed(&mut self, now_ns: u64) {
        let told_ns = self.standing.told_confirmed_ns;
        if told_ns.is_none_or(|told_ns| now_ns.saturating_sub(told_ns) >= CONFIRMED_INTERVAL_NS) {
            self.standing.told_confirmed_ns = Some(now_ns);
            self.actions.push_back(PrimaryAction::Confirmed(self.session.generation));
        }
    }

    /// `true` while the driver is asking for the pair's flag.
    fn is_claim_asked(&self) -> bool {
        self.mode.claiming().is_some_and(Claiming::is_asked)
    }

    const fn plan_check(&mut self, now_ns: u64, after_ns: u64) {
        self.standing.check = ClaimCheck::At(now_ns.saturating_add(after_ns));
    }

    /// The arbiter has lost this owner's claim: begins to refill the flags.
    fn lose_claims(&mut self, latest: Option<&(Generation, Claim)>) {
        if mutated(Mutation::FencedByAbsence) {
            let holder = Claim { node: self.node, kind: ClaimKind::Owner, address: None };
            return self.end(PrimaryEnd::Fenced { holder });
        }
        if self.standing.is_backup_told {
            self.standing.doubt = Some(Doubt::Lost);
        }
        if !core::mem::replace(&mut self.standing.is_lost, true) {
            self.actions.push_back(PrimaryAction::ClaimsLost { latest: latest.map(|(flag, _)| *flag) });
        }
    }

    /// Claims the missing `flag` again; `before` is the claim of the flag before it.
    fn refill(&mut self, flag: Generation, before: Option<Claim>) {
        let predecessor = before.map(|before| before.node);
        let is_own = flag >= self.own_flag() || mutated(Mutation::RefillUnderOwnName);
        let node = if is_own { self.node } else { stand_in(self.node) };
        let request = ClaimRequest { node, generation: flag, kind: ClaimKind::Owner, predecessor };
        self.standing.refill = Some(request);
        self.actions.push_back(PrimaryAction::Refill(request));
    }

    /// The answer to [`PrimaryAction::Refill`].
    pub fn handle_refill(&mut self, now_ns: u64, answer: ClaimAnswer) {
        let Some(request) = self.standing.refill.take() else { return };
        if matches!(self.mode, Mode::Ended(_)) {
            return;
        }
        let flag = request.generation;
        let holder = match answer {
            ClaimAnswer::Decided(Verdict::Won) => Claim { node: request.node, kind: ClaimKind::Owner, address: None },
            ClaimAnswer::Decided(Verdict::Lost(holder)) => holder,
            // Looks again which flag is the first missing one.
            ClaimAnswer::Unreachable | ClaimAnswer::Decided(Verdict::NotSuccessor(_)) => {
                return self.plan_check(now_ns, self.timing.claim_retry_ns);
            }
        };
        if flag < self.own_flag() {
            return self.refill(flag.next(), Some(holder));
        }
        if holder.node != self.node {
            return self.fence(now_ns, holder);
        }
        self.claims_restored(now_ns);
    }

    /// The arbiter has all of this owner's claims again.
    fn claims_restored(&mut self, now_ns: u64) {
        self.standing.is_lost = false;
        if self.standing.doubt.is_some() {
            self.standing.doubt = Some(Doubt::Until(self.appended));
        }
        self.plan_check(now_ns, self.timing.claim_check_ns);
        self.actions.push_back(PrimaryAction::ClaimsRestored(self.session.generation));
        if let Some(claiming) = self.mode.claiming_mut() {
            claiming.retry(now_ns, &self.timing);
        }
        self.tell_if_stranded();
    }

    /// The arbiter refused the pair's flag because this node doesn't hold the flag before it.
    pub(super) fn claim_refused(&mut self, now_ns: u64, holder: Option<Claim>) {
        if let Some(holder) = holder.filter(|holder| holder.node != self.node) {
            return self.fence(now_ns, holder);
        }
        if let Some(claiming) = self.mode.claiming_mut() {
            claiming.retry(now_ns, &self.timing);
        }
        self.lose_claims(None);
        self.check_claim();
    }

    /// Reports it if the pair has broken and its flag may not be claimed.
    pub(super) fn tell_if_stranded(&mut self) {
        if self.is_stranded() && !core::mem::replace(&mut self.standing.has_told_stranded, true) {
            self.actions.push_back(PrimaryAction::Stranded(self.session.generation));
        }
    }

    /// `true` if the pair has broken and the backup may have won its flag in the history that the
    /// arbiter has lost. This node must not go on: it waits for an operator, or for the backup's
    /// claim.
    #[must_use]
    pub fn is_stranded(&self) -> bool {
        self.mode.claiming().is_some() && self.standing.doubt.is_some() && !mutated(Mutation::ClaimInDoubt)
    }

    /// Another node holds this node's flag, or a later one: this side is fenced.
    pub(super) fn fence(&mut self, now_ns: u64, holder: Claim) {
        if self.mode.has_backup() {
            self.actions.push_back(PrimaryAction::CloseChannel { reason: LossReason::Fenced(holder.node) });
            self.mode = Mode::Ended(Vec::new());
        }
        if mutated(Mutation::ReleaseWhenFenced) {
            self.gate.release_all(now_ns);
        } else {
            self.gate.discard_all();
        }
        self.end(PrimaryEnd::Fenced { holder });
    }
}
