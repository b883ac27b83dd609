//! Sv39: mappings, permissions, accesses across two pages, faults and their side effects.

use crate::common::paged::{BEGIN, HANDLER, PAGED_SATP, Paged};
use crate::common::{
    EBREAK, LI, MPP_SHIFT, MPRV_BIT, MSTATUS, MTVEC, MXR_BIT, NOP, RAM, SATP, SEPC, SPP_BIT, SRET, SSTATUS, STVEC,
    SUM_BIT, SUPERVISOR, TIME, USER, addi, amo, bare_config, change, csrrs, csrrw, jalr, li, load, run_by, run_on,
    small_config, store,
};
use vm::{Event, Exit, HaltReason, InstructionCount, Machine, StopReason};

/// Flags of a page-table entry.
const VALID: u64 = 1;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER_PAGE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
const RW: u64 = VALID | READ | WRITE;
const RWX: u64 = RW | EXECUTE;

/// Physical pages for the tests to map; nothing else uses them.
const DATA: u64 = RAM + 0x10_0000;

/// (cause, offset, tval) of the trap of the last instruction of `code`, run in S-mode with paging
/// on.
fn trap_of(paged: &Paged, code: &[u32]) -> (u64, u64, u64) {
    trap_in(&mut paged.machine(code), code)
}

fn trap_in(machine: &mut Machine, code: &[u32]) -> (u64, u64, u64) {
    run_by(machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), HANDLER, "the last step enters the handler");
    run_by(machine, 3);
    let x = machine.registers();
    (x[20], x[21].wrapping_sub(RAM + 4 * BEGIN), x[22])
}

/// The machine after `code`, none of whose instructions traps.
fn ran(paged: &Paged, code: &[u32]) -> Machine {
    let mut machine = paged.machine(code);
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), RAM + 4 * (BEGIN + code.len() as u64), "an instruction has trapped");
    machine
}

/// Maps `number` pages from virtual address `at` on to pages from [`DATA`] on, in reverse order, so
/// that neighbours in virtual memory aren't neighbours in RAM.
fn reversed(at: u64, number: u64, flags: u64) -> Paged {
    let mut paged = Paged::new();
    for page in 0..number {
        paged.map(at + page * 0x1000, DATA + (number - 1 - page) * 0x1000, flags);
    }
    paged
}

fn doubleword(machine: &Machine, address: u64) -> u64 {
    u64::from_le_bytes(machine.memory(address, 8).unwrap().try_into().unwrap())
}

#[test]
fn pages_of_every_size_are_where_their_entries_say() {
    let mut paged = Paged::new();
    paged.map(0x5000, DATA, RW);
    paged.map_mega(0x20_0000, RAM, RW);
    let through = |address| [li(5, address), vec![load(3, 7, 5, 0), store(3, 6, 5, 8)]].concat();
    let value = 0x1122_3344_5566_7788;
    // The last two are gigapages: `Paged` maps RAM to itself and to the upper half.
    for address in [0x5010, 0x30_0010, DATA + 0x10, Paged::UPPER + DATA - RAM + 0x10] {
        paged.put(DATA + 0x10, value);
        let machine = ran(&paged, &[li(6, 99), through(address)].concat());
        assert_eq!(machine.registers()[7], value, "{address:#x}");
        assert_eq!(doubleword(&machine, DATA + 0x18), 99, "{address:#x}");
    }
}

#[test]
fn an_unmapped_or_forbidden_access_is_a_page_fault() {
    for (flags, loads, stores, fetches) in
        [(0, false, false, false), (VALID | READ, true, false, false), (RW, true, true, false), (RWX, true, true, true)]
    {
        let mut paged = Paged::new();
        paged.map(0x5000, DATA, flags);
        paged.put(DATA, EBREAK.into());
        let cases = [
            (loads, load(0, 6, 5, 0), 13),
            (loads, amo(2, 3, 6, 5, 0), 13), // LR
            (stores, store(0, 6, 5, 0), 15),
            (stores, amo(0, 3, 6, 5, 0), 15),
            (stores, amo(3, 3, 6, 5, 0), 15), // SC, without a reservation
        ];
        for (allowed, word, cause) in cases {
            let code = [li(5, 0x5000), vec![word]].concat();
            if allowed {
                ran(&paged, &code);
            } else {
                assert_eq!(trap_of(&paged, &code), (cause, 4 * LI, 0x5000), "{flags:#b} {word:#x}");
            }
        }
        let mut machine = paged.machine(&[li(5, 0x5000), vec![jalr(1, 5, 0)]].concat());
        run_by(&mut machine, BEGIN + LI + 2 + 3);
        let cause = if fetches { 3 } else { 12 };
        assert_eq!(machine.registers()[20..23], [cause, 0x5000, 0x5000], "{flags:#b}");
    }
    let misaligned = [li(5, 0x5004), vec![amo(0, 3, 6, 5, 0)]].concat();
    assert_eq!(trap_of(&Paged::new(), &misaligned), (6, 4 * LI, 0x5004), "alignment comes first");
    let not_canonical = [li(5, 1 << 40 | RAM), vec![load(0, 6, 5, 0)]].concat();
    assert_eq!(trap_of(&Paged::new(), &not_canonical), (13, 4 * LI, 1 << 40 | RAM));
}

#[test]
fn sum_and_mxr_open_pages_for_data_as_mprv_makes_them() {
    let execute_only = VALID | EXECUTE;
    // (flags, mode, bits of mstatus, whether a load is allowed, whether a store is allowed)
    let cases = [
        (RW, SUPERVISOR, 0, true, true),
        (RW, USER, 0, false, false),
        (RW, USER, SUM_BIT, false, false),
        (RW | USER_PAGE, USER, 0, true, true),
        (RW | USER_PAGE, SUPERVISOR, 0, false, false),
        (RW | USER_PAGE, SUPERVISOR, SUM_BIT, true, true),
        (execute_only, SUPERVISOR, 0, false, false),
        (execute_only, SUPERVISOR, MXR_BIT, true, false),
        (execute_only | USER_PAGE, USER, MXR_BIT, true, false),
        (execute_only | USER_PAGE, SUPERVISOR, MXR_BIT, false, false),
        (execute_only | USER_PAGE, SUPERVISOR, MXR_BIT | SUM_BIT, true, false),
        (VALID | READ | USER_PAGE, USER, 0, true, false),
    ];
    for (flags, mode, bits, loads, stores) in cases {
        let mut paged = Paged::new();
        paged.map(0x5000, DATA, flags);
        for (word, allowed, cause) in [(load(3, 6, 5, 0), loads, 13), (store(3, 6, 5, 0), stores, 15)] {
            let set_up =
                [li(5, HANDLER), vec![csrrw(0, MTVEC, 5)], li(5, PAGED_SATP), vec![csrrw(0, SATP, 5)]].concat();
            let modify = change(MSTATUS, 3 << MPP_SHIFT, MPRV_BIT | bits | mode << MPP_SHIFT);
            // M-mode's fetches aren't translated, so the code runs at its physical address.
            let code = [set_up, modify, li(5, 0x5000), vec![word]].concat();
            let mut machine = paged.plain_machine(&bare_config(), &code);
            run_by(&mut machine, code.len() as u64);
            let trapped = machine.pc() == HANDLER;
            assert_eq!(trapped, !allowed, "{flags:#b} in mode {mode} with {bits:#x}: {word:#x}");
            if trapped {
                run_by(&mut machine, 6);
                let at = RAM + 4 * (code.len() as u64 - 1);
                assert_eq!(machine.registers()[23..26], [cause, at, 0x5000]);
            }
        }
    }
}

#[test]
fn a_mode_executes_only_its_own_pages() {
    for (user_page, mode, sum, allowed) in [
        (true, USER, 0, true),
        (false, USER, SUM_BIT, false),
        (false, SUPERVISOR, 0, true),
        (true, SUPERVISOR, 0, false),
        (true, SUPERVISOR, SUM_BIT, false),
    ] {
        let mut paged = Paged::new();
        paged.map(0x5000, DATA, if user_page { RWX | USER_PAGE } else { RWX });
        paged.put(DATA, EBREAK.into());
        let status = change(SSTATUS, 0, sum | if mode == SUPERVISOR { SPP_BIT } else { 0 });
        let code = [status, li(5, 0x5000), vec![csrrw(0, SEPC, 5), SRET]].concat();
        let mut machine = paged.machine(&code);
        run_by(&mut machine, BEGIN + code.len() as u64 + 1 + 3);
        assert_eq!(machine.registers()[20], if allowed { 3 } else { 12 }, "{user_page} {mode} {sum:#x}");
    }
}

#[test]
fn accesses_set_accessed_and_dirty_bits_in_memory() {
    let code = |word| [li(5, 0x5000), vec![word]].concat();
    for (word, expected) in [
        (load(3, 6, 5, 0), ACCESSED),
        (amo(2, 3, 6, 5, 0), ACCESSED),
        (store(3, 6, 5, 0), ACCESSED | DIRTY),
        (amo(0, 3, 6, 5, 0), ACCESSED | DIRTY),
        (jalr(0, 5, 0), 0),
    ] {
        let paged = reversed(0x5000, 1, RWX);
        let mut machine = paged.machine(&code(word));
        run_by(&mut machine, BEGIN + LI + 1);
        let entry = doubleword(&machine, Paged::entry(0x5000));
        assert_eq!(entry, DATA >> 2 | RWX | expected, "{word:#x}");
        if expected == 0 {
            run_by(&mut machine, 1);
            assert_eq!(doubleword(&machine, Paged::entry(0x5000)), DATA >> 2 | RWX | ACCESSED, "fetch");
        }
    }
    // A refused access sets no bit.
    let paged = reversed(0x5000, 1, VALID | READ);
    let mut machine = paged.machine(&code(store(3, 6, 5, 0)));
    trap_in(&mut machine, &code(store(3, 6, 5, 0)));
    assert_eq!(doubleword(&machine, Paged::entry(0x5000)), DATA >> 2 | VALID | READ);
}

/// (funct3 of a load and a store, bytes accessed)
const WIDTHS: [(u32, u64); 3] = [(1, 2), (2, 4), (3, 8)];

#[test]
fn loads_and_stores_cross_into_a_second_page_anywhere_in_ram() {
    let value = 0x0102_0304_0506_0708_u64;
    for (width, bytes) in WIDTHS {
        for before in 1..bytes {
            let paged = reversed(0x5000, 2, RW);
            let at = 0x6000 - before;
            let code = [li(5, at), li(6, value), vec![store(width, 6, 5, 0), load(width, 7, 5, 0)]].concat();
            let machine = ran(&paged, &code);
            let shift = 64 - 8 * bytes;
            assert_eq!(machine.registers()[7], value << shift >> shift, "{bytes} bytes, {before} before");
            let all = value.to_le_bytes();
            let (first, second) = all[..usize::try_from(bytes).unwrap()].split_at(usize::try_from(before).unwrap());
            assert_eq!(machine.memory(DATA + 0x2000 - before, before), Some(first));
            assert_eq!(machine.memory(DATA, bytes - before), Some(second));
            for page in [0x5000, 0x6000] {
                let marks = doubleword(&machine, Paged::entry(page)) & (ACCESSED | DIRTY);
                assert_eq!(marks, ACCESSED | DIRTY);
            }
        }
    }
}

#[test]
fn an_access_across_pages_of_which_one_is_missing_has_no_effect() {
    const DEVICE: u64 = 0x1000_0000;
    for (width, bytes) in WIDTHS {
        for before in 1..bytes {
            let at = 0x6000 - before;
            // (page to remap, its new address, its flags, cause of a load, cause of a store)
            for (page, to, flags, load_cause, store_cause) in [
                (0x5000, 0, 0, Some(13), 15),
                (0x6000, 0, 0, Some(13), 15),
                (0x6000, DATA, VALID | READ, None, 15),
                (0x5000, DEVICE, RW, Some(5), 7),
                (0x6000, DEVICE, RW, Some(5), 7),
            ] {
                let mut paged = reversed(0x5000, 2, RW);
                paged.map(page, to, flags);
                let tval = if page == 0x5000 { at } else { 0x6000 };
                let address = li(5, at);
                if let Some(cause) = load_cause {
                    let code = [address.clone(), vec![load(width, 6, 5, 0)]].concat();
                    assert_eq!(trap_of(&paged, &code), (cause, 4 * LI, tval), "{bytes} {before} {page:#x}");
                }
                let code = [address, li(6, u64::MAX), vec![store(width, 6, 5, 0)]].concat();
                let mut machine = paged.machine(&code);
                assert_eq!(trap_in(&mut machine, &code), (store_cause, 8 * LI, tval), "{bytes} {before} {page:#x}");
                assert!(machine.memory(DATA, 0x2000).unwrap().iter().all(|byte| *byte == 0), "something is written");
                for page in [0x5000, 0x6000] {
                    assert_eq!(doubleword(&machine, Paged::entry(page)) & (ACCESSED | DIRTY), 0);
                }
            }
        }
    }
}

/// Puts the instruction `word` into the last two bytes of page 0x5000 of [`reversed`] and the first
/// two of the next page.
fn straddling(word: u32) -> Paged {
    let mut paged = reversed(0x5000, 2, RWX);
    let [b0, b1, b2, b3] = word.to_le_bytes();
    paged.put_bytes(DATA + 0x1ffe, &[b0, b1]);
    paged.put_bytes(DATA, &[b2, b3]);
    paged
}

#[test]
fn an_instruction_in_two_pages_is_fetched_from_both() {
    let jump = [li(6, 0x5ffe), vec![jalr(1, 6, 0)]].concat();
    let steps = BEGIN + jump.len() as u64;
    let paged = straddling(addi(5, 0, 0x123));
    let mut machine = paged.machine(&jump);
    run_by(&mut machine, steps + 1);
    assert_eq!((machine.registers()[5], machine.pc()), (0x123, 0x6002));

    let mut without_second = paged.clone();
    without_second.map(0x6000, 0, 0);
    let mut machine = without_second.machine(&jump);
    run_by(&mut machine, steps + 1 + 3);
    assert_eq!(machine.registers()[20..23], [12, 0x5ffe, 0x6000], "tval is the address of the half that faults");
    assert_eq!(doubleword(&machine, Paged::entry(0x5000)) & ACCESSED, 0);

    let mut without_first = paged;
    without_first.map(0x5000, 0, 0);
    let mut machine = without_first.machine(&jump);
    run_by(&mut machine, steps + 1 + 3);
    assert_eq!(machine.registers()[20..23], [12, 0x5ffe, 0x5ffe]);

    // A compressed instruction there doesn't need the second page.
    let mut compressed = without_second;
    compressed.put_bytes(DATA + 0x1ffe, &0x4295_u16.to_le_bytes()); // c.li t0, 5
    let mut machine = compressed.machine(&jump);
    run_by(&mut machine, steps + 1);
    assert_eq!((machine.registers()[5], machine.pc()), (5, 0x6000));
}

#[test]
fn a_clock_read_sets_no_accessed_bit_until_it_is_answered() {
    let jump = [li(6, 0x5ffe), vec![jalr(1, 6, 0)]].concat();
    let steps = BEGIN + jump.len() as u64;
    let paged = straddling(csrrs(5, TIME, 0));
    let (mut recorder, mut replayer) = (paged.machine(&jump), paged.machine(&jump));
    assert_eq!(run_on(&mut recorder), Exit::ClockRead);
    assert_eq!(replayer.run(InstructionCount(steps)), Exit::LimitReached);
    assert_eq!(recorder.digest(), replayer.digest(), "a fetch whose instruction waits for its answer changes no state");
    for machine in [&mut recorder, &mut replayer] {
        machine.apply(&Event::ClockRead { ticks: 7 }).unwrap();
        assert_eq!((machine.registers()[5], machine.pc()), (7, 0x6002));
        for page in [0x5000, 0x6000] {
            assert_eq!(doubleword(machine, Paged::entry(page)) & (ACCESSED | DIRTY), ACCESSED);
        }
    }
    assert_eq!(recorder.digest(), replayer.digest());
}

#[test]
fn a_changed_page_table_takes_effect_at_once() {
    let mut paged = reversed(0x5000, 2, RW);
    paged.put(DATA, 1);
    paged.put(DATA + 0x1000, 2);
    // 0x5000 is remapped from the second page to the first, without an SFENCE.VMA.
    let look = vec![load(3, 7, 5, 0)];
    let code = [li(5, 0x5000), look, li(6, Paged::entry(0x5000)), li(8, DATA >> 2 | RW)].concat();
    let machine = ran(&paged, &[code, vec![store(3, 8, 6, 0), load(3, 9, 5, 0)]].concat());
    assert_eq!((machine.registers()[7], machine.registers()[9]), (2, 1));
}

#[test]
fn paging_may_begin_with_a_fault_into_the_mapped_handler() {
    const ROOT: u64 = RAM + 0x7000;
    let mut paged = Paged::new();
    paged.put(ROOT + 8 * 256, RAM >> 2 | RWX);
    let handler = Paged::UPPER + (HANDLER - RAM);
    let code = [li(5, handler), vec![csrrw(0, STVEC, 5)], li(5, 8 << 60 | ROOT >> 12), vec![csrrw(0, SATP, 5), NOP]];
    let code = code.concat();
    let mut machine = paged.plain_machine(&small_config(), &code);
    run_by(&mut machine, code.len() as u64);
    assert_eq!(machine.pc(), handler);
    run_by(&mut machine, 3);
    let at = RAM + 4 * (code.len() as u64 - 1);
    assert_eq!(machine.registers()[20..23], [12, at, at]);
}

#[test]
fn a_handler_in_a_missing_page_is_a_double_trap() {
    let code = [li(5, 0x5000), vec![csrrw(0, STVEC, 5), EBREAK]].concat();
    let mut machine = Paged::new().machine(&code);
    let Exit::Stopped(StopReason::Halt(HaltReason::DoubleTrap { pc: 0x5000, cause: 12, first: Some(first) })) =
        run_on(&mut machine)
    else {
        panic!("no double trap");
    };
    assert_eq!(
        (first.cause, first.instruction, first.lacks),
        (3, 0, None),
        "the instruction at a virtual address isn't looked up"
    );
    assert_eq!(machine.instruction_count().0, BEGIN + code.len() as u64 + 1);
    // A handler whose second instruction straddles into a missing page can still be entered.
    let mut paged = straddling(NOP);
    paged.map(0x6000, 0, 0);
    let code = [li(5, 0x5ffc), vec![csrrw(0, STVEC, 5), EBREAK]].concat();
    paged.put_bytes(DATA + 0x1ffc, &[0x01, 0x00]); // c.nop
    let mut machine = paged.machine(&code);
    let exit = run_by(&mut machine, BEGIN + code.len() as u64 + 10);
    assert_eq!(exit, Exit::LimitReached, "a fault further on in the handler is no double trap");
}

#[test]
fn satp_keeps_its_value_if_the_mode_is_not_offered() {
    for (mode, kept) in [(9, PAGED_SATP), (10, PAGED_SATP), (1, PAGED_SATP), (0, 0)] {
        let write = [li(5, mode << 60 | 0xffff << 44 | 1), vec![csrrw(0, SATP, 5), csrrs(6, SATP, 0)]].concat();
        assert_eq!(ran(&Paged::new(), &write).registers()[6], kept, "mode {mode}");
    }
    let same = [li(5, PAGED_SATP | 0xffff << 44), vec![csrrw(0, SATP, 5), csrrs(6, SATP, 0)]].concat();
    assert_eq!(ran(&Paged::new(), &same).registers()[6], PAGED_SATP, "there are no address-space identifiers");
}
