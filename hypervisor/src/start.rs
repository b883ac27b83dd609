//! Claiming a VM at its start.

use crate::arbiter::{Arbiter, ArbiterError, Claim, ClaimKind, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::path::Path;

/// Why a VM can't be started here.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another node owns it, or did until both sides died.
    #[error(
        "VM {vm} is owned by node {} as generation {}{}: only one primary may run it. If no side of it is alive any more, {}",
        .holder.node,
        .generation.0.saturating_add(1),
        at(.holder),
        .known_log.as_ref().map_or_else(
            || "`--resume DIR` goes on from a log that one of them kept, and `--force-new` starts it afresh and gives up its \
                state".to_owned(),
            |directory| format!("`--resume {directory}` goes on from the log there"),
        )
    )]
    Owned {
        /// Which VM.
        vm: VmId,
        /// The last flag that was won: its holder runs as the generation after it.
        generation: Generation,
        /// By whom.
        holder: Claim,
        /// A directory with a log of this VM from which a restart is possible, if one is known.
        known_log: Option<String>,
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
        "the log ends with generation {logged} of VM {vm}, which went on as generation {owner} on node {}{}: resume from a log \
         of that generation. If there is none and no side of it is alive, `--give-up-generation {owner}` goes on from this log \
         all the same, and gives up what the VM did since", .holder.node, at(.holder)
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
         was restored to an older state, and can't tell who owns the VM. If no side of it is alive any more, \
         `--give-up-generation {owner}` goes on from this log all the same"
    )]
    NewerLog {
        /// Which VM.
        vm: VmId,
        /// As the log says.
        logged: Generation,
        /// As the arbiter says.
        owner: Generation,
    },
    /// Another node was quicker.
    #[error(
        "VM {vm} is not resumed here: node {} has claimed it as generation {}{} while this log was replayed, and runs it. The log \
         here stays as it was; if that node has died, resume from its log, or give this command again",
        .holder.node, .generation.0.saturating_add(1), at(.holder)
    )]
    ClaimedMeanwhile {
        /// Which VM.
        vm: VmId,
        /// The flag.
        generation: Generation,
        /// Who has it.
        holder: Claim,
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
    /// The generation to be given up isn't the last one.
    #[error(
        "`--give-up-generation {given_up}` is of an earlier state of VM {vm}: its last owner runs as generation {owner}, on node {}{}",
        .holder.node, at(.holder)
    )]
    NotTheLatest {
        /// Which VM.
        vm: VmId,
        /// As the operator says.
        given_up: Generation,
        /// As the arbiter says.
        owner: Generation,
        /// The owner.
        holder: Claim,
    },
    /// The log is the last owner's: nothing is to be given up.
    #[error(
        "the log is of generation {owner} of VM {vm}, the last one: nothing of it is given up by going on from there. Leave \
         `--give-up-generation` out"
    )]
    NothingToGiveUp {
        /// Which VM.
        vm: VmId,
        /// As the arbiter says.
        owner: Generation,
    },
    /// The log may lack what clients have seen.
    #[error(
        "the log of VM {vm} may lack the last of what clients have seen: {reasons}. Its last owner was node {}{}: resume from \
         that node's log if you can. `--accept-loss` goes on from this one", .holder.node, at(.holder)
    )]
    MayLack {
        /// Which VM.
        vm: VmId,
        /// Why.
        reasons: String,
        /// The owner.
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

impl StartError {
    /// The same, told by one who knows of a log in `directory` from which a restart is possible: what it holds isn't offered to be
    /// given up.
    #[must_use]
    pub fn with_known_log(mut self, directory: &Path) -> Self {
        if let Self::Owned { known_log, .. } = &mut self {
            *known_log = Some(directory.display().to_string());
        }
        self
    }
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
            return Err(StartError::Owned {
                vm: vm.clone(),
                generation: *generation,
                holder: holder.clone(),
                known_log: None,
            });
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

/// What a log says of whose it is.
#[derive(Clone, Copy, Debug)]
pub struct LogIdentity<'a> {
    /// As which generation the VM last ran in it.
    pub generation: Generation,
    /// Incarnations that have let out nothing that it lacks.
    pub nodes: &'a [NodeId],
    /// It is the log of a node that owned the VM, and not of a backup.
    pub is_owners: bool,
}

/// What an operator allows beside going on from the last owner's whole log.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResumeConsent {
    /// The log may lack what clients have seen last.
    pub accept_loss: bool,
    /// The log may be older than this generation, which is given up.
    pub give_up: Option<Generation>,
}

/// A claim that a VM may go on with from a log.
#[derive(Clone, Debug)]
pub struct ResumeClaim {
    free: Generation,
    /// The last owner, whose place is taken.
    pub holder: Claim,
    /// What the last owner did since is given up: it must not be alive.
    pub is_fork: bool,
}

/// Decides whether a VM may go on from a log, from what the arbiter knows of it. `losses` says why the log may lack what clients
/// have seen, if the last owner is this node.
///
/// # Errors
/// [`StartError`]: what speaks against it.
pub fn judge_resume(
    vm: &VmId,
    latest: Option<(Generation, Claim)>,
    log: LogIdentity<'_>,
    losses: impl FnOnce(NodeId) -> Vec<String>,
    consent: ResumeConsent,
) -> Result<ResumeClaim, StartError> {
    let Some((flag, holder)) = latest else { return Err(StartError::NeverRan { vm: vm.clone() }) };
    if holder.kind == ClaimKind::Ended {
        return Err(StartError::EndedInOrder { vm: vm.clone() });
    }
    let owner = next(vm, flag)?;
    // Its writer may have died between a claim that it had won and the entry that tells of it; so may one that has resumed
    // from it. The owner of a generation is named in its own log; in a backup's log it is another node.
    let is_of_latest =
        log.nodes.contains(&holder.node) || owner == log.generation && (!log.is_owners || log.nodes.is_empty());
    match consent.give_up {
        None if log.generation > owner => {
            return Err(StartError::NewerLog { vm: vm.clone(), logged: log.generation, owner });
        }
        None if !is_of_latest => {
            return Err(StartError::OlderLog { vm: vm.clone(), logged: log.generation, owner, holder });
        }
        Some(given_up) if given_up != owner => {
            return Err(StartError::NotTheLatest { vm: vm.clone(), given_up, owner, holder });
        }
        Some(_) if is_of_latest => return Err(StartError::NothingToGiveUp { vm: vm.clone(), owner }),
        // What is given up is more than what may be missing.
        Some(_) => return Ok(ResumeClaim { free: owner, holder, is_fork: true }),
        None => {}
    }
    let losses = losses(holder.node);
    if !losses.is_empty() && !consent.accept_loss {
        return Err(StartError::MayLack { vm: vm.clone(), reasons: losses.join("; "), holder });
    }
    Ok(ResumeClaim { free: owner, holder, is_fork: false })
}

/// Refuses to go on with a VM whose last owner lives: `ask_owner` asks the node at an address whether it owns the VM.
///
/// # Errors
/// [`StartError::Alive`].
pub fn refuse_if_alive(
    vm: &VmId,
    claim: &ResumeClaim,
    own_address: &str,
    ask_owner: impl Fn(&str) -> Option<(NodeId, Generation)>,
) -> Result<(), StartError> {
    // At this node's own address nobody else can be.
    match claim.holder.address.as_deref().filter(|address| *address != own_address) {
        Some(address) => match ask_owner(address) {
            Some((node, generation)) => {
                Err(StartError::Alive { vm: vm.clone(), node, generation, address: address.into() })
            }
            None => Ok(()),
        },
        None => Ok(()),
    }
}

/// Claims a VM as `judged` says, which is what [`judge_resume`] has found, and says as which generation it goes on from the log,
/// and whose place it has taken.
///
/// A claim that the dead owner had sent may reach the arbiter while its log is replayed. It is one of `log_nodes` then, and `judge`
/// looks again.
///
/// # Errors
/// [`StartError::ClaimedMeanwhile`] if another node has; [`StartError::Arbiter`]; those of `judge`.
pub fn claim_resume(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    claimed: &Claim,
    mut judged: ResumeClaim,
    log_nodes: &[NodeId],
    judge: impl Fn() -> Result<ResumeClaim, StartError>,
) -> Result<(Generation, ResumeClaim), StartError> {
    // It ends: each further round takes one more claim of a node that has died.
    loop {
        match claim_owner(arbiter, vm, judged.free, claimed, Some(judged.holder.node)) {
            Ok(generation) => return Ok((generation, judged)),
            Err(StartError::Owned { holder, .. }) if log_nodes.contains(&holder.node) => judged = judge()?,
            Err(StartError::Owned { vm, generation, holder, .. }) => {
                return Err(StartError::ClaimedMeanwhile { vm, generation, holder });
            }
            Err(error) => return Err(error),
        }
    }
}

fn at(holder: &Claim) -> String {
    holder.address.as_ref().map(|address| format!(" (its primary was at {address})")).unwrap_or_default()
}

/// What the arbiter knows of a VM last.
///
/// # Errors
/// [`StartError::Arbiter`].
pub fn latest(arbiter: &dyn Arbiter, vm: &VmId) -> Result<Option<(Generation, Claim)>, StartError> {
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
        Ok(Verdict::Lost(holder)) => {
            Err(StartError::Owned { vm: vm.clone(), generation: free, holder, known_log: None })
        }
        Err(source) => Err(StartError::Arbiter { vm: vm.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        LogIdentity, ResumeConsent, StartError, claim_resume, claim_start, end_unstarted, judge_resume, latest,
    };
    use crate::arbiter::{Arbiter, Claim, ClaimKind, FileArbiter, Verdict};
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

    fn owner(node: u128) -> Claim {
        Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None }
    }

    /// A primary that was killed may have asked for a claim that the arbiter has not yet decided.
    #[test]
    fn a_claim_of_the_dead_owners_that_arrives_during_the_replay_is_no_other_node() {
        let directory = tempfile::tempdir().unwrap();
        let (arbiter, vm) = (FileArbiter::open(directory.path().join("claims")).unwrap(), VmId::new("vm0").unwrap());
        let nodes = [NodeId(1)];
        let judge = || {
            let log = LogIdentity { generation: Generation(1), nodes: &nodes, is_owners: true };
            judge_resume(&vm, latest(&arbiter, &vm)?, log, |_| Vec::new(), ResumeConsent::default())
        };
        let set = |flag, claim: &Claim, before| arbiter.test_and_set(&vm, Generation(flag), claim, before).unwrap();
        assert_eq!(set(0, &owner(1), None), Verdict::Won);
        let judged = judge().unwrap();
        assert_eq!(set(1, &owner(1), Some(NodeId(1))), Verdict::Won, "it arrives");
        let (generation, _) = claim_resume(&arbiter, &vm, &owner(2), judged.clone(), &nodes, judge).unwrap();
        assert_eq!(generation, Generation(3));
        // Any other node's claim is one.
        let refused = claim_resume(&arbiter, &vm, &owner(3), judged, &[], judge).unwrap_err();
        assert!(matches!(refused, StartError::ClaimedMeanwhile { .. }), "{refused:?}");
    }
}
