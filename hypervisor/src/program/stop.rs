//! What Ctrl-C does to a side of a VM.

use super::{Failure, interrupted};
use crate::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use crate::host::live::LiveVm;
use crate::host::signals;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends the process in order when it is asked to by SIGINT or SIGTERM: at once as long as it owns no VM, by retiring the
/// VM that it owns, and at once the second time.
#[derive(Clone, Debug)]
pub(super) struct StopSwitch(Arc<Mutex<Life>>);

#[derive(Debug)]
enum Life {
    /// Nothing has to be ended in order.
    Unburdened,
    /// The VM belongs to this process, and will run in a moment. Without its end mark nobody could start it again.
    Owner,
    /// The same, and it is to be retired then.
    OwnerAskedToStop,
    /// The VM runs.
    Running(LiveVm),
    /// It is being retired.
    Retiring,
}

impl StopSwitch {
    /// Call it before any thread starts, as [`signals::on_termination`].
    pub(super) fn install() -> Result<Self, Failure> {
        let switch = Self(Arc::new(Mutex::new(Life::Unburdened)));
        let asked = switch.clone();
        signals::on_termination(move || asked.stop())?;
        Ok(switch)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the VM may belong to this process.
    pub(super) fn owns(&self) {
        let mut life = self.life();
        if matches!(*life, Life::Unburdened) {
            *life = Life::Owner;
        }
    }

    /// `arbiter`, at which a claim may make the VM this process's.
    pub(super) fn guarding(&self, arbiter: Arc<dyn Arbiter>) -> GuardedArbiter {
        GuardedArbiter { arbiter, stop: self.clone() }
    }

    /// The VM runs, as `running`.
    pub(super) fn runs(&self, running: LiveVm) {
        let mut life = self.life();
        if matches!(*life, Life::OwnerAskedToStop) {
            running.retire();
            *life = Life::Retiring;
        } else {
            *life = Life::Running(running);
        }
    }

    /// This process's part in the VM is over, so that nothing has to be ended in order any more. `false` if it has been asked to
    /// end the process.
    pub(super) fn disowns(&self) -> bool {
        let mut life = self.life();
        let is_asked = matches!(*life, Life::OwnerAskedToStop | Life::Retiring);
        if !is_asked {
            *life = Life::Unburdened;
        }
        !is_asked
    }

    fn stop(&self) {
        let mut life = self.life();
        let next = match &*life {
            Life::Unburdened | Life::OwnerAskedToStop | Life::Retiring => interrupted(),
            Life::Owner => Life::OwnerAskedToStop,
            Life::Running(running) => {
                running.retire();
                Life::Retiring
            }
        };
        *life = next;
    }
}

/// An arbiter that tells the stop switch of claims: who ends between a claim and its answer may leave a VM behind that nobody
/// can start again.
#[derive(Debug)]
pub(super) struct GuardedArbiter {
    arbiter: Arc<dyn Arbiter>,
    stop: StopSwitch,
}

impl Arbiter for GuardedArbiter {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        self.stop.owns();
        self.arbiter.test_and_set(vm, generation, claim, predecessor)
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        self.arbiter.latest(vm)
    }
}
