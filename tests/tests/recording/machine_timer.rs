//! A program in M-mode with a timer, a software interrupt and console interrupts: recorded and
//! replayed, and the same on QEMU.

use hypervisor::program::cli::exit;
use std::fs;
use std::io::{self, Write};
use std::time::Duration;
use tests::programs;
use tests::qemu::{Qemu, is_installed};
use tests::stage::{Node, wait_until};
use tests::timer_guest::{SOFT, TICK, TICKS, TOCK, executable};

const TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn a_program_with_a_timer_and_console_interrupts_of_machine_mode_is_recorded_and_replays() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (file, log) = (path("program"), path("log"));
    fs::write(&file, executable(true)).unwrap();
    let (input, mut keyboard) = io::pipe().unwrap();
    let arguments = ["--bare", &file, "--output", &log];
    let mut recorder = Node::start_with_input(&programs!(), directory.path(), "ft-record", &arguments, input.into());
    for (keys, answer) in [("", SOFT), ("a", "<a>"), ("t", TOCK), ("q", "<q>")] {
        keyboard.write_all(keys.as_bytes()).unwrap();
        wait_until(answer, || recorder.console().contains(answer));
    }
    let end = recorder.end();
    assert_eq!(end.code, Some(exit::OK.into()), "{end:?}");
    assert_eq!(recorder.console().matches(TICK).count(), TICKS);
    let mut replayer = Node::start(&programs!(), directory.path(), "ft-replay", &[&log]);
    let replayed = replayer.end();
    assert_eq!(replayed.code, Some(exit::OK.into()), "{replayed:?}");
    assert_eq!(replayer.console(), recorder.console());
}

#[test]
fn the_same_program_prints_the_same_on_qemu() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("program");
    fs::write(&file, executable(false)).unwrap();
    let theirs = Qemu::start_bare(&file, &[]).unwrap().run_to_end(TIMEOUT);
    let log = directory.path().join("log");
    let arguments = ["--bare", file.to_str().unwrap(), "--output", log.to_str().unwrap()];
    let mut recorder = Node::start(&programs!(), directory.path(), "ft-record", &arguments);
    assert_eq!(recorder.end().code, Some(exit::OK.into()));
    assert_eq!(recorder.console().lines().collect::<Vec<_>>(), theirs);
    assert_eq!(theirs, [[TICK; TICKS].as_slice(), &[SOFT]].concat());
}
