//! The real-time clock: its accesses wait for the host's time of day, and its alarm interrupts.

use crate::common::{
    self, LI, MIE, MTVEC, NOP, PUT, RAM, RTC, WFI, addi, bare_config, change, csrrs, csrrw, elf, li, load, put,
    restored, run_by, run_on,
};
use vm::{ApplyError, Event, Exit, InstructionCount, Machine};

const TIME_LOW: u64 = RTC;
const TIME_HIGH: u64 = RTC + 4;
const ALARM_LOW: u64 = RTC + 8;
const ALARM_HIGH: u64 = RTC + 12;
const IRQ_ENABLED: u64 = RTC + 16;
const ALARM_STATUS: u64 = RTC + 24;
const SW: u32 = 2;
const LW: u32 = 2;
const LWU: u32 = 6;

/// 2026-11-29, in nanoseconds since 1970.
const NS: u64 = 1_795_914_123_456_789_012;

fn bare(code: &[u32]) -> Machine {
    Machine::new(&bare_config(), &elf(code)).unwrap()
}

/// Loads a register into `rd`: [`LI`] steps before the load.
fn get(address: u64, rd: u32) -> Vec<u32> {
    [li(5, address), vec![load(LWU, rd, 5, 0)]].concat()
}

/// Reads the time, as drivers do, into `x[low]` and `x[low + 1]`.
fn read(low: u32) -> Vec<u32> {
    [get(TIME_LOW, low), get(TIME_HIGH, low + 1)].concat()
}

fn time(machine: &Machine, low: usize) -> u64 {
    machine.registers()[low + 1] << 32 | machine.registers()[low]
}

fn answer(machine: &mut Machine, ns: u64) {
    for _ in 0..2 {
        assert_eq!(run_on(machine), Exit::WallClockNeeded);
    }
    machine.apply(&Event::WallClock { ns }).unwrap();
}

#[test]
fn reading_the_time_waits_for_the_hosts_time_of_day() {
    let mut machine = bare(&[read(10), read(12), vec![WFI]].concat());
    answer(&mut machine, NS);
    assert_eq!(machine.instruction_count().0, LI + 1, "the load is a step");
    assert_eq!(machine.last_wall_ns(), NS);
    answer(&mut machine, NS + (1 << 33));
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!((time(&machine, 10), time(&machine, 12)), (NS, NS + (1 << 33)));
    assert_eq!(machine.apply(&Event::WallClock { ns: u64::MAX }), Err(ApplyError::NotRead("time of day")));
}

#[test]
fn a_signed_load_and_a_compressed_one_read_it_too() {
    let mut machine = bare(&[li(5, TIME_LOW), vec![load(LW, 7, 5, 0)]].concat());
    answer(&mut machine, 0x1_8000_0000);
    assert_eq!(machine.registers()[7], 0xffff_ffff_8000_0000);
    // c.lw a0, 0(a1)
    let mut machine = bare(&[li(11, TIME_LOW), vec![0x0001_4188]].concat());
    answer(&mut machine, 77);
    assert_eq!((machine.registers()[10], machine.pc()), (77, RAM + 4 * LI + 2));
}

#[test]
fn the_time_of_day_never_goes_back() {
    let mut machine = bare(&[read(10), read(12)].concat());
    answer(&mut machine, NS);
    assert_eq!(run_on(&mut machine), Exit::WallClockNeeded);
    let before = machine.digest();
    let back = machine.apply(&Event::WallClock { ns: NS - 1 });
    assert_eq!(back, Err(ApplyError::WallClockWentBack { ns: NS - 1, last: NS }));
    assert_eq!(machine.digest(), before);
    machine.apply(&Event::WallClock { ns: NS }).unwrap();
}

#[test]
fn a_guest_sets_its_time_and_reads_it_back_in_both_interpreters_and_from_a_snapshot() {
    let set = [put(TIME_HIGH, 0x1234, SW), put(TIME_LOW, 0x5678, SW)].concat();
    let code = [set, read(10), vec![WFI]].concat();
    let [mut fast, mut plain] = [bare(&code), bare(&code)];
    answer(&mut fast, NS);
    assert_eq!(fast.instruction_count().0, PUT);
    let mut restored = restored(&bare_config(), &mut fast);
    assert_eq!(plain.run_plain(InstructionCount(u64::MAX)), Exit::WallClockNeeded);
    plain.apply(&Event::WallClock { ns: NS }).unwrap();
    assert_eq!(fast.digest(), plain.digest());
    for machine in [&mut fast, &mut plain, &mut restored] {
        answer(machine, NS);
        answer(machine, NS + 9);
        assert_eq!(run_on(machine), Exit::WaitForInterrupt);
        assert_eq!(time(machine, 10), 0x1234_0000_5678 + 9);
    }
    assert_eq!(fast.digest(), plain.digest());
    assert_eq!(fast.digest(), restored.digest());
}

#[test]
fn other_accesses_are_none_of_the_hosts() {
    let handler = RAM + 4 * 300;
    // Halves, doublewords, atomics, and floating point fault, as does what is behind the registers.
    let float = |word: u32| [change(0x300, 0, 1 << 13), li(5, TIME_LOW), vec![word]].concat();
    let at = |address, word: u32| [li(5, address), vec![word]].concat();
    let faults = [
        at(TIME_LOW, load(1, 7, 5, 0)),
        at(TIME_LOW, load(3, 7, 5, 0)),
        at(TIME_LOW, common::amo(0, 2, 7, 5, 0)),
        at(TIME_LOW, common::store(3, 7, 5, 0)),
        at(RTC + 0x24, load(LW, 7, 5, 0)),
        float(0x0002_a007),
        float(0x0002_a027),
    ];
    for code in faults {
        let end = code.len() as u64;
        let mut machine = bare(&[li(5, handler), vec![csrrw(0, MTVEC, 5)], code].concat());
        assert_eq!(run_by(&mut machine, LI + 1 + end), Exit::LimitReached);
        assert_eq!((machine.pc(), machine.last_wall_ns()), (handler, 0));
    }
}

/// Enables the clock's interrupt at the PLIC for M-mode, and in `mie`.
fn listen() -> Vec<u32> {
    const PLIC: u64 = 0xc00_0000;
    const RTC_IRQ: u64 = 11;
    let priority = put(PLIC + 4 * RTC_IRQ, 1, SW);
    [priority, put(PLIC + 0x2000, 1 << RTC_IRQ, SW), change(MIE, 0, 1 << 11)].concat()
}

#[test]
fn an_alarm_wakes_its_guest_and_is_taken_back() {
    let alarm = NS + 1_000_000_000;
    let set = [put(ALARM_HIGH, alarm >> 32, SW), put(ALARM_LOW, alarm & 0xffff_ffff, SW)].concat();
    let code =
        [listen(), put(IRQ_ENABLED, 1, SW), read(10), set, vec![WFI], get(ALARM_STATUS, 7), vec![csrrs(8, 0x344, 0)]];
    let mut machine = bare(&[code.concat(), put(RTC + 28, 1, SW), vec![csrrs(9, 0x344, 0), NOP, WFI]].concat());
    assert_eq!(machine.apply(&Event::Alarm), Err(ApplyError::NoAlarm));
    answer(&mut machine, NS);
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!((machine.alarm_wall_ns(), machine.sleeps_for_good()), (Some(alarm), false));
    let mut successor = restored(&bare_config(), &mut machine);
    for machine in [&mut machine, &mut successor] {
        machine.apply(&Event::Alarm).unwrap();
        assert_eq!((machine.alarm_wall_ns(), machine.last_wall_ns()), (None, alarm));
        assert_eq!(machine.apply(&Event::Alarm), Err(ApplyError::NoAlarm));
        assert_eq!(run_on(machine), Exit::WaitForInterrupt);
        let external = 1 << 11;
        assert_eq!(machine.registers()[7..10], [0, external, 0], "it interrupts until that is cleared");
    }
    assert_eq!(machine.digest(), successor.digest());
}

#[test]
fn a_reader_that_finds_the_time_past_its_alarm_has_its_interrupt() {
    let set = [put(ALARM_HIGH, NS >> 32, SW), put(ALARM_LOW, NS & 0xffff_ffff, SW), put(IRQ_ENABLED, 1, SW)].concat();
    let code = [listen(), set, read(10), vec![csrrs(8, 0x344, 0), addi(0, 0, 0), WFI]].concat();
    let mut machine = bare(&code);
    answer(&mut machine, NS);
    assert_eq!(machine.alarm_wall_ns(), None);
    assert_eq!(run_by(&mut machine, LI + 3), Exit::LimitReached);
    assert_eq!(machine.registers()[8], 1 << 11);
}
