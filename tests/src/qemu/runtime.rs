//! The program around random snippets: it sets each snippet's initial state, handles its traps, and
//! prints its result.
//!
//! ```text
//!   for each snippet: registers, scratch memory, mode ──► snippet ──► EBREAK at its end
//!                        trap ──► handler records cause, pc and value, and goes on after the instruction
//!   then: registers, sscratch, scratch memory and the recorded traps, as one hash, or word by word
//! ```
//! It uses plain instructions only. These are tested with it: a machine that gets them wrong prints
//! something else too.

use super::assembler::control::{SCAUSE, SEPC, SIE, SSCRATCH, STATUS, STVAL, TRAP_VECTOR};
use super::assembler::{
    Assembler, CSRRC, CSRRS, CSRRW, ECALL, Label, SRET, addi, csr, elf, i_type, ld, opcode, r_type, sd,
};
use super::snippet::{self, BASES, Mode, SCRATCH_WORDS, Snippet};

/// Where the firmware of QEMU's board starts a supervisor.
const CODE: u64 = 0x8020_0000;
/// The address of the records.
const RECORDS: u64 = 0x8100_0000;
/// The address of the variables.
const VARIABLES: u64 = 0x8200_0000;
/// A snippet's result: registers, `sscratch`, scratch memory, recorded traps.
const RESULT: u64 = VARIABLES + 0x100;
/// The scratch memory in the result.
const SCRATCH: u64 = RESULT + 8 * RESULT_REGISTERS;
/// The recorded traps in the result: cause, pc and value of each.
const TRAPS: u64 = SCRATCH + 8 * SCRATCH_WORDS as u64;

/// Registers x1 to x31, and `sscratch`.
const RESULT_REGISTERS: u64 = 32;

/// Offsets of the variables.
const RECORD: i32 = 0;
const REMAINING: i32 = 8;
const END: i32 = 16;
const NEXT_TRAP: i32 = 24;

/// Offsets in a record.
const RECORD_ENTRY: i32 = 0;
const RECORD_END: i32 = 8;
const RECORD_STATUS: i32 = 16;
const RECORD_DETAIL: i32 = 24;
const RECORD_REGISTERS: i32 = 32;
const RECORD_SCRATCH: i32 = RECORD_REGISTERS + 8 * 31;
const RECORD_BYTES: i32 = RECORD_SCRATCH + 8 * SCRATCH_WORDS as i32;

/// `sstatus.SPP`: SRET goes to S-mode.
const PREVIOUS_SUPERVISOR: u64 = 1 << 8;
/// The other fields of `sstatus` that snippets change: SIE, SPIE, SUM, MXR.
const STATUS_FIELDS: u64 = 1 << 1 | 1 << 5 | 1 << 18 | 1 << 19;

/// `x30` in snippets and handler: the variables.
const X_VARIABLES: u32 = snippet::VARIABLES_REGISTER;
/// Registers for the handler; snippets never read them.
const X_A: u32 = snippet::HANDLER_REGISTERS[0];
const X_B: u32 = snippet::HANDLER_REGISTERS[1];

/// The name of a line of a snippet's result that is printed word by word.
#[must_use]
pub fn word_name(index: usize) -> String {
    let scratch = usize::try_from(RESULT_REGISTERS).expect("few");
    let traps = scratch + usize::from(SCRATCH_WORDS);
    match index {
        0..31 => format!("x{}", index + 1),
        31 => "sscratch".into(),
        _ if index < traps => format!("scratch[{}]", index - scratch),
        _ => format!("trap {}: {}", (index - traps) / 3, ["scause", "sepc", "stval"][(index - traps) % 3]),
    }
}

/// An executable that runs `snippets` and prints a line for each. Snippet number `detail` also gets
/// a line for each word of its result ([`word_name`]).
#[must_use]
pub fn program(snippets: &[Snippet], detail: Option<usize>) -> Vec<u8> {
    let mut code = Assembler::new(CODE);
    runtime(&mut code, snippets.len());
    let mut records = Vec::new();
    for (index, snippet) in snippets.iter().enumerate() {
        code.align();
        let entry = code.here();
        let end = snippet.assemble(&mut code);
        let status = if snippet.mode == Mode::Supervisor { PREVIOUS_SUPERVISOR } else { 0 };
        records.extend([entry, end, status, u64::from(detail == Some(index))]);
        let mut registers = snippet.registers;
        for (register, value) in BASES.into_iter().zip([SCRATCH, SCRATCH, SCRATCH + 4 * SCRATCH_WORDS as u64]) {
            registers[register as usize] = value;
        }
        registers[X_VARIABLES as usize] = VARIABLES;
        records.extend(&registers[1..]);
        records.extend(snippet.scratch);
    }
    let records: Vec<u8> = records.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    elf(&[(CODE, &code.finish()), (RECORDS, &records)])
}

fn runtime(code: &mut Assembler, snippets: usize) {
    let (handler, next, finish, off, print) = (code.label(), code.label(), code.label(), code.label(), code.label());
    code.constant(X_VARIABLES, VARIABLES);
    code.constant(5, RECORDS);
    code.word(sd(5, X_VARIABLES, RECORD));
    code.constant(5, snippets as u64);
    code.word(sd(5, X_VARIABLES, REMAINING));
    code.address(5, handler);
    code.words(&[csr(CSRRW, 0, TRAP_VECTOR, 5), csr(CSRRW, 0, SIE, 0)]);
    code.place(next);
    enter_snippet(code, off);
    code.align();
    code.place(handler);
    take_trap(code, finish);
    code.place(finish);
    sum_up(code, next, print);
    code.place(print);
    print_word(code);
    code.place(off);
    code.constant(17, 0x5352_5354); // SBI SRST: shutdown, no reason
    code.words(&[addi(16, 0, 0), addi(10, 0, 0), addi(11, 0, 0), ECALL]);
}

/// Sets the initial state of the next snippet, or jumps to `off` after the last one.
fn enter_snippet(code: &mut Assembler, off: Label) {
    code.word(ld(5, X_VARIABLES, REMAINING));
    code.branch(0, 5, 0, off);
    code.words(&[addi(5, 5, -1), sd(5, X_VARIABLES, REMAINING), ld(6, X_VARIABLES, RECORD)]);
    code.constant(10, SCRATCH);
    code.words(&[addi(11, 6, RECORD_SCRATCH), addi(12, 0, SCRATCH_WORDS.into())]);
    let copy = code.place_new();
    code.words(&[ld(13, 11, 0), sd(13, 10, 0), addi(10, 10, 8), addi(11, 11, 8), addi(12, 12, -1)]);
    code.branch(1, 12, 0, copy);
    code.words(&[ld(5, 6, RECORD_END), sd(5, X_VARIABLES, END)]);
    code.constant(5, TRAPS);
    code.word(sd(5, X_VARIABLES, NEXT_TRAP));
    code.words(&[csr(CSRRW, 0, SSCRATCH, 0), csr(CSRRW, 0, SCAUSE, 0), csr(CSRRW, 0, STVAL, 0)]);
    code.constant(5, PREVIOUS_SUPERVISOR | STATUS_FIELDS);
    code.words(&[csr(CSRRC, 0, STATUS, 5), ld(5, 6, RECORD_STATUS), csr(CSRRS, 0, STATUS, 5)]);
    code.words(&[ld(5, 6, RECORD_ENTRY), csr(CSRRW, 0, SEPC, 5)]);
    // x6 holds the record's address, so it is loaded last.
    for register in (1..32).filter(|register| *register != 6).chain([6]) {
        code.word(ld(register, 6, register_offset(RECORD_REGISTERS, register)));
    }
    code.word(SRET);
}

/// Records a trap and goes on after the instruction, or at `finish` if it is the snippet's end.
fn take_trap(code: &mut Assembler, finish: Label) {
    const FETCH_FAULT: i32 = 1;
    const BREAKPOINT: i32 = 3;
    let (not_breakpoint, short, fetch_fault) = (code.label(), code.label(), code.label());
    code.words(&[ld(X_A, X_VARIABLES, END), csr(CSRRS, X_B, SEPC, 0)]);
    code.branch(0, X_A, X_B, finish);
    code.words(&[ld(X_A, X_VARIABLES, NEXT_TRAP), sd(X_B, X_A, 8)]);
    code.words(&[csr(CSRRS, X_B, STVAL, 0), sd(X_B, X_A, 16), csr(CSRRS, X_B, SCAUSE, 0), sd(X_B, X_A, 0)]);
    // The value of a breakpoint may be zero, as on QEMU, so it isn't compared.
    code.words(&[addi(X_B, X_B, -BREAKPOINT)]);
    code.branch(1, X_B, 0, not_breakpoint);
    code.words(&[sd(0, X_A, 16), csr(CSRRW, 0, STVAL, 0)]);
    code.place(not_breakpoint);
    code.words(&[addi(X_A, X_A, 24), sd(X_A, X_VARIABLES, NEXT_TRAP), addi(X_B, X_B, BREAKPOINT - FETCH_FAULT)]);
    code.branch(0, X_B, 0, fetch_fault);
    // An instruction of full length has its two lowest bits set.
    code.words(&[csr(CSRRS, X_B, SEPC, 0), i_type(opcode::LOAD, 5, X_A, X_B, 0)]);
    code.words(&[i_type(opcode::OP_IMM, 7, X_A, X_A, 3), addi(X_A, X_A, -3), addi(X_B, X_B, 2)]);
    code.branch(1, X_A, 0, short);
    code.word(addi(X_B, X_B, 2));
    code.place(short);
    code.words(&[csr(CSRRW, 0, SEPC, X_B), SRET]);
    // No instruction was fetched, so this returns by x1.
    code.place(fetch_fault);
    code.words(&[csr(CSRRW, 0, SEPC, 1), SRET]);
}

/// Prints the result of the snippet that has just ended, and goes on with the `next`.
fn sum_up(code: &mut Assembler, next: Label, print: Label) {
    let result = i32::try_from(RESULT - VARIABLES).expect("a short offset");
    for register in (1..32).filter(|register| ![X_A, X_B].contains(register)) {
        code.word(sd(register, X_VARIABLES, register_offset(result, register)));
    }
    code.words(&[csr(CSRRS, 5, SSCRATCH, 0), sd(5, X_VARIABLES, register_offset(result, 32))]);
    code.constant(20, RESULT);
    code.words(&[addi(21, 20, 0), ld(22, X_VARIABLES, NEXT_TRAP), addi(18, 0, 0)]);
    code.constant(23, 0x9e37_79b9_7f4a_7c15);
    let fold = code.place_new();
    code.words(&[ld(5, 21, 0), r_type(opcode::OP, 4, 0, 18, 18, 5), r_type(opcode::OP, 0, 1, 18, 18, 23)]);
    code.words(&[i_type(opcode::OP_IMM, 5, 5, 18, 29), r_type(opcode::OP, 4, 0, 18, 18, 5), addi(21, 21, 8)]);
    code.branch(6, 21, 22, fold);
    code.jump(1, print);
    let (done, words) = (code.label(), code.label());
    code.words(&[ld(24, X_VARIABLES, RECORD), ld(5, 24, RECORD_DETAIL)]);
    code.branch(0, 5, 0, done);
    code.place(words);
    code.word(ld(18, 20, 0));
    code.jump(1, print);
    code.word(addi(20, 20, 8));
    code.branch(6, 20, 22, words);
    code.place(done);
    code.words(&[addi(24, 24, RECORD_BYTES), sd(24, X_VARIABLES, RECORD)]);
    code.jump(0, next);
}

/// Prints x18 as a line of 16 hexadecimal digits, and returns by x1.
fn print_word(code: &mut Assembler) {
    const LEGACY_PUTCHAR: i32 = 1;
    code.words(&[addi(17, 0, LEGACY_PUTCHAR), addi(19, 0, 60)]);
    let (digit, put) = (code.place_new(), code.label());
    code.words(&[r_type(opcode::OP, 5, 0, 10, 18, 19), i_type(opcode::OP_IMM, 7, 10, 10, 15), addi(5, 0, 10)]);
    code.word(addi(10, 10, i32::from(b'0')));
    code.word(addi(5, 5, i32::from(b'0')));
    code.branch(4, 10, 5, put);
    code.word(addi(10, 10, i32::from(b'a' - b'0') - 10));
    code.place(put);
    code.words(&[ECALL, addi(19, 19, -4)]);
    code.branch(5, 19, 0, digit);
    code.words(&[addi(10, 0, i32::from(b'\n')), ECALL, i_type(opcode::JALR, 0, 0, 1, 0)]);
}

fn register_offset(base: i32, register: u32) -> i32 {
    base + 8 * (register.cast_signed() - 1)
}
