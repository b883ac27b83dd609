//! Sleeping guests: which of them an event can still wake.

use crate::common::{ECALL, LI, MIE, SIE, WFI, bare_config, csrrs, elf, li, run_on, small_config};
use vm::{Exit, Machine, MachineConfig};

const SOFTWARE: u64 = 1 << 1;
const TIMER: u64 = 1 << 5;
const EXTERNAL: u64 = 1 << 9;
/// Interrupts of M-mode that no event raises: software's, and that of a timer that isn't set.
const OF_MACHINE: u64 = 1 << 3 | 1 << 7;
const MACHINE_EXTERNAL: u64 = 1 << 11;

/// Runs `code`, which sleeps with its last instruction, with the interrupts `enabled` in the CSR
/// `number`.
fn asleep(config: &MachineConfig, number: u32, enabled: u64, code: &[u32]) -> Machine {
    let code = [li(5, enabled), vec![csrrs(0, number, 5)], code.to_vec(), vec![WFI]].concat();
    let mut machine = Machine::new(config, &elf(&code)).unwrap();
    assert!(!machine.sleeps_for_good(), "it runs");
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert!(machine.instruction_count().0 > LI);
    machine
}

#[test]
fn without_firmware_only_a_device_wakes() {
    for (enabled, for_good) in
        [(0, true), (SOFTWARE | TIMER | OF_MACHINE, true), (EXTERNAL, false), (MACHINE_EXTERNAL, false)]
    {
        let machine = asleep(&bare_config(), MIE, enabled, &[]);
        assert_eq!(machine.sleeps_for_good(), for_good, "{enabled:#x}");
    }
}

#[test]
fn with_firmware_a_timer_wakes_that_is_set_and_enabled() {
    // SBI TIME: a0 is the deadline.
    let set_timer = [li(10, 1000), li(16, 0), li(17, 0x5449_4d45), vec![ECALL]].concat();
    for (enabled, code, for_good) in [
        (0, &[][..], true),
        (TIMER, &[], true),
        (SOFTWARE, &set_timer, true),
        (TIMER, &set_timer, false),
        (EXTERNAL, &[], false),
    ] {
        let machine = asleep(&small_config(), SIE, enabled, code);
        assert_eq!(machine.sleeps_for_good(), for_good, "{enabled:#x} {}", code.len());
    }
}
