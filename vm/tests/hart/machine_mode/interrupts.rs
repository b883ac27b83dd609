//! Interrupts with M-mode present: priority, enabling, vectoring, the external line, WFI.

use super::{BEGIN, MACHINE_HANDLER, SUPERVISOR_HANDLER, bare, ran, trap_of};
use crate::common::{
    CHANGE, ECALL, MACHINE, MIDELEG, MIE, MIE_BIT, MIP, MSTATUS, MTVEC, NOP, SIE_BIT, SUPERVISOR, UART, USER, WFI,
    change, csr, csrrs, csrrw, go, jal, li, load, run_by, store,
};
use vm::{Event, Exit};

/// Makes `pending` pending, delegates `delegated`, and enables every interrupt in `mie`.
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
    // An interrupt for M-mode goes before delegated ones, whatever its number.
    let seen = trap_of(&[raise(0x222, 0x202), change(MSTATUS, 0, SIE_BIT), go(SUPERVISOR), vec![NOP]].concat());
    assert_eq!((seen.level, seen.cause), (MACHINE, 1 << 63 | 5));
}

#[test]
fn interrupts_for_a_higher_mode_are_always_enabled_and_for_a_lower_one_never() {
    // (delegated, SIE, MIE, mode, mode that takes the interrupt)
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
fn vectored_interrupts_go_to_their_own_entry_of_m_modes_table() {
    let vectored = [li(5, MACHINE_HANDLER | 1), vec![csrrw(0, MTVEC, 5)]].concat();
    let code = [vectored.clone(), raise(0x20, 0), go(SUPERVISOR), vec![NOP]].concat();
    let mut machine = bare(&code);
    run_by(&mut machine, BEGIN + code.len() as u64);
    assert_eq!(machine.pc(), MACHINE_HANDLER + 4 * 5);
    assert_eq!(trap_of(&[vectored, vec![ECALL]].concat()).cause, 11, "exceptions go to the base");
}

#[test]
fn the_external_interrupt_is_pending_by_the_line_or_by_software() {
    let write = |address, value, funct3| [li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat();
    let read = |address, funct3| [li(5, address), vec![load(funct3, 6, 5, 0)]].concat();
    // The PLIC's priority and enable bit, and the UART's interrupt for received data.
    let devices = [write(0x0c00_0028, 1, 2), write(0x0c00_2080, 1 << 10, 2), write(UART + 1, 1, 0)].concat();
    let clear = [li(7, 0x200), vec![csr(3, 8, MIP, 7), csrrs(9, MIP, 0)]].concat();
    // Setting another bit of mip must not turn the line's level into software's SEIP: SEIP is clear
    // once the device has been served.
    let set_another = vec![csr(6, 12, MIP, 2)];
    let serve = [read(0x0c20_1004, 2), read(UART, 4), vec![csrrs(13, MIP, 0)]].concat();
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
fn wfi_wakes_only_for_an_interrupt_that_mie_enables() {
    for (mie, sleeps) in [(0, true), (0x20, false)] {
        let code = [change(MIP, 0, 0x20), change(MIE, 0, mie), vec![WFI, NOP, jal(0, 0)]].concat();
        let mut machine = bare(&code);
        let exit = run_by(&mut machine, BEGIN + 2 * CHANGE + 5);
        assert_eq!(exit == Exit::WaitForInterrupt, sleeps);
    }
}
