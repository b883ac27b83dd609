//! Priorities of threads in the host's scheduler.

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// The nice value of the thread that acknowledges: it runs for microseconds, but should run at
/// once.
const URGENT_NICE: i32 = -10;

/// Raises the calling thread's priority, so that it runs as soon as it is woken beside a vCPU that
/// never sleeps. Without this a woken thread may wait for a scheduler tick, some milliseconds.
///
/// This needs a privilege (CAP_SYS_NICE). Without it nothing changes, and the slowest
/// acknowledgements take longer.
pub fn raise() {
    // On Linux a nice value belongs to a thread, and this call takes a thread's id.
    if let Err(error) = setpriority_process(Some(gettid()), URGENT_NICE) {
        tracing::debug!("acknowledging at normal priority: {error}");
    }
}
