//! Cold restart: going on from a log on disk after both sides have died. The order of the phases
//! allows a process that restarts to be killed at any moment, and started again from the same
//! directory.
//!
//! ```text
//!   Restart::survey ─► Restart::judge ─► Restart::replay ─► Replayed::claim ─► Continuation
//!   reads the log      asks the arbiter    runs the guest    lists the node     role and machine
//!                                                            and claims
//! ```
//! Nothing here sets an end mark, and nothing is written but the list of nodes.

use super::log::{LogDirectory, LogDirectoryError, LogProvenance, ResumeProgress, Resumed, Storage, Survey};
use super::start::{ClaimError, claim_resume, latest};
use crate::arbiter::Arbiter;
use ft::claim::Claim;
use ft::guest_clock::GuestClock;
use ft::mutation::{Mutation, mutated};
use ft::role::{DiskLogState, Inheritance, PrimaryRole, Timing};
use ft::start::{ResumeClaim, ResumeConsent, judge_resume, refuse_if_alive};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::fmt;
use vm::{Machine, OutputOperation, StopReason};

/// Why a VM can't go on from a log.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The log can't be used.
    #[error(transparent)]
    Log(#[from] LogDirectoryError),
    /// The VM may not go on from this log, or the arbiter can't be asked.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The guest had ended.
    #[error("the guest of VM {vm} had come to its end: {reason}; start it afresh")]
    GuestEnded {
        /// The VM.
        vm: VmId,
        /// How it ended.
        reason: StopReason,
    },
}

/// The node that wants to go on, and what its operator allows.
pub struct Restarter<'a> {
    /// The VM.
    pub vm: &'a VmId,
    /// The arbiter that decides.
    pub arbiter: &'a dyn Arbiter,
    /// The claim to make.
    pub claim: Claim,
    /// Which losses the operator accepts.
    pub consent: ResumeConsent,
    /// Asks the node at this address whether it owns the VM.
    pub ask_owner: &'a dyn Fn(&str) -> Option<(NodeId, Generation)>,
}

impl fmt::Debug for Restarter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restarter").field("vm", self.vm).field("claim", &self.claim).finish_non_exhaustive()
    }
}

impl Restarter<'_> {
    fn judge(&self, provenance: &LogProvenance) -> Result<ResumeClaim, ClaimError> {
        let losses = |owner| provenance.possible_losses(owner).iter().map(ToString::to_string).collect();
        let latest = latest(self.arbiter, self.vm)?;
        let judged = judge_resume(self.vm, latest, provenance.identity(), losses, self.consent)?;
        let own_address = self.claim.address.as_deref().unwrap_or_default();
        refuse_if_alive(self.vm, Some(&judged.holder), own_address, self.ask_owner)?;
        Ok(judged)
    }
}

/// A log that may be resumed.
#[derive(Debug)]
pub struct Restart<S: Storage> {
    directory: LogDirectory<S>,
    /// What the directory holds.
    pub survey: Survey<S>,
    judged: Option<ResumeClaim>,
}

impl<S: Storage> Restart<S> {
    /// Surveys what `directory` holds of `vm`.
    ///
    /// # Errors
    /// [`RestartError::Log`]; [`RestartError::GuestEnded`].
    pub fn survey(directory: LogDirectory<S>, vm: &VmId) -> Result<Self, RestartError> {
        let survey = directory.survey()?;
        if let Some(reason) = survey.stopped {
            return Err(RestartError::GuestEnded { vm: vm.clone(), reason });
        }
        Ok(Self { directory, survey, judged: None })
    }

    /// Asks the arbiter whether the VM may go on from this log. Optional: [`Replayed::claim`] asks
    /// if this hasn't, but replaying a log that may not be used would take long for nothing.
    ///
    /// # Errors
    /// [`RestartError::Claim`].
    pub fn judge(&mut self, restarter: &Restarter<'_>) -> Result<(), RestartError> {
        self.judged = Some(restarter.judge(&self.survey.provenance)?);
        Ok(())
    }

    /// Replays the log, and calls `progress` periodically.
    ///
    /// # Errors
    /// [`RestartError::Log`].
    pub fn replay(self, progress: impl FnMut(ResumeProgress)) -> Result<Replayed<S>, RestartError> {
        let Self { directory, survey, judged } = self;
        let provenance = survey.provenance.clone();
        Ok(Replayed { directory, provenance, judged, resumed: survey.replay(progress)? })
    }
}

/// A VM that has been replayed and isn't claimed yet.
#[derive(Debug)]
pub struct Replayed<S: Storage> {
    directory: LogDirectory<S>,
    provenance: LogProvenance,
    judged: Option<ResumeClaim>,
    resumed: Resumed,
}

impl<S: Storage> Replayed<S> {
    /// Claims the VM. The directory's list names this node before: if it is killed after the claim,
    /// the list shows that the claim is of one of the log's nodes.
    ///
    /// # Errors
    /// [`RestartError`]: nothing is claimed, or it isn't known whether. In both cases the same
    /// directory can be resumed again.
    pub fn claim(self, restarter: &Restarter<'_>) -> Result<Continuation<S>, RestartError> {
        let Self { directory, provenance, judged, resumed } = self;
        let judged = judged.map_or_else(|| restarter.judge(&provenance), Ok)?;
        if !mutated(Mutation::ClaimBeforeName) {
            directory.add_node(restarter.claim.node)?;
        }
        let (generation, claimed) =
            claim_resume(restarter.arbiter, restarter.vm, &restarter.claim, judged, &provenance.nodes, || {
                restarter.judge(&provenance)
            })?;
        if mutated(Mutation::ClaimBeforeName) {
            directory.add_node(restarter.claim.node)?;
        }
        let may_lack = claimed.is_fork || !provenance.possible_losses(claimed.holder.node).is_empty();
        Ok(Continuation { directory, generation, may_lack, resumed })
    }
}

/// A VM that this node owns now, and goes on with.
#[derive(Debug)]
pub struct Continuation<S: Storage> {
    directory: LogDirectory<S>,
    /// The generation under which this node owns it.
    pub generation: Generation,
    /// Outputs that clients saw last may be missing from the log.
    pub may_lack: bool,
    /// The replayed VM.
    pub resumed: Resumed,
}

impl<S: Storage> Continuation<S> {
    /// The role with which `node` goes on, the machine, and the directory for its log.
    #[must_use]
    pub fn take_over(self, node: NodeId, timing: Timing) -> (PrimaryRole, Machine, LogDirectory<S>) {
        let Self { directory, generation, resumed, .. } = self;
        let session = SessionHeader { generation, ..resumed.session };
        // The LAN knows which packets it has carried. Console output isn't repeated: it was most
        // probably written.
        let mut unsent = resumed.unsent;
        if mutated(Mutation::ResumeWithoutUnsent) {
            unsent.clear();
        }
        unsent.retain(|(_, output)| matches!(output, OutputOperation::Packet(_)));
        let inheritance = Inheritance {
            // The time since the log's last clock value counts as a pause.
            clock: GuestClock::standing(resumed.machine.last_ticks()),
            first: resumed.next_seq,
            next_output: resumed.next_output,
            unsent,
            disk_log: DiskLogState::Promised,
        };
        (PrimaryRole::resumed(node, session, timing, inheritance), resumed.machine, directory)
    }
}

impl<S: Storage> LogDirectory<S> {
    /// Enters `node` into the list of nodes whose log this directory holds, before `node` claims
    /// the VM for a new start. A directory with segments of an earlier life keeps its list: they
    /// aren't this node's.
    ///
    /// # Errors
    /// If the list can't be written.
    pub fn prepare_start(&self, node: NodeId) -> Result<(), LogDirectoryError> {
        if self.has_whole_segment() { Ok(()) } else { self.add_node(node) }
    }
}
