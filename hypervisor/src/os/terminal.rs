//! A terminal on standard input, whose keys go to the guest one by one.
//!
//! ```text
//!   Untouched ── make_raw ──► Raw ── restore ──► Over
//!        └───────────────── restore ───────────────┘
//! ```

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// There is one standard input, and whoever ends the process must find it.
static TERMINAL: Mutex<Mode> = Mutex::new(Mode::Untouched);

enum Mode {
    Untouched,
    /// Keys come as they are typed; it was like this before.
    Raw(Termios),
    /// It is as it was, and stays so: the process ends.
    Over,
}

fn mode() -> MutexGuard<'static, Mode> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what is typed is meant for this process: one in the background is stopped by the kernel
/// if it reads.
#[must_use]
pub fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// Makes the terminal hand over every key as it is typed, Ctrl-C too, without echo. Lines that are
/// put out are ended as before.
///
/// # Errors
/// If standard input is no terminal.
pub fn make_raw() -> io::Result<()> {
    let mut mode = mode();
    if matches!(*mode, Mode::Untouched) {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        *mode = Mode::Raw(before);
        drop(mode);
        restore_on_panic();
    }
    Ok(())
}

/// Makes the terminal what it was. Call it on every way out of the process; more than once is no
/// harm.
pub fn restore() {
    if let Mode::Raw(before) = std::mem::replace(&mut *mode(), Mode::Over)
        && is_in_foreground()
    {
        // In the background the kernel would stop this process instead, and the terminal is
        // another's. A terminal that went away needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// A panic may end the process before anybody else restores the terminal.
fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}
