//! `ft-replay`: replays a log, and checks that the machine does the same again.

mod command;
mod length;
mod listing;
mod output;
mod playback;

use self::command::Command;
use self::length::Length;
use self::output::{ConsoleChoice, Output, OutputError};
use self::playback::{Playback, PlaybackError};
use super::cli::exit;
use super::cli::interrupt;
use super::cli::interrupt::Interrupted;
use super::cli::limits::{FILES, require_descriptors};
use super::cli::stdout::StdoutError;
use super::files;
use super::guest::Guest;
use super::{Failure, finish, init_tracing};
use crate::node::log;
use crate::node::log::restore::restore;
use crate::node::reports::NodeReport;
use crate::os::clock;
use crate::os::report::Reporter;
use crate::recording::{RecordingError, continuations};
use clap::{Args, Parser};
use logchannel::file::LogHead;
use logchannel::session::{ImageDigest, SessionHeader};
use std::fmt::Display;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Replays a log: the same console, the same outputs, the same state at the same instruction
/// counts.
///
/// The guest's console comes out on standard output. Every output and every state digest in the log
/// is compared with what the machine does; the first difference ends the replay with exit code 4. A
/// log that was cut off replays to its last whole entry. Of the directory of a VM that keeps its
/// log on disk, all segments that follow each other are replayed.
#[derive(Debug, Parser)]
#[command(
    name = "ft-replay",
    version,
    after_help = exit::help("Example:\n  \
    ft-replay echo.ftlog\n  \
    ft-replay echo.ftlog --entries | less\n  \
    ft-replay info echo.ftlog\n\n\
    A POSITION of the commands is an instruction count (1_000_000, 12M, 0x40), start, end, a time of\n\
    the guest's clock (+12.5s), packet:N, output:N, entry:N, or a mark. What it names is about to happen."),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    replay: Option<Options>,
}

#[derive(Args, Debug)]
struct Options {
    /// The log, or the directory of ft-primary --log
    #[arg(value_name = "FILE|DIR")]
    log: PathBuf,
    /// Refuse a log of another guest than this
    #[arg(long, value_name = "NAME|PATH")]
    guest: Option<String>,
    /// List the log's entries without replaying them
    #[arg(long, conflicts_with = "console")]
    entries: bool,
    /// Where the guest's console goes: raw or filtered to standard output, none, or a file.
    /// Filtered is what a terminal gets unless you say otherwise: without the sequences that it
    /// would answer, as if you had typed the answer
    #[arg(long, value_name = "raw|filtered|none|FILE")]
    console: Option<ConsoleChoice>,
    /// Tell what happens, or list the entries, as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    init_tracing("ft-replay");
    let is_json = match (&arguments.command, &arguments.replay) {
        (Some(command), _) => command.is_json(),
        (None, options) => options.as_ref().is_some_and(|options| options.json),
    };
    let reporter = Reporter::new("ft-replay", is_json);
    match run(&arguments, reporter) {
        // The usual exit code of a program that writes to a closed pipe, without a message: the
        // operator closed it.
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Stdout(StdoutError::ReaderGone))) => {
            ExitCode::from(exit::PIPE_CLOSED)
        }
        Err(error) if matches!(error.downcast_ref(), Some(StdoutError::ReaderGone)) => {
            ExitCode::from(exit::PIPE_CLOSED)
        }
        Err(error) if error.is::<Interrupted>() => finish(reporter, Ok((exit::INTERRUPTED, error.to_string()))),
        // Standard output can't report that it has failed.
        Err(error) if error.is::<OutputError>() || error.is::<StdoutError>() => {
            finish(Reporter::new("ft-replay", false), Err(error))
        }
        Err(error) if is_divergence(&error) => finish(reporter, Ok((exit::DIVERGED, error.to_string()))),
        Err(error) => finish(reporter, Err(error)),
        Ok(exit_code) => ExitCode::from(exit_code),
    }
}

fn is_divergence(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(RecordingError::Diverged { .. }))
}

/// Does what the arguments say. Returns the exit code.
fn run(arguments: &Arguments, reporter: Reporter) -> Result<u8, Failure> {
    require_descriptors(FILES)?;
    // The terminal is restored however the replay ends.
    interrupt::install()?;
    match (&arguments.command, &arguments.replay) {
        (Some(command), _) => command.run().map(|()| exit::OK),
        (None, Some(options)) => replay_all(options, reporter),
        (None, None) => unreachable!("clap asks for a log"),
    }
}

/// Replays the log, or lists its entries. Returns the exit code.
fn replay_all(options: &Options, reporter: Reporter) -> Result<u8, Failure> {
    let logs = if options.log.is_dir() { log::segments(&options.log)? } else { vec![options.log.clone()] };
    let mut output = Output::new(reporter, options.console.as_ref(), &logs)?;
    let (exit_code, reason) = if options.entries {
        listing::list(&logs, options, &mut output)?
    } else {
        let ended = replay(&logs, options, &mut output);
        // The guest's output before an error is shown as well.
        output.finish_console()?;
        ended?
    };
    output.tell(&NodeReport::End { reason, exit_code })?;
    Ok(exit_code)
}

fn replay(logs: &[PathBuf], options: &Options, output: &mut Output) -> Result<(u8, String), Failure> {
    let started_ns = clock::now_ns();
    let mut playback = Playback::new(output, Length::of(logs.to_vec()), started_ns);
    let mut skipped = Vec::new();
    for (path, continuation) in logs.iter().zip(continuations(logs)) {
        let restored = open(path, options).and_then(|head| restore(head).map_err(|error| in_file(path, error)));
        match restored.map(|restored| playback.replay(restored, continuation)) {
            Ok(Ok(())) => {}
            Ok(Err(PlaybackError::Diverged(divergence))) => {
                output.finish_console()?;
                output.tell(&NodeReport::Diverged { reason: divergence.to_string() })?;
                return Ok((exit::DIVERGED, format!("{}: {divergence}", path.display())));
            }
            Ok(Err(PlaybackError::Log(error))) => return Err(in_file(path, error)),
            Ok(Err(PlaybackError::Output(error))) => return Err(error.into()),
            Ok(Err(PlaybackError::Interrupted(interrupted))) => return Err(interrupted.into()),
            Err(error) if options.log.is_dir() => skipped.push(format!("; skipped {error}")),
            Err(error) => return Err(error),
        }
    }
    let (skipped, from) = (skipped.concat(), options.log.display());
    let Some(replayed) = playback.result(clock::now_ns() - started_ns) else {
        return Err(format!("{from}: no log that can be replayed{skipped}").into());
    };
    output.finish_console()?;
    let ending = replayed.ending.clone();
    output.tell(&NodeReport::Replayed(replayed))?;
    Ok((exit::OK, format!("{from}: all outputs and digests equal; the log is {ending}{skipped}")))
}

fn in_file(path: &Path, error: impl Display) -> Failure {
    format!("{}: {error}", path.display()).into()
}

fn open(path: &Path, options: &Options) -> Result<LogHead<BufReader<File>>, Failure> {
    let file = files::open_stream(path).map_err(|error| format!("can't read the log {}: {error}", path.display()))?;
    let head = LogHead::read(BufReader::new(file)).map_err(|error| in_file(path, error))?;
    if let Some(name) = &options.guest {
        refuse_other_image(head.header(), name).map_err(|error| in_file(path, error))?;
    }
    Ok(head)
}

fn refuse_other_image(header: &SessionHeader, name: &str) -> Result<(), Failure> {
    let guest = Guest::load(name)?;
    let digest = ImageDigest::of(&guest.image);
    if digest == header.image_digest {
        return Ok(());
    }
    Err(format!("the log is of guest {} ({}), not of {name} ({digest})", header.image_name, header.image_digest).into())
}
