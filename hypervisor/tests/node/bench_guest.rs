//! The guest `bench` must compute the same on the machine as its code does on the host.

use guest_programs::bench::Program;
use hypervisor::program::guest::Guest;
use vm::{Event, Exit, InstructionCount, Machine, MachineConfig, StopReason};

/// The steps of a slice; the guest gets its timer interrupts between slices.
const SLICE_STEPS: u64 = 100_000;

/// The most steps of a run in these tests.
const STEPS_MAX: u64 = 20_000_000;

/// Runs the guest. Returns its console output, why it stopped, and its steps.
fn run(bootargs: &str) -> (String, StopReason, u64) {
    let config = MachineConfig { bootargs: bootargs.into(), ..MachineConfig::default() };
    let mut machine = Machine::new(&config, &Guest::load("bench").unwrap().image).unwrap();
    let mut console = Vec::new();
    loop {
        let count = machine.instruction_count();
        assert!(count < InstructionCount(STEPS_MAX), "{bootargs}: no end");
        match machine.run(count.plus(SLICE_STEPS)) {
            Exit::LimitReached if machine.timer_deadline().is_some() => machine.apply(&Event::TimerInterrupt).unwrap(),
            Exit::LimitReached => {}
            Exit::Output => {
                while let Some((_, output)) = machine.take_output() {
                    console.extend_from_slice(output.bytes());
                }
            }
            Exit::ClockRead => machine.apply(&Event::ClockRead { ticks: machine.last_ticks() + 1 }).unwrap(),
            Exit::Stopped(reason) => {
                return (String::from_utf8(console).unwrap(), reason, machine.instruction_count().0);
            }
            exit @ (Exit::SeedRead | Exit::WallClockNeeded | Exit::RandomBytesNeeded | Exit::WaitForInterrupt) => {
                panic!("{bootargs}: {exit:?}")
            }
        }
    }
}

fn line(program: Program, size: u64) -> String {
    format!("bench: {} {size} checksum {:016x}\n", program.name(), program.run(size))
}

#[test]
fn checksums_are_the_hosts() {
    for program in Program::ALL {
        for size in 0..4 {
            let (console, reason, _) = run(&format!("program={} size={size}", program.name()));
            assert_eq!(console, line(program, size));
            assert_eq!(reason, StopReason::PowerOff { code: 0 }, "{program:?}");
        }
    }
}

/// Sizes must mean the same for all programs, because their means are compared.
#[test]
fn unit_of_work_is_about_a_million_instructions() {
    for program in Program::ALL {
        let steps = |size| run(&format!("program={} size={size}", program.name())).2;
        let per_unit = (steps(8) - steps(2)) / 6;
        assert!((700_000..1_300_000).contains(&per_unit), "{program:?}: {per_unit} a unit");
    }
}

#[test]
fn pages_and_timer_interrupts_change_nothing() {
    for program in Program::ALL {
        let (console, reason, _) = run(&format!("program={} size=3 paged", program.name()));
        if console == "bench: the hart has no Sv39\n" {
            assert_eq!(reason, StopReason::PowerOff { code: 1 });
        } else {
            assert_eq!((console, reason), (line(program, 3), StopReason::PowerOff { code: 0 }));
        }
    }
}

#[test]
fn unknown_arguments_are_refused() {
    for bootargs in ["", "size=3", "program=nothing", "program=hash size=many"] {
        let (console, reason, _) = run(bootargs);
        assert!(console.starts_with("bench: the boot arguments are "), "{console}");
        assert_eq!(reason, StopReason::PowerOff { code: 1 }, "{bootargs}");
    }
}
