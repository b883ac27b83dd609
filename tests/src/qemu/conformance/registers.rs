//! CSRs: every operation on each of them in every mode, with random values, and numbers without a
//! CSR.
//!
//! Left out, because correct machines differ or QEMU 7.2 is wrong:
//! - values of clocks and counters, the hardware performance counters, debug triggers, `seed`;
//! - `mstatus`: MPP of a mode that doesn't exist, which QEMU keeps; UXL, which may be anything
//!   there; and the states of extensions that don't exist (VS, XS);
//! - the hypervisor's interrupts in `mideleg`, `mie` and `mip`, which QEMU has;
//! - `medeleg`: the call from M-mode and the hypervisor's exceptions, which QEMU can delegate;
//! - bit 0 of `mepc` and `sepc`, which stays set on QEMU, and reserved modes of `mtvec` and
//!   `stvec`;
//! - `satp`: Sv48, Sv57 and address space identifiers, which QEMU has, and the other fields in Bare
//!   mode;
//! - `menvcfg` and `senvcfg` except FIOM and STCE; PMP registers, of which QEMU has more;
//! - deadlines of `stimecmp` that are neither past nor far away: the machines' clocks differ.

use super::integer;
use super::program::{InitialState, Mode};
use super::writer::Writer;
use crate::qemu::assembler::machine::{
    MCAUSE, MCOUNTEREN, MEDELEG, MEPC, MIDELEG, MIE, MIP, MSCRATCH, MSTATUS, MTVAL, MTVEC,
};
use crate::qemu::assembler::{CSRRC, CSRRS, CSRRW, SFENCE_VMA, SRET, WFI, control, csr, i_type, opcode, r_type};

const UNITS: u32 = 40;

const SATP: u32 = 0x180;
const SCOUNTEREN: u32 = 0x106;
/// While TVM, TW or TSR is set, S-mode may do less.
const TVM: u64 = 1 << 20;
const TW: u64 = 1 << 21;
const TSR: u64 = 1 << 22;

/// Fields of `mstatus`: not UIE, VS, MPP, XS, MPRV, UXL, SXL, and none of the hypervisor extension.
const STATUS_FIELDS: u64 = !(1 | 0b11 << 9 | 0b11 << 11 | 0b11 << 15 | 1 << 17 | 0b1111 << 32 | 0b11 << 38);

/// Interrupts without the hypervisor's and the counters'.
const INTERRUPTS: u64 = !0x3444;

/// The writable bits of each CSR, by number.
const WRITABLE: [(u32, u64); 24] = [
    (MSTATUS, STATUS_FIELDS),
    (0x301, u64::MAX),
    (MEDELEG, !(0b11 << 10 | 0b1111 << 20)),
    (MIDELEG, INTERRUPTS),
    (MIE, INTERRUPTS),
    (MTVEC, !2),
    (MCOUNTEREN, 7),
    (MSCRATCH, u64::MAX),
    (MEPC, !1),
    (MCAUSE, u64::MAX),
    (MTVAL, u64::MAX),
    (MIP, INTERRUPTS),
    (0x30a, 1),
    (control::STATUS, STATUS_FIELDS),
    (control::SIE, INTERRUPTS),
    (control::TRAP_VECTOR, !2),
    (SCOUNTEREN, 7),
    (0x10a, 1),
    (control::SSCRATCH, u64::MAX),
    (control::SEPC, !1),
    (control::SCAUSE, u64::MAX),
    (control::STVAL, u64::MAX),
    (control::SIP, INTERRUPTS),
    (0x003, 0xff),
];

/// Ranges of numbers at which the machines may differ, first and last.
const OPEN: [(u32, u32); 19] = [
    (0x008, 0x00f), // vectors
    (0x015, 0x017), // seed, jump tables
    (0x10c, 0x10f), // state enable
    (0x14d, 0x15f), // stimecmp, indirect access
    (0x200, 0x2ff), // virtual supervisor
    (0x30a, 0x31f), // environment, state enable
    (0x320, 0x33f), // event selectors
    (0x34a, 0x34b), // hypervisor
    (0x350, 0x35f), // indirect access
    (0x3a0, 0x3ef), // physical memory protection
    (0x5a8, 0x5af), // debug
    (0x600, 0x6ff), // hypervisor
    (0x740, 0x75f), // security, non-maskable interrupts
    (0x7a0, 0x7bf), // debug
    (0xb00, 0xb1f), // counters
    (0xc00, 0xc22), // counters, vectors
    (0xda0, 0xdbf), // overflow, interrupts
    (0xe00, 0xeff), // hypervisor
    (0xf15, 0xfbf), // configuration, interrupts
];

pub(super) fn write(writer: &mut Writer, initial: &mut InitialState) {
    let random = &mut writer.random;
    let any = |random: &mut crate::random::Random, field: u64| if random.one_in(2) { field } else { 0 };
    let states = u64::from(random.below(4)) << 13;
    initial.status =
        states | any(random, TVM) | any(random, TW) | any(random, TSR) | any(random, 1 << 18) | any(random, 1 << 19);
    let waits = initial.status & TW == 0;
    for _ in 0..UNITS {
        writer.unit(|writer| match writer.random.below(11) {
            10 => supervisor_timer(writer),
            0..5 => written(writer),
            5 => numbered(writer),
            6 => satp(writer),
            7 => counters(writer),
            8 => supervisor_only(writer, waits),
            _ => integer::operation(writer),
        });
    }
}

/// Writes, reads back, and restores the old value.
fn written(writer: &mut Writer) {
    let (number, mask) = writer.random.pick(&WRITABLE);
    let kept = writer.register();
    let source = writer.register_but(kept);
    let [old, new] = [(); 2].map(|()| {
        loop {
            let register = writer.register();
            if ![kept, source].contains(&register) {
                break register;
            }
        }
    });
    writer.code.word(csr(CSRRS, kept, number, 0));
    writer.load_value(source);
    if mask != u64::MAX {
        writer.code.constant(new, mask);
        writer.code.word(r_type(opcode::OP, 7, 0, source, source, new));
    }
    let operation = writer.random.pick(&[CSRRW, CSRRW, CSRRS, CSRRC]);
    if mask & 0x1f == 0x1f && writer.random.one_in(4) {
        writer.code.word(csr(operation + 4, old, number, writer.random.below(32)));
    } else {
        writer.code.word(csr(operation, old, number, source));
    }
    writer.code.words(&[csr(CSRRS, new, number, 0), csr(CSRRW, 0, number, kept)]);
}

/// `stimecmp`, which S-mode has while M-mode lets it, and the interrupt that it makes pending.
fn supervisor_timer(writer: &mut Writer) {
    const STIMECMP: u32 = 0x14d;
    const MENVCFG: u32 = 0x30a;
    const STCE: u64 = 1 << 63;
    let rd = writer.register();
    let source = writer.register_but(rd);
    if writer.mode != Mode::Machine {
        // M-mode hasn't let it.
        writer.code.word(csr(CSRRS, rd, STIMECMP, 0));
        return;
    }
    writer.code.constant(source, STCE);
    writer.code.words(&[csr(CSRRS, 0, MENVCFG, source), csr(CSRRS, rd, MENVCFG, 0)]);
    for _ in 0..=writer.random.below(3) {
        let deadline = if writer.random.one_in(2) { 0 } else { writer.random.next_u64() | 1 << 60 };
        writer.code.constant(source, deadline);
        writer.code.words(&[csr(CSRRW, 0, STIMECMP, source), csr(CSRRS, rd, STIMECMP, 0)]);
        let pending = writer.random.pick(&[MIP, control::SIP]);
        writer.code.word(csr(CSRRS, rd, pending, 0));
        // Software can't set or clear what the timer does.
        writer.code.constant(source, 1 << 5);
        let operation = writer.random.pick(&[CSRRS, CSRRC]);
        writer.code.words(&[csr(operation, 0, MIP, source), csr(CSRRS, rd, MIP, 0)]);
    }
    writer.code.constant(source, u64::MAX);
    writer.code.word(csr(CSRRW, 0, STIMECMP, source));
    writer.code.constant(source, STCE);
    writer.code.words(&[csr(CSRRC, 0, MENVCFG, source), csr(CSRRS, rd, MIP, 0)]);
}

/// Any number: a CSR on both machines, or on neither.
fn numbered(writer: &mut Writer) {
    let number = loop {
        let number = writer.random.below(1 << 12);
        if !OPEN.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
            break number;
        }
    };
    let rd = writer.register();
    // Writes nothing: the source is x0, or the immediate zero.
    let operation = writer.random.pick(&[CSRRS, CSRRC, CSRRS + 4, CSRRC + 4]);
    writer.code.word(csr(operation, rd, number, 0));
    if number >> 10 == 3 {
        // Read-only.
        writer.code.word(csr(CSRRW, rd, number, rd));
    }
}

/// `satp` with valid and invalid modes; S-mode doesn't switch translation on.
fn satp(writer: &mut Writer) {
    let (source, rd) = (writer.register(), writer.register());
    let modes = [0_u32, 1, 2, 7, 11, 12, 15, 8, 8, 8];
    let modes = if writer.mode == Mode::Machine { &modes[..] } else { &modes[..7] };
    let mode = u64::from(writer.random.pick(modes));
    let number = if mode == 0 { 0 } else { writer.random.next_u64() & ((1 << 44) - 1) };
    writer.code.constant(source, mode << 60 | number);
    writer.code.words(&[csr(CSRRW, rd, SATP, source), csr(CSRRS, source, SATP, 0), csr(CSRRW, 0, SATP, 0)]);
}

/// Sets whether the counters may be read; their values aren't compared.
fn counters(writer: &mut Writer) {
    if writer.random.one_in(2) {
        let number = writer.random.pick(&[MCOUNTEREN, SCOUNTEREN]);
        let bits = writer.random.below(8);
        writer.code.word(csr(CSRRW + 4, 0, number, bits));
    }
    let number = writer.random.pick(&[0xc00, 0xc02]);
    let rd = writer.register();
    writer.code.words(&[csr(CSRRS, rd, number, 0), i_type(opcode::OP_IMM, 7, rd, rd, 0)]);
    if writer.random.one_in(4) {
        writer.code.word(csr(CSRRW, 0, number, rd));
    }
}

/// Instructions that U-mode may not execute, and S-mode not always.
fn supervisor_only(writer: &mut Writer, waits: bool) {
    let source = writer.register();
    let next = writer.code.label();
    // M-mode is left for good.
    let choices = if writer.mode == Mode::Machine && !writer.random.one_in(8) { 3 } else { 4 };
    match writer.random.below(choices) {
        0 => writer.code.word(SFENCE_VMA),
        1 => writer.code.word(csr(CSRRS, source, SATP, 0)),
        // WFI would wait for ever.
        2 if waits && writer.mode != Mode::User => {}
        2 if writer.mode == Mode::Machine => {}
        2 => writer.code.word(WFI),
        _ => {
            // Back to S-mode, if it comes from there or above.
            writer.code.address(source, next);
            writer.code.word(csr(CSRRW, 0, control::SEPC, source));
            writer.code.constant(source, 1 << 8);
            writer.code.words(&[csr(CSRRS, 0, control::STATUS, source), SRET]);
            if writer.mode == Mode::Machine {
                writer.mode = Mode::Supervisor;
            }
        }
    }
    writer.code.place(next);
}
