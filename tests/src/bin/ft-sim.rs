//! `ft-sim`: the simulator, for as many seeds as one likes.

use clap::Parser;
use std::io::{IsTerminal, Write};
use std::num::NonZero;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;
use tests::sim::{self, Failure, Sighting, Sightings, Summary};

/// Simulates pairs of hosts, their network and their failures, and checks that nothing is lost or
/// doubled.
///
/// Each seed is a run of its own, the same every time. Exits with 1 if a run breaks a rule, and
/// says how to run it again.
#[derive(Debug, Parser)]
#[command(name = "ft-sim", version, after_help = "Example:\n  ft-sim --seeds 100000\n  ft-sim --seed 1234 --trace")]
struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed alone
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Tell what happens in the run
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Say the results in JSON, on one line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let summary = match options.seed {
        Some(seed) => run_one(seed, options.trace),
        None => run_many(&options),
    };
    if options.json {
        println!("{}", to_json(&summary));
    } else {
        print(&summary);
    }
    match &summary.failure {
        Some(failure) => {
            eprintln!("{}", describe(failure));
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn run_one(seed: u64, is_trace_printed: bool) -> Summary {
    let (result, events) = sim::run_kept(seed);
    for event in events.iter().filter(|_| is_trace_printed) {
        let (ms, us) = (event.at_ns / 1_000_000, event.at_ns / 1000 % 1000);
        eprintln!("{ms:6}.{us:03} ms  {:8}  {}", event.lane.to_string(), event.text);
    }
    match result {
        Ok(outcome) => {
            eprintln!("trace hash {:016x}", outcome.trace_hash);
            Summary { runs: 1, sightings: outcome.sightings, virtual_ns: outcome.virtual_ns, failure: None }
        }
        Err(failure) => Summary { failure: Some(failure), ..Summary::default() },
    }
}

fn run_many(options: &Options) -> Summary {
    // The failure is told at the end, once.
    panic::set_hook(Box::new(|_| ()));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let start = Instant::now();
    let is_terminal = std::io::stderr().is_terminal();
    let every = if is_terminal { 100 } else { 10_000 };
    let summary = sim::run_many(options.from, options.seeds, threads, &|runs| {
        if runs % every == 0 {
            let end = if is_terminal { '\r' } else { '\n' };
            let rate = u128::from(runs) * 1000 / start.elapsed().as_millis().max(1);
            let mut out = std::io::stderr().lock();
            // Progress that nobody can see is no failure.
            let _ = write!(out, "{runs} of {} seeds, {rate} a second{end}", options.seeds);
        }
    });
    if is_terminal {
        eprintln!();
    }
    summary
}

fn print(summary: &Summary) {
    for sighting in Sighting::ALL {
        println!("{:10}  {sighting:?}", summary.sightings.count(*sighting));
    }
    println!("{} seeds without failure, {} s of virtual time", summary.runs, summary.virtual_ns / 1_000_000_000);
}

fn to_json(summary: &Summary) -> serde_json::Value {
    let count = |sightings: &Sightings| {
        let counts = Sighting::ALL.iter().map(|sighting| (format!("{sighting:?}"), sightings.count(*sighting).into()));
        counts.collect::<serde_json::Map<_, _>>()
    };
    serde_json::json!({
        "runs": summary.runs,
        "virtual_s": summary.virtual_ns / 1_000_000_000,
        "sightings": count(&summary.sightings),
        "failure": summary.failure.as_ref().map(|failure| {
            serde_json::json!({ "seed": failure.seed, "reason": failure.reason })
        }),
    })
}

fn describe(failure: &Failure) -> String {
    let Failure { seed, reason } = failure;
    format!("seed {seed}: {reason}\nrerun: cargo run -p tests --bin ft-sim -- --seed {seed} --trace")
}
