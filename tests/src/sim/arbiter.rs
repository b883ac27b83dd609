//! The arbiter, and the way to it: questions and answers are late, lost, and heard twice.

use ft::claim::{Claim, ClaimKind, Verdict, is_successor};
use hypervisor::arbiter::{Arbiter, ArbiterError};
use hypervisor::node::arbiter_client::{ArbiterCall, ArbiterReply};
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
    pub(super) fn hear(&self, call: &ArbiterCall) -> ArbiterReply {
        match call {
            ArbiterCall::Latest => ArbiterReply::Latest(self.last()),
            ArbiterCall::Claim { generation, claim, predecessor } => {
                ArbiterReply::Verdict(self.claim(*generation, claim, *predecessor))
            }
        }
    }

    fn claim(&self, generation: Generation, claim: &Claim, predecessor: Option<NodeId>) -> Verdict {
        self.with(|claims| {
            let before = generation.0.checked_sub(1).and_then(|before| claims.get(&Generation(before)));
            if !claims.contains_key(&generation) && !is_successor(generation, predecessor, before) {
                return Verdict::NotSuccessor(before.cloned());
            }
            let holder = claims.entry(generation).or_insert_with(|| claim.clone());
            if holder.node == claim.node { Verdict::Won } else { Verdict::Lost(holder.clone()) }
        })
    }

    /// Knows other nodes as the owners of the generations up to that of `flag`, the last at
    /// `address`.
    pub(super) fn pretend(&self, flag: Generation, address: Option<&str>) {
        let claim = |flag: u64| Claim {
            node: NodeId(u128::MAX - u128::from(flag)),
            kind: ClaimKind::Owner,
            address: address.map(str::to_owned),
        };
        self.with(|claims| *claims = (0..=flag.0).map(|flag| (Generation(flag), claim(flag))).collect());
    }

    /// All claims are lost.
    pub(super) fn forget(&self) {
        self.with(BTreeMap::clear);
    }
}

/// For [`ft::start::claim_start`].
impl Arbiter for SimArbiter {
    fn test_and_set(
        &self,
        _: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        Ok(self.claim(generation, claim, predecessor))
    }

    fn latest(&self, _: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        Ok(self.last())
    }
}

/// What the arbiter says.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Reply(ArbiterReply),
    /// An operator has to see to it first.
    CantDecide,
}

/// A question on its way.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) host: usize,
    pub(super) node: NodeId,
    pub(super) is_mistaken: bool,
    pub(super) call: ArbiterCall,
    /// Said by the arbiter, and on its way back.
    pub(super) answer: Option<Said>,
}
