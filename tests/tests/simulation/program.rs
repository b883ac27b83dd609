//! `ft-sim` as its user calls it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn ft_sim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ft-sim"));
    command.args(arguments).env_remove("NO_COLOR");
    command
}

fn output(arguments: &[&str]) -> (Output, String) {
    let output = ft_sim(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

#[test]
fn results_are_told_in_json() {
    let (output, text) = output(&["--from", "3", "--seeds", "4", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["runs"], &json["failure"], &json["failures"]), (&4.into(), &Value::Null, &Value::Array(vec![])));
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    assert!(json["sightings"]["DigestCompared"].as_u64().unwrap() > 0, "{text}");
}

#[test]
fn a_trace_is_plain_or_coloured_and_fits() {
    let (first, plain) = output(&["--trace", "3", "--width", "80"]);
    assert!(first.status.success(), "{first:?}");
    assert!(plain.contains("PRIMARY of generation 1") && !plain.contains('\x1b'));
    assert!(plain.lines().all(|line| line.chars().count() <= 80));
    let (_, coloured) = output(&["--seed", "3", "--trace", "--width", "80", "--color", "always"]);
    assert!(coloured.contains("\x1b["));
    let (_, part) = output(&["--trace", "3", "--show-from", "100", "--show-to", "200"]);
    let begins = |line: &str| line.trim_start().split('.').next().and_then(|ms| ms.parse::<u64>().ok());
    let times: Vec<_> = part.lines().filter(|line| line.get(4..5) == Some(".")).filter_map(begins).collect();
    assert!(!times.is_empty() && times.iter().all(|ms| (100..200).contains(ms)), "{times:?}");
}

#[test]
fn a_page_is_written_to_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.html");
    assert!(ft_sim(&["--trace", "3", "--html"]).arg(&file).status().unwrap().success());
    assert!(std::fs::read_to_string(&file).unwrap().contains("PRIMARY of generation 1"));
    let missing = folder.path().join("no").join("such.html");
    let output = ft_sim(&["--trace", "3", "--html"]).arg(&missing).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("such.html") && told.contains("No such file"), "{told}");
}

#[test]
fn a_fault_of_no_name_and_a_run_of_no_seed_are_bad_usage() {
    for arguments in [&["--trace", "3", "--without", "nothing"][..], &["--trace"], &["--until", "3"]] {
        let (output, _) = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

/// Whether a process has blocked SIGINT, for the thread that waits for it.
fn hears_signals(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(blocked.trim(), 16).unwrap() & 1 << (Signal::SIGINT as u32 - 1) != 0
}

#[test]
fn ctrl_c_ends_it_with_what_was_found() {
    let mut process = ft_sim(&["--seeds", "100000000", "--json"]);
    let child = process.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    while !hears_signals(child.id()) {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["interrupted"], true);
}
