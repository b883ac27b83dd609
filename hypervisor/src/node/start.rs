//! Claims a VM when it starts or resumes: asks the arbiter, and [`ft::start`] decides.

use crate::arbiter::{Arbiter, ArbiterError};
use ft::claim::{Claim, ClaimKind};
use ft::mutation::{Mutation, mutated};
use ft::start::{ResumeClaim, StartError, judge_start, owned_by_verdict, refuse_if_alive};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::path::Path;

/// Why this node may not run a VM.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The VM's claims don't allow it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The arbiter can't be asked.
    #[error("VM {vm} is not started: {source}")]
    Arbiter {
        /// The VM.
        vm: VmId,
        /// The arbiter's error.
        source: ArbiterError,
    },
}

impl ClaimError {
    /// Adds to the error that the VM can be resumed from the log in `directory`, so that its advice
    /// doesn't discard that log.
    #[must_use]
    pub fn with_known_log(self, directory: &Path) -> Self {
        match self {
            Self::Start(error) => Self::Start(error.with_known_log(directory.display().to_string())),
            arbiter @ Self::Arbiter { .. } => arbiter,
        }
    }
}

/// Claims a VM for a new start. Returns the generation under which it runs. `force_new` and
/// `ask_owner` are as for [`judge_start`] and [`refuse_if_alive`].
///
/// # Errors
/// [`ClaimError`]; nothing is claimed then.
pub fn claim_start(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    node: NodeId,
    address: &str,
    force_new: bool,
    ask_owner: impl Fn(&str) -> Option<(NodeId, Generation)>,
) -> Result<Generation, ClaimError> {
    let latest = latest(arbiter, vm)?;
    let free = judge_start(vm, latest.as_ref(), force_new)?;
    let last = latest.map(|(_, last)| last);
    refuse_if_alive(vm, last.as_ref(), address, ask_owner)?;
    let claim = Claim { node, kind: ClaimKind::Owner, address: Some(address.into()) };
    claim_flag(arbiter, vm, free, &claim, last.map(|last| last.node))
}

/// Sets the end mark of a VM whose start has failed after it was claimed as `generation`. Otherwise
/// a process that is gone would own it. Only for a guest that has run nowhere.
///
/// # Errors
/// [`ClaimError`]; the VM stays owned.
pub fn end_unstarted(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    generation: Generation,
    node: NodeId,
    address: &str,
) -> Result<(), ClaimError> {
    let claim = Claim { node, kind: ClaimKind::Ended, address: Some(address.into()) };
    claim_flag(arbiter, vm, generation, &claim, Some(node)).map(|_| ())
}

/// Claims a VM to resume it, as [`judge_resume`](ft::start::judge_resume) has judged. Returns the
/// generation under which it goes on, and the judgement that held in the end.
///
/// A claim that the dead owner had sent may reach the arbiter while its log is replayed. The claim
/// is then of one of `log_nodes`, and this calls `judge` again.
///
/// # Errors
/// [`StartError::ClaimedMeanwhile`] if another node has claimed the VM; [`ClaimError::Arbiter`];
/// those of `judge`.
pub fn claim_resume(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    claimed: &Claim,
    mut judged: ResumeClaim,
    log_nodes: &[NodeId],
    judge: impl Fn() -> Result<ResumeClaim, ClaimError>,
) -> Result<(Generation, ResumeClaim), ClaimError> {
    // Ends: each further round takes another claim of a dead node.
    loop {
        match claim_flag(arbiter, vm, judged.free, claimed, Some(judged.holder.node)) {
            Ok(generation) => return Ok((generation, judged)),
            Err(ClaimError::Start(StartError::Owned { holder, .. }))
                if log_nodes.contains(&holder.node) && !mutated(Mutation::ResumeLooksOnce) =>
            {
                judged = judge()?;
            }
            Err(ClaimError::Start(StartError::Owned { vm, generation, holder, .. })) => {
                return Err(StartError::ClaimedMeanwhile { vm, generation, holder }.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// The VM's latest claim at the arbiter, with its generation.
///
/// # Errors
/// [`ClaimError::Arbiter`].
pub fn latest(arbiter: &dyn Arbiter, vm: &VmId) -> Result<Option<(Generation, Claim)>, ClaimError> {
    arbiter.latest(vm).map_err(|source| ClaimError::Arbiter { vm: vm.clone(), source })
}

fn claim_flag(
    arbiter: &dyn Arbiter,
    vm: &VmId,
    free: Generation,
    claim: &Claim,
    predecessor: Option<NodeId>,
) -> Result<Generation, ClaimError> {
    let verdict = arbiter.test_and_set(vm, free, claim, predecessor);
    let verdict = verdict.map_err(|source| ClaimError::Arbiter { vm: vm.clone(), source })?;
    Ok(owned_by_verdict(vm, free, verdict)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::FileArbiter;
    use ft::claim::Verdict;
    use ft::start::{LogIdentity, ResumeConsent, judge_resume};

    /// Otherwise only `--force-new` could start the VM again.
    #[test]
    fn a_vm_whose_start_failed_after_its_claim_can_be_started_again_and_only_its_claimer_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let (arbiter, vm) = (FileArbiter::open(directory.path().join("claims")).unwrap(), VmId::new("vm0").unwrap());
        let start = |node| claim_start(&arbiter, &vm, NodeId(node), "127.0.0.1:1", false, |_| None);
        assert_eq!(start(1).unwrap(), Generation(1));
        assert!(matches!(start(2), Err(ClaimError::Start(StartError::Owned { .. }))));
        end_unstarted(&arbiter, &vm, Generation(1), NodeId(1), "127.0.0.1:1").unwrap();
        assert_eq!(start(2).unwrap(), Generation(3), "the end mark uses up a generation");
        // Another node has won the flag that the end mark would take.
        let refused = end_unstarted(&arbiter, &vm, Generation(2), NodeId(1), "127.0.0.1:1");
        assert!(matches!(refused, Err(ClaimError::Start(StartError::Owned { .. }))), "{refused:?}");
        assert!(matches!(start(3), Err(ClaimError::Start(StartError::Owned { .. }))));
    }

    fn owner(node: u128) -> Claim {
        Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None }
    }

    /// A killed primary may have sent a claim that the arbiter hasn't decided yet.
    #[test]
    fn a_claim_of_the_dead_owners_that_arrives_during_the_replay_is_no_other_node() {
        let directory = tempfile::tempdir().unwrap();
        let (arbiter, vm) = (FileArbiter::open(directory.path().join("claims")).unwrap(), VmId::new("vm0").unwrap());
        let nodes = [NodeId(1)];
        let judge = || {
            let log = LogIdentity { generation: Generation(1), nodes: &nodes, is_owners: true };
            Ok(judge_resume(&vm, latest(&arbiter, &vm)?, log, |_| Vec::new(), ResumeConsent::default())?)
        };
        let set = |flag, claim: &Claim, before| arbiter.test_and_set(&vm, Generation(flag), claim, before).unwrap();
        assert_eq!(set(0, &owner(1), None), Verdict::Won);
        let judged = judge().unwrap();
        assert_eq!(set(1, &owner(1), Some(NodeId(1))), Verdict::Won, "it arrives");
        let (generation, _) = claim_resume(&arbiter, &vm, &owner(2), judged.clone(), &nodes, judge).unwrap();
        assert_eq!(generation, Generation(3));
        // A claim of any other node counts.
        let refused = claim_resume(&arbiter, &vm, &owner(3), judged, &[], judge).unwrap_err();
        assert!(matches!(refused, ClaimError::Start(StartError::ClaimedMeanwhile { .. })), "{refused:?}");
    }
}
