//! CSRs of S-mode.

use super::checker::Checker;
use super::probe;
use crate::platform::trap::INTERRUPT_BIT;
use core::arch::asm;
use riscv::register::{satp, scause, scounteren, sepc, sie, sip, sscratch, sstatus, stval};

const SUPERVISOR_SOFTWARE: usize = INTERRUPT_BIT | 1;

/// Fields of `sstatus` that S-mode can write, and that every hart has.
const SSTATUS_FIELDS: [(&str, usize); 5] =
    [("SIE", 1 << 1), ("SPIE", 1 << 5), ("SPP", 1 << 8), ("SUM", 1 << 18), ("MXR", 1 << 19)];

pub(super) fn run(checker: &mut Checker) {
    check_instructions(checker);
    check_trap_registers(checker);
    check_sstatus(checker);
    check_software_interrupt(checker);
    checker.check("satp at the start", satp::read().bits() as u64, 0);
}

/// All six CSR instructions, on a register without side effects.
fn check_instructions(checker: &mut Checker) {
    let (after_write, after_set, after_clear, after_write_immediate, after_set_immediate, last): (
        u64,
        u64,
        u64,
        u64,
        u64,
        u64,
    );
    // SAFETY: no other code uses `sscratch`.
    unsafe {
        asm!(
            "csrw sscratch, {initial}",
            "csrrw {a}, sscratch, {mask}",
            "csrrs {b}, sscratch, {initial}",
            "csrrc {c}, sscratch, {mask}",
            "csrrwi {d}, sscratch, 21",
            "csrrsi {e}, sscratch, 10",
            "csrrci {f}, sscratch, 3",
            initial = in(reg) 0x0123_4567_89ab_cdef_u64,
            mask = in(reg) 0xff00_ff00_ff00_ff00_u64,
            a = out(reg) after_write, b = out(reg) after_set, c = out(reg) after_clear,
            d = out(reg) after_write_immediate, e = out(reg) after_set_immediate, f = out(reg) last,
            options(nomem, nostack),
        );
    }
    checker.check("csrrw", after_write, 0x0123_4567_89ab_cdef);
    checker.check("csrrs: old value", after_set, 0xff00_ff00_ff00_ff00);
    checker.check("csrrc: old value", after_clear, 0xff23_ff67_ffab_ffef);
    checker.check("csrrwi: old value", after_write_immediate, 0x0023_0067_00ab_00ef);
    checker.check("csrrsi: old value", after_set_immediate, 21);
    checker.check("csrrci: old value", last, 31);
    checker.check("sscratch at the end", sscratch::read() as u64, 28);
}

fn check_trap_registers(checker: &mut Checker) {
    // SAFETY: these registers matter only between a trap and its return, and there is no trap now.
    unsafe {
        sepc::write(0x8020_0002);
        stval::write(0x1234_5678_9abc);
        asm!("csrw scause, {}", in(reg) 13_u64, options(nomem, nostack));
    }
    checker.check("sepc", sepc::read() as u64, 0x8020_0002);
    checker.check("stval", stval::read() as u64, 0x1234_5678_9abc);
    checker.check("scause", scause::read().bits() as u64, 13);

    // SAFETY: only probes run in U-mode, and they read no counters.
    unsafe { scounteren::clear_cy() };
    checker.check("scounteren.CY cleared", u64::from(scounteren::read().cy()), 0);
    // SAFETY: as above.
    unsafe { scounteren::set_cy() };
    checker.check("scounteren.CY set", u64::from(scounteren::read().cy()), 1);
}

fn check_sstatus(checker: &mut Checker) {
    let before = sstatus::read().bits();
    for (name, bit) in SSTATUS_FIELDS {
        let (set, cleared): (usize, usize);
        // SAFETY: no interrupt is enabled in `sie`, and the other fields affect traps and
        // translation only.
        unsafe {
            asm!(
                "csrs sstatus, {bit}", "csrr {set}, sstatus", "csrc sstatus, {bit}", "csrr {cleared}, sstatus",
                bit = in(reg) bit, set = out(reg) set, cleared = out(reg) cleared, options(nomem, nostack),
            );
        }
        checker.check(format_args!("sstatus.{name} set"), u64::from(set & bit != 0), 1);
        checker.check(format_args!("sstatus.{name} cleared"), u64::from(cleared & bit != 0), 0);
        checker.check(format_args!("sstatus but {name}"), ((set ^ cleared) & !bit) as u64, 0);
    }
    // SAFETY: restores the value from before.
    unsafe { asm!("csrw sstatus, {}", in(reg) before, options(nomem, nostack)) };
}

/// A software interrupt that S-mode raises for itself waits for `sstatus.SIE`, and is then taken
/// before the next instruction.
fn check_software_interrupt(checker: &mut Checker) {
    // SAFETY: the probe's handler handles the interrupt.
    unsafe {
        sie::set_ssoft();
        sip::set_ssoft();
    }
    checker.check("sip.SSIP set", u64::from(sip::read().ssoft()), 1);
    checker.check("masked interrupt stays pending", u64::from(probe::take().is_none()), 1);
    let (address, seen) = probe::probe!("csrsi sstatus, 2; li a0, 0; li a0, 0");
    // SAFETY: no interrupt is expected any more.
    unsafe {
        riscv::interrupt::disable();
        sie::clear_ssoft();
    }
    let seen = seen.map(|seen| (seen.cause, seen.program_counter.wrapping_sub(address)));
    checker.check("interrupt when enabled", u64::from(seen == Some((SUPERVISOR_SOFTWARE, 4))), 1);
    checker.check("sip.SSIP cleared", u64::from(sip::read().ssoft()), 0);
}
