//! The signals by which an operator ends a program, and the one for the limit of file sizes, which
//! must not kill it.

use super::report;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::thread;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// SIGINT, SIGTERM: end this program's work.
    End,
    /// SIGHUP, SIGQUIT: end this process; its work goes on elsewhere or later, if it can.
    Leave,
}

/// Calls `on_signal` at every SIGINT, SIGTERM, SIGHUP and SIGQUIT, on a thread of its own. A SIGHUP
/// or SIGQUIT that this process was started to ignore (`nohup`) stays ignored. Call it before any
/// other thread starts: it blocks the signals in the calling thread, and the threads that come
/// after inherit that.
///
/// # Errors
/// If signals can't be blocked or the thread can't start.
pub fn on_termination(mut on_signal: impl FnMut(Termination) + Send + 'static) -> io::Result<()> {
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Blocking an ignored signal would undo that it is ignored.
    for signal in [Signal::SIGHUP, Signal::SIGQUIT] {
        if ignored & mask(signal) == 0 {
            signals.add(signal);
        }
    }
    signals.thread_block()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGINT {
                report::key_shown();
            }
            let leaves = matches!(signal, Signal::SIGHUP | Signal::SIGQUIT);
            on_signal(if leaves { Termination::Leave } else { Termination::End });
        }
    })?;
    Ok(())
}

/// Makes a write beyond the limit of file sizes (`ulimit -f`) fail with EFBIG, as a write to a full
/// disk fails, instead of killing the process with SIGXFSZ: the signal is blocked in the calling
/// thread and in the threads that come after.
///
/// # Errors
/// If signals can't be blocked.
pub fn survive_file_size_limit() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    Ok(signals.thread_block()?)
}

const fn mask(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// The signals that a process ignores, of its status as `/proc` has it.
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{ignored, mask};
    use nix::sys::signal::Signal;

    #[test]
    fn ignored_signals_are_those_of_the_status() {
        let set = ignored("Name:\tft\nSigBlk:\t0000000000004002\nSigIgn:\t0000000000001001\nSigCgt:\t0\n");
        assert_eq!(set, mask(Signal::SIGHUP) | mask(Signal::SIGPIPE));
        assert_eq!(set & mask(Signal::SIGQUIT), 0);
        assert_eq!(ignored("no such line"), 0);
    }
}
