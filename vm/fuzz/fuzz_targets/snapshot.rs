//! Anything as a machine's state. What is accepted is written again as it was, and runs by both
//! ways alike.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::differential::choices::Choices;
use common::hostile::{self, Random};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use vm::{Exit, InstructionCount, Machine, MachineConfig, PAGE_BYTES, Restoration};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Bytes that are written over those of a state that is right, if any.
    changes: Vec<(u16, u8)>,
    truncated: u16,
    state: &'a [u8],
    memory: &'a [u8],
}

/// The state of a machine that has done something.
fn right_state() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| {
        let image = hostile::image(&mut Random { state: 1, care: 30 });
        let mut machine = Machine::new(&hostile::config(), &image).unwrap();
        while machine.run(InstructionCount(2_000)) == Exit::Output {
            while machine.take_output().is_some() {}
        }
        machine.state()
    })
}

fn restore(config: &MachineConfig, memory: &[u8], state: &[u8]) -> Option<Machine> {
    let mut restoration = Restoration::new(config).unwrap();
    let mut page = [0; PAGE_BYTES];
    for (index, piece) in (0..).zip(memory.chunks(PAGE_BYTES)) {
        page[..piece.len()].copy_from_slice(piece);
        restoration.put_pages(index, &page).unwrap();
    }
    restoration.finish(state).ok()
}

fuzz_target!(|input: Input<'_>| {
    let config = hostile::config();
    let state = if input.state.is_empty() {
        let mut state = right_state().to_vec();
        for (at, byte) in &input.changes {
            let length = state.len();
            state[usize::from(*at) % length] = *byte;
        }
        state.truncate(state.len().saturating_sub(usize::from(input.truncated % 16)));
        state
    } else {
        input.state.to_vec()
    };
    let Some(mut fast) = restore(&config, input.memory, &state) else { return };
    assert!(fast.state() == state, "a state is written as it was read");
    let mut plain = restore(&config, input.memory, &state).unwrap();
    let mut choices = Choices::of_bytes(input.memory);
    for _ in 0..4 {
        let limit = fast.instruction_count().0.saturating_add(choices.below(300));
        let exit = fast.run(InstructionCount(limit));
        assert_eq!(exit, plain.run_plain(InstructionCount(limit)));
        while let Some(output) = fast.take_output() {
            assert_eq!(plain.take_output(), Some(output));
        }
        assert_eq!(fast.digest(), plain.digest());
    }
});
