//! The rules about logs on disk, over many histories of two deaths.

use tests::both_die::{Seen, run};

const SEEDS: u64 = 2000;

#[test]
fn whatever_has_left_is_in_a_log_that_can_be_resumed() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let found = run(seed).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        seen = seen.or(found);
    }
    assert_eq!(seen, Seen::ALL, "what was not seen proves nothing");
}

#[cfg(feature = "mutations")]
#[test]
fn every_mutation_breaks_a_promise() {
    use ft::mutation::{Mutation, activate};
    let missed: Vec<_> = Mutation::OF_DISK_LOGS
        .into_iter()
        .filter(|mutation| {
            activate(Some(*mutation));
            let broken = (0..SEEDS).find_map(|seed| run(seed).err().map(|broken| (seed, broken)));
            activate(None);
            println!("{mutation:?}: {broken:?}");
            broken.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "no promise is broken by {missed:?}");
}
