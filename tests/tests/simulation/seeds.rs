//! The simulator, for the seeds that every test run has: no rule is broken, and everything
//! interesting happens.

use std::num::NonZero;
use tests::sim::{self, RunSpec, Sighting, failures};

const SEEDS: u64 = 1_000;

/// What happens in too few runs for this test to ask for it. `.ci/run` asks for it with ten times
/// as many seeds.
const RARE: [Sighting; 1] = [Sighting::OwnerConfirmed];

#[test]
fn nothing_is_lost_or_doubled_whatever_goes_wrong() {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let summary = sim::run_many(&RunSpec::of(0), SEEDS, threads, 1, &|_| true);
    let told = failures::tell_all(&failures::default_folder(), &summary.failures, &mut |_| true);
    assert!(told.is_empty(), "{}", told.iter().map(|told| &*told.text).collect::<String>());
    println!("{} seeds: {:?}", summary.runs, summary.sightings);
    let missing: Vec<_> = summary.sightings.missing().into_iter().filter(|sighting| !RARE.contains(sighting)).collect();
    assert!(missing.is_empty(), "{SEEDS} seeds never showed {missing:?}");
}

#[test]
fn a_seed_is_a_run_whether_it_is_kept_or_not() {
    for seed in 0..8 {
        let spec = RunSpec::of(seed);
        let hash = |result: Result<sim::Outcome, Box<sim::Failure>>| {
            result.map(|outcome| outcome.trace_hash).map_err(|failure| failures::describe(&failure))
        };
        let once = hash(sim::run(&spec));
        assert_eq!(once, hash(sim::run(&spec)), "seed {seed} is not the same twice");
        assert_eq!(once, hash(sim::run_kept(&spec).0), "seed {seed} is another run when it is kept");
    }
}

/// A fault that is left out doesn't strike, and those before it in the plan stay as they were.
#[test]
fn a_fault_that_is_left_out_does_not_strike() {
    let struck = |spec: &RunSpec| {
        let (_, events) = sim::run_kept(spec);
        let faults = events.iter().filter_map(|event| Some((event.at_ns, event.fault?)));
        faults.filter(|(_, fault)| matches!(fault, sim::Fault::Planned(_))).collect::<Vec<_>>()
    };
    let mut compared = 0;
    for seed in 0..8 {
        let whole = struck(&RunSpec::of(seed));
        // In a run that is over at once nothing is planned.
        let Some((at_ns, fault)) = whole.get(whole.len() / 2).copied() else { continue };
        compared += 1;
        let fewer = struck(&RunSpec { without: [fault].into(), ..RunSpec::of(seed) });
        assert!(fewer.iter().all(|(_, other)| *other != fault), "seed {seed}, fault {fault}");
        let earlier = |faults: &[(u64, sim::Fault)]| {
            faults.iter().take_while(|(other_ns, _)| *other_ns < at_ns).copied().collect::<Vec<_>>()
        };
        assert_eq!(earlier(&whole), earlier(&fewer), "seed {seed} before fault {fault}");
        let until_ms = at_ns / 1_000_000;
        let shorter = struck(&RunSpec { until_ms: Some(until_ms), ..RunSpec::of(seed) });
        assert!(shorter.iter().all(|(at_ns, _)| *at_ns <= until_ms * 1_000_000), "seed {seed} until {until_ms}");
    }
    assert!(compared >= 4, "{compared} of 8 seeds have faults");
}
