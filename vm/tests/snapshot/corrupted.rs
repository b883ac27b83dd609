//! States that are corrupted, cut or of another configuration: refused, or a machine that runs.

use crate::common::hostile::{self, Random};
use crate::common::{ECALL, FINISHER, NOP, RAM, UART, amo, drive, elf, li, run_by, run_on, store};
use crate::guests::{TIMER_EXTENSION, advance, busy_guest, play};
use std::collections::BTreeSet;
use vm::{BootMode, Event, Exit, InstructionCount, Machine, MachineConfig, PageCopy, Restoration, RestoreError};

/// RAM so large that the allocator maps zeroed pages instead of clearing memory: these tests make a
/// hundred thousand machines.
fn roomy_config() -> MachineConfig {
    MachineConfig { ram_bytes: 40 << 20, ..hostile::config() }
}

/// A machine whose guest has received a packet; `None` if this seed's guest stops or receives none.
fn networked_machine(seed: u64) -> Option<Machine> {
    let mut random = Random { state: seed, care: 1000 };
    let mut machine = Machine::new(&roomy_config(), &hostile::image(&mut random)).unwrap();
    let mut packets = 0;
    for (at, event) in hostile::events(&mut random, 3000) {
        let (exit, _, applied) = advance(&mut machine, at, &event);
        packets += u64::from(applied.is_ok() && matches!(event, Event::Packet { .. }));
        if matches!(exit, Exit::Stopped(_)) {
            return None;
        }
    }
    drive(&mut machine, 0, u64::MAX);
    (machine.dropped_packets().received < packets).then_some(machine)
}

/// Machines whose states together use every field: the busy guest in its middle, with input
/// pending; one with a timer, an unfinished line and a reservation; one whose network device works;
/// one that has powered off, and one that has halted.
fn eventful_machines() -> Vec<Machine> {
    let roomy = |code: &[u32]| Machine::new(&roomy_config(), &elf(code)).unwrap();
    let mut busy = roomy(&busy_guest());
    play(&mut busy, 250);
    busy.apply(&Event::ConsoleInput { bytes: b"more".to_vec() }).unwrap();
    let timer = [li(10, 1000), li(17, TIMER_EXTENSION), vec![ECALL]].concat();
    let line = [li(5, UART), li(6, 0x4a), vec![store(0, 6, 5, 0)]].concat();
    let code = [timer, line, li(8, RAM), vec![amo(2, 3, 9, 8, 0)]].concat();
    let mut expectant = roomy(&code);
    assert_eq!(run_by(&mut expectant, code.len() as u64), Exit::LimitReached);
    let networked = (0..).find_map(networked_machine).unwrap();
    let mut ended = roomy(&[li(5, FINISHER), li(6, 0x5555), vec![store(2, 6, 5, 0)]].concat());
    run_on(&mut ended);
    assert!(expectant.take_output().is_none() && expectant.timer_deadline().is_some());
    let mut halted = roomy(&[0]);
    run_on(&mut halted);
    vec![busy, expectant, networked, ended, halted]
}

/// Restores `state` with all of RAM and disk zero.
fn hollow(state: &[u8]) -> Result<Machine, RestoreError> {
    Restoration::new(&roomy_config()).unwrap().finish(state)
}

/// The pages of a machine that aren't zero, with their indices.
fn contents(machine: &mut Machine) -> Vec<(u64, Vec<u8>)> {
    machine.begin_copy(PageCopy::Log);
    core::iter::from_fn(|| machine.take_page(PageCopy::Log, 0).map(|(index, page)| (index, page.to_vec()))).collect()
}

/// Runs a machine for a while and applies every kind of event to it.
fn exercise(machine: &mut Machine) {
    for round in 1..6 {
        drive(machine, machine.instruction_count().0 + 60, u64::MAX);
        let number = machine.last_packet_number().saturating_add(round);
        let bytes = vec![b'x'; machine.console_room().min(3)];
        for event in [
            Event::Packet { number, packet: vec![0; 100] },
            Event::ConsoleInput { bytes },
            Event::TimerInterrupt,
            Event::ClockRead { ticks: u64::MAX },
            Event::Entropy { bits: 1 },
            Event::WallClock { ns: u64::MAX },
            Event::Alarm,
            Event::RandomBytes { bytes: vec![1; machine.random_bytes_needed()] },
        ] {
            // The state decides whether the event is taken. This only checks that `apply` returns.
            let _ = machine.apply(&event);
        }
        let _ = machine.can_receive_packet();
    }
    machine.digest();
}

/// States that differ from `state` in one byte, or in a field of 2, 4, 8 or 16 bytes.
fn corrupted(state: &[u8], random: &mut Random) -> Vec<Vec<u8>> {
    let with = |offset: usize, bytes: &[u8]| {
        let mut state = state.to_vec();
        let end = state.len().min(offset + bytes.len());
        state[offset..end].copy_from_slice(&bytes[..end - offset]);
        state
    };
    let mut corrupted = Vec::new();
    for (offset, byte) in state.iter().enumerate() {
        let another = u8::try_from(random.below(256)).unwrap();
        corrupted.extend((0..8).map(|bit| with(offset, &[byte ^ 1 << bit])));
        corrupted.push(with(offset, &[another]));
        for width in [2, 4, 8, 16] {
            corrupted.push(with(offset, &vec![0xff; width]));
        }
        corrupted.push(with(offset, &[0; 8]));
    }
    corrupted.retain(|corrupted| corrupted != state);
    corrupted
}

#[test]
fn a_corrupted_state_is_refused_or_gives_a_machine_that_runs() {
    let seed = std::env::var("FT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("seed {seed}; again with FT_SEED={seed} cargo test -p vm --test snapshot");
    let mut random = Random { state: seed, care: 1 };
    let (mut taken, mut contradictory, mut impossible) = (0, 0, BTreeSet::new());
    for mut original in eventful_machines() {
        let (state, contents) = (original.state(), contents(&mut original));
        for corrupted in corrupted(&state, &mut random) {
            match hollow(&corrupted) {
                Ok(machine) => {
                    assert_eq!(machine.state(), corrupted, "a restored state is kept as it was");
                    let mut pages = Restoration::new(&roomy_config()).unwrap();
                    for (first, page) in &contents {
                        pages.put_pages(*first, page).unwrap();
                    }
                    exercise(&mut pages.finish(&corrupted).unwrap());
                    taken += 1;
                }
                Err(RestoreError::Impossible { what, offset }) => {
                    assert!(offset <= corrupted.len());
                    impossible.insert(what);
                }
                Err(RestoreError::NotAtRest) => contradictory += 1,
                Err(RestoreError::Cut { .. } | RestoreError::TooLong { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    println!("{taken} taken, {contradictory} contradictory, {impossible:#?}");
    assert!(taken > 1000 && contradictory > 0, "{taken} taken, {contradictory} contradictory");
    // One for each check of the restoring code: none of them is untested.
    assert_eq!(impossible.len(), 37, "{impossible:#?}");
}

#[test]
fn a_count_that_would_overflow_is_refused() {
    /// The count follows 32 registers and the pc.
    const OFFSET: usize = 33 * 8;
    const END: u64 = 1 << 62;
    let with_count = |count: u64| {
        let mut state = Machine::new(&roomy_config(), &elf(&[NOP])).unwrap().state();
        state[OFFSET..OFFSET + 8].copy_from_slice(&count.to_le_bytes());
        hollow(&state)
    };
    assert_eq!(with_count(END - 1).unwrap().instruction_count(), InstructionCount(END - 1));
    let refused = with_count(END).unwrap_err();
    assert!(matches!(refused, RestoreError::Impossible { offset, .. } if offset == OFFSET + 8), "{refused}");
}

#[test]
fn a_state_cut_anywhere_or_continued_is_refused() {
    for original in eventful_machines() {
        let state = original.state();
        for length in 0..state.len() {
            let refused = hollow(&state[..length]).unwrap_err();
            assert_eq!(refused, RestoreError::Cut { offset: length });
        }
        let refused = hollow(&[&state[..], &[0, 0]].concat()).unwrap_err();
        assert_eq!(refused, RestoreError::TooLong { bytes: 2 });
    }
}

#[test]
fn a_state_of_a_machine_of_another_configuration_is_refused() {
    let state = Machine::new(&roomy_config(), &elf(&[NOP])).unwrap().state();
    for config in [
        MachineConfig { ram_bytes: 8 << 20, ..roomy_config() },
        MachineConfig { mac: [2, 0, 0, 0, 0, 1], ..roomy_config() },
        MachineConfig { boot: BootMode::Bare, ..roomy_config() },
    ] {
        let refused = Restoration::new(&config).unwrap().finish(&state).unwrap_err();
        assert!(matches!(refused, RestoreError::Impossible { .. }), "{refused}");
    }
    assert!(hollow(&state).is_ok());
}
