//! Ctrl-C for programs that start others: they stop waiting, and their processes end with them.

use super::exit;
use crate::os::signals;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The bytes that restore the terminal on standard output.
static UNDO: Mutex<&'static [u8]> = Mutex::new(b"");

/// How long the second signal waits for a terminal that takes nothing.
const UNDO_PATIENCE: Duration = Duration::from_millis(200);

/// The operator wants this program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Makes SIGINT, SIGTERM, SIGHUP and SIGQUIT known to [`check`]; the second ends the process at
/// once. Call it before any thread starts.
///
/// # Errors
/// If signals can't be blocked.
pub(in crate::program) fn install() -> io::Result<()> {
    signals::on_termination(|_| {
        if INTERRUPTED.swap(true, Ordering::AcqRel) {
            undo();
            std::process::exit(exit::INTERRUPTED.into());
        }
    })
}

/// Sets the bytes that restore the terminal on standard output, in case a second signal ends the
/// process.
pub(in crate::program) fn set_undo(bytes: &'static [u8]) {
    *UNDO.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
}

/// Restores the terminal on standard output, even if the bytes were written before: the key that
/// interrupts makes the kernel drop what the terminal hasn't taken yet.
fn undo() {
    let bytes = *UNDO.lock().unwrap_or_else(PoisonError::into_inner);
    if bytes.is_empty() {
        return;
    }
    let (done, is_done) = mpsc::channel();
    // On another thread than the console's writer, which may hold the stream's lock, or the
    // kernel's lock of the terminal.
    let written = thread::Builder::new().name("undo".into()).spawn(move || {
        let _ = rustix::io::write(rustix::stdio::stdout(), bytes);
        // The receiver is gone if it took too long.
        let _ = done.send(());
    });
    if written.is_ok() {
        let _ = is_done.recv_timeout(UNDO_PATIENCE);
    }
}

/// A future that ends at the first SIGINT or SIGTERM; the second ends the process at once. Call it
/// before any thread starts.
///
/// It needs no descriptors, so that it can't fail for lack of them.
///
/// # Errors
/// If signals can't be blocked.
pub(in crate::program) fn termination() -> io::Result<impl Future<Output = ()>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    signals::on_termination(move |_| match sender.take() {
        Some(sender) => drop(sender),
        None => std::process::exit(exit::INTERRUPTED.into()),
    })?;
    Ok(async {
        // The dropped sender is the signal.
        let _: Result<(), _> = receiver.await;
    })
}

/// Fails once the operator has interrupted the program. Every long wait calls it several times a
/// second.
///
/// # Errors
/// [`Interrupted`] once the operator has said so.
pub fn check() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::Acquire) { Err(Interrupted) } else { Ok(()) }
}

/// The exit code of a program that failed, which may be because it was interrupted.
pub(in crate::program) fn exit_code() -> u8 {
    if check().is_err() { exit::INTERRUPTED } else { exit::FAILURE }
}
