//! The arbiter, and the way to it: questions and answers are late, lost, and heard twice.

use hypervisor::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A test-and-set per generation of the one VM.
#[derive(Debug, Default)]
pub(super) struct SimArbiter {
    claims: Mutex<BTreeMap<Generation, Claim>>,
}

impl SimArbiter {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Generation, Claim>) -> T) -> T {
        f(&mut self.claims.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who has the flag of `generation`.
    pub(super) fn holder(&self, generation: Generation) -> Option<NodeId> {
        self.with(|claims| claims.get(&generation).map(|claim| claim.node))
    }

    /// The latest claim.
    pub(super) fn last(&self) -> Option<(Generation, Claim)> {
        self.with(|claims| claims.last_key_value().map(|(generation, claim)| (*generation, claim.clone())))
    }

    /// Answers a question.
    pub(super) fn hear(&self, ask: &Ask) -> Answer {
        match ask {
            Ask::Latest => Answer::Latest(self.last()),
            Ask::Claim(generation, claim) => Answer::Claim(self.claim(*generation, claim)),
        }
    }

    fn claim(&self, generation: Generation, claim: &Claim) -> Verdict {
        let holder = self.with(|claims| claims.entry(generation).or_insert_with(|| claim.clone()).clone());
        if holder.node == claim.node { Verdict::Won } else { Verdict::Lost(holder) }
    }
}

/// For [`hypervisor::start::claim_start`].
impl Arbiter for SimArbiter {
    fn test_and_set(&self, _: &VmId, generation: Generation, claim: &Claim) -> Result<Verdict, ArbiterError> {
        Ok(self.claim(generation, claim))
    }

    fn latest(&self, _: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        Ok(self.last())
    }
}

/// What a process asks.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Latest,
    Claim(Generation, Claim),
}

/// What it is told.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Latest(Option<(Generation, Claim)>),
    Claim(Verdict),
}

/// A question on its way.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) host: usize,
    pub(super) ask: Ask,
    /// Given by the arbiter, and on its way back.
    pub(super) answer: Option<Answer>,
    pub(super) has_arrived: bool,
}
