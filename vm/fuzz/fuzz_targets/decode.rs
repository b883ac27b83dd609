//! One instruction of any bits, in a machine in any mode: it never panics, and is one step by both
//! ways to run.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{ECALL, MSTATUS, bare_config, change, csrrw, elf, go, li};
use libfuzzer_sys::fuzz_target;
use vm::{InstructionCount, Machine};

fuzz_target!(|input: (u32, u8, [u64; 4])| {
    let (bits, mode, values) = input;
    let registers: Vec<u32> = (8..).zip(values).flat_map(|(register, value)| li(register, value)).collect();
    let float = change(MSTATUS, 0, 3 << 13);
    let enter = match mode % 4 {
        0 => go(0),
        1 => go(1),
        _ => vec![csrrw(0, 0x306, 0)],
    };
    let code = [float, registers, enter, vec![bits, ECALL, ECALL]].concat();
    let image = elf(&code);
    let [mut fast, mut plain] = [(); 2].map(|()| Machine::new(&bare_config(), &image).unwrap());
    for limit in code.len() as u64 - 3..=code.len() as u64 + 2 {
        let limit = InstructionCount(limit);
        assert_eq!(fast.run(limit), plain.run_plain(limit));
        while fast.take_output().is_some() {
            plain.take_output().unwrap();
        }
        assert_eq!(fast.digest(), plain.digest());
    }
});
