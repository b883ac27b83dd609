//! The simulator, for the seeds that every test run has: no rule is broken, and everything
//! interesting happens.

use std::num::NonZero;
use tests::sim::{self, Failure};

const SEEDS: u64 = 2_000;

fn describe(Failure { seed, reason }: &Failure) -> String {
    format!("seed {seed}: {reason}\nrerun: cargo run -p tests --bin ft-sim -- --seed {seed} --trace")
}

#[test]
fn nothing_is_lost_or_doubled_whatever_goes_wrong() {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let summary = sim::run_many(0, SEEDS, threads, &|_| ());
    assert!(summary.failure.is_none(), "{}", summary.failure.as_ref().map(describe).unwrap_or_default());
    println!("{} seeds: {:?}", summary.runs, summary.sightings);
    let missing = summary.sightings.missing();
    assert!(missing.is_empty(), "{SEEDS} seeds never showed {missing:?}");
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..8 {
        let hash = || sim::run(seed).map(|outcome| outcome.trace_hash).map_err(|failure| describe(&failure));
        assert_eq!(hash(), hash(), "seed {seed} is not the same twice");
    }
}
