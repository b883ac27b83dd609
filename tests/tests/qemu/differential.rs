//! The same executables on QEMU's `virt` board and on our machine print the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::guest::Guest;
use std::collections::BTreeMap;
use std::time::Duration;
use tests::qemu::runtime::{program, word_name};
use tests::qemu::snippet::Snippet;
use tests::qemu::{INTEGER_ISA, SAME_ISA, is_installed, run_on_machine, run_on_qemu};
use tests::random::{Random, seed};
use vm::StopReason;

const TIMEOUT: Duration = Duration::from_secs(60);
const STEPS_MAX: u64 = 1_000_000_000;

/// Snippets in one random program.
const SNIPPETS: usize = 1000;
/// Units in one snippet.
const UNITS: usize = 120;

/// Random programs in one run of the test.
const PROGRAMS: usize = 3;

fn same_on_both(name: &str, arguments: &[&str]) -> Vec<String> {
    let image = Guest::load(name).unwrap().image;
    let (ours, end) = run_on_machine(&image, STEPS_MAX);
    assert_eq!(end, StopReason::PowerOff { code: 0 }, "{ours:#?}");
    let theirs = run_on_qemu(&image, arguments, TIMEOUT);
    for (line, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "{name}, line {line}: our machine on the left, QEMU on the right");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}: one printed more lines");
    ours
}

#[test]
fn the_suite_prints_the_same_on_qemu() {
    if !is_installed() {
        return;
    }
    let lines = same_on_both("suite", &SAME_ISA);
    let verdict = lines.last().unwrap();
    assert!(verdict.starts_with("suite: passed (") && verdict.ends_with(" 0 failures)"), "{verdict}");
    println!("{} lines equal; {verdict}", lines.len());
}

#[test]
fn hello_prints_the_same_on_qemu() {
    if !is_installed() {
        return;
    }
    let lines = same_on_both("hello", &[]);
    assert_eq!(lines.last().map(String::as_str), Some("goodbye"));
}

#[test]
fn random_programs_compute_the_same_on_qemu() {
    if !is_installed() {
        return;
    }
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut lines, mut units) = (0, 0);
    for _ in 0..PROGRAMS {
        let snippets: Vec<Snippet> = (0..SNIPPETS).map(|_| Snippet::new(random.next_u64(), UNITS)).collect();
        let [ours, theirs] = run_both(&program(&snippets, None));
        if ours != theirs {
            let index = ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
            panic!("seed {seed}: {}", difference(&snippets, index));
        }
        assert_eq!(ours.len(), SNIPPETS, "a line for each snippet");
        lines += ours.len();
        units += SNIPPETS * UNITS;
    }
    println!("{lines} snippets of {UNITS} units ({units} in all) left the same state behind");
}

/// The lines that our machine and QEMU print.
fn run_both(image: &[u8]) -> [Vec<String>; 2] {
    let theirs = run_on_qemu(image, &INTEGER_ISA, TIMEOUT);
    let (ours, end) = run_on_machine(image, STEPS_MAX);
    assert_eq!(end, StopReason::PowerOff { code: 0 });
    [ours, theirs]
}

/// Runs the program again with all result words of the snippet at `index`, and describes those that
/// differ.
fn difference(snippets: &[Snippet], index: usize) -> String {
    let Some(snippet) = snippets.get(index) else { return "one printed more than a line for each snippet".into() };
    let [ours, theirs] = run_both(&program(snippets, Some(index)));
    let mut text = format!("snippet {index} (its own seed {:#x}, {:?} mode) differs\n", snippet.seed, snippet.mode);
    // The words follow the line with the snippet's hash; each other snippet has a hash only.
    let words = ours.iter().zip(&theirs).skip(index + 1).take(ours.len() - snippets.len()).enumerate();
    for (word, (ours, theirs)) in words.filter(|(_, (ours, theirs))| ours != theirs).take(8) {
        text += &format!("  {:<16} ours {ours}, QEMU's {theirs}\n", word_name(word));
    }
    text + &snippet.listing()
}

/// The comparison needs this: snippets must take all traps that they are made for, and go on after
/// them.
#[test]
fn snippets_take_every_kind_of_trap() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut causes = BTreeMap::<u64, u64>::new();
    for _ in 0..400 {
        let (lines, _) = run_on_machine(&program(&[Snippet::new(random.next_u64(), UNITS)], Some(0)), STEPS_MAX);
        // The first line is the snippet's hash.
        for (_, cause) in (0..).zip(&lines[1..]).filter(|(index, _)| word_name(*index).ends_with(": scause")) {
            *causes.entry(u64::from_str_radix(cause, 16).unwrap()).or_default() += 1;
        }
    }
    println!("traps by cause: {causes:?}");
    // Fetch fault, illegal instruction, breakpoint, load and store fault, environment call.
    assert_eq!(causes.into_keys().collect::<Vec<_>>(), [1, 2, 3, 5, 7, 8]);
}

/// The comparison needs this: a result that differs in one bit must be detected.
#[test]
fn one_bit_of_difference_changes_what_a_program_prints() {
    let seed = seed();
    let mut snippets: Vec<Snippet> = (0..4).map(|number| Snippet::new(seed ^ number, UNITS)).collect();
    let (before, _) = run_on_machine(&program(&snippets, None), STEPS_MAX);
    // A snippet without units leaves its initial values.
    snippets[2] = Snippet::new(seed, 0);
    let (empty, _) = run_on_machine(&program(&snippets, None), STEPS_MAX);
    snippets[2].scratch[63] ^= 1 << 40;
    let (after, _) = run_on_machine(&program(&snippets, None), STEPS_MAX);
    let differing = |one: &[String], other: &[String]| -> Vec<usize> {
        (0..4).filter(|index| one[*index] != other[*index]).collect()
    };
    assert_eq!(before.len(), 4);
    assert!(differing(&before, &empty).contains(&2));
    assert_eq!(differing(&empty, &after), [2]);
    let (detailed, _) = run_on_machine(&program(&snippets, Some(2)), STEPS_MAX);
    assert_eq!(detailed[3 + 32 + 63], format!("{:016x}", snippets[2].scratch[63]), "{}", word_name(32 + 63));
}
