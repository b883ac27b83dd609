//! Bugs on purpose, each found by the simulator within a few seeds: checks that nothing can fail prove nothing.

#![cfg(feature = "mutations")]

use hypervisor::mutation::{Mutation, activate};
use std::panic;
use tests::sim;

/// Seeds within which each is found.
const SEEDS: u64 = 200;

/// The first seed that shows the bug, and what it breaks.
fn caught(mutation: Mutation) -> Option<sim::Failure> {
    activate(Some(mutation));
    let failure = (0..SEEDS).find_map(|seed| sim::run(seed, false).err());
    activate(None);
    failure
}

#[test]
fn every_mutation_is_caught() {
    // They fail by hundreds, as they should.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match caught(mutation) {
            Some(failure) => println!("{mutation:?}: seed {}: {}", failure.seed, failure.reason),
            None => missed.push(mutation),
        }
    }
    panic::set_hook(hook);
    assert!(missed.is_empty(), "nothing in {SEEDS} seeds catches {missed:?}");
}
