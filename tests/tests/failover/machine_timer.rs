//! A program in M-mode outlives its primary: its timer goes on, and its console's interrupts.

use std::fs;
use std::io::{self, Write};
use tests::programs;
use tests::stage::{Stage, wait_until};
use tests::timer_guest::{SOFT, TOCK, executable};

#[test]
fn a_timer_and_console_interrupts_of_machine_mode_go_on_after_a_failover() {
    let stage = Stage::new(programs!());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("program");
    fs::write(&file, executable(true)).unwrap();
    let (input, mut keyboard) = io::pipe().unwrap();
    let options = ["--bare", file.to_str().unwrap(), "--digest-steps", "100"];
    let mut primary = stage.node_with_input("ft-primary", &options, input.into());
    let channel = primary.told_text("listening", "channel");
    let (input, mut next_keyboard) = io::pipe().unwrap();
    let mut backup = stage.node_with_input("ft-backup", &["--primary", &channel], input.into());
    backup.told("protected");
    keyboard.write_all(b"t").unwrap();
    for answer in [SOFT, TOCK] {
        wait_until(answer, || primary.console().contains(answer));
    }
    primary.kill();
    assert!(backup.told_number("live", "digests_checked") > 0, "lockstep was checked");
    assert!(!backup.console().contains(SOFT), "it goes on, and doesn't start again");
    for (key, answer) in [("z", "<z>"), ("t", TOCK), ("q", "<q>")] {
        next_keyboard.write_all(key.as_bytes()).unwrap();
        wait_until(answer, || backup.console().contains(answer));
    }
    let end = backup.end();
    assert_eq!(end.code, Some(0), "{end:?}");
    backup.assert_no_panic();
}
