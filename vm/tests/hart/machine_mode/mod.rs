//! M-mode on a machine without firmware.

mod counters;
mod interrupts;
mod registers;
mod traps;

use crate::common::{
    LI, MACHINE, MCAUSE, MEPC, MSTATUS, MTVAL, MTVEC, NOP, RAM, SCAUSE, SEPC, SSTATUS, STVAL, STVEC, SUPERVISOR,
    bare_config, csrrs, csrrw, elf, go, jal, li, run_by,
};
use vm::Machine;

/// Addresses of the trap handlers of M-mode and S-mode.
const MACHINE_HANDLER: u64 = RAM + 0x800;

const SUPERVISOR_HANDLER: u64 = RAM + 0xa00;

/// Instruction count and address at which the `code` of [`program`] begins.
const BEGIN: u64 = 2 * (LI + 1);

const START: u64 = RAM + 4 * BEGIN;

/// A program that runs `code` in M-mode. Its handlers read cause, epc, tval and status into x20 to
/// x23 and then loop.
fn program(code: &[u32]) -> Vec<u32> {
    let handlers = [(MTVEC, MACHINE_HANDLER), (STVEC, SUPERVISOR_HANDLER)];
    let set_up = handlers.map(|(number, address)| [li(31, address), vec![csrrw(0, number, 31)]].concat()).concat();
    let mut all = [set_up, code.to_vec()].concat();
    assert!(all.len() <= 0x200);
    all.resize(0x200, NOP);
    all.extend([csrrs(20, MCAUSE, 0), csrrs(21, MEPC, 0), csrrs(22, MTVAL, 0), csrrs(23, MSTATUS, 0), jal(0, 0)]);
    all.resize(0x280, NOP);
    all.extend([csrrs(20, SCAUSE, 0), csrrs(21, SEPC, 0), csrrs(22, STVAL, 0), csrrs(23, SSTATUS, 0), jal(0, 0)]);
    all
}

fn bare(code: &[u32]) -> Machine {
    Machine::new(&bare_config(), &elf(&program(code))).unwrap()
}

/// A trap as its handler sees it; `epc` is relative to [`START`].
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    level: u64,
    cause: u64,
    epc: u64,
    tval: u64,
    status: u64,
}

/// The trap that the last of `steps` steps of `code` takes.
fn trap_after(code: &[u32], steps: u64) -> Seen {
    let mut machine = bare(code);
    run_by(&mut machine, BEGIN + steps);
    let level = match machine.pc() {
        MACHINE_HANDLER => MACHINE,
        SUPERVISOR_HANDLER => SUPERVISOR,
        pc => panic!("no handler is entered, but {pc:#x}"),
    };
    run_by(&mut machine, 4);
    let x = machine.registers();
    Seen { level, cause: x[20], epc: x[21].wrapping_sub(START), tval: x[22], status: x[23] }
}

/// The trap of the last instruction of `code`.
fn trap_of(code: &[u32]) -> Seen {
    trap_after(code, code.len() as u64)
}

/// (mode that handles it, cause) of the trap of `word`, executed in `mode` after `before` in
/// M-mode.
fn trap_in(mode: u64, before: &[u32], word: u32) -> (u64, u64) {
    let Seen { level, cause, .. } = trap_of(&[before.to_vec(), go(mode), vec![word]].concat());
    (level, cause)
}

/// The machine after `code`, none of whose instructions traps.
fn ran(code: &[u32]) -> Machine {
    let mut machine = bare(code);
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), START + 4 * code.len() as u64, "an instruction has trapped");
    machine
}
