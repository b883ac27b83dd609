//! Exceptions, without address translation.

use super::checker::Checker;
use super::probe::{Seen, probe, probe_user};
use crate::println;

const INSTRUCTION_ACCESS_FAULT: usize = 1;
const ILLEGAL_INSTRUCTION: usize = 2;
const BREAKPOINT: usize = 3;
const LOAD_ACCESS_FAULT: usize = 5;
const STORE_ACCESS_FAULT: usize = 7;
const USER_CALL: usize = 8;

/// An address with neither RAM nor a device, on a board with less than 2 GiB of RAM.
const NOTHING: usize = 0x1_0000_0000;

/// An instruction's expected trap: the cause, and `stval` where the specification requires a value.
struct Case {
    name: &'static str,
    run: fn() -> (usize, Option<Seen>),
    cause: usize,
    value: Option<usize>,
    from_supervisor: bool,
}

macro_rules! supervisor {
    ($instruction:literal, $cause:expr) => {
        Case { name: $instruction, run: || probe!($instruction), cause: $cause, value: None, from_supervisor: true }
    };
    ($instruction:literal at $address:expr, $cause:expr) => {
        Case {
            name: $instruction,
            run: || probe!($instruction, $address),
            cause: $cause,
            value: Some($address),
            from_supervisor: true,
        }
    };
}

macro_rules! user {
    ($instruction:literal, $cause:expr) => {
        Case {
            name: $instruction,
            run: || probe_user!($instruction),
            cause: $cause,
            value: None,
            from_supervisor: false,
        }
    };
}

const CASES: &[Case] = &[
    supervisor!(".insn 0xffffffff", ILLEGAL_INSTRUCTION),
    supervisor!(".half 0", ILLEGAL_INSTRUCTION),
    // Reserved encodings: an unassigned major opcode, an ALU operation with a wrong funct7, c.lui
    // without immediate.
    supervisor!(".insn 0x0000007b", ILLEGAL_INSTRUCTION),
    supervisor!(".insn 0x80000033", ILLEGAL_INSTRUCTION),
    supervisor!(".half 0x6501", ILLEGAL_INSTRUCTION),
    supervisor!("csrr a0, 0x5c0", ILLEGAL_INSTRUCTION),
    supervisor!("csrr a0, mstatus", ILLEGAL_INSTRUCTION),
    supervisor!("csrw mtvec, a0", ILLEGAL_INSTRUCTION),
    supervisor!("csrw cycle, a0", ILLEGAL_INSTRUCTION),
    supervisor!("mret", ILLEGAL_INSTRUCTION),
    supervisor!("c.ebreak", BREAKPOINT),
    supervisor!(".insn 0x00100073", BREAKPOINT),
    supervisor!("lb a0, 0(a0)" at NOTHING, LOAD_ACCESS_FAULT),
    supervisor!("ld a0, 0(a0)" at NOTHING, LOAD_ACCESS_FAULT),
    supervisor!("lr.d a0, (a0)" at NOTHING, LOAD_ACCESS_FAULT),
    supervisor!("sb a0, 0(a0)" at NOTHING, STORE_ACCESS_FAULT),
    supervisor!("sd a0, 0(a0)" at NOTHING, STORE_ACCESS_FAULT),
    user!("ecall", USER_CALL),
    user!("ebreak", BREAKPOINT),
    user!("csrr a0, sstatus", ILLEGAL_INSTRUCTION),
    user!("csrw sscratch, a0", ILLEGAL_INSTRUCTION),
    user!("sret", ILLEGAL_INSTRUCTION),
    user!("sfence.vma", ILLEGAL_INSTRUCTION),
];

pub(super) fn run(checker: &mut Checker) {
    for case in CASES {
        let (address, seen) = (case.run)();
        let Some(seen) = seen else {
            checker.check(format_args!("{}: a trap", case.name), 0, 1);
            continue;
        };
        println!("traps: {}: {seen}", case.name);
        checker.check(format_args!("{}: cause", case.name), seen.cause as u64, case.cause as u64);
        checker.check(format_args!("{}: sepc", case.name), seen.program_counter.wrapping_sub(address) as u64, 0);
        checker.check(
            format_args!("{}: sstatus.SPP", case.name),
            u64::from(seen.from_supervisor),
            u64::from(case.from_supervisor),
        );
        if let Some(value) = case.value {
            checker.check(format_args!("{}: stval", case.name), seen.value as u64, value as u64);
        }
    }
    check_fetch(checker);
}

/// A jump to an address without memory traps at its target, not at the jump.
fn check_fetch(checker: &mut Checker) {
    let (_, seen) = probe!("jalr ra, 0(a0)", NOTHING);
    let seen = seen.map(|seen| (seen.cause, seen.value, seen.program_counter));
    checker.check("jump to nowhere", u64::from(seen == Some((INSTRUCTION_ACCESS_FAULT, NOTHING, NOTHING))), 1);
}
