//! The programs. Each module's `main` is the whole of one `ft-*` binary; `src/bin/` only calls it.

pub mod arbiter;
pub mod backup;
pub mod bench;
pub mod client;
pub mod cluster;
pub mod cores;
pub mod demo;
mod demo_guest;
pub mod echo_client;
pub mod executable;
pub mod exit;
pub mod interrupt;
pub mod lan;
mod limits;
pub mod multicall;
pub mod options;
pub mod primary;
pub mod process;
mod progress;
pub mod record;
mod recording_file;
pub mod redis_client;
pub mod replay;
mod stdout;
mod stop;

use crate::host::reports::NodeReport;
use crate::host::terminal;
use crate::report::Reporter;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// What ends a program with a message.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Tells how the program ended, and ends it.
fn finish(reporter: Reporter, result: Result<(u8, String), Failure>) -> ExitCode {
    terminal::restore();
    let (exit_code, reason) = result.unwrap_or_else(|error| (exit::FAILURE, error.to_string()));
    reporter.tell(&NodeReport::End { reason, exit_code });
    ExitCode::from(exit_code)
}

/// Ends the process at once, because the operator doesn't want to wait for a better end.
fn interrupted() -> ! {
    terminal::restore();
    std::process::exit(exit::INTERRUPTED.into())
}

/// Makes a panic on any thread end the process: a side of a pair works or is dead, and then the other goes on.
fn fail_stop() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Sends debug logs to standard error. `FT_LOG` chooses which, in `tracing`'s filter syntax; without it, warnings.
pub(crate) fn init_tracing() {
    let filter = EnvFilter::try_from_env("FT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = subscriber.try_init();
}
