//! A program without an operating system that does what small kernels for QEMU's `virt` board do in
//! M-mode: a periodic timer and a software interrupt by the CLINT, and the console's interrupts by
//! the PLIC's context of M-mode.

use crate::qemu::assembler::machine::{MCAUSE, MIE, MTVEC};
use crate::qemu::assembler::{Assembler, Label, MRET, WFI, addi, csr, elf, i_type, ld, opcode, r_type, s_type, sd};

const START: u64 = 0x8000_0000;
const FINISHER: u64 = 0x10_0000;
const MSIP: u64 = 0x200_0000;
const MTIMECMP: u64 = 0x200_4000;
const MTIME: u64 = 0x200_bff8;
const PLIC: u64 = 0xc00_0000;
const UART: u64 = 0x1000_0000;
const UART_IRQ: u32 = 10;

/// Ticks of the clock from one timer interrupt to the next: 10 ms.
const PERIOD: u64 = 100_000;

/// Timer interrupts of which the program tells each; the last one raises the software interrupt.
pub const TICKS: usize = 3;

/// What it prints at each of them.
pub const TICK: &str = "tick";

/// What it prints at the software interrupt.
pub const SOFT: &str = "soft";

/// What it prints at the first timer interrupt after the key `t`.
pub const TOCK: &str = "tock";

// Registers. Nothing but the trap handler uses the others, so it saves none.
const RA: u32 = 1;
const TIMECMP: u32 = 2;
const TIME: u32 = 3;
const CONSOLE: u32 = 4;
const ADDRESS: u32 = 6;
const VALUE: u32 = 7;
const COUNT: u32 = 8;
const TELLS_NEXT: u32 = 9;
const CAUSE: u32 = 10;
const SOURCE: u32 = 11;
const KEY: u32 = 12;

const BYTE: u32 = 0;
const WORD: u32 = 2;
const BYTE_UNSIGNED: u32 = 4;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LESS: u32 = 4;

/// The executable. It ends at the key `q`, or, unless it `reads_keys`, at the software interrupt;
/// until then it prints each key between `<` and `>`.
#[must_use]
pub fn executable(reads_keys: bool) -> Vec<u8> {
    let mut code = Assembler::new(START);
    let [arm, handler, idle] = [(); 3].map(|()| code.label());
    code.constant(TIMECMP, MTIMECMP);
    code.constant(TIME, MTIME);
    code.constant(CONSOLE, UART);
    code.address(ADDRESS, handler);
    code.word(csr(1, 0, MTVEC, ADDRESS));
    code.words(&[addi(VALUE, 0, 1), s_type(BYTE, CONSOLE, VALUE, 1)]);
    store_word(&mut code, PLIC + 4 * u64::from(UART_IRQ), 1);
    store_word(&mut code, PLIC + 0x2000, 1 << UART_IRQ);
    store_word(&mut code, PLIC + 0x20_0000, 0);
    code.jump(RA, arm);
    code.constant(VALUE, 1 << 3 | 1 << 7 | 1 << 11);
    // Enables the three interrupts, and then all of M-mode.
    code.words(&[csr(2, 0, MIE, VALUE), csr(6, 0, 0x300, 8)]);
    code.place(idle);
    code.word(WFI);
    code.jump(0, idle);

    code.place(arm);
    code.word(ld(ADDRESS, TIME, 0));
    code.constant(VALUE, PERIOD);
    code.words(&[r_type(opcode::OP, 0, 0, ADDRESS, ADDRESS, VALUE), sd(ADDRESS, TIMECMP, 0)]);
    code.word(i_type(opcode::JALR, 0, 0, RA, 0));

    code.align();
    code.place(handler);
    handle(&mut code, arm, reads_keys);
    elf(&[(START, &code.finish())])
}

fn handle(code: &mut Assembler, arm: Label, reads_keys: bool) {
    let [software, external, power_off] = [(); 3].map(|()| code.label());
    code.words(&[csr(2, CAUSE, MCAUSE, 0), i_type(opcode::OP_IMM, 7, CAUSE, CAUSE, 0xff), addi(VALUE, 0, 3)]);
    code.branch(EQUAL, CAUSE, VALUE, software);
    code.word(addi(VALUE, 0, 11));
    code.branch(EQUAL, CAUSE, VALUE, external);

    let [untold, done] = [(); 2].map(|()| code.label());
    code.jump(RA, arm);
    code.words(&[addi(COUNT, COUNT, 1), addi(VALUE, 0, i32::try_from(TICKS).expect("a few"))]);
    code.branch(LESS, VALUE, COUNT, untold);
    print(code, TICK);
    code.branch(NOT_EQUAL, COUNT, VALUE, done);
    store_word(code, MSIP, 1);
    code.word(MRET);
    code.place(untold);
    code.branch(EQUAL, TELLS_NEXT, 0, done);
    code.word(addi(TELLS_NEXT, 0, 0));
    print(code, TOCK);
    code.place(done);
    code.word(MRET);

    code.place(software);
    store_word(code, MSIP, 0);
    print(code, SOFT);
    if !reads_keys {
        code.jump(0, power_off);
    }
    code.word(MRET);

    let is_other = code.label();
    code.place(external);
    code.constant(ADDRESS, PLIC + 0x20_0004);
    let load = |kind, rd, rs1| i_type(opcode::LOAD, kind, rd, rs1, 0);
    code.words(&[load(WORD, SOURCE, ADDRESS), load(BYTE_UNSIGNED, KEY, CONSOLE), s_type(WORD, ADDRESS, SOURCE, 0)]);
    print_byte(code, b'<');
    code.word(s_type(BYTE, CONSOLE, KEY, 0));
    print(code, ">");
    code.word(addi(VALUE, 0, i32::from(b'q')));
    code.branch(EQUAL, KEY, VALUE, power_off);
    code.word(addi(VALUE, 0, i32::from(b't')));
    code.branch(NOT_EQUAL, KEY, VALUE, is_other);
    code.word(addi(TELLS_NEXT, 0, 1));
    code.place(is_other);
    code.word(MRET);

    code.place(power_off);
    store_word(code, FINISHER, 0x5555);
    let halt = code.place_new();
    code.jump(0, halt);
}

fn store_word(code: &mut Assembler, address: u64, value: u64) {
    code.constant(ADDRESS, address);
    code.constant(SOURCE, value);
    code.word(s_type(WORD, ADDRESS, SOURCE, 0));
}

fn print_byte(code: &mut Assembler, byte: u8) {
    code.words(&[addi(SOURCE, 0, byte.into()), s_type(BYTE, CONSOLE, SOURCE, 0)]);
}

fn print(code: &mut Assembler, text: &str) {
    text.bytes().chain(*b"\n").for_each(|byte| print_byte(code, byte));
}
