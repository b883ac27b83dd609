//! Random programs of all extensions and modes leave the same results on QEMU's `virt` board and on
//! our machine.
//!
//! `FT_PROGRAMS` sets the number of programs of each class; `FT_CLASS` and `FT_PROGRAM_SEED` choose
//! the program of `one_program`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use tests::qemu::conformance::program::{Class, Program};
use tests::qemu::conformance::{compare, on_machine, on_qemu, trap_causes};
use tests::qemu::is_installed;
use tests::random::seed;

/// Programs of each class, unless `FT_PROGRAMS` is set.
const PROGRAMS: u64 = 300;
/// The most programs in one file, which must fit the boards' memory.
const PROGRAMS_AT_ONCE: u64 = 600;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn same_on_both(class: Class) {
    if !is_installed() {
        return;
    }
    let seed = seed();
    let mut left = number("FT_PROGRAMS").unwrap_or(PROGRAMS);
    let mut first = seed;
    while left > 0 {
        let count = left.min(PROGRAMS_AT_ONCE);
        if let Err(difference) = compare(class, first, count) {
            panic!("our machine and QEMU differ: {difference}");
        }
        (left, first) = (left - count, first.wrapping_add(count));
    }
}

macro_rules! classes {
    ($($name:ident: $class:ident),*) => { $(
        #[test]
        fn $name() {
            same_on_both(Class::$class);
        }
    )* };
}

classes! {
    integer: Integer,
    compressed: Compressed,
    memory: Memory,
    float: Float,
    registers: Registers,
    paging: Paging,
    control: Control,
    system: System
}

#[test]
fn one_program() {
    let (Ok(name), Some(seed)) = (std::env::var("FT_CLASS"), number("FT_PROGRAM_SEED")) else { return };
    let class = Class::ALL.into_iter().find(|class| class.name() == name).unwrap();
    compare(class, seed, 1).unwrap_or_else(|difference| panic!("{difference}"));
}

/// The comparison needs this: a program's result must not depend on the programs before it.
#[test]
fn a_result_is_the_same_behind_other_programs() {
    if !is_installed() {
        return;
    }
    let seed = seed();
    let all = Class::ALL.into_iter().flat_map(|class| (0..40).map(move |index| (class, seed.wrapping_add(index))));
    let mut programs: Vec<Program> = all.map(|(class, seed)| Program::new(class, seed)).collect();
    let forward = on_qemu(&programs, false);
    programs.reverse();
    let backward = on_qemu(&programs, false);
    for (program, (one, other)) in programs.iter().zip(forward.iter().rev().zip(&backward)) {
        assert_eq!(one, other, "{} program {}", program.class.name(), program.seed);
    }
    assert_eq!(forward.len(), programs.len());
}

/// The comparison needs this: programs must take the traps that they are made for, and go on after
/// them.
#[test]
fn programs_take_every_kind_of_trap() {
    let interrupts = |causes: &[u64]| causes.iter().map(|cause| 1 << 63 | cause).collect::<Vec<u64>>();
    for class in Class::ALL {
        let mut causes = BTreeMap::<u64, u64>::new();
        // The same seeds each time, because some traps are rare.
        for seed in 0..64 {
            let program = Program::new(class, seed);
            for cause in trap_causes(&on_machine(&[program], true)) {
                *causes.entry(cause).or_default() += 1;
            }
        }
        println!("{}: {causes:x?}", class.name());
        let expected = match class {
            Class::Integer | Class::Float | Class::Control | Class::Registers => vec![2],
            Class::Compressed => vec![2, 5, 7],
            Class::Memory => vec![1, 2, 5, 7],
            Class::Paging => vec![5, 7, 12, 13, 15],
            Class::System => [vec![1, 2, 3, 5, 7, 8, 9], interrupts(&[1, 5, 9])].concat(),
        };
        for cause in expected {
            assert!(causes.contains_key(&cause), "{}: no trap of cause {cause:#x}", class.name());
        }
    }
}
