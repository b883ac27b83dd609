//! Registers of M-mode: reset values, the fields that exist, and the views of S-mode.

use super::{ran, trap_in, trap_of};
use crate::common::{
    ECALL, MACHINE, MCAUSE, MCOUNTEREN, MCOUNTINHIBIT, MCYCLE, MEDELEG, MEPC, MIDELEG, MIE, MIE_BIT, MIP, MPIE_BIT,
    MPP_SHIFT, MSCRATCH, MSTATUS, MTVAL, MTVEC, NOP, PMPADDR0, PMPCFG0, RAM, SCOUNTEREN, SIE, SIE_BIT, SIP, SPIE_BIT,
    SPP_BIT, SSTATUS, SUPERVISOR, TW_BIT, USER, addi, bare_config, change, csr, csrrs, csrrw, elf, li,
};
use vm::Machine;

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
fn csrs_hold_only_the_fields_that_exist() {
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
fn csrs_of_s_mode_are_views_of_those_of_m_mode() {
    let all = [li(5, u64::MAX), vec![csrrw(0, MSTATUS, 5), csrrs(6, SSTATUS, 0)]].concat();
    assert_eq!(ran(&all).registers()[6], 1 << 63 | 2 << 32 | 0xc_6000 | SIE_BIT | SPIE_BIT | SPP_BIT);
    // A write of sstatus leaves the fields of M-mode unchanged.
    let status = [li(5, TW_BIT | MPIE_BIT), vec![csrrw(0, MSTATUS, 5), csrrw(0, SSTATUS, 0), csrrs(6, MSTATUS, 0)]];
    assert_eq!(ran(&status.concat()).registers()[6], 10 << 32 | TW_BIT | MPIE_BIT);
    // sie and sip show delegated interrupts only.
    let set = [li(5, u64::MAX), vec![csrrw(0, MIE, 5), csrrw(0, MIP, 5), addi(6, 0, 0x20), csrrw(0, MIDELEG, 6)]];
    let read = vec![csrrs(7, SIE, 0), csrrs(8, SIP, 0), csrrw(0, SIE, 0), csrrw(0, SIP, 0)];
    let after = vec![csrrs(9, MIE, 0), csrrs(12, MIP, 0)];
    let machine = ran(&[set.concat(), read, after].concat());
    assert_eq!(machine.registers()[7..10], [0x20, 0x20, 0xa8a]);
    assert_eq!(machine.registers()[12], 0x222, "of sip only SSIP is written, and only if it is delegated");
}

#[test]
fn csrs_of_m_mode_are_illegal_in_lower_modes() {
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
fn protection_entries_keep_what_is_written_until_they_are_locked() {
    const CFG2: u32 = PMPCFG0 + 2;
    let write = |number, value| [li(5, value), vec![csrrw(0, number, 5)]].concat();
    let all = [write(PMPADDR0, u64::MAX), write(PMPCFG0, 0x7f), vec![csrrs(6, PMPADDR0, 0), csrrs(7, PMPCFG0, 0)]];
    assert_eq!(ran(&all.concat()).registers()[6..8], [(1 << 54) - 1, 0x1f]);
    let write_only = [write(PMPCFG0, 0x0602), vec![csrrs(6, PMPCFG0, 0)]].concat();
    assert_eq!(ran(&write_only).registers()[6], 0x0400, "writable and not readable is reserved");
    // Entry 9 is locked and in TOR mode, so its range begins at pmpaddr8: both address registers
    // are locked, and pmpaddr10 isn't.
    let addresses = [8, 9, 10].map(|index| write(PMPADDR0 + index, u64::from(index)));
    let lock = write(CFG2, 0x8900);
    let again = [8, 9, 10].map(|index| write(PMPADDR0 + index, 0x55)).concat();
    let read = vec![csrrs(6, PMPADDR0 + 8, 0), csrrs(7, PMPADDR0 + 9, 0), csrrs(8, PMPADDR0 + 10, 0)];
    let machine =
        ran(&[addresses.concat(), lock, again, write(CFG2, 0x07_0707), read, vec![csrrs(9, CFG2, 0)]].concat());
    assert_eq!(machine.registers()[6..10], [8, 9, 0x55, 0x07_8907]);
    // PMP isn't enforced: with every entry off, S-mode still reaches all of RAM.
    assert_eq!(trap_in(SUPERVISOR, &[], ECALL), (MACHINE, 9));
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
