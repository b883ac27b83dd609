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
         alive any more, `--force-new` starts it afresh and gives up its state",
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
/// `force_new` claims it whatever its state: who ran it can't fail over any more, and what it did is given up.
///
/// # Errors
/// [`StartError`]; nothing is claimed then.
pub fn claim_start(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    node: NodeId,
    address: &str,
    force_new: bool,
) -> Result<Generation, StartError> {
    let unreachable = |source| StartError::Arbiter { vm: vm.clone(), source };
    let next = |generation: Generation| {
        generation.0.checked_add(1).map(Generation).ok_or_else(|| StartError::Exhausted { vm: vm.clone() })
    };
    let free = match arbiter.latest(vm).map_err(unreachable)? {
        None => Generation(0),
        Some((generation, claim)) if claim.kind == ClaimKind::Ended || force_new => next(generation)?,
        Some((generation, holder)) => return Err(StartError::Owned { vm: vm.clone(), generation, holder }),
    };
    let claim = Claim { node, kind: ClaimKind::Owner, address: Some(address.into()) };
    match arbiter.test_and_set(vm, free, &claim).map_err(unreachable)? {
        Verdict::Won => next(free),
        Verdict::Lost(holder) => Err(StartError::Owned { vm: vm.clone(), generation: free, holder }),
    }
}
