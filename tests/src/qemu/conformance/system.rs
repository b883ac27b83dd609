//! Delegation, software interrupts, and changes of mode.
//!
//! A program of this class changes its mode: nothing here relies on the current one, and what a
//! mode may not do causes one more trap. Interrupts are made pending by writes of M-mode or S-mode
//! to `mip` and `sip`; the handler clears them. There is no WFI, because the interrupt could be
//! masked. A program has only one interrupt, because QEMU 7.2 takes several in the order of their
//! numbers and not of their priorities.

use super::integer;
use super::program::{InitialState, SUPERVISOR_VECTOR};
use super::writer::Writer;
use crate::qemu::assembler::machine::{MCAUSE, MEDELEG, MEPC, MIDELEG, MIE, MIP, MSTATUS, MTVAL};
use crate::qemu::assembler::{
    CSRRC, CSRRS, CSRRW, EBREAK, ECALL, FENCE_I, MRET, SFENCE_VMA, SRET, addi, control, csr, i_type, opcode, s_type,
};

const UNITS: u32 = 60;
/// All except the call from S-mode. QEMU can delegate that from M-mode, and a hypervisor's.
const DELEGABLE: u64 = !(0b111 << 9);
/// Interrupts of the supervisor: software, timer, external.
const INTERRUPTS: [u64; 3] = [1 << 1, 1 << 5, 1 << 9];

pub(super) fn write(writer: &mut Writer, initial: &mut InitialState) {
    writer.interrupt = writer.random.pick(&INTERRUPTS);
    initial.delegated_exceptions = writer.random.next_u64() & DELEGABLE & 0xffff;
    initial.delegated_interrupts = interrupts(writer);
    initial.enabled_interrupts = interrupts(writer);
    initial.trap_vector = SUPERVISOR_VECTOR | writer.random.next_u64() & 1;
    initial.status |= writer.random.next_u64() & 0xaa;
    for _ in 0..UNITS {
        writer.unit(|writer| match writer.random.below(14) {
            0 | 1 => pending(writer),
            2 => enabled(writer),
            3 => masked(writer),
            4 => delegated(writer),
            5 => machine_return(writer),
            6 => supervisor_return(writer),
            7 | 8 => {
                let odd = writer.random.below(2).cast_signed();
                writer.code.words(&[addi(10, 0, odd), ECALL]);
            }
            9 | 10 => exception(writer),
            11 => read(writer),
            12 => vector(writer),
            _ => integer::operation(writer),
        });
    }
}

fn interrupts(writer: &mut Writer) -> u64 {
    if writer.random.one_in(4) { 0 } else { writer.interrupt }
}

/// Sets or clears bits with any of the operations.
fn change(writer: &mut Writer, number: u32, bits: u64) {
    let (source, rd) = (writer.register(), writer.destination());
    let operation = writer.random.pick(&[CSRRW, CSRRS, CSRRS, CSRRC]);
    writer.code.constant(source, bits);
    writer.code.word(csr(operation, rd, number, source));
}

fn pending(writer: &mut Writer) {
    let (number, bits) = (writer.random.pick(&[MIP, MIP, control::SIP]), interrupts(writer));
    change(writer, number, bits);
    integer::operation(writer);
}

fn enabled(writer: &mut Writer) {
    let (number, bits) = (writer.random.pick(&[MIE, control::SIE]), interrupts(writer));
    change(writer, number, bits);
}

/// Sets or clears SIE and MIE, and reads them.
fn masked(writer: &mut Writer) {
    let machine = writer.random.one_in(2);
    let number = if machine { MSTATUS } else { control::STATUS };
    let source = writer.register();
    let operation = writer.random.pick(&[CSRRS, CSRRS, CSRRC]);
    let bits = writer.random.next_u64() & 0xaa;
    writer.code.constant(source, bits);
    writer.code.word(csr(operation, 0, number, source));
    integer::operation(writer);
}

fn delegated(writer: &mut Writer) {
    if writer.random.one_in(2) {
        let bits = interrupts(writer);
        change(writer, MIDELEG, bits);
    } else {
        let bits = writer.random.next_u64() & DELEGABLE & 0xffff;
        let source = writer.register();
        writer.code.constant(source, bits);
        let operation = writer.random.pick(&[CSRRW, CSRRS, CSRRC]);
        writer.code.word(csr(operation, 0, MEDELEG, source));
    }
}

/// MRET into any mode, sometimes with less rights for S-mode.
fn machine_return(writer: &mut Writer) {
    let next = writer.code.label();
    let (target, fields) = (writer.register(), writer.register());
    writer.code.constant(fields, 0b11 << 11 | 0b111 << 20);
    writer.code.word(csr(CSRRC, 0, MSTATUS, fields));
    let mode = u64::from(writer.random.pick(&[0_u32, 1, 1, 3]));
    let traps = if writer.random.one_in(4) { u64::from(writer.random.below(8)) } else { 0 };
    writer.code.constant(fields, mode << 11 | traps << 20 | writer.random.next_u64() & 0xa0);
    writer.code.word(csr(CSRRS, 0, MSTATUS, fields));
    writer.code.address(target, next);
    writer.code.words(&[csr(CSRRW, 0, MEPC, target), MRET]);
    integer::operation(writer);
    writer.code.place(next);
}

fn supervisor_return(writer: &mut Writer) {
    let next = writer.code.label();
    let (target, fields) = (writer.register(), writer.register());
    writer.code.constant(fields, 1 << 8);
    let operation = writer.random.pick(&[CSRRC, CSRRS]);
    writer.code.word(csr(operation, 0, control::STATUS, fields));
    writer.code.address(target, next);
    writer.code.words(&[csr(CSRRW, 0, control::SEPC, target), SRET]);
    integer::operation(writer);
    writer.code.place(next);
}

fn exception(writer: &mut Writer) {
    let (pointer, rd) = (writer.register(), writer.destination());
    match writer.random.below(8) {
        0 => writer.code.word(EBREAK),
        1 => writer.code.half(0x9002), // c.ebreak
        2 => writer.code.half(0),
        3 => {
            writer.point_nowhere(pointer);
            writer.code.word(i_type(opcode::LOAD, 3, rd, pointer, 0));
        }
        4 => {
            writer.point_nowhere(pointer);
            writer.code.word(s_type(3, pointer, rd, 0));
        }
        5 => {
            writer.point_nowhere(pointer);
            writer.code.word(i_type(opcode::JALR, 0, rd, pointer, 0));
        }
        6 => {
            let word = writer.random.pick(&[SFENCE_VMA, FENCE_I, csr(CSRRS, 5, 0x180, 0), SFENCE_VMA | 5 << 15]);
            writer.code.word(word);
        }
        _ => {
            let word =
                writer.random.pick(&[csr(CSRRW, 0, 0xf14, 0), csr(CSRRS, 5, 0x5c0, 0), 0xffff_ffff, 0x0000_707f]);
            writer.code.word(word);
        }
    }
}

fn read(writer: &mut Writer) {
    let numbers = [MSTATUS, MIP, MIE, MCAUSE, MTVAL, MEDELEG, MIDELEG, control::STATUS, control::SIP, control::SIE];
    let more = [control::SCAUSE, control::STVAL, control::SEPC, control::TRAP_VECTOR];
    for _ in 0..3 {
        let number = if writer.random.one_in(2) { writer.random.pick(&numbers) } else { writer.random.pick(&more) };
        let rd = writer.register();
        writer.code.word(csr(CSRRS, rd, number, 0));
    }
}

fn vector(writer: &mut Writer) {
    let source = writer.register();
    let mode = writer.random.next_u64() & 1;
    writer.code.constant(source, SUPERVISOR_VECTOR | mode);
    writer.code.word(csr(CSRRW, 0, control::TRAP_VECTOR, source));
}
