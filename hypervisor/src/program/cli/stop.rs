//! What an operator's signals do to a side of a VM.
//!
//! | the process | SIGINT, SIGTERM | SIGHUP, SIGQUIT |
//! |---|---|---|
//! | owns no VM, or waits because the arbiter has lost its primary's claim | ends at once | ends at once |
//! | protected primary | hands over to its backup | hands over to its backup |
//! | primary without backup | ends the VM, with an end mark | the same; with `--log` the VM stays owned, to be resumed |
//! | `--resume` before its guest runs | ends; the VM can be resumed again | the same |
//! | waits for an arbiter that can't be asked | ends after [`PATIENCE_NS`], and says what it leaves behind | the same |
//!
//! The second signal ends the process at once, whatever it does.

use crate::arbiter::ArbiterError;
use crate::node::arbiter_thread::ClaimWatch;
use crate::node::primary::LiveVm;
use crate::os::clock;
use crate::os::signals;
use crate::os::signals::Termination;
use crate::program::{Failure, interrupted};
use ft::claim::Verdict;
use logchannel::session::VmId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a process that was asked to end still asks an arbiter that doesn't answer, in
/// nanoseconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Ends the process in order at the first signal: at once as long as it owns no VM. The second
/// signal always ends it at once.
#[derive(Clone, Debug)]
pub(in crate::program) struct StopSwitch(Arc<Mutex<Life>>);

/// Where a running VM's guest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::program) enum Origin {
    /// It has just been reset, and hasn't run.
    Boot,
    /// The log on disk: whatever happens, the VM stays resumable.
    Log,
    /// A primary that was lost.
    Primary,
}

#[derive(Debug)]
enum Life {
    /// The process owns no VM, and may end at once.
    Unburdened,
    /// The process owns the VM, which will run in a moment. Without an end mark no node could start
    /// it again.
    Owner,
    /// As `Owner`, and the process was asked to end by this signal at this time.
    OwnerAskedToStop(Termination, u64),
    /// The VM runs.
    Running(LiveVm),
    /// The VM is being ended since this time.
    Ending(u64),
}

impl StopSwitch {
    /// Call it before any thread starts, as [`signals::on_termination`].
    pub(in crate::program) fn install() -> Result<Self, Failure> {
        let switch = Self(Arc::new(Mutex::new(Life::Unburdened)));
        let asked = switch.clone();
        signals::on_termination(move |termination| asked.stop(termination))?;
        Ok(switch)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on this process may own the VM.
    fn owns(&self) {
        let mut life = self.life();
        if matches!(*life, Life::Unburdened) {
            *life = Life::Owner;
        }
    }

    /// A claim was refused. As long as no VM runs here this process owns none, and ends if it was
    /// asked to.
    fn owns_nothing(&self) {
        let mut life = self.life();
        match &*life {
            Life::Owner => *life = Life::Unburdened,
            Life::OwnerAskedToStop(..) => interrupted(),
            Life::Unburdened | Life::Running(_) | Life::Ending(_) => {}
        }
    }

    /// The VM runs, as `running`.
    pub(in crate::program) fn runs(&self, running: LiveVm, origin: Origin) {
        let mut life = self.life();
        *life = match (&*life, origin) {
            (Life::OwnerAskedToStop(_, since_ns), Origin::Log) => {
                running.leave();
                Life::Ending(*since_ns)
            }
            (Life::OwnerAskedToStop(Termination::Leave, since_ns), Origin::Primary) => {
                running.leave();
                Life::Ending(*since_ns)
            }
            (Life::OwnerAskedToStop(_, since_ns), Origin::Boot | Origin::Primary) => {
                running.retire();
                Life::Ending(*since_ns)
            }
            (Life::Unburdened | Life::Owner | Life::Running(_) | Life::Ending(_), _) => Life::Running(running),
        };
    }

    /// This process has no part in the VM any more, and may end at once. `false` if it has been
    /// asked to end.
    pub(in crate::program) fn disowns(&self) -> bool {
        let mut life = self.life();
        let is_asked = matches!(*life, Life::OwnerAskedToStop(..) | Life::Ending(_));
        if !is_asked {
            *life = Life::Unburdened;
        }
        !is_asked
    }

    fn stop(&self, termination: Termination) {
        let mut life = self.life();
        let next = match &*life {
            Life::Unburdened | Life::OwnerAskedToStop(..) | Life::Ending(_) => interrupted(),
            Life::Owner => Life::OwnerAskedToStop(termination, clock::now_ns()),
            Life::Running(running) => {
                match termination {
                    Termination::End => running.retire(),
                    Termination::Leave => running.leave(),
                }
                Life::Ending(clock::now_ns())
            }
        };
        *life = next;
    }

    /// The arbiter can't be asked: a process that was asked to end stops waiting for it after
    /// [`PATIENCE_NS`].
    fn give_up_if_asked(&self, vm: &VmId, error: &ArbiterError) {
        let since_ns = match &*self.life() {
            Life::Unburdened | Life::Owner | Life::Running(_) => return,
            Life::OwnerAskedToStop(_, since_ns) | Life::Ending(since_ns) => *since_ns,
        };
        if clock::now_ns().saturating_sub(since_ns) < PATIENCE_NS {
            return;
        }
        tracing::error!(
            "this process ends as it was asked to, and the arbiter can't be told ({error}): if no other side of VM {vm} is \
             alive, go on with ft-primary --resume from the directory of --log, or start it afresh with --force-new"
        );
        interrupted()
    }
}

impl ClaimWatch for StopSwitch {
    fn claims(&self) {
        self.owns();
    }

    fn settled(&self, vm: &VmId, outcome: Result<&Verdict, &ArbiterError>) {
        match outcome {
            Ok(Verdict::Won) => {}
            // It is known now that this claim has made nothing this process's.
            Ok(Verdict::Lost(_) | Verdict::NotSuccessor(_)) => self.owns_nothing(),
            Err(error) => self.give_up_if_asked(vm, error),
        }
    }
}
