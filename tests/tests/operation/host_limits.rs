//! A host's limits for a process, and the permissions of its files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tests::programs;
use tests::stage::{Node, Stage, wait_until};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_limit_of_file_sizes_ends_the_log_and_not_the_vm() {
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("ft-primary");
    symlink(env!("CARGO_BIN_EXE_ft-programs"), &program).unwrap();
    let log = directory.path().join("log");
    let arbiter = format!("file:{}", directory.path().join("claims").display());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 16; exec \"$0\" \"$@\""]).arg(program).arg("--log").arg(&log).stdin(Stdio::null());
    command.args(["--arbiter", &arbiter, "--listen", "127.0.0.1:0", "--unprotected", "--log-wait", "no", "--json"]);
    let stderr = directory.path().join("stderr");
    command.stderr(fs::File::create(&stderr).unwrap());
    let mut primary = Node::spawn("ft-primary", &mut command, stderr);
    assert!(primary.told_text("log_lost", "reason").contains("File too large"));
    primary.told("console");
    assert_eq!(primary.interrupt().code, Some(0));
}

#[test]
fn logs_are_readable_by_their_owner_only() {
    let stage = Stage::new(programs!());
    let directory = TempDir::new().unwrap();
    let log = directory.path().join("log");
    let mut primary = stage.node("ft-primary", &["--unprotected", "--log", log.to_str().unwrap()]);
    primary.told("console");
    primary.interrupt();
    assert_eq!(mode(&log), 0o700);
    let segments = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path());
    let segments: Vec<_> = segments.filter(|path| path.extension().is_some_and(|end| end == "ftlog")).collect();
    assert!(!segments.is_empty(), "{log:?} has no log");
    assert!(segments.iter().all(|path| mode(path) == 0o600), "{segments:?}");
    let recording = directory.path().join("recording");
    let options = ["--guest", "hello", "--output", recording.to_str().unwrap()];
    assert_eq!(stage.program("ft-record", &options).end().code, Some(0));
    assert_eq!(mode(&recording), 0o600);
}

#[test]
fn a_waiting_program_reports_what_it_waits_for() {
    let stage = Stage::new(programs!());
    let mut backup = stage.node("ft-backup", &["--vm", "nobody"]);
    assert!(backup.told_text("waiting", "reason").contains("knows no VM of this name"));
    let mut lost = stage.node("ft-backup", &["--primary", "127.0.0.1:9"]);
    assert!(lost.told_text("waiting", "reason").contains("nobody answers at 127.0.0.1:9"));
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    assert_eq!(primary.told_text("guest_waits", "channel"), channel);
    // Each report has its time, in both forms.
    let report = primary.told("guest_waits");
    let at = report["at"].as_str().unwrap();
    assert!(at.len() == "2026-11-29T01:02:03.456Z".len() && at.ends_with('Z'), "{report}");
    assert_eq!(report["level"], "info");
    let mut joined = stage.node("ft-backup", &["--primary", &channel]);
    joined.told("protected");
    assert_eq!(primary.told("protected")["again"], false);
    joined.kill();
    assert_eq!(primary.told("alone")["generation"], 2);
    let mut next = stage.node("ft-backup", &["--primary", &channel]);
    next.told("protected");
    wait_until("the second pair", || primary.count("protected") == 2);
    let again = primary.reports().iter().filter(|report| report["event"] == "protected" && report["again"] == true);
    assert_eq!(again.count(), 1);
}
