//! The commands that look into a recording.

mod bar;
mod console;
mod core;
mod entries;
mod finder;
mod index;
mod info;
mod lines;
mod mark;
mod memory;
mod packets;
mod search;
mod state;
mod stats;
mod view;

use self::lines::Lines;
use crate::program::Failure;
use crate::program::cli::interrupt::Interrupted;
use crate::recording::marks::Marks;
use crate::recording::{Position, Recording, RecordingError, Seeker, Target, parse_number};
use clap::{Args, Subcommand};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use vm::TIMEBASE_HZ;

/// What a command needs of a log.
#[derive(Args, Debug)]
struct LogOptions {
    /// The log, or the directory of ft-primary --log, whose VM may be running
    #[arg(value_name = "FILE|DIR")]
    log: PathBuf,
    /// Tell the result as JSON lines on standard output
    #[arg(long, global = true)]
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

/// How many machines replay at once.
#[derive(Args, Debug)]
struct JobOptions {
    /// Pieces of the recording that are replayed at once, each in memory of the guest's size;
    /// without it, one for each core if half of the free memory is enough
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

impl JobOptions {
    fn number(&self, recording: &Recording) -> usize {
        if let Some(jobs) = self.jobs {
            return jobs.into();
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let config = &recording.parts()[0].header().config;
        let machine_bytes = config.ram_bytes.saturating_add(config.disk_bytes).max(1);
        let room = free_memory_bytes().map_or(1, |bytes| bytes / 2 / machine_bytes);
        cores.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }
}

/// The host's memory that can be had without swapping.
fn free_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
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
    /// Show registers, mode, address space and the next instruction at a moment
    #[command(
        after_help = "Example:\n  ft-replay state redis.ftlog --at packet:100\n  ft-replay state redis.ftlog --at crash --all"
    )]
    State(state::Options),
    /// Show memory at a moment, by virtual or physical address
    #[command(after_help = "Example:\n  ft-replay memory redis.ftlog 0xffffffff80000000 256 --at +12.5s")]
    Memory(memory::Options),
    /// Show what the guest wrote to its console, up to a moment or in a range
    #[command(after_help = "Example:\n  ft-replay console redis.ftlog --at +3s --counts\n  \
        ft-replay console redis.ftlog --asciicast > redis.cast")]
    Console(console::Options),
    /// Write memory and registers at a moment as an ELF core file, for gdb
    #[command(
        after_help = "Example:\n  ft-replay core redis.ftlog guest.core --at crash\n  gdb-multiarch vmlinux guest.core"
    )]
    Core(core::Options),
    /// Find console lines, packets, executed instructions, traps, and who wrote memory
    #[command(after_help = "Example:\n  ft-replay search redis.ftlog --console 'redis ready'\n  \
        ft-replay search redis.ftlog --packet 'in tcp port 6379' --first\n  \
        ft-replay search redis.ftlog ..crash --write 0xffffffd600a3c0d8,8 --last")]
    Search(search::Options),
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
            Self::State(options) => &options.log,
            Self::Memory(options) => &options.log,
            Self::Console(options) => &options.log,
            Self::Core(options) => &options.log,
            Self::Search(options) => &options.log,
        }
    }

    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Info(options) => options.run(),
            Self::Entries(options) => options.run(),
            Self::Stats(options) => options.run(),
            Self::Mark(options) => options.run(),
            Self::Index(options) => options.run(),
            Self::State(options) => options.run(),
            Self::Memory(options) => options.run(),
            Self::Console(options) => options.run(),
            Self::Core(options) => options.run(),
            Self::Search(options) => options.run(),
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

/// An address or a length: decimal, or hexadecimal after `0x`.
fn parse_address(text: &str) -> Result<u64, String> {
    parse_number(text).ok_or_else(|| format!("`{text}` is no number below 2^64, as 4096 or 0xffffffff80000000"))
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
