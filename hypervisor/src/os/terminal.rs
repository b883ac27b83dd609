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

/// The mode of standard input. Global, because every thread that ends the process must restore it.
static TERMINAL: Mutex<Mode> = Mutex::new(Mode::Untouched);

enum Mode {
    Untouched,
    /// Keys come as they are typed; these are the settings from before.
    Raw(Termios),
    /// The terminal is restored, and stays so: the process ends.
    Over,
}

fn mode() -> MutexGuard<'static, Mode> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `true` if this process is in the terminal's foreground: the kernel stops one in the background
/// if it reads.
#[must_use]
pub fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// Makes the terminal deliver every key as it is typed, Ctrl-C too, without echo. Output lines end
/// as before.
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

/// Restores the terminal. Called on every way out of the process; calling it again does nothing.
pub fn restore() {
    if let Mode::Raw(before) = std::mem::replace(&mut *mode(), Mode::Over)
        && is_in_foreground()
    {
        // The kernel would stop a process in the background here, and the terminal is another's
        // then. A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// A panic may end the process before any other code restores the terminal.
fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}
