//! The fast interpreter against the plain one: random guests that rewrite their code and page
//! tables, in random slices, with inputs from outside and snapshots in the middle. All machines
//! must stay equal bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::differential::choices::Choices;
use common::differential::lockstep::{self, Sightings};
use common::differential::program::Program;
use common::paged::{BEGIN, Paged};
use common::{RAM, addi, for_each_seed, jalr, li, store};
use vm::{InstructionCount, Machine};

const STEPS: u64 = 4_000;

#[test]
fn random_guests_end_alike_on_both_interpreters() {
    const SEEDS: u64 = 1_200;
    let mut seen = Sightings::default();
    let all_seeds = for_each_seed("fast_against_plain", SEEDS, |seed| {
        let mut choices = Choices::seeded(seed);
        let program = Program::random(&mut choices);
        lockstep::run(&program, &mut choices, STEPS, &mut seen);
    });
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
    if !all_seeds {
        return;
    }
    assert!(steps > 1_000 * SEEDS, "too short: {steps} steps");
    let often = [page_faults, other_exceptions, code_writes, modified_code_executed, tables_changed, tables_marked];
    assert!(often.into_iter().min() > Some(SEEDS / 10), "too tame a run");
    let sometimes = [accesses_across_pages, instructions_across_pages, packets_into_code_or_tables, snapshots];
    assert!(sometimes.into_iter().min() > Some(SEEDS / 50), "too tame a run");
    assert!([outputs, reads_answered, sleeps, ends].into_iter().min() > Some(10), "too tame a run");
}

/// Runs `fast` in one go and `plain`, an equal machine, step by step on the plain interpreter;
/// checks that they stay equal, and returns the first.
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

/// The store is cached while it writes to an ordinary page, which only a later fetch uses as a page
/// table.
#[test]
fn a_cached_store_to_a_page_that_has_become_a_page_table_is_noticed() {
    const FROM: u64 = 0x1000;
    const PLACE: u64 = RAM + 0x10_0000;
    let mut paged = Paged::new();
    paged.map(FROM, PLACE, 0xcf);
    let there = [store(3, 0, 5, 0), addi(7, 7, 1), jalr(0, 1, 0)];
    paged.put_bytes(PLACE, &there.map(u32::to_le_bytes).concat());
    // The code runs at another address first, so that it is decoded and its store cached.
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
