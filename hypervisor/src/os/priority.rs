//! Which thread the host's scheduler should prefer.

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// The nice value of a thread that acknowledges: it runs for microseconds, but at once.
const URGENT_NICE: i32 = -10;

/// Lets the calling thread run as soon as it is woken, beside a vCPU that never sleeps. Without it,
/// a woken thread may wait for a scheduler tick, some milliseconds.
///
/// It takes a privilege (CAP_SYS_NICE); without it the thread runs as it did, only with longer
/// tails.
pub fn raise() {
    // On Linux a nice value belongs to a thread, and this call takes a thread's id.
    if let Err(error) = setpriority_process(Some(gettid()), URGENT_NICE) {
        tracing::debug!("acknowledging at normal priority: {error}");
    }
}
