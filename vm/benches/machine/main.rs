//! What the machine's parts cost: `cargo bench -p vm`, or `cargo bench -p vm -- --test` to see that
//! all of them run.
//!
//! Each construct is an endless loop of little else, assembled by hand. Elements per second are
//! instructions per second. For what guests that compute something come to, there is `ft-bench
//! interp`.

#![expect(clippy::unwrap_used, reason = "a bench that can't be set up fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod constructs;
mod whole;

use criterion::{Criterion, Throughput};
use std::time::Duration;
use vm::{Exit, Machine};

/// Instructions in an iteration.
const STEPS: u64 = 100_000;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    construct_benches(&mut criterion);
    whole::benches(&mut criterion);
    criterion.final_summary();
}

fn construct_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("construct");
    group.throughput(Throughput::Elements(STEPS));
    for (name, image) in constructs::all() {
        let mut machine = common::machine_of(&image);
        group.bench_function(name, |bencher| bencher.iter(|| run(&mut machine, STEPS)));
    }
    group.finish();
}

/// Runs `steps` further; the guests here never need anybody.
fn run(machine: &mut Machine, steps: u64) {
    assert_eq!(common::run_by(machine, steps), Exit::LimitReached, "at {:#x}", machine.pc());
}
