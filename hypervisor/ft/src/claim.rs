//! The words in which sides and arbiter speak of who owns a VM: claims, and the verdicts on them.
//!
//! Claims are only ever added. A claim of generation `g` makes its node the owner as the
//! generation after `g`.

use crate::mutation::{Mutation, mutated};
use alloc::format;
use alloc::string::String;
use logchannel::entry::Generation;
use logchannel::session::NodeId;

/// The longest address in a claim, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;

/// What a node writes down when it claims a generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Which incarnation of which process.
    pub node: NodeId,
    /// What it claims for.
    pub kind: ClaimKind,
    /// Where the winner accepts a backup, `HOST:PORT`; at most [`ADDRESS_BYTES_MAX`] bytes.
    pub address: Option<String>,
}

impl Claim {
    /// Who claims, for people: a node's id is random, its address is not.
    #[must_use]
    pub fn who(&self) -> String {
        self.address
            .as_ref()
            .map_or_else(|| format!("node {}", self.node), |address| format!("node {} at {address}", self.node))
    }
}

/// What a claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    /// To go on with the VM, alone.
    Owner,
    /// To end it: the guest ended or was stopped in order, and the next start may claim on.
    Ended,
}

/// The arbiter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The generation is this node's, now or since an earlier request.
    Won,
    /// The generation is somebody else's, with this claim.
    Lost(Claim),
    /// The generation is free and stays so: the flag before it isn't held by the predecessor that
    /// the claimer names. It is held by this claim, or not at all, because this arbiter has lost
    /// its claims or never had them.
    NotSuccessor(Option<Claim>),
}

/// Whether `generation` may be granted to a claimer that knows `predecessor` as the holder of the
/// flag before, which has the claim `before`. The first flag follows none.
#[must_use]
pub fn is_successor(generation: Generation, predecessor: Option<NodeId>, before: Option<&Claim>) -> bool {
    generation == Generation(0)
        || mutated(Mutation::PredecessorNotCompared)
        || (predecessor.is_some() && before.map(|before| before.node) == predecessor)
}

/// The flag before `generation`, if it isn't the first.
pub const fn before(generation: Generation) -> Option<Generation> {
    match generation.0.checked_sub(1) {
        Some(before) => Some(Generation(before)),
        None => None,
    }
}

/// The answer to `claim`, of a generation that is `holder`'s.
#[must_use]
pub fn verdict(claim: &Claim, holder: Claim) -> Verdict {
    if holder.node == claim.node { Verdict::Won } else { Verdict::Lost(holder) }
}
