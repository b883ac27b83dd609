//! F and D: every instruction in every rounding mode on special values. The flags are compared
//! after each instruction, or after several.

use super::integer;
use super::program::{DATA_REGISTER, InitialState, Mode};
use super::value;
use super::writer::Writer;
use crate::qemu::assembler::machine::MSTATUS;
use crate::qemu::assembler::{CSRRC, CSRRS, CSRRW, control, csr, fld, fsd, i_type, opcode, r_type, s_type};

const UNITS: u32 = 60;

/// CSR numbers.
const FFLAGS: u32 = 1;
const FRM: u32 = 2;
const FCSR: u32 = 3;

/// `funct7` without the format, of the instructions with a rounding mode and two sources.
const ARITHMETIC: [u32; 4] = [0x00, 0x04, 0x08, 0x0c];
/// Instructions with a `funct3` of their own: sign injection, minimum and maximum, comparisons.
const SELECTED: [(u32, u32); 3] = [(0x10, 3), (0x14, 2), (0x50, 3)];

pub(super) fn write(writer: &mut Writer, initial: &mut InitialState) {
    let random = &mut writer.random;
    // Off in some programs, until an instruction switches it on; then Initial, Clean and Dirty.
    initial.status = u64::from(random.pick(&[0_u32, 1, 1, 2, 2, 3, 3, 3])) << 13;
    initial.float_status = u64::from(random.below(256));
    let data = (0..512).map(|_| if random.one_in(4) { value::integer(random) } else { value::float(random) }).collect();
    initial.memory[0].1 = data;
    for _ in 0..UNITS {
        writer.unit(|writer| {
            if writer.random.one_in(8) {
                return status(writer);
            }
            for _ in 0..=writer.random.below(2) {
                load(writer);
            }
            for _ in 0..=writer.random.below(3) {
                operation(writer);
            }
            if writer.random.one_in(2) {
                flags(writer);
            }
            if writer.random.one_in(4) {
                store(writer);
            }
        });
    }
}

/// One of few floating-point registers, so that results are used again.
fn register(writer: &mut Writer) -> u32 {
    writer.random.pick(&[0, 1, 2, 3, 8, 9, 10, 31])
}

fn load(writer: &mut Writer) {
    let (offset, rd) = (writer.data_offset(), register(writer));
    if writer.random.one_in(4) {
        writer.code.word(i_type(opcode::LOAD_FP, 2, rd, DATA_REGISTER, offset));
    } else {
        writer.code.word(fld(rd, DATA_REGISTER, offset));
    }
}

fn store(writer: &mut Writer) {
    let (offset, rs2) = (writer.data_offset(), register(writer));
    if writer.random.one_in(4) {
        // The lower half, sometimes misaligned; also the widths of formats that don't exist here.
        let funct3 = writer.random.pick(&[2, 2, 2, 2, 1, 4]);
        let offset = (offset + writer.random.below(4).cast_signed()).min(2040);
        writer.code.word(s_type(funct3, DATA_REGISTER, rs2, offset) | opcode::STORE_FP);
    } else {
        writer.code.word(fsd(rs2, DATA_REGISTER, offset));
    }
}

/// Static rounding modes, two reserved ones among them, and the dynamic one.
fn rounding(writer: &mut Writer) -> u32 {
    if writer.random.one_in(24) { writer.random.pick(&[5, 6]) } else { writer.random.pick(&[0, 1, 2, 3, 4, 7, 7]) }
}

fn operation(writer: &mut Writer) {
    let (rd, rs1, rs2, rs3) = (register(writer), register(writer), register(writer), register(writer));
    let format = if writer.random.one_in(40) { writer.random.pick(&[2, 3]) } else { writer.random.below(2) };
    let rounding = rounding(writer);
    let op = |funct7: u32, funct3, rd, rs1, rs2| r_type(opcode::OP_FP, funct3, funct7 | format, rd, rs1, rs2);
    let word = match writer.random.below(16) {
        0..4 => op(writer.random.pick(&ARITHMETIC), rounding, rd, rs1, rs2),
        4 => op(0x2c, rounding, rd, rs1, 0),
        5..8 => {
            let kind = opcode::FMADD + 4 * writer.random.below(4);
            r_type(kind, rounding, rs3 << 2 | format, rd, rs1, rs2)
        }
        8 | 9 => {
            let (funct7, kinds) = writer.random.pick(&SELECTED);
            let rd = if funct7 == 0x50 { writer.destination() } else { rd };
            op(funct7, writer.random.below(kinds), rd, rs1, rs2)
        }
        10 | 11 => {
            let rd = writer.destination();
            op(0x60, rounding, rd, rs1, writer.random.below(4))
        }
        12 => {
            let rs1 = writer.source();
            op(0x68, rounding, rd, rs1, writer.random.below(4))
        }
        // Conversions between the formats.
        13 => op(0x20, rounding, rd, rs1, 1 - (format & 1)),
        // FMV to an integer register and FCLASS; FMV from one.
        14 if writer.random.one_in(2) => {
            let rs1 = writer.source();
            op(0x78, 0, rd, rs1, 0)
        }
        14 => {
            let rd = writer.destination();
            op(0x70, writer.random.below(2), rd, rs1, 0)
        }
        _ => {
            // May be no instruction at all.
            let (funct7, funct3) = (writer.random.below(128) & !3, writer.random.below(8));
            let rd = writer.destination();
            let rd = if rd < 5 { 5 } else { rd };
            let rs2 = if writer.random.one_in(2) { writer.random.below(4) } else { rs2 };
            op(funct7, funct3, rd, rs1, rs2)
        }
    };
    writer.code.word(word);
}

/// Reads and clears the flags, or reads all, or sets another rounding mode, which may be invalid.
fn flags(writer: &mut Writer) {
    let rd = writer.register();
    let word = match writer.random.below(8) {
        0..3 => csr(CSRRW, rd, FFLAGS, 0),
        3 => csr(CSRRS, rd, FCSR, 0),
        4 => csr(
            writer.random.pick(&[CSRRW, CSRRS, CSRRC]),
            rd,
            writer.random.pick(&[FFLAGS, FRM, FCSR]),
            writer.source(),
        ),
        5 => csr(CSRRC + 4, rd, FFLAGS, writer.random.below(32)),
        _ => {
            let mode = if writer.random.one_in(8) { writer.random.below(8) } else { writer.random.below(5) };
            csr(CSRRW + 4, rd, FRM, mode)
        }
    };
    writer.code.word(word);
}

/// Reads the unit's state, or sets it in a mode that may.
fn status(writer: &mut Writer) {
    let number = if writer.mode == Mode::Machine { MSTATUS } else { control::STATUS };
    let [fields, rd] = [writer.register(), writer.register()];
    if writer.random.one_in(2) {
        writer.code.word(csr(CSRRS, rd, number, 0));
    } else {
        let state = u64::from(writer.random.pick(&[0_u32, 1, 1, 2, 2, 3]));
        writer.code.constant(fields, 3 << 13);
        writer.code.word(csr(CSRRC, rd, number, fields));
        writer.code.constant(fields, state << 13);
        writer.code.word(csr(CSRRS, 0, number, fields));
    }
    integer::operation(writer);
}
