//! The fast interpreter's handlers call the next one in tail position, so a run of any length needs
//! no stack. Only optimised builds rely on that: others go from one handler to the next in a loop.
//! CI runs this in both.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod common;

use common::{RAM, addi, amo, bare_config, branch, csrrs, elf, i_type, jal, li, load, r_type, store};
use vm::{Exit, InstructionCount, Machine};

const MSTATUS: u32 = 0x300;
/// How many random loops are run; each kind of instruction has several.
const LOOPS: u64 = 60;
const STACK_BYTES: usize = 64 << 10;
/// Executes each instruction of a loop more often than the stack has room for return addresses.
const STEPS: u64 = 25 * STACK_BYTES as u64 / 8 * 2;

/// An endless loop of instructions of one kind, which the seed chooses.
fn random_loop(seed: u64) -> Machine {
    const LENGTH: u64 = 24;
    let mut state = seed;
    let mut below = |end: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 33).unwrap() % end
    };
    let mut code = [li(5, RAM + (2 << 12) - 64), li(7, 3 << 13), vec![csrrs(0, MSTATUS, 7)], li(10, 12_345)].concat();
    for _ in 0..LENGTH {
        let (rd, a, b) = (10 + below(20), below(32), below(32));
        let (funct3, double) = (below(8), 2 + below(2));
        let offset = 8 * (below(16).cast_signed() - 8);
        code.push(match seed % 6 {
            0 => match below(4) {
                0 => r_type(0x33, funct3, below(2), rd, a, b),
                1 => r_type(0x3b, 0, below(2) << 5, rd, a, b),
                2 => below(1 << 19) << 12 | rd << 7 | if below(2) == 0 { 0x37 } else { 0x17 },
                _ => i_type(0x13, funct3, rd, a, below(32).cast_signed()),
            },
            1 => match below(2) {
                0 => load(below(7), rd, 5, offset),
                _ => store(below(4), a, 5, offset),
            },
            2 => match below(3) {
                0 => load(3, rd, 5, offset),
                1 => addi(rd, a, offset),
                _ => branch(1, a, b, 4),
            },
            3 => r_type(0x53, 0, [0, 1, 4, 5, 8, 9, 0x10, 0x11][funct3 as usize], rd, a, b),
            4 => match below(2) {
                0 => i_type(0x07, double, rd, 5, offset),
                _ => store(double, a, 5, offset) | 4,
            },
            _ => amo([0, 1, 4, 8][funct3 as usize % 4], double, rd, 5, b),
        });
    }
    code.push(jal(0, -4 * i32::try_from(LENGTH).unwrap()));
    Machine::new(&bare_config(), &elf(&code)).unwrap()
}

#[test]
fn millions_of_steps_need_no_stack() {
    let mut machines: Vec<_> = (0..LOOPS).map(random_loop).collect();
    let run = move || {
        for machine in &mut machines {
            assert_eq!(machine.run(InstructionCount(STEPS)), Exit::LimitReached);
        }
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).unwrap().join().unwrap();
}
