//! The guests whose machines these tests copy.

use crate::common::paged::{PAGED_SATP, Paged};
use crate::common::{
    CYCLE, ECALL, FINISHER, LI, MCAUSE, MCOUNTEREN, MCOUNTINHIBIT, MCYCLE, MEDELEG, MIDELEG, MIE, MIP, MRET, MSCRATCH,
    MSTATUS, MTVEC, NOP, PMPADDR0, PMPCFG0, RAM, SATP, SCAUSE, SEED, SEPC, SIE, SRET, SSTATUS, STVAL, STVEC,
    SUPERVISOR, TIME, UART, WFI, addi, amo, bare_config, branch, csrrs, csrrw, drive, go, i_type, li, load, r_type,
    store,
};
use vm::{ApplyError, Event, Exit, InstructionCount, Machine, OutputId, OutputOperation};

pub(super) const TIMER_EXTENSION: u64 = 0x5449_4d45;

/// A guest that uses all of the machine but its network and disk: traps, timer and external
/// interrupts, reservations, clock, entropy, the console by UART and by SBI, sleep.
pub(super) fn busy_guest() -> Vec<u32> {
    const HANDLER: u64 = RAM + 0xa00;
    const PLIC_CLAIM: u64 = 0x0c20_1004;
    const CONSOLE_EXTENSION: u64 = 0x4442_434e;
    let write = |address, value, funct3| [li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat();
    let print = |text: &[u8]| text.iter().flat_map(|byte| write(UART, u64::from(*byte), 0)).collect::<Vec<_>>();
    let call = |extension, a0, a1| {
        [li(10, a0), li(11, a1), vec![addi(12, 0, 0), addi(16, 0, 0)], li(17, extension), vec![ECALL]].concat()
    };
    let mut code = [
        [li(5, HANDLER), vec![csrrw(0, STVEC, 5)]].concat(),
        [write(0x0c00_0028, 1, 2), write(0x0c00_2080, 1 << 10, 2), write(UART + 1, 1, 0)].concat(),
        print(b"par"),
        [li(5, 0x220), vec![csrrw(0, SIE, 5), csrrs(0, SSTATUS, 0), addi(5, 0, 2), csrrs(0, SSTATUS, 5)]].concat(),
        [li(8, RAM + 0x1008), vec![amo(2, 3, 9, 8, 0), NOP, NOP, amo(3, 3, 9, 8, 8)]].concat(),
        vec![csrrs(18, TIME, 0), csrrw(19, SEED, 0), WFI, NOP],
        call(TIMER_EXTENSION, 1000, 0),
        print(b"tial"),
        vec![WFI, 0xffff_ffff, NOP],
        call(CONSOLE_EXTENSION, 5, RAM),
        print(b"line\nhalf"),
        write(FINISHER, 0x5555, 2),
    ]
    .concat();
    assert!(code.len() <= 0x280);
    code.resize(0x280, NOP);
    code.extend(
        [
            [li(20, PLIC_CLAIM), vec![load(2, 21, 20, 0)], li(22, UART), vec![load(4, 23, 22, 0), NOP]].concat(),
            vec![store(2, 21, 20, 0)],
            call(TIMER_EXTENSION, u64::MAX, 0),
            // An illegal instruction is skipped.
            [vec![csrrs(24, SCAUSE, 0), addi(25, 0, 2), branch(1, 24, 25, 16)]].concat(),
            vec![csrrs(26, SEPC, 0), addi(26, 26, 4), csrrw(0, SEPC, 26), SRET],
        ]
        .concat(),
    );
    code
}

/// A guest that uses what a machine without firmware adds: the CSRs of M-mode, counters that are
/// set and stopped, locked PMP entries, and paging, with faults on pages that its handler then
/// maps.
pub(super) fn privileged_guest() -> Machine {
    const MACHINE_HANDLER: u64 = RAM + 0x800;
    let write = |number, value| [li(5, value), vec![csrrw(0, number, 5)]].concat();
    let put = |address, value| [li(5, address), li(6, value), vec![store(3, 6, 5, 0)]].concat();
    let paged = Paged::new();
    let code = [
        [write(MTVEC, MACHINE_HANDLER), write(MSCRATCH, 0x1234), write(MEDELEG, 1 << 15), write(MIDELEG, 2)].concat(),
        [write(STVEC, RAM + 0x900), write(MCYCLE, 77), write(MCOUNTINHIBIT, 4), write(MCOUNTEREN, 3)].concat(),
        [write(PMPADDR0, 0x55), write(PMPCFG0, 0x8f), write(SATP, PAGED_SATP), write(MSTATUS, 3 << 13)].concat(),
        [write(MIE, 0x22), write(MIP, 0x22), go(SUPERVISOR)].concat(),
        vec![csrrs(18, TIME, 0), csrrs(19, CYCLE, 0)],
        put(0x5ffc, u64::MAX), // crosses into a second page: faults twice before it succeeds
        vec![ECALL, NOP, NOP],
    ];
    let mut all = code.concat();
    assert!(all.len() <= 0x200, "{}", all.len());
    all.resize(0x200, NOP);
    // The handler of M-mode clears pending interrupts; an environment call powers off.
    all.extend([
        csrrw(0, MIP, 0),
        csrrs(8, MCAUSE, 0),
        addi(9, 0, 9),
        branch(1, 8, 9, 4 * (2 * i32::try_from(LI).unwrap() + 2)),
    ]);
    all.extend([li(5, FINISHER), li(6, 0x5555), vec![store(2, 6, 5, 0)]].concat());
    all.push(MRET);
    all.resize(0x240, NOP);
    // The handler of S-mode maps the page that faulted.
    let entry = [li(10, Paged::entry(0)), vec![csrrs(11, STVAL, 0), i_type(0x13, 5, 11, 11, 12)]].concat();
    let place = vec![i_type(0x13, 1, 11, 11, 3), r_type(0x33, 0, 0, 11, 11, 10)];
    all.extend([entry, place, li(12, (RAM + 0x10_0000) >> 2 | 7), vec![store(3, 12, 11, 0), SRET]].concat());
    paged.plain_machine(&bare_config(), &all)
}

/// Runs the machine until it stops or the count is `limit`, and wakes it whenever it sleeps.
pub(super) fn play(machine: &mut Machine, limit: u64) -> (Exit, Vec<(InstructionCount, OutputId, OutputOperation)>) {
    let mut outputs = Vec::new();
    loop {
        let (exit, more) = drive(machine, limit, u64::MAX);
        outputs.extend(more);
        if exit != Exit::WaitForInterrupt {
            return (exit, outputs);
        }
        let input = Event::ConsoleInput { bytes: b"in".to_vec() };
        let event = machine.timer_deadline().map_or(input, |_| Event::TimerInterrupt);
        machine.apply(&event).unwrap();
    }
}

/// How a machine ran up to an event, its outputs, and whether it took the event.
pub(super) type Outcome = (Exit, Vec<(InstructionCount, OutputId, OutputOperation)>, Result<(), ApplyError>);

pub(super) fn advance(machine: &mut Machine, at: u64, event: &Event) -> Outcome {
    let (exit, outputs) = drive(machine, at, u64::MAX);
    (exit, outputs, machine.apply(event))
}
