//! Traps to M-mode and to S-mode: delegation, MRET and SRET, MPRV, TVM, TW, TSR, double traps.

use super::{BEGIN, MACHINE_HANDLER, START, Seen, bare, ran, trap_after, trap_in, trap_of};
use crate::common::{
    CHANGE, EBREAK, ECALL, GO, LI, MACHINE, MEDELEG, MEPC, MIE_BIT, MPIE_BIT, MPP_SHIFT, MPRV_BIT, MRET, MSTATUS,
    MTVEC, SATP, SEPC, SFENCE_VMA, SPP_BIT, SRET, STVEC, SUPERVISOR, TSR_BIT, TVM_BIT, TW_BIT, USER, WFI, addi, auipc,
    change, csrrs, csrrw, go, i_type, jalr, li, run_by, run_on, store,
};
use vm::{Exit, FirstTrap, HaltReason, Lack, StopReason};

#[test]
fn environment_calls_of_every_mode_trap_to_m_mode_unless_delegated() {
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
fn a_delegated_exception_traps_to_s_mode_and_leaves_m_modes_csrs_unchanged() {
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
fn mret_returns_to_the_mode_in_mpp_and_restores_mie() {
    let before = change(MSTATUS, 3 << MPP_SHIFT, MACHINE << MPP_SHIFT | MPIE_BIT);
    let code = [before, vec![auipc(30, 0), addi(30, 30, 16), csrrw(0, MEPC, 30), MRET], vec![csrrs(5, MSTATUS, 0)]];
    assert_eq!(ran(&code.concat()).registers()[5], 10 << 32 | MIE_BIT | MPIE_BIT, "MIE gets MPIE, MPP becomes U");
    for mode in [USER, SUPERVISOR] {
        assert_eq!(trap_in(mode, &[], MRET), (MACHINE, 2), "mode {mode}");
    }
    assert_eq!(trap_in(USER, &[], SRET), (MACHINE, 2));
}

#[test]
fn mprv_is_cleared_by_a_return_to_a_lower_mode() {
    for (mode, kept) in [(USER, 0), (SUPERVISOR, 0), (MACHINE, MPRV_BIT)] {
        let seen = trap_of(&[change(MSTATUS, 0, MPRV_BIT), go(mode), vec![ECALL]].concat());
        assert_eq!(seen.status & MPRV_BIT, kept, "MRET to mode {mode}");
    }
    // SRET from M-mode clears MPRV too.
    for spp in [0, SPP_BIT] {
        let set = change(MSTATUS, 0, MPRV_BIT | spp);
        let back = vec![auipc(30, 0), addi(30, 30, 16), csrrw(0, SEPC, 30), SRET, ECALL];
        let seen = trap_of(&[set, back].concat());
        assert_eq!((seen.cause, seen.status & MPRV_BIT), (if spp == 0 { 8 } else { 9 }, 0));
    }
}

#[test]
fn tvm_tw_and_tsr_make_instructions_illegal_in_s_mode() {
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
        // The bits concern S-mode only: M-mode may always execute these, U-mode never.
        let mut machine = bare(&[change(MSTATUS, 0, bit), vec![word]].concat());
        run_by(&mut machine, BEGIN + CHANGE + 1);
        assert_ne!(machine.pc(), MACHINE_HANDLER, "{word:#x} in M-mode");
        assert_eq!(trap_in(USER, &[], word), (MACHINE, 2), "{word:#x} in U-mode");
    }
}

/// Runs `code` to a double trap because the handler at `at` can't be fetched; returns the first
/// trap.
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
fn a_handler_of_m_mode_that_cannot_be_fetched_is_a_double_trap() {
    let absent = 0x4000_0000;
    let code = [li(5, absent), vec![csrrw(0, MTVEC, 5), ECALL]].concat();
    let epc = START + 4 * (LI + 1);
    let first = FirstTrap { cause: 11, epc, tval: 0, instruction: ECALL, lacks: None };
    assert_eq!(double_trap(&code, absent), first);
    // A handler of S-mode that can't be fetched traps to M-mode, unless that trap is delegated too.
    let stvec = [li(5, absent), vec![csrrw(0, STVEC, 5)], change(MEDELEG, 0, 1 << 9), go(SUPERVISOR), vec![ECALL]];
    let seen = trap_after(&stvec.concat(), LI + 1 + CHANGE + GO + 2);
    assert_eq!((seen.level, seen.cause, seen.tval), (MACHINE, 1, absent));
    let both = [li(5, absent), vec![csrrw(0, STVEC, 5)], change(MEDELEG, 0, 1 << 1 | 1 << 9), go(SUPERVISOR)];
    assert_eq!(double_trap(&[both.concat(), vec![ECALL]].concat(), absent).cause, 9);
}

#[test]
fn a_double_trap_names_the_csr_or_address_that_the_machine_lacks() {
    let no_handler = || vec![csrrw(0, MTVEC, 0)];
    let told = |code: Vec<u32>| {
        let first = double_trap(&[no_handler(), code].concat(), 0);
        (first.lacks, first.to_string())
    };
    // mnscratch, which test programs for other machines write at their start.
    let (lacks, words) = told(vec![csrrw(0, 0x740, 0)]);
    assert_eq!(lacks, Some(Lack::Csr(0x740)));
    assert_eq!(
        words,
        format!(
            "illegal instruction at {:#x} (tval 0x74001073, instruction 0x74001073); this machine has no CSR 0x740",
            START + 4
        )
    );
    // The UART of another board.
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
    // A jump to the missing handler's address is no trap, so there is no first trap to report.
    let exit = run_on(&mut bare(&[no_handler(), vec![jalr(0, 0, 0)]].concat()));
    let reason = HaltReason::DoubleTrap { pc: 0, cause: 1, first: None };
    assert_eq!(exit, Exit::Stopped(StopReason::Halt(reason)));
}
