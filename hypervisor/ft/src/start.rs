//! The rules for starting a VM and for resuming it from a log, by what the arbiter knows of it.

use crate::claim::{Claim, ClaimKind, Verdict};
use crate::mutation::{Mutation, mutated};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};

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
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The last flag that was won: its holder runs as the generation after it.
        generation: Generation,
        /// The claim that won it.
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
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The node that answers.
        node: NodeId,
        /// The generation that it owns.
        generation: Generation,
        /// The address where it answers.
        address: String,
    },
    /// The arbiter has no claim of the VM, so it never ran.
    #[error(
        "VM {vm} never ran, as far as this arbiter knows: is it the one that its sides had? Without --resume it starts"
    )]
    NeverRan {
        /// The VM that was to be started or resumed.
        vm: VmId,
    },
    /// The VM's last claim is an end mark, so there is nothing to resume.
    #[error("VM {vm} ended in order, and left its end mark: without --resume it starts afresh")]
    EndedInOrder {
        /// The VM that was to be started or resumed.
        vm: VmId,
    },
    /// The log isn't that of the VM's last owner.
    #[error(
        "the log ends with generation {logged} of VM {vm}, which went on as generation {owner} on node {}{}: resume from a log \
         of that generation. If there is none and no side of it is alive, `--give-up-generation {owner}` goes on from this log \
         all the same, and gives up what the VM did since", .holder.node, at(.holder)
    )]
    OlderLog {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The generation in which the log ends.
        logged: Generation,
        /// The generation of the last owner that the arbiter knows.
        owner: Generation,
        /// The last owner's claim.
        holder: Claim,
    },
    /// The arbiter has lost claims.
    #[error(
        "the log ends with generation {logged} of VM {vm}, and the arbiter knows only generation {owner}: it has lost claims, or \
         was restored to an older state, and can't tell who owns the VM. If no side of it is alive any more, \
         `--give-up-generation {owner}` goes on from this log all the same"
    )]
    NewerLog {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The generation in which the log ends.
        logged: Generation,
        /// The generation of the last owner that the arbiter knows.
        owner: Generation,
    },
    /// Another node was quicker.
    #[error(
        "VM {vm} is not resumed here: node {} has claimed it as generation {}{} while this log was replayed, and runs it. The log \
         here stays as it was; if that node has died, resume from its log, or give this command again",
        .holder.node, .generation.0.saturating_add(1), at(.holder)
    )]
    ClaimedMeanwhile {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The flag that was asked for.
        generation: Generation,
        /// The claim that holds it.
        holder: Claim,
    },
    /// The latest claim has gone between the look and the claim.
    #[error(
        "VM {vm} is not started: its claims at the arbiter have changed while they were looked at, as if the arbiter had lost \
         them; find out who removes claims, and try again"
    )]
    ClaimsChanged {
        /// The VM that was to be started or resumed.
        vm: VmId,
    },
    /// The generation to be given up isn't the last one.
    #[error(
        "`--give-up-generation {given_up}` is of an earlier state of VM {vm}: its last owner runs as generation {owner}, on node {}{}",
        .holder.node, at(.holder)
    )]
    NotTheLatest {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The generation that the operator named.
        given_up: Generation,
        /// The generation of the last owner that the arbiter knows.
        owner: Generation,
        /// The last owner's claim.
        holder: Claim,
    },
    /// The log is the last owner's: nothing is to be given up.
    #[error(
        "the log is of generation {owner} of VM {vm}, the last one: nothing of it is given up by going on from there. Leave \
         `--give-up-generation` out"
    )]
    NothingToGiveUp {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// The generation of the last owner that the arbiter knows.
        owner: Generation,
    },
    /// The log may lack what clients have seen.
    #[error(
        "the log of VM {vm} may lack the last of what clients have seen: {reasons}. Its last owner was node {}{}: resume from \
         that node's log if you can. `--accept-loss` goes on from this one", .holder.node, at(.holder)
    )]
    MayLack {
        /// The VM that was to be started or resumed.
        vm: VmId,
        /// Why, as a list for people.
        reasons: String,
        /// The last owner's claim.
        holder: Claim,
    },
    /// No generation is left; no VM lives that long, so the arbiter's claims were tampered with.
    #[error("VM {vm} has no generation left: its claims at the arbiter are not ours; use another name")]
    Exhausted {
        /// The VM that was to be started or resumed.
        vm: VmId,
    },
}

impl StartError {
    /// Names a `directory` with a log from which a restart is possible, so that the message doesn't
    /// offer to give up what that log holds.
    #[must_use]
    pub fn with_known_log(mut self, directory: String) -> Self {
        if let Self::Owned { known_log, .. } = &mut self {
            *known_log = Some(directory);
        }
        self
    }
}

/// Decides whether a VM may be started, from what the arbiter knows of it, and says which flag is
/// to be claimed: the first if it never ran, the one behind its end mark if it ended in order.
///
/// `force_new` claims it whatever its state: who ran it can't fail over any more, and what it did
/// is given up.
///
/// # Errors
/// [`StartError::Owned`]; [`StartError::Exhausted`].
pub fn judge_start(vm: &VmId, latest: Option<&(Generation, Claim)>, force_new: bool) -> Result<Generation, StartError> {
    match latest {
        None => Ok(Generation(0)),
        Some((generation, claim)) if claim.kind == ClaimKind::Ended || force_new => owner_behind(vm, *generation),
        Some((generation, holder)) => {
            Err(StartError::Owned { vm: vm.clone(), generation: *generation, holder: holder.clone(), known_log: None })
        }
    }
}

/// The owner of a log, as the log itself says.
#[derive(Clone, Copy, Debug)]
pub struct LogIdentity<'a> {
    /// The generation in which the VM last ran in this log.
    pub generation: Generation,
    /// Nodes (incarnations) whose released outputs are all in this log.
    pub nodes: &'a [NodeId],
    /// `true` if the log is an owner's, `false` if it is a backup's.
    pub is_owners: bool,
}

/// What kind of writer a log on disk is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogWriterKind {
    /// It owned the VM: outputs waited for this log.
    Owner,
    /// It joined, and wasn't told that it protects the VM: no output waited for it.
    Joining,
    /// It protected the VM: outputs waited for its receiving the entries, and not for their being
    /// in this log.
    Backup,
}

impl LogWriterKind {
    /// Whether a log of this kind may lack entries of outputs that have left. A backup acknowledges
    /// entries before its own disk has them. So its log may lack some even if it won the VM's flag:
    /// the node may have died before that, and all that it had received, was in its log.
    #[must_use]
    pub fn may_lack_outputs(self) -> bool {
        self != Self::Owner && !mutated(Mutation::TrustLogOfWinner)
    }
}

/// What an operator consents to when the log isn't the last owner's whole log.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResumeConsent {
    /// The log may lack what clients have seen last.
    pub accept_loss: bool,
    /// The log may be older than this generation, which is given up.
    pub give_up: Option<Generation>,
}

/// The claim with which a VM may be resumed from a log.
#[derive(Clone, Debug)]
pub struct ResumeClaim {
    /// The flag to be claimed.
    pub free: Generation,
    /// The last owner, which the claim supersedes.
    pub holder: Claim,
    /// `true` if what the last owner did after this log is given up: that node must not be alive
    /// then.
    pub is_fork: bool,
}

/// Decides whether a VM may be resumed from a log, by what the arbiter knows of it. `losses` says
/// why the log may lack what clients have seen, if the last owner is this node.
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
    let owner = owner_behind(vm, flag)?;
    // The writer of the log may have died between winning a claim and logging it; so may a node
    // that resumed from it. The owner of a generation is named in its own log; a backup's log names
    // another node.
    let is_of_latest = log.nodes.contains(&holder.node)
        || owner == log.generation && (!log.is_owners || log.nodes.is_empty())
        || mutated(Mutation::OlderLogTaken);
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
        // Giving up a generation covers what this log may lack.
        Some(_) => return Ok(ResumeClaim { free: owner, holder, is_fork: true }),
        None => {}
    }
    let losses = losses(holder.node);
    if !losses.is_empty() && !consent.accept_loss {
        return Err(StartError::MayLack { vm: vm.clone(), reasons: losses.join("; "), holder });
    }
    Ok(ResumeClaim { free: owner, holder, is_fork: false })
}

/// Refuses a VM whose last owner lives: `ask_owner` asks the node at an address whether it owns the
/// VM, as the arbiter may have been restored to an older state.
///
/// # Errors
/// [`StartError::Alive`].
pub fn refuse_if_alive(
    vm: &VmId,
    last: Option<&Claim>,
    own_address: &str,
    ask_owner: impl Fn(&str) -> Option<(NodeId, Generation)>,
) -> Result<(), StartError> {
    // No other node can answer at this node's own address.
    let address = last.and_then(|last| last.address.as_deref()).filter(|address| *address != own_address);
    match address.and_then(|address| Some((address, ask_owner(address)?))) {
        None => Ok(()),
        Some((address, (node, generation))) => {
            Err(StartError::Alive { vm: vm.clone(), node, generation, address: address.into() })
        }
    }
}

/// The generation that the claimer of the flag `free` owns, by the arbiter's verdict.
///
/// # Errors
/// [`StartError::Owned`] if the flag is another's; [`StartError::ClaimsChanged`];
/// [`StartError::Exhausted`].
pub fn owned_by_verdict(vm: &VmId, free: Generation, verdict: Verdict) -> Result<Generation, StartError> {
    match verdict {
        Verdict::Won => owner_behind(vm, free),
        Verdict::NotSuccessor(_) => Err(StartError::ClaimsChanged { vm: vm.clone() }),
        Verdict::Lost(holder) => Err(StartError::Owned { vm: vm.clone(), generation: free, holder, known_log: None }),
    }
}

fn at(holder: &Claim) -> String {
    holder.address.as_ref().map(|address| format!(" (its primary was at {address})")).unwrap_or_default()
}

/// The generation that the holder of a flag owns: the one after it.
fn owner_behind(vm: &VmId, generation: Generation) -> Result<Generation, StartError> {
    generation.0.checked_add(1).map(Generation).ok_or_else(|| StartError::Exhausted { vm: vm.clone() })
}
