//! Reports and help texts: programs say what they do, and don't mislead.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::Signal;
use std::thread;
use std::time::Duration;
use tests::programs;
use tests::stage::{Ended, Pair, Stage};

#[test]
fn a_backup_at_the_last_owners_address_waits_and_does_not_take_itself_for_the_primary() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    primary.kill();
    let address = backup.told_text("listening", "channel");
    backup.told("live");
    backup.kill();
    let arbiter = format!("tcp:{}", stage.site.arbiter_address());
    let options = ["--arbiter", &arbiter, "--listen", &address, "--failure-timeout-ms", "200"];
    let mut again = stage.program("ft-backup", &options);
    again.told("waiting");
    // Longer than the backup needs to find that no primary answers.
    thread::sleep(Duration::from_millis(500));
    assert!(!again.has_told("primary_connected"));
    assert_eq!(again.interrupt().code, Some(130));
}

#[test]
fn a_backups_log_needs_accept_loss_and_the_owners_does_not() {
    for from_backup in [true, false] {
        let stage = Stage::new(programs!());
        let logs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [primarys, backups] = [0, 1].map(|side: usize| logs[side].path().to_str().unwrap());
        let Pair { mut primary, mut backup } = stage.pair(&["--log", primarys], &["--log", backups]);
        let owner = primary.told_text("listening", "channel");
        // A paused primary can't claim while its backup dies.
        tests::stage::pause(&primary);
        tests::stage::pause(&backup);
        primary.kill();
        backup.kill();
        if from_backup {
            let Ended { code, reason } = stage.node("ft-primary", &["--resume", backups]).end();
            assert_eq!(code, Some(1), "{reason}");
            assert!(reason.contains("--accept-loss") && reason.contains(&owner), "{reason}");
            assert!(!reason.contains("--force-new"), "a whole log is known: {reason}");
        }
        let log = if from_backup { backups } else { primarys };
        let options = [&["--resume", log][..], if from_backup { &["--accept-loss"] } else { &[] }].concat();
        let mut again = stage.node("ft-primary", &options);
        assert_eq!(again.told("resumed")["may_lack"], from_backup);
        again.told("log_usable");
    }
}

#[test]
fn help_tells_what_the_exit_codes_mean() {
    for program in ["ft-primary", "ft-backup", "ft-record", "ft-replay", "ft-arbiter"] {
        let help = programs!().command(program).arg("--help").output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout);
        assert!(help.contains("Exit codes: 0 "), "{program}: {help}");
    }
}

/// All help texts for a terminal with this many columns: `--help` and `-h` of each program, and
/// `--help` of `ft-bench`'s parts.
fn helps(columns: &str) -> Vec<String> {
    let help = |program: &str, arguments: &[&str]| {
        let mut command = programs!().command(program);
        let output = command.args(arguments).env("COLUMNS", columns).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let programs = ["ft-lan", "ft-arbiter", "ft-primary", "ft-backup", "ft-record", "ft-replay", "ft-demo", "ft-bench"];
    let parts = ["output-rule", "interp", "join"];
    let of_programs = programs.iter().flat_map(|program| [help(program, &["--help"]), help(program, &["-h"])]);
    of_programs.chain(parts.iter().map(|part| help("ft-bench", &[part, "--help"]))).collect()
}

#[test]
fn help_fits_a_terminal_of_80_columns_and_keeps_its_examples_whole() {
    let (narrow, wide) = (helps("80"), helps("1000"));
    for (narrow, wide) in narrow.iter().zip(wide) {
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        // Text at the margin may be wrapped; a command may not.
        let example = wide.lines().skip_while(|line| !line.starts_with("Example"));
        for command in example.filter(|line| line.starts_with("  ")) {
            assert!(narrow.lines().any(|line| line == command), "{command}\nis broken in\n{narrow}");
        }
    }
}

#[test]
fn a_backup_interrupted_while_it_claims_ends_the_vm_in_order() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    // The claim may be recorded and its answer lost: a backup that ended now would leave a VM that
    // no node may start.
    backup.signal(Signal::SIGINT);
    stage.restart_arbiter();
    let Ended { code, reason } = backup.end();
    assert_eq!(code, Some(0), "{reason}");
    stage.node("ft-primary", &[]).told("owner");
}
