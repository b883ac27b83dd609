//! What Ctrl-C does to a side of a VM.

use super::{Failure, exit};
use crate::host::live::LiveVm;
use crate::host::signals;
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
        *self.life() = Life::Owner;
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

    /// Whether it has been asked to end the process.
    pub(super) fn is_asked(&self) -> bool {
        matches!(*self.life(), Life::OwnerAskedToStop | Life::Retiring)
    }

    fn stop(&self) {
        let mut life = self.life();
        let next = match &*life {
            Life::Unburdened | Life::OwnerAskedToStop | Life::Retiring => std::process::exit(exit::INTERRUPTED.into()),
            Life::Owner => Life::OwnerAskedToStop,
            Life::Running(running) => {
                running.retire();
                Life::Retiring
            }
        };
        *life = next;
    }
}
