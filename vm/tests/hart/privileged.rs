//! CSRs, traps, interrupts, WFI, firmware calls, and what each costs in steps.

use crate::common::{
    self, CYCLE, EBREAK, ECALL, FINISHER, LI, NOP, RAM, SATP, SCAUSE, SCOUNTEREN, SEED, SEPC, SIE, SIP, SRET, SSCRATCH,
    SSTATUS, STVAL, STVEC, TIME, WFI, addi, amo, csr, csrrs, csrrw, jal, jalr, li, load, machine, ran, run_by, run_on,
    store,
};
use vm::{ApplyError, Event, Exit, FirstTrap, HaltReason, InstructionCount, Machine, OutputOperation, StopReason};

/// Address of the trap handler.
const HANDLER: u64 = RAM + 0x800;

/// A program that sets `stvec` to a handler, which reads cause, epc, tval and status into x20 to
/// x23 and then loops, and runs `code`.
fn trapping(code: &[u32]) -> Vec<u32> {
    let mut all = [li(31, HANDLER), vec![csrrw(0, STVEC, 31)], code.to_vec()].concat();
    assert!(all.len() <= 0x200);
    all.resize(0x200, NOP);
    all.extend([csrrs(20, SCAUSE, 0), csrrs(21, SEPC, 0), csrrs(22, STVAL, 0), csrrs(23, SSTATUS, 0), jal(0, 0)]);
    all
}

/// Address at which the `code` of [`trapping`] begins.
const START: u64 = RAM + 4 * (LI + 1);

/// (cause, offset of the trapping instruction in `code`, tval) of the trap of its last instruction.
fn trap_of(code: &[u32]) -> (u64, u64, u64) {
    let mut machine = machine(&trapping(code));
    run_by(&mut machine, LI + 1 + code.len() as u64);
    assert_eq!(machine.pc(), HANDLER, "the last step enters the handler and is one step");
    run_by(&mut machine, 4);
    let x = machine.registers();
    (x[20], x[21] - START, x[22])
}

/// Instructions after which the following ones run in U-mode.
fn to_user() -> Vec<u32> {
    let mut code = vec![common::auipc(30, 0), addi(30, 30, 16), csrrw(0, SEPC, 30), SRET];
    assert_eq!(code.len(), 4);
    code.shrink_to_fit();
    code
}

#[test]
fn exceptions_report_cause_epc_and_tval() {
    let far = li(5, 0x4000_0000);
    let at = 4 * LI;
    assert_eq!(trap_of(&[EBREAK]), (3, 0, START));
    assert_eq!(trap_of(&[0xffff_ffff]), (2, 0, 0xffff_ffff));
    assert_eq!(trap_of(&[0x0000_0000]), (2, 0, 0), "the all-zero halfword is illegal");
    assert_eq!(trap_of(&[0xabcd_2000]), (2, 0, 0x2000), "tval of a compressed instruction has 16 bits");
    assert_eq!(trap_of(&[far.clone(), vec![load(3, 6, 5, 8)]].concat()), (5, at, 0x4000_0008));
    assert_eq!(trap_of(&[far.clone(), vec![store(3, 6, 5, -8)]].concat()), (7, at, 0x3fff_fff8));
    assert_eq!(trap_of(&[far.clone(), vec![amo(2, 3, 6, 5, 0)]].concat()), (5, at, 0x4000_0000));
    assert_eq!(trap_of(&[far, vec![amo(3, 3, 6, 5, 0)]].concat()), (7, at, 0x4000_0000));
    let misaligned = li(5, RAM + 0x1004);
    assert_eq!(trap_of(&[misaligned.clone(), vec![amo(2, 3, 6, 5, 0)]].concat()), (4, at, RAM + 0x1004));
    assert_eq!(trap_of(&[misaligned, vec![amo(0, 3, 6, 5, 0)]].concat()), (6, at, RAM + 0x1004));
    let across_the_end = li(5, RAM + (4 << 20) - 4);
    assert_eq!(trap_of(&[across_the_end, vec![store(3, 6, 5, 0)]].concat()), (7, at, RAM + (4 << 20)));
    let misaligned_device = li(5, 0x0c00_0002);
    assert_eq!(trap_of(&[misaligned_device, vec![load(2, 6, 5, 0)]].concat()), (5, at, 0x0c00_0002));
}

#[test]
fn a_jump_out_of_memory_traps_at_its_target() {
    let mut machine = machine(&trapping(&[li(5, 0x4000_0000), vec![jalr(1, 5, 0)]].concat()));
    run_by(&mut machine, LI + 1 + LI + 2 + 4);
    assert_eq!(machine.registers()[20..23], [1, 0x4000_0000, 0x4000_0000]);
}

#[test]
fn user_mode_is_kept_out() {
    let at = 20;
    let in_user = |code: &[u32]| trap_of(&[vec![csrrw(0, SCOUNTEREN, 0)], to_user(), code.to_vec()].concat());
    assert_eq!(in_user(&[ECALL]), (8, at, 0));
    for word in [WFI, SRET, 0x1200_0073, csrrs(5, SSTATUS, 0), csrrs(5, TIME, 0), csrrs(5, CYCLE, 0), csrrw(5, SEED, 0)]
    {
        assert_eq!(in_user(&[word]), (2, at, word.into()), "{word:#x}");
    }
}

#[test]
fn trap_entry_and_sret_move_the_status_fields() {
    // A trap from S-mode with SIE set: SPP and SPIE keep mode and SIE.
    let mut machine = machine(&trapping(&[csr(6, 0, SSTATUS, 2), EBREAK]));
    run_by(&mut machine, LI + 1 + 2 + 4);
    assert_eq!(machine.registers()[23], 2 << 32 | 1 << 8 | 1 << 5);
    // A trap from U-mode: SPP is 0.
    let mut machine = common::machine(&trapping(&[to_user(), vec![ECALL]].concat()));
    run_by(&mut machine, LI + 1 + 5 + 4);
    assert_eq!(machine.registers()[23] & (1 << 8), 0);
}

#[test]
fn csr_fields_hold_what_exists() {
    const CASES: [(u32, u64); 10] = [
        (SSTATUS, 1 << 63 | 2 << 32 | 1 << 19 | 1 << 18 | 3 << 13 | 1 << 8 | 1 << 5), // without SIE, see below
        (SIE, 0x222),
        (STVEC, !2),
        (SCOUNTEREN, 7),
        (0x10a, 1),
        (SSCRATCH, u64::MAX),
        (SEPC, !1),
        (STVAL, u64::MAX),
        (SIP, 2),
        (SATP, 0), // MODE 15 doesn't exist
    ];
    for (number, expected) in CASES {
        let written = if number == SSTATUS { !2 } else { u64::MAX };
        let machine = ran(&[li(5, written), vec![csrrw(0, number, 5), csrrs(6, number, 0)]].concat());
        assert_eq!(machine.registers()[6], expected, "CSR {number:#x}");
    }
}

#[test]
fn csr_instructions_set_clear_and_exchange() {
    let code = [
        csr(5, 0, SSCRATCH, 0b10101), // csrrwi
        csr(6, 5, SSCRATCH, 0b01010), // csrrsi
        csr(7, 6, SSCRATCH, 0b00001), // csrrci
        addi(7, 0, 0x55),
        csrrw(7, SSCRATCH, 7),
        csrrs(8, SSCRATCH, 0),
    ];
    assert_eq!(ran(&code).registers()[5..9], [0b10101, 0b11111, 0b11110, 0x55]);
}

#[test]
fn csrs_that_do_not_exist_or_are_read_only_are_illegal() {
    let illegal = [
        csrrs(5, 0x300, 0), // mstatus
        csrrs(5, 0xf14, 0), // mhartid
        csrrs(5, 0x15d, 0), // stimecmph, which RV32 has
        csrrs(5, 0xc03, 0), // hpmcounter3
        csrrw(5, CYCLE, 0),
        csrrw(5, TIME, 0),
        csrrs(5, TIME, 6),
        csrrs(5, SEED, 0), // `seed` is read by CSRRW only
        csr(6, 5, SEED, 0),
    ];
    for word in illegal {
        assert_eq!(trap_of(&[word]), (2, 0, word.into()), "{word:#x}");
    }
}

#[test]
fn counters_read_the_instruction_count_also_in_user_mode_if_allowed() {
    assert_eq!(ran(&[NOP, NOP, csrrs(5, CYCLE, 0), csrrs(6, 0xc02, 0)]).registers()[5..7], [2, 3]);
    let code = [vec![csr(5, 0, SCOUNTEREN, 1)], to_user(), vec![csrrs(5, CYCLE, 0)]].concat();
    assert_eq!(ran(&code).registers()[5], 5);
}

#[test]
fn clock_read_waits_for_its_value() {
    let mut machine = machine(&[NOP, csrrs(5, TIME, 0), NOP]);
    assert_eq!(machine.apply(&Event::ClockRead { ticks: 1 }), Err(ApplyError::NotRead("clock")));
    assert_eq!(run_on(&mut machine), Exit::ClockRead);
    assert_eq!(machine.instruction_count(), InstructionCount(1));
    assert_eq!(machine.run(InstructionCount(1)), Exit::LimitReached, "the limit comes before the read");
    assert_eq!(machine.apply(&Event::Entropy { bits: 1 }), Err(ApplyError::NotRead("seed")));
    machine.apply(&Event::ClockRead { ticks: 77 }).unwrap();
    assert_eq!((machine.instruction_count().0, machine.registers()[5], machine.last_ticks()), (2, 77, 77));
    assert_eq!(machine.apply(&Event::ClockRead { ticks: 78 }), Err(ApplyError::NotRead("clock")));
}

#[test]
fn a_replayer_that_only_came_to_the_count_can_answer_the_read() {
    let mut machine = machine(&[NOP, csrrs(5, TIME, 0)]);
    assert_eq!(machine.run(InstructionCount(1)), Exit::LimitReached);
    machine.apply(&Event::ClockRead { ticks: 9 }).unwrap();
    assert_eq!(machine.registers()[5], 9);
}

#[test]
fn the_clock_does_not_go_back() {
    let mut machine = machine(&[csrrs(5, TIME, 0), csrrs(6, TIME, 0)]);
    machine.apply(&Event::ClockRead { ticks: 10 }).unwrap();
    let before = machine.digest();
    let back = machine.apply(&Event::ClockRead { ticks: 9 });
    assert_eq!(back, Err(ApplyError::ClockWentBack { ticks: 9, last: 10 }));
    assert_eq!(machine.digest(), before, "a refused event changes nothing");
    machine.apply(&Event::ClockRead { ticks: 10 }).unwrap();
}

#[test]
fn seed_gives_sixteen_bits() {
    let mut machine = machine(&[csrrw(5, SEED, 0)]);
    assert_eq!(run_on(&mut machine), Exit::SeedRead);
    machine.apply(&Event::Entropy { bits: 0xbeef }).unwrap();
    assert_eq!(machine.registers()[5], 0x8000_beef);
}

/// Sets a timer for tick 1000 and enables its interrupt in `sie`, in [`TIMER`] steps.
fn timer() -> Vec<u32> {
    let call = [li(17, 0x5449_4d45), vec![addi(16, 0, 0), addi(10, 0, 1000), ECALL]];
    [call.concat(), vec![addi(5, 0, 0x20), csrrs(0, SIE, 5)]].concat()
}

const TIMER: u64 = LI + 5;

#[test]
fn wfi_sleeps_without_counting_and_wakes_whatever_sie_says() {
    let mut machine = machine(&[timer(), vec![WFI, csrrs(6, SIP, 0), csrrs(5, TIME, 0)]].concat());
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!(machine.instruction_count().0, TIMER + 1, "WFI itself is a step");
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!(machine.instruction_count().0, TIMER + 1, "waiting isn't a step");
    assert_eq!(machine.timer_deadline(), Some(1000));
    machine.apply(&Event::TimerInterrupt).unwrap();
    assert_eq!((machine.timer_deadline(), machine.last_ticks()), (None, 1000));
    assert_eq!(machine.apply(&Event::TimerInterrupt), Err(ApplyError::NoTimer));
    assert_eq!(run_on(&mut machine), Exit::ClockRead, "SIE is off: no interrupt is taken");
    assert_eq!(machine.registers()[6], 0x20);
    assert_eq!(machine.instruction_count().0, TIMER + 2);
}

#[test]
fn wfi_with_something_pending_does_not_sleep() {
    let code = [csr(6, 0, SIP, 2), csr(6, 0, SIE, 2), WFI, NOP];
    assert_eq!(ran(&code).pc(), RAM + 16);
}

#[test]
fn taking_an_interrupt_is_a_step_of_its_own() {
    let code = trapping(&[timer(), vec![csr(6, 0, SSTATUS, 2), jal(0, 0)]].concat());
    let mut machine = machine(&code);
    assert_eq!(run_by(&mut machine, LI + 1 + TIMER + 10), Exit::LimitReached);
    let (count, pc) = (machine.instruction_count(), machine.pc());
    machine.apply(&Event::TimerInterrupt).unwrap();
    assert_eq!(machine.instruction_count(), count, "an event isn't a step");
    assert_eq!(run_by(&mut machine, 1), Exit::LimitReached);
    assert_eq!((machine.pc(), machine.instruction_count()), (HANDLER, count.plus(1)));
    run_by(&mut machine, 4);
    assert_eq!(machine.registers()[20..23], [1 << 63 | 5, pc, 0]);
}

#[test]
fn vectored_interrupts_go_to_their_own_entry_and_the_external_one_first() {
    let vectored = [li(31, HANDLER | 1), vec![csrrw(0, STVEC, 31), csr(6, 0, SIE, 2), csr(6, 0, SIP, 2)]].concat();
    let mut machine = machine(&[vectored, vec![csr(6, 0, SSTATUS, 2)]].concat());
    run_by(&mut machine, LI + 4 + 1);
    assert_eq!(machine.pc(), HANDLER + 4);
}

#[test]
fn an_interrupt_that_can_be_taken_comes_before_a_read() {
    let code = trapping(&[timer(), vec![csr(6, 0, SSTATUS, 2), csrrs(5, TIME, 0)]].concat());
    let mut machine = machine(&code);
    assert_eq!(run_on(&mut machine), Exit::ClockRead);
    machine.apply(&Event::TimerInterrupt).unwrap();
    assert_eq!(machine.apply(&Event::ClockRead { ticks: 2000 }), Err(ApplyError::NotRead("clock")));
    assert_eq!(run_by(&mut machine, 1), Exit::LimitReached);
    assert_eq!(machine.pc(), HANDLER);
}

#[test]
fn a_handler_that_cannot_be_fetched_is_a_double_trap() {
    let mut machine = machine(&[EBREAK]);
    let first = Some(FirstTrap { cause: 3, epc: RAM, tval: RAM, instruction: EBREAK, lacks: None });
    let stopped = Exit::Stopped(StopReason::Halt(HaltReason::DoubleTrap { pc: 0, cause: 1, first }));
    assert_eq!(run_on(&mut machine), stopped);
    assert_eq!(machine.instruction_count().0, 2);
    assert_eq!(run_on(&mut machine), stopped, "and stays so");
    let refused = machine.apply(&Event::ConsoleInput { bytes: vec![1] });
    assert!(matches!(refused, Err(ApplyError::Stopped(_))));
}

/// Calls the firmware with `a0` and `a1`, in `5 * LI + 1` steps.
fn call(extension: u64, function: u64, a0: u64, a1: u64) -> Vec<u32> {
    [li(17, extension), li(16, function), li(10, a0), li(11, a1), li(12, 0), vec![ECALL]].concat()
}

fn called(extension: u64, function: u64, a0: u64, a1: u64) -> (Machine, i64, u64) {
    let mut machine = machine(&call(extension, function, a0, a1));
    run_by(&mut machine, 5 * LI + 1);
    let (error, value) = (machine.registers()[10], machine.registers()[11]);
    (machine, error.cast_signed(), value)
}

#[test]
fn the_firmware_tells_which_extensions_it_has() {
    assert_eq!((called(0x10, 0, 0, 0).1, called(0x10, 0, 0, 0).2), (0, 2 << 24));
    for (extension, present) in [(0x10, 1), (0x5449_4d45, 1), (0x5352_5354, 1), (0x4442_434e, 1), (0x735049, 0)] {
        let (_, error, value) = called(0x10, 3, extension, 0);
        assert_eq!((error, value), (0, present), "{extension:#x}");
    }
    for (extension, function) in [(0x735049, 0), (0x10, 7), (0x5449_4d45, 1), (u64::MAX, u64::MAX)] {
        assert_eq!(called(extension, function, 0, 0).1, -2, "{extension:#x} {function}");
    }
}

#[test]
fn a_firmware_timer_for_the_largest_tick_is_no_timer() {
    assert_eq!(called(0x5449_4d45, 0, 5, 0).0.timer_deadline(), Some(5));
    assert_eq!(called(0x5449_4d45, 0, u64::MAX, 0).0.timer_deadline(), None);
    assert_eq!(called(0x00, 9, 6, 0).0.timer_deadline(), Some(6), "legacy");
}

#[test]
fn firmware_resets() {
    for (kind, reason, stop) in [
        (0, 0, StopReason::PowerOff { code: 0 }),
        (0, 1, StopReason::PowerOff { code: 1 }),
        (1, 0, StopReason::Reboot),
        (2, 0, StopReason::Reboot),
    ] {
        assert_eq!(run_on(&mut called(0x5352_5354, 0, kind, reason).0), Exit::Stopped(stop));
    }
    assert_eq!(called(0x5352_5354, 0, 3, 0).1, -3);
}

#[test]
fn firmware_console_writes_at_most_4096_bytes_and_only_from_ram() {
    let (mut machine, error, value) = called(0x4442_434e, 0, 5000, RAM);
    assert_eq!((error, value), (0, 4096));
    let (_, output) = machine.take_output().unwrap();
    assert_eq!(output, OutputOperation::Console(machine.memory(RAM, 4096).unwrap().to_vec()));
    assert!(machine.take_output().is_none());
    for (bytes, address) in [(1, RAM - 1), (u64::MAX, RAM), ((4 << 20) + 1, RAM), (2, RAM + (4 << 20) - 1), (1, 0)] {
        assert_eq!(called(0x4442_434e, 0, bytes, address).1, -3, "{bytes} {address:#x}");
        assert_eq!(called(0x4442_434e, 1, bytes, address).1, -3, "{bytes} {address:#x}");
    }
}

#[test]
fn firmware_console_reads_what_has_arrived() {
    let mut machine = machine(&call(0x4442_434e, 1, 3, RAM + 0x1000));
    machine.apply(&Event::ConsoleInput { bytes: b"hello".to_vec() }).unwrap();
    assert_eq!(machine.console_room(), 1019);
    run_by(&mut machine, 5 * LI + 1);
    assert_eq!((machine.registers()[10], machine.registers()[11]), (0, 3));
    assert_eq!(machine.memory(RAM + 0x1000, 4), Some(&b"hel\0"[..]));
    assert_eq!(machine.console_room(), 1022);
}

#[test]
fn a_reservation_does_not_outlive_a_trap_or_a_firmware_call() {
    const LR: u32 = 0x02;
    const SC: u32 = 0x03;
    let handler = [csrrs(30, SEPC, 0), addi(30, 30, 4), csrrw(0, SEPC, 30), SRET];
    let set_up = [li(31, RAM + 4), vec![csrrw(0, STVEC, 31)], li(5, RAM + 0x1000), li(17, 0x10)].concat();
    let between = |between: u32| [amo(LR, 3, 11, 5, 0), between, amo(SC, 3, 12, 5, 6)];
    for (name, word, steps, result) in [("nothing", NOP, 1, 0), ("trap", EBREAK, 5, 1), ("firmware call", ECALL, 1, 1)]
    {
        let mut machine = machine(&[&[jal(0, 20)], &handler[..], &set_up, &between(word)].concat());
        run_by(&mut machine, 1 + set_up.len() as u64 + 2 + steps);
        assert_eq!(machine.registers()[12], result, "{name} between LR and SC");
    }
}

#[test]
fn the_finisher_ends_the_guest() {
    for (value, reason) in [
        (0x5555, StopReason::PowerOff { code: 0 }),
        (0x0007_3333, StopReason::PowerOff { code: 7 }),
        (0x7777, StopReason::Reboot),
    ] {
        let mut machine = machine(&[li(5, FINISHER), li(6, value), vec![store(2, 6, 5, 0), NOP]].concat());
        assert_eq!(run_on(&mut machine), Exit::Stopped(reason));
        assert_eq!(machine.instruction_count().0, 2 * LI + 1);
        assert_eq!(machine.run(InstructionCount(0)), Exit::Stopped(reason), "the end comes before the limit");
    }
}
