//! Counters: `mcycle`, `minstret`, their copies for lower modes, and who may read them.

use super::{BEGIN, MACHINE_HANDLER, bare, ran, trap_in};
use crate::common::{
    CHANGE, CYCLE, EBREAK, ECALL, GO, LI, MACHINE, MCOUNTEREN, MCOUNTINHIBIT, MCYCLE, MEPC, MIE, MINSTRET, MIP, MRET,
    MSTATUS, MTVEC, NOP, RAM, SCOUNTEREN, SEED, SUPERVISOR, TIME, USER, addi, bare_config, change, csr, csrrs, csrrw,
    elf, go, i_type, jal, li, run_by, run_on,
};
use vm::{Exit, InstructionCount, Machine};

#[test]
fn lower_modes_read_counters_as_mcounteren_and_scounteren_allow() {
    for (machine, supervisor, mode, allowed) in [
        (0, 7, SUPERVISOR, false),
        (1, 0, SUPERVISOR, true),
        (1, 6, USER, false),
        (6, 1, USER, false),
        (1, 1, USER, true),
    ] {
        let set = [change(MCOUNTEREN, 7, machine), change(SCOUNTEREN, 7, supervisor), go(mode)].concat();
        let mut guest = bare(&[set, vec![csrrs(5, CYCLE, 0)]].concat());
        run_by(&mut guest, BEGIN + 2 * CHANGE + GO + 1);
        assert_eq!(guest.pc() != MACHINE_HANDLER, allowed, "{machine} {supervisor} in mode {mode}");
    }
    // `time` follows the same rule, and M-mode may always read it.
    let set = change(MCOUNTEREN, 7, 5);
    assert_eq!(trap_in(SUPERVISOR, &set, csrrs(5, TIME, 0)), (MACHINE, 2));
    assert_eq!(run_on(&mut bare(&[set, vec![csrrs(5, TIME, 0)]].concat())), Exit::ClockRead);
    assert_eq!(run_on(&mut bare(&[csrrw(5, SEED, 0)])), Exit::SeedRead);
    assert_eq!(trap_in(USER, &[], csrrw(5, SEED, 0)), (MACHINE, 2));
    assert_eq!(ran(&[csrrs(5, 0xc03, 0)]).registers()[5], 0, "hpmcounter3 counts nothing");
}

#[test]
fn mcycle_and_minstret_continue_from_a_written_value_and_can_be_stopped() {
    for counter in [MCYCLE, MINSTRET] {
        let machine = ran(&[
            li(5, 1000),
            vec![csrrw(0, counter, 5), csrrs(6, counter, 0), csrrs(7, CYCLE + counter - MCYCLE, 0)],
        ]
        .concat());
        assert_eq!(machine.registers()[6..8], [1000, 1001], "the written value is the next instruction's");
        assert_eq!(machine.instruction_count().0, BEGIN + LI + 3, "the instruction count is another thing");
        let bit = if counter == MCYCLE { 1 } else { 4 };
        let stopped = [
            vec![csr(5, 0, MCOUNTINHIBIT, bit), csrrs(5, counter, 0), NOP, csrrs(6, counter, 0)],
            vec![addi(7, 0, 77), csrrw(0, counter, 7), NOP, csrrs(8, counter, 0)],
            vec![csr(5, 0, MCOUNTINHIBIT, 0), csrrs(9, counter, 0), csrrs(12, counter, 0)],
        ];
        let machine = ran(&stopped.concat());
        let x = machine.registers();
        assert_eq!((x[5], x[6]), (BEGIN + 1, BEGIN + 1), "it stands still");
        assert_eq!((x[8], x[9], x[12]), (77, 77, 78));
    }
    // Each can be stopped without the other.
    let machine = ran(&[csr(5, 0, MCOUNTINHIBIT, 1), NOP, csrrs(5, MCYCLE, 0), csrrs(6, MINSTRET, 0)]);
    assert_eq!(machine.registers()[5..7], [BEGIN + 1, BEGIN + 3]);
}

/// How far `minstret` and `mcycle` advance over `word`, which traps to a handler of four
/// instructions. `before` is executed first.
fn counted_over_a_trap(before: &[u32], word: u32, is_plain: bool) -> (u64, u64) {
    let handler = [csrrs(5, MEPC, 0), addi(5, 5, 4), csrrw(0, MEPC, 5), MRET];
    let reads = |rd| [csrrs(rd, MINSTRET, 0), csrrs(rd + 1, MCYCLE, 0)];
    let body = [&reads(6)[..], &[word], &reads(8), &[jal(0, 0)]].concat();
    let set_up = [li(31, RAM + 0x800), vec![csrrw(0, MTVEC, 31)], before.to_vec(), body].concat();
    let mut code = set_up.clone();
    code.resize(0x200, NOP);
    code.extend(handler);
    let mut machine = Machine::new(&bare_config(), &elf(&code)).unwrap();
    let limit = InstructionCount((set_up.len() + handler.len()) as u64);
    assert_eq!(if is_plain { machine.run_plain(limit) } else { machine.run(limit) }, Exit::LimitReached);
    assert_eq!(machine.pc(), RAM + 4 * (set_up.len() as u64 - 1), "the trap was handled");
    let x = machine.registers();
    (x[8] - x[6], x[9] - x[7])
}

/// Privileged specification, §3.3.1: ECALL and EBREAK don't retire, and neither does any other
/// instruction that traps.
#[test]
fn minstret_leaves_out_instructions_that_do_not_retire() {
    let raise = [li(5, 2), vec![csrrs(0, MIP, 5)]].concat();
    // A load from an address with neither RAM nor a device.
    let absent_load = i_type(0x03, 3, 0, 0, 8);
    for is_plain in [false, true] {
        for word in [ECALL, EBREAK, 0, absent_load, csrrs(0, 0x5c0, 0)] {
            // The two reads and the handler retire; the step that traps counts for mcycle only.
            assert_eq!(counted_over_a_trap(&[], word, is_plain), (6, 7), "{word:#x}");
        }
        let stopped = counted_over_a_trap(&[csr(5, 0, MCOUNTINHIBIT, 4)], ECALL, is_plain);
        assert_eq!(stopped, (0, 7), "a stopped counter doesn't go back");
    }
    for is_plain in [false, true] {
        // The interrupt is taken before the second read; its handler clears it.
        let handler = [csr(7, 0, MIP, 2), NOP, MRET];
        let body =
            [raise.clone(), vec![csrrs(6, MINSTRET, 0), csr(6, 0, MSTATUS, 8), csrrs(8, MINSTRET, 0), jal(0, 0)]];
        let mie = [li(5, 2), vec![csrrw(0, MIE, 5)]].concat();
        let set_up = [li(31, RAM + 0x800), vec![csrrw(0, MTVEC, 31)], mie, body.concat()].concat();
        let mut code = set_up.clone();
        code.resize(0x200, NOP);
        code.extend(handler);
        let mut machine = Machine::new(&bare_config(), &elf(&code)).unwrap();
        // The step that takes the interrupt is counted in place of the final jump.
        let limit = InstructionCount((set_up.len() + handler.len()) as u64);
        assert_eq!(if is_plain { machine.run_plain(limit) } else { machine.run(limit) }, Exit::LimitReached);
        assert_eq!(machine.pc(), RAM + 4 * (set_up.len() as u64 - 1), "the interrupt was handled");
        let x = machine.registers();
        assert_eq!(x[8] - x[6], 5, "the instructions between the reads, and the handler");
    }
}

/// A firmware call is an ECALL, which doesn't retire, and the firmware itself retires nothing.
#[test]
fn instret_leaves_out_calls_of_the_firmware() {
    const INSTRET: u32 = 0xc02;
    let code = [csrrs(6, INSTRET, 0), ECALL, csrrs(7, INSTRET, 0)];
    let machine = crate::common::ran(&code);
    assert_eq!(machine.registers()[7] - machine.registers()[6], 1);
    assert_eq!(machine.instruction_count().0, 3);
}
