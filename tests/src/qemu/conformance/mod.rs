//! Random programs of a few hundred instructions, compared by everything that they leave behind:
//! registers, floating-point registers and flags, CSRs, memory, page tables, and every trap.
//!
//! ```text
//!   seed ──► class's generator ──► Program ─┐ some hundred of them     ┌─► our machine ──► a line each ─┐
//!                                           ├─► runtime + records: ELF ┤                                 ├─ equal?
//!   M-mode runtime, the same for all ───────┘                          └─► QEMU, one boot ─► a line each ─┘
//! ```
//! A program's addresses don't depend on its position in the file. So a program whose result
//! differs is run again alone, and prints all words of its result. Programs are generated on the
//! host: the guest needs no generator, and a failure can be listed.
//!
//! The generators leave out what may differ between correct machines, and where QEMU 7.2 is known
//! to be wrong; each says so.

mod control;
mod float;
mod integer;
mod memory;
mod paging;
pub mod program;
mod registers;
pub mod runtime;
mod system;
mod value;
mod writer;

use super::{Qemu, run_on};
use program::{Class, Program};
use std::time::Duration;
use vm::{BootMode, MachineConfig, StopReason};

/// The extensions of our machine and no others. Identification registers read zero on both.
pub const BARE_ISA: [&str; 2] = [
    "-cpu",
    "rv64,h=off,zbc=off,debug=off,pmu-num=0,\
     mvendorid=0,marchid=0,mimpid=0",
];

/// The longest run of one file.
const TIMEOUT: Duration = Duration::from_secs(60);
const STEPS_MAX: u64 = 4_000_000_000;

/// QEMU's output for `programs`: a line for each, with all words of the results if `detail`.
///
/// # Panics
/// If it doesn't end.
#[must_use]
pub fn on_qemu(programs: &[Program], detail: bool) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), runtime::image(programs, detail)).expect("a temporary file can be written");
    Qemu::start_bare(file.path(), &BARE_ISA).expect("QEMU starts").run_to_end(TIMEOUT)
}

/// Our machine's output for `programs`, likewise.
///
/// # Panics
/// If it doesn't end.
#[must_use]
pub fn on_machine(programs: &[Program], detail: bool) -> Vec<String> {
    let config = MachineConfig { boot: BootMode::Bare, ram_bytes: 64 << 20, ..MachineConfig::default() };
    let (lines, end) = run_on(&config, &runtime::image(programs, detail), STEPS_MAX);
    assert_eq!(end, StopReason::PowerOff { code: 0 }, "{lines:?}");
    lines
}

/// Runs `count` programs of `class` on both machines, from seed `seed` on.
///
/// # Errors
/// How the first program that differs does, its listing, and how to run it again.
pub fn compare(class: Class, seed: u64, count: u64) -> Result<(), String> {
    let programs: Vec<Program> = (0..count).map(|index| Program::new(class, seed.wrapping_add(index))).collect();
    let theirs = on_qemu(&programs, false);
    let ours = on_machine(&programs, false);
    if ours.len() != programs.len() || theirs.len() != programs.len() {
        return Err(format!("{count} programs, but {} lines of ours and {} of QEMU's", ours.len(), theirs.len()));
    }
    let differing: Vec<usize> = (0..programs.len()).filter(|index| ours[*index] != theirs[*index]).collect();
    match differing.first() {
        None => Ok(()),
        Some(first) => {
            Err(format!("{} of {count} programs differ, first {}", differing.len(), difference(&programs[*first])))
        }
    }
}

/// The causes of a program's traps, from its detailed output.
///
/// # Panics
/// If a line isn't a hexadecimal number.
#[must_use]
pub fn trap_causes(lines: &[String]) -> Vec<u64> {
    let is_cause = |name: &str| name.starts_with("trap ") && name.ends_with(": cause");
    let words = runtime::words(&lines[1..]).into_iter().filter(|(name, _)| is_cause(name));
    words.map(|(_, word)| u64::from_str_radix(&word, 16).expect("a hexadecimal number")).collect()
}

/// Runs `program` alone and lists the differences of the results.
fn difference(program: &Program) -> String {
    let one = std::slice::from_ref(program);
    let [ours, theirs] = [on_machine(one, true), on_qemu(one, true)];
    let (class, seed) = (program.class.name(), program.seed);
    let mut text = format!(
        "{class} program {seed} ({:?} mode):\n  FT_CLASS={class} FT_PROGRAM_SEED={seed} cargo test -p tests --test qemu \
         one_program\n",
        program.mode
    );
    if ours == theirs {
        return text + "  run alone, it doesn't differ: what ran before it does";
    }
    text += &describe(&ours, &theirs);
    text + &program.listing()
}

/// The words that differ in two results, by name; the first line of a result is its hash.
fn describe(ours: &[String], theirs: &[String]) -> String {
    let mut text = format!("  {} words of ours, {} of QEMU's\n", ours.len(), theirs.len());
    let words = |lines: &[String]| runtime::words(&lines[1..]);
    let (ours, theirs) = (words(ours), words(theirs));
    let names = ours.iter().chain(&theirs).map(|(name, _)| name);
    let mut told: Vec<&String> = Vec::new();
    for name in names {
        let value = |words: &[(String, String)]| words.iter().find(|word| word.0 == *name).map(|word| word.1.clone());
        let (ours, theirs) = (value(&ours), value(&theirs));
        // One difference is listed for each trap.
        let of_trap = name.split_once(": ").is_some_and(|(trap, _)| told.iter().any(|told| told.starts_with(trap)));
        if (ours != theirs || of_trap) && !told.contains(&name) && told.len() < 16 {
            let absent = || "-".repeat(16);
            text += &format!(
                "  {name:<24} ours {}  QEMU's {}\n",
                ours.unwrap_or_else(absent),
                theirs.unwrap_or_else(absent)
            );
            told.push(name);
        }
    }
    text
}
