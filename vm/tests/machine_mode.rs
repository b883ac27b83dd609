//! M-mode: what is there after reset, delegation, MRET, what it keeps from the modes below,
//! counters and protection registers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    CHANGE, CYCLE, EBREAK, ECALL, GO, LI, MACHINE, MCAUSE, MCOUNTEREN, MCOUNTINHIBIT, MCYCLE, MEDELEG, MEPC, MIDELEG,
    MIE, MIE_BIT, MINSTRET, MIP, MPIE_BIT, MPP_SHIFT, MPRV_BIT, MRET, MSCRATCH, MSTATUS, MTVAL, MTVEC, NOP, PMPADDR0,
    PMPCFG0, RAM, SATP, SCAUSE, SCOUNTEREN, SEED, SEPC, SFENCE_VMA, SIE, SIE_BIT, SIP, SPIE_BIT, SPP_BIT, SRET,
    SSTATUS, STVAL, STVEC, SUPERVISOR, TIME, TSR_BIT, TVM_BIT, TW_BIT, USER, WFI, addi, bare_config, change, csr,
    csrrs, csrrw, elf, go, i_type, jal, jalr, li, run_by, run_on, store,
};
use vm::{Event, Exit, FirstTrap, HaltReason, InstructionCount, Lack, Machine, StopReason};

/// Where the handlers of both levels are.
const MACHINE_HANDLER: u64 = RAM + 0x800;
const SUPERVISOR_HANDLER: u64 = RAM + 0xa00;

/// Where the `code` of [`program`] begins, and at which count.
const BEGIN: u64 = 2 * (LI + 1);
const START: u64 = RAM + 4 * BEGIN;

/// `code` in M-mode, with handlers that read cause, epc, tval and status into x20 to x23 and then
/// loop.
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

/// A trap as its handler sees it; `epc` from [`START`] on.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    level: u64,
    cause: u64,
    epc: u64,
    tval: u64,
    status: u64,
}

/// Runs `code`, which enters a handler with its last step, and there are `steps` of them.
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

/// Runs `code`, whose last instruction traps.
fn trap_of(code: &[u32]) -> Seen {
    trap_after(code, code.len() as u64)
}

/// The level that handles it, and the cause, of the trap of `word` in `mode` after `before` in
/// M-mode.
fn trap_in(mode: u64, before: &[u32], word: u32) -> (u64, u64) {
    let Seen { level, cause, .. } = trap_of(&[before.to_vec(), go(mode), vec![word]].concat());
    (level, cause)
}

/// Runs `code`, one step per instruction.
fn ran(code: &[u32]) -> Machine {
    let mut machine = bare(code);
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), START + 4 * code.len() as u64, "an instruction has trapped");
    machine
}

#[test]
fn a_machine_without_firmware_starts_in_machine_mode() {
    let start = Machine::new(&bare_config(), &elf(&[NOP])).unwrap();
    let tree = start.registers()[11];
    assert_eq!((start.pc(), start.registers()[10]), (RAM, 0));
    assert_eq!(start.memory(tree, 4), Some(&[0xd0, 0x0d, 0xfe, 0xed][..]), "a1 is the device tree");
    // Vendor, architecture, implementation, hart, configuration.
    for number in 0xf11..=0xf15 {
        assert_eq!(ran(&[csrrs(5, number, 0)]).registers()[5], 0, "{number:#x}");
    }
    let misa = ran(&[csrrs(5, 0x301, 0), csrrw(0, 0x301, 0), csrrs(6, 0x301, 0)]);
    assert_eq!(misa.registers()[5], 2 << 62 | 0b1_0100_0001_0001_0010_1101, "A, C, D, F, I, M, S, U");
    assert_eq!(misa.registers()[6], misa.registers()[5]);
    assert_eq!(ran(&[csrrs(5, SCOUNTEREN, 0)]).registers()[5], 7, "Linux relies on it");
}

#[test]
fn csr_fields_hold_what_exists() {
    const WIDTHS: u64 = 2 << 32 | 2 << 34;
    let status = WIDTHS | 1 << 63 | 0x7e_6000 | MIE_BIT | SIE_BIT | SPIE_BIT | MPIE_BIT | SPP_BIT | 3 << MPP_SHIFT;
    let cases = [
        (MSTATUS, status),
        (MEDELEG, 0xb3ff),
        (MIDELEG, 0x222),
        (MIE, 0xaaa),
        (MTVEC, !2),
        (MCOUNTEREN, 7),
        (0x30a, 1 << 63 | 1), // menvcfg
        (MCOUNTINHIBIT, 5),
        (MSCRATCH, u64::MAX),
        (MEPC, !1),
        (MCAUSE, u64::MAX),
        (MTVAL, u64::MAX),
        (MIP, 0x222),
        (0x323, 0), // mhpmevent3
        (0x33f, 0),
        (0xb03, 0), // mhpmcounter3
        (0xb1f, 0),
        (0x7a0, 0), // tselect
        (0x7a3, 0), // tdata3
    ];
    for (number, expected) in cases {
        let machine = ran(&[li(5, u64::MAX), vec![csrrw(0, number, 5), csrrs(6, number, 0)]].concat());
        assert_eq!(machine.registers()[6], expected, "CSR {number:#x}");
    }
    let mpp = [li(5, 1 << MPP_SHIFT), vec![csrrw(0, MSTATUS, 5)], li(5, 2 << MPP_SHIFT | SPP_BIT)].concat();
    let machine = ran(&[mpp, vec![csrrw(0, MSTATUS, 5), csrrs(6, MSTATUS, 0)]].concat());
    assert_eq!(machine.registers()[6] & !WIDTHS, 1 << MPP_SHIFT | SPP_BIT, "mode 2 doesn't exist: MPP stays");
}

#[test]
fn supervisor_registers_are_views_of_those_of_the_machine() {
    let all = [li(5, u64::MAX), vec![csrrw(0, MSTATUS, 5), csrrs(6, SSTATUS, 0)]].concat();
    assert_eq!(ran(&all).registers()[6], 1 << 63 | 2 << 32 | 0xc_6000 | SIE_BIT | SPIE_BIT | SPP_BIT);
    // A write of sstatus leaves the fields of the machine alone.
    let status = [li(5, TW_BIT | MPIE_BIT), vec![csrrw(0, MSTATUS, 5), csrrw(0, SSTATUS, 0), csrrs(6, MSTATUS, 0)]];
    assert_eq!(ran(&status.concat()).registers()[6], 10 << 32 | TW_BIT | MPIE_BIT);
    // sie and sip show the delegated interrupts and no others.
    let set = [li(5, u64::MAX), vec![csrrw(0, MIE, 5), csrrw(0, MIP, 5), addi(6, 0, 0x20), csrrw(0, MIDELEG, 6)]];
    let read = vec![csrrs(7, SIE, 0), csrrs(8, SIP, 0), csrrw(0, SIE, 0), csrrw(0, SIP, 0)];
    let after = vec![csrrs(9, MIE, 0), csrrs(12, MIP, 0)];
    let machine = ran(&[set.concat(), read, after].concat());
    assert_eq!(machine.registers()[7..10], [0x20, 0x20, 0xa8a]);
    assert_eq!(machine.registers()[12], 0x222, "of sip only SSIP is written, and only if it is delegated");
}

#[test]
fn environment_calls_of_every_mode_go_to_the_machine_unless_delegated() {
    for (mode, cause) in [(USER, 8), (SUPERVISOR, 9), (MACHINE, 11)] {
        let seen = trap_of(&[go(mode), vec![ECALL]].concat());
        assert_eq!((seen.level, seen.cause, seen.epc, seen.tval), (MACHINE, cause, 4 * GO, 0), "mode {mode}");
        assert_eq!(seen.status >> MPP_SHIFT & 3, mode);
        let level = if mode == MACHINE { MACHINE } else { SUPERVISOR };
        assert_eq!(trap_in(mode, &change(MEDELEG, 0, u64::MAX), ECALL), (level, cause), "mode {mode}, delegated");
        assert_eq!(trap_in(mode, &change(MEDELEG, 0, !(1 << cause)), ECALL), (MACHINE, cause), "others are");
    }
}

#[test]
fn a_delegated_exception_is_the_supervisors_and_leaves_the_machines_registers_alone() {
    for (cause, word, tval) in [(2, 0xffff_ffff_u32, 0xffff_ffff), (3, EBREAK, START + 4 * (CHANGE + GO))] {
        let delegate = change(MEDELEG, 0, 1 << cause);
        let seen = trap_of(&[delegate.clone(), go(USER), vec![word]].concat());
        let expected = Seen { level: SUPERVISOR, cause, epc: 4 * (CHANGE + GO), tval, status: 2 << 32 };
        assert_eq!(seen, expected);
        assert_eq!(trap_in(MACHINE, &delegate, word), (MACHINE, cause), "a trap never goes to a lower mode");
    }
    let code = [change(MEDELEG, 0, 1 << 8), go(USER), vec![ECALL]].concat();
    let mut machine = bare(&code);
    run_by(&mut machine, BEGIN + code.len() as u64 + 4);
    assert_eq!(machine.registers()[20], 8);
}

#[test]
fn mret_goes_where_mpp_says_and_puts_the_fields_back() {
    let before = change(MSTATUS, 3 << MPP_SHIFT, MACHINE << MPP_SHIFT | MPIE_BIT);
    let code =
        [before, vec![common::auipc(30, 0), addi(30, 30, 16), csrrw(0, MEPC, 30), MRET], vec![csrrs(5, MSTATUS, 0)]];
    assert_eq!(ran(&code.concat()).registers()[5], 10 << 32 | MIE_BIT | MPIE_BIT, "MIE gets MPIE, MPP becomes U");
    for mode in [USER, SUPERVISOR] {
        assert_eq!(trap_in(mode, &[], MRET), (MACHINE, 2), "mode {mode}");
    }
    assert_eq!(trap_in(USER, &[], SRET), (MACHINE, 2));
}

#[test]
fn mprv_ends_when_the_machine_is_left() {
    for (mode, kept) in [(USER, 0), (SUPERVISOR, 0), (MACHINE, MPRV_BIT)] {
        let seen = trap_of(&[change(MSTATUS, 0, MPRV_BIT), go(mode), vec![ECALL]].concat());
        assert_eq!(seen.status & MPRV_BIT, kept, "MRET to mode {mode}");
    }
    // SRET from M-mode, to S or U, ends it, too.
    for spp in [0, SPP_BIT] {
        let set = change(MSTATUS, 0, MPRV_BIT | spp);
        let back = vec![common::auipc(30, 0), addi(30, 30, 16), csrrw(0, SEPC, 30), SRET, ECALL];
        let seen = trap_of(&[set, back].concat());
        assert_eq!((seen.cause, seen.status & MPRV_BIT), (if spp == 0 { 8 } else { 9 }, 0));
    }
}

#[test]
fn tvm_tw_and_tsr_keep_instructions_from_the_supervisor() {
    let cases = [
        (TVM_BIT, csrrs(5, SATP, 0)),
        (TVM_BIT, csrrw(0, SATP, 5)),
        (TVM_BIT, SFENCE_VMA),
        (TW_BIT, WFI),
        (TSR_BIT, SRET),
    ];
    for (bit, word) in cases {
        assert_eq!(trap_in(SUPERVISOR, &change(MSTATUS, 0, bit), word), (MACHINE, 2), "{word:#x}");
        let others = change(MSTATUS, 0, (TVM_BIT | TW_BIT | TSR_BIT) & !bit);
        let mut machine = bare(&[others, go(SUPERVISOR), vec![word]].concat());
        run_by(&mut machine, BEGIN + CHANGE + GO + 1);
        assert_ne!(machine.pc(), MACHINE_HANDLER, "{word:#x} needs only its own bit clear");
        // They are for the supervisor alone: M-mode may, U-mode never.
        let mut machine = bare(&[change(MSTATUS, 0, bit), vec![word]].concat());
        run_by(&mut machine, BEGIN + CHANGE + 1);
        assert_ne!(machine.pc(), MACHINE_HANDLER, "{word:#x} in M-mode");
        assert_eq!(trap_in(USER, &[], word), (MACHINE, 2), "{word:#x} in U-mode");
    }
}

#[test]
fn registers_of_the_machine_are_out_of_reach_below() {
    for word in
        [csrrs(5, MSTATUS, 0), csrrw(0, MSCRATCH, 0), csrrs(5, 0xf14, 0), csrrs(5, MCYCLE, 0), csrrw(0, 0x7a0, 0)]
    {
        for mode in [USER, SUPERVISOR] {
            assert_eq!(trap_in(mode, &[], word), (MACHINE, 2), "{word:#x} in mode {mode}");
        }
    }
    for number in [0x3a1, 0x3a3, 0x3c0, 0x747, 0x7a4, 0x7b0, 0x600, 0x310, 0xb01, 0xf16] {
        assert_eq!(trap_of(&[csrrs(5, number, 0)]).cause, 2, "{number:#x} doesn't exist");
    }
    assert_eq!(trap_of(&[csrrw(0, 0xf14, 0)]).cause, 2, "mhartid can only be read");
}

#[test]
fn counters_are_read_below_as_far_as_both_levels_allow() {
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
    // The clock goes by the same rule, and is always M-mode's to read.
    let set = change(MCOUNTEREN, 7, 5);
    assert_eq!(trap_in(SUPERVISOR, &set, csrrs(5, TIME, 0)), (MACHINE, 2));
    assert_eq!(run_on(&mut bare(&[set, vec![csrrs(5, TIME, 0)]].concat())), Exit::ClockRead);
    assert_eq!(run_on(&mut bare(&[csrrw(5, SEED, 0)])), Exit::SeedRead);
    assert_eq!(trap_in(USER, &[], csrrw(5, SEED, 0)), (MACHINE, 2));
    assert_eq!(ran(&[csrrs(5, 0xc03, 0)]).registers()[5], 0, "hpmcounter3 counts nothing");
}

#[test]
fn counters_of_the_machine_go_on_from_what_is_written_and_can_be_stopped() {
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
    // One can be stopped without the other.
    let machine = ran(&[csr(5, 0, MCOUNTINHIBIT, 1), NOP, csrrs(5, MCYCLE, 0), csrrs(6, MINSTRET, 0)]);
    assert_eq!(machine.registers()[5..7], [BEGIN + 1, BEGIN + 3]);
}

/// What `minstret` and `mcycle` have grown by over `word`, a trap whose handler has four
/// instructions, after `before`.
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

/// Privileged specification, §3.3.1: ECALL and EBREAK are not considered to retire, and neither
/// does what traps.
#[test]
fn minstret_leaves_out_what_does_not_retire() {
    let raise = [li(5, 2), vec![csrrs(0, MIP, 5)]].concat();
    // A load from an address that nothing answers at.
    let absent_load = i_type(0x03, 3, 0, 0, 8);
    for is_plain in [false, true] {
        for word in [ECALL, EBREAK, 0, absent_load, csrrs(0, 0x5c0, 0)] {
            // Both reads, and the handler; the step that traps is one for mcycle alone.
            assert_eq!(counted_over_a_trap(&[], word, is_plain), (6, 7), "{word:#x}");
        }
        let stopped = counted_over_a_trap(&[csr(5, 0, MCOUNTINHIBIT, 4)], ECALL, is_plain);
        assert_eq!(stopped, (0, 7), "what is stopped doesn't go back");
    }
    for is_plain in [false, true] {
        // The interrupt is taken before the second read; its handler takes it back.
        let handler = [csr(7, 0, MIP, 2), NOP, MRET];
        let body =
            [raise.clone(), vec![csrrs(6, MINSTRET, 0), csr(6, 0, MSTATUS, 8), csrrs(8, MINSTRET, 0), jal(0, 0)]];
        let mie = [li(5, 2), vec![csrrw(0, MIE, 5)]].concat();
        let set_up = [li(31, RAM + 0x800), vec![csrrw(0, MTVEC, 31)], mie, body.concat()].concat();
        let mut code = set_up.clone();
        code.resize(0x200, NOP);
        code.extend(handler);
        let mut machine = Machine::new(&bare_config(), &elf(&code)).unwrap();
        // With the step in which the interrupt is taken.
        let limit = InstructionCount((set_up.len() + handler.len()) as u64);
        assert_eq!(if is_plain { machine.run_plain(limit) } else { machine.run(limit) }, Exit::LimitReached);
        assert_eq!(machine.pc(), RAM + 4 * (set_up.len() as u64 - 1), "the interrupt was handled");
        let x = machine.registers();
        assert_eq!(x[8] - x[6], 5, "both reads' distance, and the handler");
    }
}

/// A call of the firmware is an ECALL like any other, and the firmware retires nothing that counts.
#[test]
fn instret_leaves_out_calls_of_the_firmware() {
    const INSTRET: u32 = 0xc02;
    let code = [csrrs(6, INSTRET, 0), ECALL, csrrs(7, INSTRET, 0)];
    let machine = common::ran(&code);
    assert_eq!(machine.registers()[7] - machine.registers()[6], 1);
    assert_eq!(machine.instruction_count().0, 3);
}

#[test]
fn protection_entries_keep_what_is_written_until_they_are_locked() {
    const CFG2: u32 = PMPCFG0 + 2;
    let write = |number, value| [li(5, value), vec![csrrw(0, number, 5)]].concat();
    let all = [write(PMPADDR0, u64::MAX), write(PMPCFG0, 0x7f), vec![csrrs(6, PMPADDR0, 0), csrrs(7, PMPCFG0, 0)]];
    assert_eq!(ran(&all.concat()).registers()[6..8], [(1 << 54) - 1, 0x1f]);
    let write_only = [write(PMPCFG0, 0x0602), vec![csrrs(6, PMPCFG0, 0)]].concat();
    assert_eq!(ran(&write_only).registers()[6], 0x0400, "writable and not readable is reserved");
    // Entry 9 is locked and a range that begins at address 8: both addresses are locked, and 10
    // isn't.
    let addresses = [8, 9, 10].map(|index| write(PMPADDR0 + index, u64::from(index)));
    let lock = write(CFG2, 0x8900);
    let again = [8, 9, 10].map(|index| write(PMPADDR0 + index, 0x55)).concat();
    let read = vec![csrrs(6, PMPADDR0 + 8, 0), csrrs(7, PMPADDR0 + 9, 0), csrrs(8, PMPADDR0 + 10, 0)];
    let machine =
        ran(&[addresses.concat(), lock, again, write(CFG2, 0x07_0707), read, vec![csrrs(9, CFG2, 0)]].concat());
    assert_eq!(machine.registers()[6..10], [8, 9, 0x55, 0x07_8907]);
    // They protect nothing: with every entry off, S-mode still has all of RAM.
    assert_eq!(trap_in(SUPERVISOR, &[], ECALL), (MACHINE, 9));
}

/// Makes `pending` pending and enables all interrupts one by one.
fn raise(pending: u64, delegated: u64) -> Vec<u32> {
    [change(MIDELEG, 0, delegated), change(MIP, 0, pending), change(MIE, 0, 0x222)].concat()
}

#[test]
fn interrupts_are_taken_in_the_order_of_their_priority() {
    for (pending, first) in [(0x222, 9), (0x022, 1), (0x220, 9), (0x020, 5), (0x202, 9), (0x002, 1)] {
        for (delegated, level) in [(0, MACHINE), (0x222, SUPERVISOR)] {
            let code = [raise(pending, delegated), change(MSTATUS, 0, SIE_BIT), go(SUPERVISOR), vec![NOP]].concat();
            let seen = trap_of(&code);
            assert_eq!((seen.level, seen.cause), (level, 1 << 63 | first), "{pending:#x} {delegated:#x}");
            assert_eq!((seen.epc, seen.tval), (4 * (code.len() as u64 - 1), 0));
        }
    }
    // Whatever its number, the machine's comes first.
    let seen = trap_of(&[raise(0x222, 0x202), change(MSTATUS, 0, SIE_BIT), go(SUPERVISOR), vec![NOP]].concat());
    assert_eq!((seen.level, seen.cause), (MACHINE, 1 << 63 | 5));
}

#[test]
fn interrupts_of_a_higher_mode_are_always_enabled_and_of_a_lower_one_never() {
    // (delegated, SIE, MIE, mode): the level that takes it.
    let cases = [
        (0, 0, 0, SUPERVISOR, Some(MACHINE)),
        (0, 0, 0, USER, Some(MACHINE)),
        (0, 0, 0, MACHINE, None),
        (0, 0, MIE_BIT, MACHINE, Some(MACHINE)),
        (2, SIE_BIT, MIE_BIT, MACHINE, None),
        (2, 0, 0, SUPERVISOR, None),
        (2, SIE_BIT, 0, SUPERVISOR, Some(SUPERVISOR)),
        (2, 0, 0, USER, Some(SUPERVISOR)),
    ];
    for (delegated, sie, mie, mode, taken) in cases {
        // MRET moves MPIE to MIE.
        let status = change(MSTATUS, 0, sie | mie << 4);
        let code = [status, raise(2, delegated), go(mode), vec![NOP]].concat();
        let mut machine = bare(&code);
        run_by(&mut machine, BEGIN + code.len() as u64);
        let handler = match machine.pc() {
            MACHINE_HANDLER => Some(MACHINE),
            SUPERVISOR_HANDLER => Some(SUPERVISOR),
            _ => None,
        };
        assert_eq!(handler, taken, "{delegated} {sie} {mie} in mode {mode}");
    }
}

#[test]
fn vectored_interrupts_go_to_their_own_entry_of_the_machines_table() {
    let vectored = [li(5, MACHINE_HANDLER | 1), vec![csrrw(0, MTVEC, 5)]].concat();
    let code = [vectored.clone(), raise(0x20, 0), go(SUPERVISOR), vec![NOP]].concat();
    let mut machine = bare(&code);
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), MACHINE_HANDLER + 4 * 5);
    assert_eq!(trap_of(&[vectored, vec![ECALL]].concat()).cause, 11, "exceptions go to the base");
}

#[test]
fn the_external_interrupt_is_the_line_or_what_software_says() {
    let write = |address, value, funct3| [li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat();
    let read = |address, funct3| [li(5, address), vec![common::load(funct3, 6, 5, 0)]].concat();
    // Priority, enable, and the UART's own enable of received data.
    let devices = [write(0x0c00_0028, 1, 2), write(0x0c00_2080, 1 << 10, 2), write(common::UART + 1, 1, 0)].concat();
    let clear = [li(7, 0x200), vec![csr(3, 8, MIP, 7), csrrs(9, MIP, 0)]].concat();
    // What sets another bit must not make the line software's: when the device has been served,
    // SEIP is gone.
    let set_another = vec![csr(6, 12, MIP, 2)];
    let serve = [read(0x0c20_1004, 2), read(common::UART, 4), vec![csrrs(13, MIP, 0)]].concat();
    let code = [devices, clear, set_another, serve].concat();
    let mut machine = bare(&code);
    machine.apply(&Event::ConsoleInput { bytes: b"x".to_vec() }).unwrap();
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.registers()[8..10], [0x200, 0x200], "clearing doesn't lower the line");
    assert_eq!(machine.registers()[12..14], [0x200, 0x2]);
    // Software's own bit is set and cleared.
    let own = ran(&[li(7, 0x200), vec![csrrs(0, MIP, 7), csr(3, 8, MIP, 7), csrrs(9, MIP, 0)]].concat());
    assert_eq!(own.registers()[8..10], [0x200, 0]);
}

#[test]
fn wfi_wakes_for_an_interrupt_that_is_enabled_one_by_one() {
    for (mie, sleeps) in [(0, true), (0x20, false)] {
        let code = [change(MIP, 0, 0x20), change(MIE, 0, mie), vec![WFI, NOP, jal(0, 0)]].concat();
        let mut machine = bare(&code);
        let exit = run_by(&mut machine, BEGIN + 2 * CHANGE + 5);
        assert_eq!(exit == Exit::WaitForInterrupt, sleeps);
    }
}

/// Runs `code` to a double trap at this address for want of an instruction there, and gives the
/// trap before.
fn double_trap(code: &[u32], at: u64) -> FirstTrap {
    let mut machine = bare(code);
    let exit = run_on(&mut machine);
    let Exit::Stopped(StopReason::Halt(HaltReason::DoubleTrap { pc, cause: 1, first: Some(first) })) = exit else {
        panic!("{exit:?} is no double trap");
    };
    assert_eq!(pc, at);
    first
}

#[test]
fn a_handler_of_the_machine_that_cannot_be_fetched_is_a_double_trap() {
    let absent = 0x4000_0000;
    let code = [li(5, absent), vec![csrrw(0, MTVEC, 5), ECALL]].concat();
    let epc = START + 4 * (LI + 1);
    let first = FirstTrap { cause: 11, epc, tval: 0, instruction: ECALL, lacks: None };
    assert_eq!(double_trap(&code, absent), first);
    // The supervisor's is another matter as long as the machine's handler gets to know.
    let stvec = [li(5, absent), vec![csrrw(0, STVEC, 5)], change(MEDELEG, 0, 1 << 9), go(SUPERVISOR), vec![ECALL]];
    let seen = trap_after(&stvec.concat(), LI + 1 + CHANGE + GO + 2);
    assert_eq!((seen.level, seen.cause, seen.tval), (MACHINE, 1, absent));
    let both = [li(5, absent), vec![csrrw(0, STVEC, 5)], change(MEDELEG, 0, 1 << 1 | 1 << 9), go(SUPERVISOR)];
    assert_eq!(double_trap(&[both.concat(), vec![ECALL]].concat(), absent).cause, 9);
}

#[test]
fn a_double_trap_tells_what_the_machine_lacks() {
    let no_handler = || vec![csrrw(0, MTVEC, 0)];
    let told = |code: Vec<u32>| {
        let first = double_trap(&[no_handler(), code].concat(), 0);
        (first.lacks, first.to_string())
    };
    // mnscratch, as test programs of other machines set it first of all.
    let (lacks, words) = told(vec![csrrw(0, 0x740, 0)]);
    assert_eq!(lacks, Some(Lack::Csr(0x740)));
    assert_eq!(
        words,
        format!(
            "illegal instruction at {:#x} (tval 0x74001073, instruction 0x74001073); this machine has no CSR 0x740",
            START + 4
        )
    );
    // An address of a board with another UART.
    let (lacks, words) = told([li(5, 0x1001_0008), vec![i_type(0x03, 3, 6, 5, 0)]].concat());
    assert_eq!(lacks, Some(Lack::Address));
    for part in
        ["load access fault", "tval 0x10010008", "instruction 0x0002b303", "this machine has nothing at 0x10010008"]
    {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    assert!(
        told([li(5, 0x3000_0000), vec![store(2, 0, 5, 0)]].concat())
            .1
            .ends_with("; this machine has nothing at 0x30000000")
    );
    assert_eq!(told(vec![0]).0, None, "an instruction that is none");
    assert_eq!(told(vec![csrrw(0, 0xf11, 0)]).0, None, "there is such a CSR, and it can't be written");
    // A guest that jumps to where its handler would be has had no trap.
    let exit = run_on(&mut bare(&[no_handler(), vec![jalr(0, 0, 0)]].concat()));
    let reason = HaltReason::DoubleTrap { pc: 0, cause: 1, first: None };
    assert_eq!(exit, Exit::Stopped(StopReason::Halt(reason)));
}

#[test]
fn floating_point_registers_exist_while_fs_is_not_off() {
    const FFLAGS: u32 = 1;
    const FRM: u32 = 2;
    const FCSR: u32 = 3;
    for number in [FFLAGS, FRM, FCSR] {
        assert_eq!(trap_of(&[csrrs(5, number, 0)]).cause, 2, "{number}");
    }
    let initial = change(MSTATUS, 0, 1 << 13);
    let read = ran(&[initial.clone(), vec![csrrs(5, FCSR, 0), csrrs(6, MSTATUS, 0)]].concat());
    assert_eq!(read.registers()[6] >> 13 & 3, 1, "reading doesn't make it dirty");
    let write = vec![csr(5, 0, FFLAGS, 0x15), csr(5, 0, FRM, 0x1b), csrrs(5, FCSR, 0), csrrs(6, SSTATUS, 0)];
    let parts = vec![csrrs(7, FFLAGS, 0), csrrs(8, FRM, 0), addi(9, 0, -1), csrrw(0, FCSR, 9), csrrs(9, FCSR, 0)];
    let machine = ran(&[initial, write, parts].concat());
    assert_eq!(machine.registers()[5..10], [0x75, 1 << 63 | 2 << 32 | 3 << 13, 0x15, 3, 0xff]);
}
