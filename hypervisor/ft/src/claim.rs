//! Claims of a VM's generations, and the arbiter's verdicts on them.
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
    /// The node that claims: one incarnation of a process.
    pub node: NodeId,
    /// Whether it claims to own the VM or to end it.
    pub kind: ClaimKind,
    /// Where the winner accepts a backup, `HOST:PORT`; at most [`ADDRESS_BYTES_MAX`] bytes.
    pub address: Option<String>,
}

impl Claim {
    /// The claimer, for people: the node's id and, because ids are random, its address if it gave
    /// one.
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
    /// Another node has the generation, by this claim.
    Lost(Claim),
    /// The generation is free and stays so: the flag before it isn't held by the predecessor that
    /// the claimer names. It is held by this claim, or not at all, because this arbiter has lost
    /// its claims or never had them.
    NotSuccessor(Option<Claim>),
}

/// `true` if `generation` may be granted to a claimer that names `predecessor` as the holder of the
/// flag before it, where `before` is the claim that the arbiter has for that flag. The first flag
/// needs no predecessor.
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

/// The verdict on `claim` for a generation that was granted to `holder`.
#[must_use]
pub fn verdict(claim: &Claim, holder: Claim) -> Verdict {
    if holder.node == claim.node { Verdict::Won } else { Verdict::Lost(holder) }
}
