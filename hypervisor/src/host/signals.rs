//! Ctrl-C and the polite kill.

use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::thread;

/// Calls `on_signal` at every SIGINT or SIGTERM, on a thread of its own. Call it before any other thread starts: it
/// blocks the signals in the calling thread, and the threads that come after inherit that.
///
/// # Errors
/// If signals can't be blocked or the thread can't start.
pub fn on_termination(mut on_signal: impl FnMut() + Send + 'static) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        while signals.wait().is_ok() {
            on_signal();
        }
    })?;
    Ok(())
}
