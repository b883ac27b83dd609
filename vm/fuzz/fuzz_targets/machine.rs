//! Any code and page tables, with anything from outside: the fast path and the plain interpreter
//! stay alike.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::differential::choices::Choices;
use common::differential::lockstep::{self, Sightings};
use common::differential::program::Program;
use libfuzzer_sys::fuzz_target;

const STEPS: u64 = 1_500;

fuzz_target!(|input: &[u8]| {
    // The first half decides what the guest is, so that the rest can decide what happens to it.
    let (program, events) = input.split_at(input.len() / 2);
    let program = Program::random(&mut Choices::of_bytes(program));
    lockstep::run(&program, &mut Choices::of_bytes(events), STEPS, &mut Sightings::default());
});
