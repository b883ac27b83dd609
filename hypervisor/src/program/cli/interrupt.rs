//! Ctrl-C for programs that start others: they stop waiting, and what they started ends with them.

use super::exit;
use crate::os::signals;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The operator wants this program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Makes SIGINT, SIGTERM, SIGHUP and SIGQUIT known to [`check`]; the second ends the process at once. Call it before any thread starts.
///
/// # Errors
/// If signals can't be blocked.
pub(in crate::program) fn install() -> io::Result<()> {
    signals::on_termination(|_| {
        if INTERRUPTED.swap(true, Ordering::AcqRel) {
            std::process::exit(exit::INTERRUPTED.into());
        }
    })
}

/// Comes to its end at the first SIGINT or SIGTERM; the second ends the process at once. Call it before any thread starts.
///
/// It takes no descriptors, so that it can't fail for want of them.
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
        // The end of the sender is the news.
        let _: Result<(), _> = receiver.await;
    })
}

/// To be asked at least some times a second by whatever takes long.
///
/// # Errors
/// [`Interrupted`] once the operator has said so.
pub fn check() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::Acquire) { Err(Interrupted) } else { Ok(()) }
}

/// The exit code of a program that failed, perhaps because the operator wanted it to end.
pub(in crate::program) fn exit_code() -> u8 {
    if check().is_err() { exit::INTERRUPTED } else { exit::FAILURE }
}
