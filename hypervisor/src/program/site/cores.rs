//! Placing processes on cores, so that measurements compare like with like.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Does `work` with the calling thread on `core`; processes that it starts stay there. If the host
/// has no such core, `work` is done anyway.
pub fn on_core<T>(core: Option<usize>, work: impl FnOnce() -> T) -> T {
    let before = core.and_then(|core| {
        let before = sched_getaffinity(SELF).ok()?;
        let mut only = CpuSet::new();
        only.set(core).ok()?;
        sched_setaffinity(SELF, &only).ok()?;
        Some(before)
    });
    let result = work();
    if let Some(before) = before {
        // These are the cores that the thread had a moment ago.
        let _ = sched_setaffinity(SELF, &before);
    }
    result
}
