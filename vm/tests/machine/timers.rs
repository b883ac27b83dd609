//! Timers and the clock: the CLINT of M-mode, `stimecmp` of S-mode, and the interrupts of both.

use crate::common::{
    self, ECALL, LI, MCOUNTEREN, MIE, MIE_BIT, MIP, MTVEC, PUT, RAM, SIE, SIP, SUPERVISOR, TIME, WFI, addi,
    bare_config, change, csrrs, csrrw, elf, go, li, load, put, restored, run_by, run_on, small_config,
};
use vm::{ApplyError, Event, Exit, Machine, MachineConfig};

const MSIP: u64 = 0x200_0000;
const MTIMECMP: u64 = 0x200_4000;
const MTIME: u64 = 0x200_bff8;
const STIMECMP: u32 = 0x14d;
const MENVCFG: u32 = 0x30a;
const STCE: u64 = 1 << 63;
const SOFTWARE_BIT: u64 = 1 << 3;
const STIP: u64 = 1 << 5;
const MTIP: u64 = 1 << 7;
const LD: u32 = 3;
const SD: u32 = 3;
const SW: u32 = 2;

fn bare(code: &[u32]) -> Machine {
    Machine::new(&bare_config(), &elf(code)).unwrap()
}

fn with_firmware(code: &[u32]) -> Machine {
    Machine::new(&small_config(), &elf(code)).unwrap()
}

/// Loads from `address` into x7, after [`LI`] steps.
fn get(address: u64, kind: u32) -> Vec<u32> {
    [li(5, address), vec![load(kind, 7, 5, 0), addi(0, 0, 0)]].concat()
}

#[test]
fn the_machines_timer_wakes_its_guest_at_its_deadline() {
    let code = [put(MTIMECMP, 1000, SD), li(6, MTIP), vec![csrrs(0, MIE, 6), WFI, csrrs(8, MIP, 0)]].concat();
    let mut machine = bare(&[code, put(MTIMECMP, 5000, SD), vec![csrrs(9, MIP, 0), WFI]].concat());
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!((machine.timer_deadline(), machine.sleeps_for_good()), (Some(1000), false));
    machine.apply(&Event::TimerInterrupt).unwrap();
    assert_eq!((machine.timer_deadline(), machine.last_ticks()), (None, 1000));
    assert_eq!(machine.apply(&Event::TimerInterrupt), Err(ApplyError::NoTimer));
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!(machine.registers()[8..10], [MTIP, 0], "a new deadline takes the interrupt back");
    assert_eq!(machine.timer_deadline(), Some(5000));
}

#[test]
fn a_timer_interrupt_of_the_machine_enters_its_handler() {
    let handler = RAM + 4 * 200;
    let code = [li(5, handler), vec![csrrw(0, MTVEC, 5)], put(MTIMECMP, 7, SD), change(MIE, 0, MTIP)].concat();
    let mut machine = bare(&[code, change(0x300, 0, MIE_BIT), vec![WFI]].concat());
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    machine.apply(&Event::TimerInterrupt).unwrap();
    run_by(&mut machine, 1);
    assert_eq!(machine.pc(), handler);
}

#[test]
fn a_load_of_mtime_is_answered_through_the_log() {
    const TICKS: u64 = 0xfedc_ba98_8765_4321;
    let cases = [
        (MTIME, 3, TICKS),
        (MTIME, 2, 0xffff_ffff_8765_4321),
        (MTIME + 4, 2, 0xffff_ffff_fedc_ba98),
        (MTIME, 6, 0x8765_4321),
    ];
    for (address, kind, value) in cases {
        let mut machine = bare(&get(address, kind));
        for _ in 0..2 {
            assert_eq!(run_on(&mut machine), Exit::ClockRead, "{kind}");
        }
        assert_eq!(machine.instruction_count().0, LI, "the load isn't a step yet");
        machine.apply(&Event::ClockRead { ticks: TICKS }).unwrap();
        assert_eq!((machine.registers()[7], machine.instruction_count().0), (value, LI + 1), "{kind}");
        assert_eq!(machine.pc(), RAM + 4 * (LI + 1));
        assert_eq!(machine.last_ticks(), TICKS);
    }
    // c.ld a0, 0(a1): the next instruction is two bytes further on.
    let mut machine = bare(&[li(11, MTIME), vec![0x0001_6188]].concat());
    assert_eq!(run_on(&mut machine), Exit::ClockRead);
    machine.apply(&Event::ClockRead { ticks: 77 }).unwrap();
    assert_eq!((machine.registers()[10], machine.pc()), (77, RAM + 4 * LI + 2));
}

#[test]
fn other_accesses_to_mtime_are_none_of_the_clock() {
    // Bytes, halves, misaligned words, and floating-point loads fault; stores have no effect.
    let handler = RAM + 4 * 200;
    let faults = [get(MTIME, 0), get(MTIME, 1), get(MTIME + 2, 2), get(MTIME + 4, 3)];
    let float = [change(0x300, 0, 1 << 13), li(5, MTIME), vec![0x0002_b007]].concat();
    for access in faults.into_iter().chain([float]) {
        let mut machine = bare(&[li(5, handler), vec![csrrw(0, MTVEC, 5)], access].concat());
        let exit = run_by(&mut machine, 120);
        assert!(matches!(exit, Exit::Stopped(_) | Exit::LimitReached), "{exit:?}");
        assert_eq!(machine.last_ticks(), 0);
    }
    let mut machine = bare(&[put(MTIME, 9, SD), put(MTIME, 9, SW)].concat());
    assert_eq!(run_by(&mut machine, 2 * PUT), Exit::LimitReached);
    assert_eq!(machine.last_ticks(), 0);
}

#[test]
fn both_interpreters_stop_at_the_clock_with_the_same_state_and_go_on_from_a_snapshot() {
    let code = [put(MTIMECMP, 50, SD), put(MSIP, 1, SW), get(MTIME, LD), get(MTIME, LD), vec![WFI]].concat();
    let [mut fast, mut plain] = [bare(&code), bare(&code)];
    assert_eq!(run_on(&mut fast), Exit::ClockRead);
    let count = fast.instruction_count();
    assert_eq!(plain.run_plain(count), Exit::LimitReached, "a replayer stops where the log says");
    assert_eq!(fast.digest(), plain.digest());
    let mut restored = restored(&bare_config(), &mut fast);
    for machine in [&mut fast, &mut plain, &mut restored] {
        machine.apply(&Event::ClockRead { ticks: 49 }).unwrap();
        assert_eq!(machine.timer_deadline(), Some(50));
    }
    assert_eq!(
        (run_on(&mut fast), plain.run_plain(vm::InstructionCount(u64::MAX))),
        (Exit::ClockRead, Exit::ClockRead)
    );
    assert_eq!(run_on(&mut restored), Exit::ClockRead);
    for machine in [&mut fast, &mut plain, &mut restored] {
        machine.apply(&Event::ClockRead { ticks: 50 }).unwrap();
        assert_eq!(machine.timer_deadline(), None, "who reads the clock knows that the deadline has passed");
    }
    assert_eq!(fast.digest(), plain.digest());
    assert_eq!(fast.digest(), restored.digest());
}

#[test]
fn the_software_interrupt_is_set_and_cleared() {
    let code = [put(MSIP, u64::MAX, SW), vec![csrrs(8, MIP, 0)], put(MSIP, 0, SW), vec![csrrs(9, MIP, 0)]].concat();
    let mut machine = bare(&code);
    run_by(&mut machine, code.len() as u64);
    assert_eq!(machine.registers()[8..10], [SOFTWARE_BIT, 0]);
}

#[test]
fn the_supervisors_timer_is_its_own_register() {
    let code = [li(5, 1000), vec![csrrw(6, STIMECMP, 5), csrrs(7, STIMECMP, 0)], li(5, STIP)].concat();
    let code = [code, vec![csrrs(0, SIE, 5), WFI, csrrs(8, SIP, 0), csrrw(0, STIMECMP, 6), csrrs(9, SIP, 0)]].concat();
    let mut machine = with_firmware(&code);
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!((machine.registers()[6], machine.registers()[7]), (u64::MAX, 1000));
    assert_eq!((machine.timer_deadline(), machine.sleeps_for_good()), (Some(1000), false));
    machine.apply(&Event::TimerInterrupt).unwrap();
    run_by(&mut machine, 3);
    assert_eq!(machine.registers()[8..10], [STIP, 0]);
}

#[test]
fn a_clock_read_past_the_deadline_makes_the_interrupt_pending() {
    let call = [li(17, 0x5449_4d45), li(16, 0), li(10, 1000), vec![ECALL]].concat();
    let mut machine = with_firmware(&[call, vec![csrrs(5, TIME, 0), csrrs(6, SIP, 0)]].concat());
    assert_eq!(run_on(&mut machine), Exit::ClockRead);
    assert_eq!(machine.timer_deadline(), Some(1000));
    machine.apply(&Event::ClockRead { ticks: 1000 }).unwrap();
    assert_eq!(machine.timer_deadline(), None);
    run_by(&mut machine, 1);
    assert_eq!(machine.registers()[6], STIP);
}

#[test]
fn stimecmp_is_the_machines_to_give_to_the_supervisor() {
    for (menvcfg, mcounteren, legal) in [(STCE, 7, true), (STCE, 5, false), (0, 7, false)] {
        let handler = RAM + 4 * 200;
        let give = [li(5, menvcfg), vec![csrrw(0, MENVCFG, 5)], li(5, mcounteren), vec![csrrw(0, MCOUNTEREN, 5)]];
        let code = [li(5, handler), vec![csrrw(0, MTVEC, 5)], give.concat(), go(SUPERVISOR)].concat();
        let mut machine = bare(&[code.clone(), vec![csrrs(6, STIMECMP, 0)]].concat());
        run_by(&mut machine, code.len() as u64 + 1);
        assert_eq!(machine.pc() != handler, legal, "{menvcfg:#x} {mcounteren}");
    }
    // Software can't write STIP while S-mode has a timer of its own, and can otherwise.
    for (menvcfg, pending) in [(STCE, 0), (0, STIP)] {
        let code = [li(5, menvcfg), vec![csrrw(0, MENVCFG, 5)], li(6, STIP), vec![csrrs(0, MIP, 6), csrrs(7, MIP, 0)]];
        let code = code.concat();
        let mut machine = bare(&code);
        run_by(&mut machine, code.len() as u64);
        assert_eq!(machine.registers()[7], pending);
    }
}

#[test]
fn the_plic_interrupts_the_machine_by_context_0() {
    const EXTERNAL: u64 = 1 << 11;
    // The PLIC's priority and enable bit of context 0, and the UART's interrupt for received data.
    let devices = [put(0xc00_0028, 1, SW), put(0xc00_2000, 1 << 10, SW), put(common::UART + 1, 1, 0)].concat();
    let wait = [li(6, EXTERNAL), vec![csrrs(0, MIE, 6), WFI, csrrs(8, MIP, 0)]].concat();
    let serve = [get(0xc20_0004, 2), vec![addi(9, 7, 0)], get(common::UART, 4), vec![csrrs(10, MIP, 0), WFI]].concat();
    let mut machine = bare(&[devices, wait, serve].concat());
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert!(!machine.sleeps_for_good());
    machine.apply(&Event::ConsoleInput { bytes: b"x".to_vec() }).unwrap();
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!((machine.registers()[8], machine.registers()[9]), (EXTERNAL, 10), "claimed is the UART");
    assert_eq!((machine.registers()[7], machine.registers()[10]), (b'x'.into(), 0));
}

/// Magic number, version and device id of each virtio-mmio slot.
fn slots(config: &MachineConfig) -> Vec<(u64, u64, u64)> {
    let ids = (0..8).map(|slot| {
        let code = [li(5, 0x1000_1000 + 0x1000 * slot), vec![load(6, 7, 5, 0), load(6, 8, 5, 8), load(6, 9, 5, 12)]];
        let mut machine = Machine::new(config, &elf(&code.concat())).unwrap();
        assert_eq!(run_by(&mut machine, LI + 3), Exit::LimitReached);
        (machine.registers()[7], machine.registers()[8], machine.registers()[9])
    });
    ids.collect()
}

#[test]
fn eight_virtio_slots_answer_and_the_vacant_ones_say_so() {
    let with_disk = MachineConfig { disk_bytes: 4096, ..small_config() };
    let bare_with_disk = MachineConfig { disk_bytes: 4096, ..bare_config() };
    let cases = [(small_config(), [1, 0]), (with_disk, [1, 2]), (bare_config(), [1, 0]), (bare_with_disk, [2, 1])];
    for (config, first) in cases {
        let slots = slots(&config);
        assert!(slots.iter().all(|(magic, _, vendor)| (*magic, *vendor) == (0x7472_6976, 0x554d_4551)), "{slots:x?}");
        let ids: Vec<u64> = slots.iter().map(|(_, id, _)| *id).collect();
        assert_eq!(ids, [first[0], first[1], 4, 0, 0, 0, 0, 0], "{:?}", config.boot);
    }
}

/// Makes a legacy SBI call; returns the machine and a0.
fn legacy(extension: u64, a0: u64, before: &[u32]) -> (Machine, i64) {
    let code = [before.to_vec(), li(17, extension), li(10, a0), vec![ECALL, csrrs(6, SIP, 0)]].concat();
    let mut machine = with_firmware(&code);
    machine.apply(&Event::ConsoleInput { bytes: b"q".to_vec() }).unwrap();
    run_by(&mut machine, code.len() as u64);
    let a0 = machine.registers()[10].cast_signed();
    (machine, a0)
}

#[test]
fn legacy_calls_of_teaching_kernels_are_answered() {
    assert_eq!(legacy(2, 0, &[]).1, i64::from(b'q'), "getchar");
    let twice = [li(17, 2), vec![ECALL]].concat();
    assert_eq!(legacy(2, 0, &twice).1, -1, "nothing left");
    let mask = RAM + 0x1000;
    for (address, word, pending) in [(0, 0, 2), (mask, 1, 2), (mask, 2, 0)] {
        let (machine, result) = legacy(4, address, &put(mask, word, SD));
        assert_eq!((result, machine.registers()[6]), (0, pending), "send_ipi {address:#x} {word}");
    }
    assert_eq!(legacy(4, 0x4000_0000, &[]).1, -5, "the mask can't be read");
    let send = [li(17, 4), li(10, 0), vec![ECALL]].concat();
    let (machine, result) = legacy(3, 0, &send);
    assert_eq!((result, machine.registers()[6]), (0, 0), "clear_ipi");
    for fence in 5..8 {
        assert_eq!(legacy(fence, 0, &[]).1, 0, "fence {fence}");
    }
    let (mut machine, _) = legacy(8, 0, &[]);
    assert_eq!(run_on(&mut machine), Exit::Stopped(vm::StopReason::PowerOff { code: 0 }));
}
