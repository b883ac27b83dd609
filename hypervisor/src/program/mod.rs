//! The programs. Each module's `main` is the whole of one `ft-*` binary; `src/bin/` only calls it.

pub mod arbiter;
pub mod backup;
pub mod bench;
pub mod cli;
pub mod client;
pub mod demo;
mod files;
pub mod guest;
pub mod lan;
pub mod multicall;
mod patience;
pub mod primary;
pub mod record;
mod recording_file;
pub mod replay;
pub mod site;

use self::cli::exit;
use crate::node::reports::NodeReport;
use crate::os::report::{Level, Reporter, line_for_stderr};
use crate::os::{signals, terminal, writer};
use std::fmt;
use std::process::ExitCode;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// An error that ends a program with its message.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Sets up a program whose output is written by threads of its own, so that a reader that doesn't
/// read stops nothing: `ft-primary`, `ft-backup`, `ft-lan`, `ft-arbiter` and `ft-record`. Call it
/// before any thread starts.
fn begin(program: &'static str, json: bool) -> Reporter {
    init_tracing(program);
    let reporter = Reporter::new(program, json);
    // Both fail only on a host without memory; the program works without them as long as its output
    // is read.
    if let Err(error) = signals::survive_file_size_limit().and_then(|()| writer::start(reporter)) {
        tracing::warn!("output is written by those who make it: {error}");
    }
    std::panic::set_hook(Box::new(writer::tell_panic));
    reporter
}

/// Reports how the program ended, and returns its exit code.
fn finish(reporter: Reporter, result: Result<(u8, String), Failure>) -> ExitCode {
    terminal::restore();
    let (exit_code, reason) = result.unwrap_or_else(|error| (exit::FAILURE, error.to_string()));
    reporter.tell(&NodeReport::End { reason, exit_code });
    writer::drain();
    ExitCode::from(exit_code)
}

/// Ends the process at once, because the operator doesn't want to wait for an orderly end.
fn interrupted() -> ! {
    terminal::restore();
    writer::drain();
    std::process::exit(exit::INTERRUPTED.into())
}

/// Makes a panic on any thread end the process: a side of a pair either works or is dead, so that
/// the other side goes on. Call it after [`begin`].
fn fail_stop() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Sends debug logs to standard error. `FT_LOG` chooses which, in `tracing`'s filter syntax;
/// without it, warnings.
pub(crate) fn init_tracing(program: &'static str) {
    let filter = EnvFilter::try_from_env("FT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| writer::LogLines)
        .with_ansi(false)
        .event_format(LogLine { program });
    // A second start in one process (tests) keeps the first subscriber.
    let _ = subscriber.try_init();
}

/// Formats log lines like reports.
struct LogLine {
    program: &'static str,
}

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Level::Debug,
        };
        if level == Level::Debug {
            text.insert_str(0, &format!("{}: ", event.metadata().target()));
        }
        out.write_str(&line_for_stderr(self.program, level, &text))
    }
}
