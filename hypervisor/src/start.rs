//! Claiming a VM at its start.

use crate::arbiter::{Arbiter, ArbiterError, Claim, ClaimKind, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};

/// Why a VM can't be started here.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody owns it, or did until both sides died.
    #[error(
        "VM {vm} is owned by node {} as generation {}{}: only one primary may run it. If no side of it is \
         alive any more, `--resume DIR` goes on from a log that one of them kept, and `--force-new` starts it afresh and \
         gives up its state",
        .holder.node,
        .generation.0.saturating_add(1),
        .holder.address.as_ref().map(|address| format!(" (its primary was at {address})")).unwrap_or_default()
    )]
    Owned {
        /// Which VM.
        vm: VmId,
        /// The last flag that was won: its holder runs as the generation after it.
        generation: Generation,
        /// By whom.
        holder: Claim,
    },
    /// Its owner is alive.
    #[error(
        "VM {vm} is not started: node {node} answers at {address} that it owns this VM as generation {generation}. End it there \
         first; what is claimed over the head of an owner that lives is lost"
    )]
    Alive {
        /// Which VM.
        vm: VmId,
        /// Who answers.
        node: NodeId,
        /// As which generation.
        generation: Generation,
        /// Where.
        address: String,
    },
    /// There is nothing to resume.
    #[error(
        "VM {vm} never ran, as far as this arbiter knows: is it the one that its sides had? Without --resume it starts"
    )]
    NeverRan {
        /// Which VM.
        vm: VmId,
    },
    /// There is nothing to resume.
    #[error("VM {vm} ended in order, and left its end mark: without --resume it starts afresh")]
    EndedInOrder {
        /// Which VM.
        vm: VmId,
    },
    /// The log isn't that of the VM's last owner.
    #[error(
        "the log ends with generation {logged} of VM {vm}, which went on as generation {owner} on node {}: resume from a log \
         of that generation, or start afresh with `--force-new`", .holder.node
    )]
    OlderLog {
        /// Which VM.
        vm: VmId,
        /// As the log says.
        logged: Generation,
        /// As the arbiter says.
        owner: Generation,
        /// The owner.
        holder: Claim,
    },
    /// The arbiter has lost claims.
    #[error(
        "the log ends with generation {logged} of VM {vm}, and the arbiter knows only generation {owner}: it has lost claims, or \
         was restored to an older state, and can't tell who owns the VM. If no side of it is alive any more, `--force-new` \
         starts it afresh and gives up its state"
    )]
    NewerLog {
        /// Which VM.
        vm: VmId,
        /// As the log says.
        logged: Generation,
        /// As the arbiter says.
        owner: Generation,
    },
    /// The latest claim has gone between the look and the claim.
    #[error(
        "VM {vm} is not started: its claims at the arbiter have changed while they were looked at, as if the arbiter had lost \
         them; find out who removes claims, and try again"
    )]
    ClaimsChanged {
        /// Which VM.
        vm: VmId,
    },
    /// No generation is left; no VM lives that long, so the arbiter's claims were tampered with.
    #[error("VM {vm} has no generation left: its claims at the arbiter are not ours; use another name")]
    Exhausted {
        /// Which VM.
        vm: VmId,
    },
    /// The arbiter can't be asked.
    #[error("VM {vm} is not started: {source}")]
    Arbiter {
        /// Which VM.
        vm: VmId,
        /// Why.
        source: ArbiterError,
    },
}

/// Claims a VM for a new start and says as which generation it runs: the first if it never ran, the one behind its end
/// mark if it ended in order.
///
/// `force_new` claims it whatever its state: who ran it can't fail over any more, and what it did is given up. `ask_owner` asks
/// the node at the address of the last claim whether it owns the VM, as the arbiter may have been restored to an older state.
///
/// # Errors
/// [`StartError`]; nothing is claimed then.
pub fn claim_start(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    node: NodeId,
    address: &str,
    force_new: bool,
    ask_owner: impl Fn(&str) -> Option<(NodeId, Generation)>,
) -> Result<Generation, StartError> {
    let latest = latest(arbiter, vm)?;
    let free = match &latest {
        None => Generation(0),
        Some((generation, claim)) if claim.kind == ClaimKind::Ended || force_new => next(vm, *generation)?,
        Some((generation, holder)) => {
            return Err(StartError::Owned { vm: vm.clone(), generation: *generation, holder: holder.clone() });
        }
    };
    let claim = Claim { node, kind: ClaimKind::Owner, address: Some(address.into()) };
    // At this node's own address nobody else can be.
    let last_address = latest.as_ref().and_then(|(_, last)| last.address.as_deref()).filter(|last| *last != address);
    if let Some(address) = last_address
        && let Some((node, generation)) = ask_owner(address)
    {
        return Err(StartError::Alive { vm: vm.clone(), node, generation, address: address.into() });
    }
    claim_owner(arbiter, vm, free, &claim, latest.map(|(_, before)| before.node))
}

/// Sets the end mark of a VM that was claimed as `generation` and whose guest never ran, because its start failed: without it
/// the VM would stay owned by a process that is gone. Never for a guest that has run anywhere.
///
/// # Errors
/// [`StartError`]: the VM stays owned.
pub fn end_unstarted(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    generation: Generation,
    node: NodeId,
    address: &str,
) -> Result<(), StartError> {
    let claim = Claim { node, kind: ClaimKind::Ended, address: Some(address.into()) };
    claim_owner(arbiter, vm, generation, &claim, Some(node)).map(|_| ())
}

/// Claims a VM whose both sides have died, to go on from a log in which it last ran as `logged`, written by `writer`; says as
/// which generation it goes on.
///
/// # Errors
/// [`StartError`]; nothing is claimed then. [`StartError::OlderLog`] if somebody else has run the VM since.
pub fn claim_resume(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    node: NodeId,
    address: &str,
    logged: Generation,
    writer: Option<NodeId>,
) -> Result<Generation, StartError> {
    let Some((generation, holder)) = latest(arbiter, vm)? else {
        return Err(StartError::NeverRan { vm: vm.clone() });
    };
    if holder.kind == ClaimKind::Ended {
        return Err(StartError::EndedInOrder { vm: vm.clone() });
    }
    let owner = next(vm, generation)?;
    // Its writer may have died between a claim that it had won and the entry that tells of it.
    if logged > owner {
        return Err(StartError::NewerLog { vm: vm.clone(), logged, owner });
    }
    let is_of_latest = owner == logged || (generation == logged && Some(holder.node) == writer);
    if !is_of_latest {
        return Err(StartError::OlderLog { vm: vm.clone(), logged, owner, holder });
    }
    let claim = Claim { node, kind: ClaimKind::Owner, address: Some(address.into()) };
    claim_owner(arbiter, vm, owner, &claim, Some(holder.node))
}

fn latest(arbiter: &dyn Arbiter, vm: &VmId) -> Result<Option<(Generation, Claim)>, StartError> {
    arbiter.latest(vm).map_err(|source| StartError::Arbiter { vm: vm.clone(), source })
}

fn next(vm: &VmId, generation: Generation) -> Result<Generation, StartError> {
    generation.0.checked_add(1).map(Generation).ok_or_else(|| StartError::Exhausted { vm: vm.clone() })
}

fn claim_owner(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    free: Generation,
    claim: &Claim,
    predecessor: Option<NodeId>,
) -> Result<Generation, StartError> {
    let owner = next(vm, free)?;
    match arbiter.test_and_set(vm, free, claim, predecessor) {
        Ok(Verdict::Won) => Ok(owner),
        Ok(Verdict::NotSuccessor(_)) => Err(StartError::ClaimsChanged { vm: vm.clone() }),
        Ok(Verdict::Lost(holder)) => Err(StartError::Owned { vm: vm.clone(), generation: free, holder }),
        Err(source) => Err(StartError::Arbiter { vm: vm.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::{StartError, claim_start, end_unstarted};
    use crate::arbiter::FileArbiter;
    use logchannel::entry::Generation;
    use logchannel::session::{NodeId, VmId};

    /// Without it, nobody could start the VM again but by `--force-new`.
    #[test]
    fn a_vm_whose_start_failed_after_its_claim_can_be_started_again_and_only_its_claimer_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let (arbiter, vm) = (FileArbiter::open(directory.path().join("claims")).unwrap(), VmId::new("vm0").unwrap());
        let start = |node| claim_start(&arbiter, &vm, NodeId(node), "127.0.0.1:1", false, |_| None);
        assert_eq!(start(1).unwrap(), Generation(1));
        assert!(matches!(start(2), Err(StartError::Owned { .. })));
        end_unstarted(&arbiter, &vm, Generation(1), NodeId(1), "127.0.0.1:1").unwrap();
        assert_eq!(start(2).unwrap(), Generation(3), "the end mark uses up a generation");
        // Another one has won the flag that would be the end mark.
        let refused = end_unstarted(&arbiter, &vm, Generation(2), NodeId(1), "127.0.0.1:1");
        assert!(matches!(refused, Err(StartError::Owned { .. })), "{refused:?}");
        assert!(matches!(start(3), Err(StartError::Owned { .. })));
    }
}
