//! The real `ft-record` with programs that start in M-mode without firmware and report their result
//! through `tohost`, as riscv-tests do: only exit code 0 means a pass.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use std::fs;
use tempfile::TempDir;
use tests::programs;
use tests::qemu::assembler::{Assembler, addi, csr, elf, ld, s_type, sd};
use tests::stage::{Ended, Node};

const START: u64 = 0x8000_0000;
const TOHOST: u64 = START + 0x1000;
const FROMHOST: u64 = TOHOST + 0x40;
/// The memory of a system call's number and arguments, and of the text that it writes.
const CALL: u64 = TOHOST + 0x100;
const TEXT: u64 = TOHOST + 0x200;
/// The register that holds the address of `tohost`.
const TOHOST_REGISTER: u32 = 5;
const VALUE: u32 = 6;
const MHARTID: u32 = 0xf14;
const MTVEC: u32 = 0x305;
const MEPC: u32 = 0x341;
const MRET: u32 = 0x3020_0073;
const ECALL: u32 = 0x0000_0073;
const WFI: u32 = 0x1050_0073;
const NEVER: &str = "1000000";

/// Adds a symbol table with these symbols to an executable.
fn with_symbols(mut file: Vec<u8>, list: &[(&str, u64)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut symbols = vec![0; 24];
    for (name, value) in list {
        let name_at = u32::try_from(names.len()).unwrap();
        names.extend(name.bytes().chain([0]));
        symbols.extend(name_at.to_le_bytes());
        symbols.extend([0x11, 0, 1, 0]);
        symbols.extend([*value, 8].map(u64::to_le_bytes).concat());
    }
    let symbols_at = file.len();
    let names_at = symbols_at + symbols.len();
    let sections_at = names_at + names.len();
    let section = |kind: u32, at: usize, bytes: usize, link: u32, entry_bytes: u64| {
        let mut section = [0_u32, kind].map(u32::to_le_bytes).concat();
        section.extend([0, 0, at as u64, bytes as u64].map(u64::to_le_bytes).concat());
        section.extend([link, 0].map(u32::to_le_bytes).concat());
        section.extend([1, entry_bytes].map(u64::to_le_bytes).concat());
        section
    };
    let sections =
        [section(0, 0, 0, 0, 0), section(2, symbols_at, symbols.len(), 2, 24), section(3, names_at, names.len(), 0, 0)]
            .concat();
    file.extend([symbols, names, sections].concat());
    file[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
    file[58..64].copy_from_slice(&[64_u16, 3, 2].map(u16::to_le_bytes).concat());
    file
}

/// A program that begins like riscv-tests: it reads its hart's id, and goes to U-mode with a trap
/// handler that writes x6 to `tohost` for ever.
fn conforming(code: impl FnOnce(&mut Assembler)) -> Vec<u8> {
    let mut assembler = Assembler::new(START);
    let (handler, user) = (assembler.label(), assembler.label());
    assembler.word(csr(2, 10, MHARTID, 0));
    assembler.branch(1, 10, 0, user);
    assembler.constant(TOHOST_REGISTER, TOHOST);
    assembler.address(7, handler);
    assembler.word(csr(1, 0, MTVEC, 7));
    assembler.address(7, user);
    assembler.words(&[csr(1, 0, MEPC, 7), MRET]);
    assembler.align();
    assembler.place(handler);
    assembler.word(sd(VALUE, TOHOST_REGISTER, 0));
    assembler.jump(0, handler);
    assembler.place(user);
    code(&mut assembler);
    program(assembler, true)
}

/// An executable of this code with the doublewords `tohost` and `fromhost`, with or without their
/// symbols.
fn program(assembler: Assembler, has_symbol: bool) -> Vec<u8> {
    let file = elf(&[(START, &assembler.finish()), (TOHOST, &[0; 0x400])]);
    if has_symbol { with_symbols(file, &[("tohost", TOHOST), ("fromhost", FROMHOST)]) } else { file }
}

/// Records a program and replays the log; returns the recording's end and console.
#[track_caller]
fn recorded(program: &[u8], arguments: &[&str]) -> (Ended, String) {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (file, log) = (path("program"), path("log"));
    fs::write(&file, program).unwrap();
    let arguments = [&["--bare", &file, "--output", &log], arguments].concat();
    let mut recorder = Node::start(&programs!(), directory.path(), "ft-record", &arguments);
    let end = recorder.end();
    let mut replayer = Node::start(&programs!(), directory.path(), "ft-replay", &[&log]);
    let replayed = replayer.end();
    assert_eq!(replayed.code, Some(exit::OK.into()), "{replayed:?}");
    assert_eq!(replayer.console(), recorder.console());
    (end, recorder.console())
}

#[track_caller]
fn assert_ends(program: &[u8], arguments: &[&str], code: u8, words: &[&str]) {
    let (end, _) = recorded(program, arguments);
    assert_eq!(end.code, Some(code.into()), "{end:?}");
    for words in words {
        assert!(end.reason.contains(words), "{words:?} is not in {:?}", end.reason);
    }
}

#[test]
fn a_pass_is_exit_code_0_and_a_failure_names_the_test() {
    let telling = |value: u64| {
        conforming(|assembler| {
            assembler.constant(VALUE, value);
            assembler.word(ECALL);
        })
    };
    assert_ends(&telling(1), &[], exit::OK, &["code 0"]);
    assert_ends(&telling(7 << 1 | 1), &[], exit::GUEST_FAILED, &["test 7 failed"]);
    assert_ends(&telling(300 << 1 | 1), &[], exit::GUEST_FAILED, &["test 300 failed"]);
    assert_ends(&telling(1337 | 4), &[], exit::GUEST_FAILED, &["a trap that it did not expect"]);
}

#[test]
fn what_it_prints_through_tohost_is_its_console() {
    let program = conforming(|assembler| {
        for byte in b"dear diary\n" {
            assembler.constant(VALUE, 0x0101 << 48 | u64::from(*byte));
            assembler.word(sd(VALUE, TOHOST_REGISTER, 0));
            // `tohost` is clear again at once.
            let waits = assembler.place_new();
            assembler.word(ld(7, TOHOST_REGISTER, 0));
            assembler.branch(1, 7, 0, waits);
        }
        assembler.words(&[addi(VALUE, 0, 1), ECALL]);
    });
    let (end, console) = recorded(&program, &["--limit", NEVER]);
    assert_eq!((end.code, console.as_str()), (Some(exit::OK.into()), "dear diary\n"), "{end:?}");
}

/// Makes a system call and waits for its result, in x8, like newlib's libgloss and the benchmarks
/// of riscv-tests.
fn system_call(assembler: &mut Assembler, number: u64, arguments: [u64; 3]) {
    const FROMHOST_REGISTER: u32 = 9;
    assembler.constant(7, CALL);
    for (offset, word) in [0, 8, 16, 24].into_iter().zip([number].into_iter().chain(arguments)) {
        assembler.constant(VALUE, word);
        assembler.word(sd(VALUE, 7, offset));
    }
    assembler.constant(TOHOST_REGISTER, TOHOST);
    assembler.constant(FROMHOST_REGISTER, FROMHOST);
    assembler.word(sd(7, TOHOST_REGISTER, 0));
    let waits = assembler.place_new();
    assembler.word(ld(VALUE, FROMHOST_REGISTER, 0));
    assembler.branch(0, VALUE, 0, waits);
    assembler.words(&[sd(0, FROMHOST_REGISTER, 0), ld(8, 7, 0)]);
}

#[test]
fn system_calls_write_to_the_console_and_end_the_program() {
    let mut assembler = Assembler::new(START);
    for (offset, byte) in [0, 1].into_iter().zip(*b"hi") {
        assembler.constant(VALUE, u64::from(byte));
        assembler.constant(7, TEXT + offset);
        assembler.word(sd(VALUE, 7, 0));
    }
    system_call(&mut assembler, 64, [1, TEXT, 2]);
    // The call's result, 2, is the length of the next text.
    assembler.constant(7, TEXT + 16);
    assembler.words(&[addi(8, 8, i32::from(b'0')), sd(8, 7, 0)]);
    system_call(&mut assembler, 64, [2, TEXT + 16, 1]);
    system_call(&mut assembler, 93, [3, 0, 0]);
    let (end, console) = recorded(&program(assembler, true), &["--limit", NEVER]);
    assert_eq!((end.code, console.as_str()), (Some(exit::GUEST_FAILED.into()), "hi2"), "{end:?}");
    assert!(end.reason.contains("code 3"), "{end:?}");
}

/// Without a handler, the first access to something that the machine lacks ends the program with an
/// error that names it.
#[test]
fn a_double_trap_tells_the_first_trap_and_what_the_machine_lacks() {
    let limit = &["--limit", "20000"];
    let of = |code: &[u32]| {
        let mut assembler = Assembler::new(START);
        assembler.constant(7, 0x1001_0008);
        assembler.words(code);
        program(assembler, true)
    };
    assert_ends(&of(&[csr(1, 0, 0x740, 0)]), limit, exit::GUEST_FAILED, &["double trap", "no CSR 0x740"]);
    let nothing = ["double trap", "load access fault", "this machine has nothing at 0x10010008"];
    assert_ends(&of(&[ld(6, 7, 0)]), limit, exit::GUEST_FAILED, &nothing);
}

/// The network driver notifies a queue whose ring is outside RAM: the device stops, and the program
/// passes.
#[test]
fn a_drivers_mistake_is_told_and_the_program_goes_on() {
    const NET: u64 = 0x1000_1000;
    const SW: u32 = 2;
    let mut assembler = Assembler::new(START);
    let begin = [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 1), (0x38, 8), (0x44, 1), (0x70, 15), (0x50, 1)];
    for (register, value) in begin {
        assembler.constant(7, NET + register);
        assembler.constant(VALUE, value);
        assembler.word(s_type(SW, 7, VALUE, 0));
    }
    assembler.constant(TOHOST_REGISTER, TOHOST);
    assembler.constant(VALUE, 1);
    assembler.word(sd(VALUE, TOHOST_REGISTER, 0));
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (file, log) = (path("program"), path("log"));
    fs::write(&file, program(assembler, true)).unwrap();
    for (program, arguments) in [("ft-record", &["--bare", &file, "--output", &log][..]), ("ft-replay", &[&log])] {
        let mut node = Node::start(&programs!(), directory.path(), program, arguments);
        let told = node.told("device_failed");
        let expected = ["virtio-net", "1", "null", "1"];
        let fields = ["device", "queue", "descriptor", "times"].map(|field| told[field].to_string());
        assert_eq!(fields.each_ref().map(|field| field.trim_matches('"')), expected, "{program}");
        assert_eq!(node.end().code, Some(exit::OK.into()), "{program}");
    }
}

/// A program that executes `word` for ever.
fn endless(has_symbol: bool, word: u32) -> Vec<u8> {
    let mut assembler = Assembler::new(START);
    let start = assembler.place_new();
    assembler.word(word);
    assembler.jump(0, start);
    program(assembler, has_symbol)
}

#[test]
fn a_program_that_tells_no_result_has_not_passed() {
    let nop = addi(0, 0, 0);
    let limit = &["--limit", "20000"];
    assert_ends(&endless(true, nop), limit, exit::GUEST_FAILED, &["reached instruction 20_000", "no result"]);
    assert_ends(&endless(true, WFI), &[], exit::GUEST_FAILED, &["sleeps", "no result"]);
    // Its trap vector is 0, where there is no memory.
    assert_ends(&endless(true, 0), limit, exit::GUEST_FAILED, &["double trap"]);
}

#[test]
fn a_program_without_tohost_can_only_come_to_a_limit_or_fall_asleep() {
    let nop = addi(0, 0, 0);
    assert_ends(&endless(false, nop), &["--limit", "20000"], exit::OK, &["no symbol `tohost`"]);
    for arguments in [&[][..], &["--limit", NEVER]] {
        assert_ends(&endless(false, WFI), arguments, exit::OK, &["sleeps", "no symbol `tohost`"]);
    }
}
