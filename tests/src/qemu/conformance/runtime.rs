//! The M-mode code around the programs: it sets each program's initial state, handles its traps,
//! and prints its result.
//!
//! ```text
//!   for each program: arena, CSRs, registers ──► MRET ──► program ──► EBREAK at its end
//!                      trap ──► handler records cause, pc, value and mstatus; goes on with the next unit
//!   then: registers, CSRs and traps, and the arena, as one hash, or word by word
//! ```
//! A delegated trap gets here too: the supervisor's handler consists of ECALLs, at which this
//! handler records the supervisor's CSRs and returns to the supervisor's SRET. A program with more
//! than `TRAPS_MAX` traps has gone wrong, and is ended.

use super::program::{ARENA, ARENA_PAGES, PAGE, Program, RESUME_REGISTER, RUNTIME_REGISTER, SUPERVISOR_RETURN};
use crate::qemu::assembler::machine::{
    MCAUSE, MCOUNTEREN, MEDELEG, MEPC, MIDELEG, MIE, MIP, MSCRATCH, MSTATUS, MTVAL, MTVEC, PMPADDR0, PMPCFG0,
};
use crate::qemu::assembler::{
    Assembler, CSRRS, CSRRW, FENCE_I, Label, MRET, SFENCE_VMA, addi, control, csr, elf, fld, fsd, i_type, ld, opcode,
    r_type, s_type, sd,
};

/// Where both machines start an executable that is loaded there without firmware.
const CODE: u64 = 0x8000_0000;
const VARIABLES: u64 = 0x8001_0000;
const RECORDS: u64 = 0x8100_0000;

/// A program's result: registers, floating-point registers, CSRs, traps.
const RESULT: u64 = VARIABLES + 0x100;
/// The CSRs in the result, after registers x1 to x31 and f0 to f31.
const RESULT_CSRS: u64 = RESULT + 8 * (31 + 32);
const TRAPS: u64 = RESULT_CSRS + 8 * CSRS.len() as u64;
/// The most traps of a program.
const TRAPS_MAX: u64 = 120;
const TRAP_BYTES: u16 = 32;

/// The parts of the CSRs that belong to the result. The first one is read before the others need
/// the floating-point unit.
const CSRS: [(&str, u32); 17] = [
    ("mstatus", MSTATUS),
    ("fcsr", 0x003),
    ("medeleg", MEDELEG),
    ("mideleg", MIDELEG),
    ("mie", MIE),
    ("mip", MIP),
    ("mscratch", MSCRATCH),
    ("mcounteren", MCOUNTEREN),
    ("mtvec", MTVEC),
    ("stvec", control::TRAP_VECTOR),
    ("sscratch", control::SSCRATCH),
    ("sepc", control::SEPC),
    ("scause", control::SCAUSE),
    ("stval", control::STVAL),
    ("scounteren", 0x106),
    ("satp", 0x180),
    ("sie", control::SIE),
];

/// Offsets of the variables.
const RECORD: i32 = 0;
const REMAINING: i32 = 8;
const END: i32 = 16;
const NEXT_TRAP: i32 = 24;
const KEPT: [(u32, i32); 2] = [(X_A, 32), (X_B, 40)];

/// Registers that the handler computes with; the program's values are saved in the variables.
const X_A: u32 = 5;
const X_B: u32 = 6;
const X_V: u32 = RUNTIME_REGISTER;

/// Offsets in a record.
const RECORD_NEXT: i32 = 0;
const RECORD_END: i32 = 8;
const RECORD_DETAIL: i32 = 16;
const RECORD_CSRS: i32 = 24;
const RECORD_STATUS: i32 = RECORD_CSRS + 8 * 6;
const RECORD_FLOATS: i32 = RECORD_STATUS + 8;
const RECORD_REGISTERS: i32 = RECORD_FLOATS + 8 * 32;
const RECORD_MEMORY: i32 = RECORD_REGISTERS + 8 * 31;

/// The CSRs for which a record has values, without `mstatus`.
const STAGE_CSRS: [u32; 6] = [0x180, MEDELEG, MIDELEG, MIE, control::TRAP_VECTOR, 0x003];

/// The CSRs that are zero when a program begins.
const ZERO_CSRS: [u32; 8] =
    [MIP, MSCRATCH, MCAUSE, MTVAL, control::SSCRATCH, control::SEPC, control::SCAUSE, control::STVAL];

const FLOAT_DIRTY: u64 = 3 << 13;

/// An executable that runs `programs` and prints the hash of each result, and if `detail` all its
/// words.
#[must_use]
pub(super) fn image(programs: &[Program], detail: bool) -> Vec<u8> {
    let mut code = Assembler::new(CODE);
    write(&mut code, programs.len());
    let mut records: Vec<u64> = Vec::new();
    for program in programs {
        let start = records.len();
        let initial = &program.initial;
        records.extend([0, program.end, u64::from(detail)]);
        records.extend([initial.satp, initial.delegated_exceptions, initial.delegated_interrupts]);
        records.extend([initial.enabled_interrupts, initial.trap_vector, initial.float_status]);
        records.push(initial.status | (program.mode as u64) << 11);
        records.extend(initial.floats);
        let mut registers = initial.registers;
        registers[RUNTIME_REGISTER as usize] = VARIABLES;
        records.extend(&registers[1..]);
        for (address, words) in &initial.memory {
            records.extend([*address, words.len() as u64]);
            records.extend(words);
        }
        records.push(0);
        records[start] = RECORDS + 8 * records.len() as u64;
    }
    let records: Vec<u8> = records.iter().flat_map(|word| word.to_le_bytes()).collect();
    elf(&[(CODE, &code.finish()), (RECORDS, &records)])
}

/// The words of a result that was printed in detail, by name.
pub(super) fn words(lines: &[String]) -> Vec<(String, String)> {
    let arena_words = usize::try_from(ARENA_PAGES * PAGE / 8).expect("few");
    let before_arena = lines.len().saturating_sub(arena_words);
    let name = |index: usize| match index {
        0..31 => format!("x{}", index + 1),
        31..63 => format!("f{}", index - 31),
        _ if index < 63 + CSRS.len() => CSRS[index - 63].0.into(),
        _ if index < before_arena => {
            let word = index - 63 - CSRS.len();
            format!("trap {}: {}", word / 4, ["cause", "epc", "tval", "mstatus"][word % 4])
        }
        _ => format!("[{:#x}]", ARENA + 8 * (index - before_arena) as u64),
    };
    lines.iter().enumerate().map(|(index, line)| (name(index), line.clone())).collect()
}

fn write(code: &mut Assembler, programs: usize) {
    let (handler, next, finish, off, print) = (code.label(), code.label(), code.label(), code.label(), code.label());
    code.constant(X_V, VARIABLES);
    code.constant(5, RECORDS);
    code.word(sd(5, X_V, RECORD));
    code.constant(5, programs as u64);
    code.word(sd(5, X_V, REMAINING));
    quieten_timer(code);
    // S-mode and U-mode may access all memory.
    code.words(&[addi(5, 0, -1), csr(CSRRW, 0, PMPADDR0, 5), addi(5, 0, 0x1f), csr(CSRRW, 0, PMPCFG0, 5)]);
    code.place(next);
    code.address(5, handler);
    code.word(csr(CSRRW, 0, MTVEC, 5));
    enter(code, off);
    code.align();
    code.place(handler);
    take_trap(code, finish);
    code.place(finish);
    sum_up(code, next, print);
    code.place(print);
    print_word(code);
    code.place(off);
    code.constant(5, 0x10_0000);
    code.constant(6, 0x5555);
    code.word(s_type(2, 5, 6, 0));
    let here = code.place_new();
    code.jump(0, here);
}

/// On QEMU the timer of M-mode is due from the start, on ours it isn't.
fn quieten_timer(code: &mut Assembler) {
    let behind = code.label();
    code.address(5, behind);
    code.word(csr(CSRRW, 0, MTVEC, 5));
    code.constant(5, 0x0200_4000);
    code.words(&[addi(6, 0, -1), sd(6, 5, 0)]);
    code.align();
    code.place(behind);
}

/// Sets the initial state of the next program, or jumps to `off` after the last one.
fn enter(code: &mut Assembler, off: Label) {
    code.word(ld(5, X_V, REMAINING));
    let some = code.label();
    code.branch(1, 5, 0, some);
    code.jump(0, off);
    code.place(some);
    code.words(&[addi(5, 5, -1), sd(5, X_V, REMAINING), ld(9, X_V, RECORD)]);
    clear_arena(code);
    copy_memory(code);
    code.words(&[ld(5, 9, RECORD_END), sd(5, X_V, END)]);
    code.constant(5, TRAPS);
    code.word(sd(5, X_V, NEXT_TRAP));
    code.constant(5, FLOAT_DIRTY);
    code.word(csr(CSRRW, 0, MSTATUS, 5));
    code.words(&ZERO_CSRS.map(|number| csr(CSRRW, 0, number, 0)));
    code.word(addi(5, 0, 7));
    code.words(&[csr(CSRRW, 0, MCOUNTEREN, 5), csr(CSRRW, 0, 0x106, 5)]);
    for (index, number) in (0..).zip(STAGE_CSRS) {
        code.words(&[ld(5, 9, RECORD_CSRS + 8 * index), csr(CSRRW, 0, number, 5)]);
    }
    code.words(&[SFENCE_VMA, FENCE_I]);
    for register in 0..32 {
        code.word(fld(register, 9, RECORD_FLOATS + 8 * register.cast_signed()));
    }
    code.words(&[ld(5, 9, RECORD_STATUS), csr(CSRRW, 0, MSTATUS, 5)]);
    code.constant(5, ARENA);
    code.word(csr(CSRRW, 0, MEPC, 5));
    // x9 holds the record's address, so it is loaded last.
    for register in (1..32).filter(|register| *register != 9).chain([9]) {
        code.word(ld(register, 9, RECORD_REGISTERS + 8 * (register.cast_signed() - 1)));
    }
    code.word(MRET);
}

fn clear_arena(code: &mut Assembler) {
    code.constant(10, ARENA);
    code.constant(11, ARENA + ARENA_PAGES * PAGE);
    let more = code.place_new();
    code.words(&[0, 8, 16, 24, 32, 40, 48, 56].map(|offset| sd(0, 10, offset)));
    code.word(addi(10, 10, 64));
    code.branch(6, 10, 11, more);
}

/// Copies memory as the record at x9 says.
fn copy_memory(code: &mut Assembler) {
    let (done, chunk) = (code.label(), code.label());
    code.word(addi(10, 9, RECORD_MEMORY));
    code.place(chunk);
    code.word(ld(11, 10, 0));
    code.branch(0, 11, 0, done);
    code.words(&[ld(12, 10, 8), addi(10, 10, 16)]);
    let more = code.place_new();
    code.words(&[ld(13, 10, 0), sd(13, 11, 0), addi(10, 10, 8), addi(11, 11, 8), addi(12, 12, -1)]);
    code.branch(1, 12, 0, more);
    code.jump(0, chunk);
    code.place(done);
}

/// Records a trap, and goes on with the program's next unit, or at `finish` if it is the end.
fn take_trap(code: &mut Assembler, finish: Label) {
    let (not_end, out, interrupt) = (code.label(), code.label(), code.label());
    code.words(&KEPT.map(|(register, offset)| sd(register, X_V, offset)));
    code.words(&[csr(CSRRS, X_A, MEPC, 0), ld(X_B, X_V, END)]);
    code.branch(1, X_A, X_B, not_end);
    code.jump(0, finish);
    code.place(not_end);
    forget_breakpoint(code, MCAUSE, MTVAL);
    note(code, [MCAUSE, MEPC, MTVAL, MSTATUS], finish);
    code.word(csr(CSRRS, X_A, MCAUSE, 0));
    code.branch(4, X_A, 0, interrupt);
    supervisor_call(code, out, interrupt, finish);
    environment_call(code);
    code.word(csr(CSRRW, 0, MEPC, RESUME_REGISTER));
    code.jump(0, out);
    // An interrupt would be taken again, so it is cleared.
    code.place(interrupt);
    code.word(csr(CSRRW, 0, MIP, 0));
    code.place(out);
    code.words(&KEPT.map(|(register, offset)| ld(register, X_V, offset)));
    code.word(MRET);
}

/// The value of a breakpoint may be zero, as on QEMU, so it isn't compared.
fn forget_breakpoint(code: &mut Assembler, cause: u32, value: u32) {
    const BREAKPOINT: i32 = 3;
    let other = code.label();
    code.words(&[csr(CSRRS, X_A, cause, 0), addi(X_A, X_A, -BREAKPOINT)]);
    code.branch(1, X_A, 0, other);
    code.word(csr(CSRRW, 0, value, 0));
    code.place(other);
}

/// Appends a trap to the result.
fn note(code: &mut Assembler, numbers: [u32; 4], finish: Label) {
    let room = code.label();
    code.word(ld(X_B, X_V, NEXT_TRAP));
    for (offset, number) in [0, 8, 16, 24].into_iter().zip(numbers) {
        code.words(&[csr(CSRRS, X_A, number, 0), sd(X_A, X_B, offset)]);
    }
    code.words(&[addi(X_B, X_B, TRAP_BYTES.into()), sd(X_B, X_V, NEXT_TRAP)]);
    code.constant(X_A, TRAPS + TRAPS_MAX * u64::from(TRAP_BYTES));
    code.branch(6, X_B, X_A, room);
    code.jump(0, finish);
    code.place(room);
}

/// Handles the call of the supervisor's handler: records its trap, and returns there.
fn supervisor_call(code: &mut Assembler, out: Label, interrupt: Label, finish: Label) {
    const CALL_FROM_SUPERVISOR: i32 = 9;
    const VECTOR_BYTES_LOG2: i32 = 9;
    let (other, synchronous) = (code.label(), code.label());
    code.word(addi(X_A, X_A, -CALL_FROM_SUPERVISOR));
    code.branch(1, X_A, 0, other);
    code.word(csr(CSRRS, X_A, MEPC, 0));
    code.constant(X_B, SUPERVISOR_RETURN - (1 << VECTOR_BYTES_LOG2));
    code.words(&[r_type(opcode::OP, 0, 0x20, X_A, X_A, X_B), i_type(opcode::OP_IMM, 5, X_A, X_A, VECTOR_BYTES_LOG2)]);
    code.branch(1, X_A, 0, other);
    forget_breakpoint(code, control::SCAUSE, control::STVAL);
    // The program's end may be delegated.
    let not_end = code.label();
    code.words(&[csr(CSRRS, X_A, control::SEPC, 0), ld(X_B, X_V, END)]);
    code.branch(1, X_A, X_B, not_end);
    code.jump(0, finish);
    code.place(not_end);
    code.constant(X_A, SUPERVISOR_RETURN);
    code.word(csr(CSRRW, 0, MEPC, X_A));
    note(code, [control::SCAUSE, control::SEPC, control::STVAL, control::STATUS], finish);
    code.word(csr(CSRRS, X_A, control::SCAUSE, 0));
    code.branch(5, X_A, 0, synchronous);
    code.jump(0, interrupt);
    code.place(synchronous);
    code.word(csr(CSRRW, 0, control::SEPC, RESUME_REGISTER));
    code.jump(0, out);
    code.place(other);
}

/// A call with an odd a0 enters M-mode.
fn environment_call(code: &mut Assembler) {
    const CALL_FROM_USER: i32 = 8;
    const CALL_FROM_SUPERVISOR: i32 = 9;
    let (other, call) = (code.label(), code.label());
    code.words(&[csr(CSRRS, X_A, MCAUSE, 0), addi(X_B, 0, CALL_FROM_USER)]);
    code.branch(0, X_A, X_B, call);
    code.word(addi(X_B, 0, CALL_FROM_SUPERVISOR));
    code.branch(1, X_A, X_B, other);
    code.place(call);
    code.word(i_type(opcode::OP_IMM, 7, X_A, 10, 1));
    code.branch(0, X_A, 0, other);
    code.constant(X_A, 3 << 11);
    code.word(csr(CSRRS, 0, MSTATUS, X_A));
    code.place(other);
}

/// Prints the result of the program that has just ended, and goes on with the `next`.
fn sum_up(code: &mut Assembler, next: Label, print: Label) {
    let result = i32::try_from(RESULT - VARIABLES).expect("a short offset");
    code.words(&KEPT.map(|(register, offset)| ld(register, X_V, offset)));
    for register in 1..32 {
        code.word(sd(register, X_V, result + 8 * (register.cast_signed() - 1)));
    }
    // The last trap may have been one too many, on its way from the supervisor's handler.
    forget_breakpoint(code, control::SCAUSE, control::STVAL);
    code.words(&[csr(CSRRS, 5, MSTATUS, 0), sd(5, X_V, result + 8 * 63)]);
    code.constant(5, FLOAT_DIRTY);
    code.word(csr(CSRRW, 0, MSTATUS, 5));
    for register in 0..32 {
        code.word(fsd(register, X_V, result + 8 * (31 + register.cast_signed())));
    }
    for (index, (_, number)) in (0..).zip(CSRS).skip(1) {
        code.words(&[csr(CSRRS, 5, number, 0), sd(5, X_V, result + 8 * (63 + index))]);
    }
    code.words(&[csr(CSRRW, 0, 0x180, 0), SFENCE_VMA, addi(18, 0, 0)]);
    code.constant(23, 0x9e37_79b9_7f4a_7c15);
    let (fold, print_range) = (code.label(), code.label());
    let ranges = |code: &mut Assembler, routine: Label| {
        code.constant(20, RESULT);
        code.word(ld(22, X_V, NEXT_TRAP));
        code.jump(1, routine);
        code.constant(20, ARENA);
        code.constant(22, ARENA + ARENA_PAGES * PAGE);
        code.jump(1, routine);
    };
    ranges(code, fold);
    code.jump(1, print);
    let done = code.label();
    code.words(&[ld(9, X_V, RECORD), ld(5, 9, RECORD_DETAIL)]);
    code.branch(0, 5, 0, done);
    ranges(code, print_range);
    code.place(done);
    code.words(&[ld(9, X_V, RECORD), ld(9, 9, RECORD_NEXT), sd(9, X_V, RECORD)]);
    code.jump(0, next);
    fold_range(code, fold);
    code.place(print_range);
    code.words(&[addi(24, 1, 0)]);
    let more = code.place_new();
    code.word(ld(18, 20, 0));
    code.jump(1, print);
    code.word(addi(20, 20, 8));
    code.branch(6, 20, 22, more);
    code.word(i_type(opcode::JALR, 0, 0, 24, 0));
}

/// Folds the words from x20 up to x22 into x18, and returns by x1.
fn fold_range(code: &mut Assembler, fold: Label) {
    code.place(fold);
    code.words(&[ld(5, 20, 0), r_type(opcode::OP, 4, 0, 18, 18, 5), r_type(opcode::OP, 0, 1, 18, 18, 23)]);
    code.words(&[i_type(opcode::OP_IMM, 5, 5, 18, 29), r_type(opcode::OP, 4, 0, 18, 18, 5), addi(20, 20, 8)]);
    code.branch(6, 20, 22, fold);
    code.word(i_type(opcode::JALR, 0, 0, 1, 0));
}

/// Prints x18 as a line of 16 hexadecimal digits, and returns by x1.
fn print_word(code: &mut Assembler) {
    const LINE_STATUS: i32 = 5;
    const TRANSMITTER_EMPTY: i32 = 0x20;
    code.constant(21, 0x1000_0000);
    code.words(&[addi(19, 0, 60), addi(6, 0, i32::from(b'0') + 10)]);
    let (digit, put, wait, out) = (code.place_new(), code.label(), code.label(), code.label());
    code.words(&[r_type(opcode::OP, 5, 0, 10, 18, 19), i_type(opcode::OP_IMM, 7, 10, 10, 15)]);
    code.word(addi(10, 10, i32::from(b'0')));
    code.branch(4, 10, 6, put);
    code.word(addi(10, 10, i32::from(b'a' - b'0') - 10));
    code.place(put);
    code.word(addi(19, 19, -4));
    code.place(wait);
    code.words(&[i_type(opcode::LOAD, 4, 5, 21, LINE_STATUS), i_type(opcode::OP_IMM, 7, 5, 5, TRANSMITTER_EMPTY)]);
    code.branch(0, 5, 0, wait);
    code.word(s_type(0, 21, 10, 0));
    code.word(addi(5, 0, i32::from(b'\n')));
    code.branch(0, 10, 5, out);
    code.branch(5, 19, 0, digit);
    code.word(addi(10, 0, i32::from(b'\n')));
    code.jump(0, put);
    code.place(out);
    code.word(i_type(opcode::JALR, 0, 0, 1, 0));
}
