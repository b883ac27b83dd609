//! The fast path against the plain interpreter: random guests that write their own code and page
//! tables, in random slices, disturbed from outside, copied in the middle. Whatever they do, the
//! machines stay alike bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::differential::choices::Choices;
use common::differential::lockstep::{self, Sightings};
use common::differential::program::Program;
use common::paged::{BEGIN, Paged};
use common::{RAM, addi, jalr, li, store};
use vm::{InstructionCount, Machine};

const STEPS: u64 = 4_000;

#[test]
fn random_guests_come_to_the_same_by_both_ways_to_run_them() {
    const SEEDS: u64 = 1_200;
    let first = std::env::var("FT_SEED").ok().and_then(|text| text.parse().ok());
    let (first, seeds) = first.map_or((0, SEEDS), |seed| (seed, 1));
    let mut seen = Sightings::default();
    for seed in first..first + seeds {
        println!("seed {seed}; again with FT_SEED={seed} cargo test -p vm --test fast_against_plain");
        let mut choices = Choices::seeded(seed);
        let program = Program::random(&mut choices);
        lockstep::run(&program, &mut choices, STEPS, &mut seen);
    }
    println!("{seen:?}");
    let Sightings {
        steps,
        page_faults,
        other_exceptions,
        code_writes,
        modified_code_executed,
        tables_changed,
        tables_marked,
        accesses_across_pages,
        instructions_across_pages,
        packets_into_code_or_tables,
        snapshots,
        outputs,
        reads_answered,
        sleeps,
        ends,
    } = seen;
    if seeds < SEEDS {
        return;
    }
    assert!(steps > 1_000 * SEEDS, "too short: {steps} steps");
    let often = [page_faults, other_exceptions, code_writes, modified_code_executed, tables_changed, tables_marked];
    assert!(often.into_iter().min() > Some(SEEDS / 10), "too tame a run");
    let sometimes = [accesses_across_pages, instructions_across_pages, packets_into_code_or_tables, snapshots];
    assert!(sometimes.into_iter().min() > Some(SEEDS / 50), "too tame a run");
    assert!([outputs, reads_answered, sleeps, ends].into_iter().min() > Some(10), "too tame a run");
}

/// Runs `machine` in one go, and another that is made alike step by step plainly.
fn both(mut fast: Machine, mut plain: Machine, steps: u64) -> Machine {
    let (exit, count) = (fast.run(InstructionCount(steps)), fast.instruction_count());
    for step in 1..=count.0 {
        let _ = plain.run_plain(InstructionCount(step));
    }
    assert_eq!((exit, count), (plain.run_plain(InstructionCount(steps)), plain.instruction_count()));
    assert_eq!((fast.pc(), fast.registers()), (plain.pc(), plain.registers()));
    assert_eq!(fast.digest(), plain.digest());
    fast
}

/// The page is an ordinary one to the store that is cached first, and only a fetch makes a table of
/// it.
#[test]
fn a_store_to_a_page_that_has_become_a_table_for_fetches_is_noticed() {
    const FROM: u64 = 0x1000;
    const PLACE: u64 = RAM + 0x10_0000;
    let mut paged = Paged::new();
    paged.map(FROM, PLACE, 0xcf);
    let there = [store(3, 0, 5, 0), addi(7, 7, 1), jalr(0, 1, 0)];
    paged.put_bytes(PLACE, &there.map(u32::to_le_bytes).concat());
    // First the same code elsewhere, so that it is decoded and the store cached.
    let code = [
        li(5, Paged::entry(FROM) + 8),
        li(6, PLACE),
        vec![jalr(1, 6, 0), addi(5, 5, -8)],
        li(6, FROM),
        vec![jalr(1, 6, 0)],
    ]
    .concat();
    let steps = BEGIN + code.len() as u64 + 3 + 2 + 3;
    let machine = both(paged.machine(&code), paged.machine(&code), steps);
    assert_eq!(machine.registers()[20..23], [12, FROM + 4, FROM + 4], "cause, epc and tval");
    assert_eq!(machine.registers()[7], 1, "nothing behind the second store is executed");
}
