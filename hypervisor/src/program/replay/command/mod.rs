//! The commands that look into a recording.

mod bar;
mod entries;
mod index;
mod info;
mod lines;
mod mark;
mod stats;

use self::lines::Lines;
use crate::program::Failure;
use crate::program::cli::interrupt::Interrupted;
use crate::recording::marks::Marks;
use crate::recording::{Position, Recording, RecordingError, Seeker, Target, parse_number};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;
use vm::TIMEBASE_HZ;

/// What a command needs of a log.
#[derive(Args, Debug)]
struct LogOptions {
    /// The log, or the directory of ft-primary --log, whose VM may be running
    #[arg(value_name = "FILE|DIR")]
    log: PathBuf,
    /// Tell the result as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

impl LogOptions {
    fn open(&self) -> Result<Recording, Failure> {
        Recording::open(&self.log).map_err(told)
    }

    fn lines(&self) -> Lines {
        Lines::new(self.json)
    }
}

/// Look into a recording.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell what a recording is of, how long it is, its index and its marks
    #[command(after_help = "Example:\n  ft-replay info redis.ftlog")]
    Info(info::Options),
    /// List the entries in a range
    #[command(after_help = "Example:\n  ft-replay entries redis.ftlog packet:100..+12.5s")]
    Entries(entries::Options),
    /// Count entries and bytes by kind, and their rates over time
    #[command(after_help = "Example:\n  ft-replay stats redis.ftlog")]
    Stats(stats::Options),
    /// Give a moment a name, which is kept beside the log; list and remove such names
    #[command(
        after_help = "Example:\n  ft-replay mark redis.ftlog add crash packet:4711\n  ft-replay mark redis.ftlog"
    )]
    Mark(mark::Options),
    /// Make snapshots beside the log, so that every moment of it is reached at once
    #[command(
        after_help = "Example:\n  ft-replay index redis.ftlog\n  ft-replay index redis.ftlog --size 200M --rebuild"
    )]
    Index(index::Options),
}

impl Command {
    /// `true` if the result is told as JSON.
    pub(super) fn is_json(&self) -> bool {
        self.log().json
    }

    fn log(&self) -> &LogOptions {
        match self {
            Self::Info(options) => &options.log,
            Self::Entries(options) => &options.log,
            Self::Stats(options) => &options.log,
            Self::Mark(options) => &options.log,
            Self::Index(options) => &options.log,
        }
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Info(options) => options.run(),
            Self::Entries(options) => options.run(),
            Self::Stats(options) => options.run(),
            Self::Mark(options) => options.run(),
            Self::Index(options) => options.run(),
        }
    }
}

/// The target that a position names in `recording`.
fn resolve(recording: &Recording, position: &Position) -> Result<Target, Failure> {
    match position {
        Position::Target(target) => Ok(*target),
        Position::Mark(name) => Ok(Target::Moment(Marks::of(recording)?.get(name)?.moment())),
    }
}

/// Tells what is wrong with the indices that were used.
fn complain(seeker: &Seeker<'_>) {
    for complaint in seeker.take_complaints() {
        tracing::warn!("{complaint}");
    }
}

/// An error of the recording as one of the program.
fn told(error: RecordingError) -> Failure {
    if matches!(error, RecordingError::Interrupted) { Interrupted.into() } else { error.into() }
}

/// Ticks of the guest's clock as seconds.
fn guest_seconds(ticks: u64) -> f64 {
    Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / TIMEBASE_HZ)).as_secs_f64()
}

/// A size in bytes: `300M`, `2G`, or a number of bytes; units are of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text} is no size: say it as 300M or 2G");
    let digits = text.trim_end_matches(|next: char| !next.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(bad()),
    };
    digits.parse::<u64>().ok().and_then(|digits| digits.checked_mul(unit)).ok_or_else(bad)
}

/// A number of steps of the guest, at least one.
fn parse_steps(text: &str) -> Result<u64, String> {
    parse_number(text).filter(|steps| *steps > 0).ok_or_else(|| format!("{text} is no number of steps, as 100M is"))
}
