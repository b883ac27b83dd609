//! `ft-bench`: measures what fault tolerance costs, always beside what it is compared with, in one
//! run.

mod interp;
mod join;
mod output_rule;
mod ping_pong;

use super::Failure;
use super::cli::interrupt;
use super::cli::limits::{CONNECTIONS, require_descriptors};
use super::cli::stdout::failed;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

pub(super) use ping_pong::pong_main;

/// Measures what fault tolerance costs, beside what it is compared with, in the same run.
#[derive(Debug, Parser)]
#[command(name = "ft-bench", version, after_help = "Example:\n  ft-bench output-rule --seconds 10\n  ft-bench interp")]
struct Options {
    #[command(subcommand)]
    bench: Bench,
    /// Tell the results as one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How long the Output Rule holds outputs, beside a TCP ping-pong and beside the guest without
    /// a backup
    ///
    /// Real primary and backup processes with the echo guest, once idle and once with both vCPUs
    /// busy. A client's echoes and the rounds of a blocking ping-pong take turns, so that both meet
    /// the same machine.
    OutputRule(output_rule::Options),
    /// How fast guests compute: plain, recorded, replayed, stopped at every ten-thousandth step,
    /// and on QEMU
    ///
    /// Programs of this project's own run in turn in each of these ways, several rounds of them;
    /// all must come to the same checksum. QEMU's times are without its start-up: those of a run
    /// with no work, which has the same start, are taken off. Instructions are counted by our
    /// machine.
    Interp(interp::Options),
    /// How long a guest that rewrites its memory stands still when a backup joins
    ///
    /// A primary with a guest that writes to every page of much memory, round and round, and
    /// backups that join one after the other. The primary tells each time how long the guest stood
    /// still at once, at most.
    Join(join::Options),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    crate::program::init_tracing("ft-bench");
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("ft-bench", &error, interrupt::exit_code()),
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    require_descriptors(CONNECTIONS)?;
    interrupt::install()?;
    match &options.bench {
        Bench::OutputRule(rule) => output_rule::run(rule, options.json),
        Bench::Interp(interp) => interp::run(interp, options.json),
        Bench::Join(join) => join::run(join, options.json),
    }
}
