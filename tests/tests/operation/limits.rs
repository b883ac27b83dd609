//! The real programs with hostile arguments and under tight limits: a clear error and a non-zero
//! exit code, never a panic or a busy loop.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use nix::sys::resource::{Resource, setrlimit};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use tempfile::TempDir;
use tests::programs;

/// Runs `program` under `limits`, with an empty standard input; returns its exit status and output.
fn run(directory: &Path, program: &str, arguments: &[&str], limits: &[(Resource, u64)]) -> Output {
    let limits = limits.to_vec();
    let mut command = programs!().command(program);
    command.args(arguments).current_dir(directory).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    // SAFETY: the closure only makes system calls between fork and exec.
    let command = unsafe {
        command.pre_exec(move || {
            for (resource, limit) in &limits {
                setrlimit(*resource, *limit, *limit)?;
            }
            Ok(())
        })
    };
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Each program, with arguments with which it runs.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("ft-arbiter", &["--listen", "127.0.0.1:0", "--dir", "claims"]),
    ("ft-lan", &["--listen", "127.0.0.1:0"]),
    ("ft-record", &["--guest", "hello", "--force"]),
    ("ft-replay", &["guest.ftlog"]),
    ("ft-primary", &["--guest", "hello", "--listen", "127.0.0.1:0", "--arbiter", "file:claims", "--unprotected"]),
    ("ft-backup", &["--listen", "127.0.0.1:0", "--arbiter", "file:claims"]),
    ("ft-demo", &["--kills", "1"]),
];

#[test]
fn too_few_descriptors_are_an_error_at_the_start() {
    let directory = TempDir::new().unwrap();
    for (program, arguments) in PROGRAMS {
        for descriptors in [4, 6, 8, 12] {
            let ended = run(directory.path(), program, arguments, &[(Resource::RLIMIT_NOFILE, descriptors)]);
            let told = stderr(&ended);
            assert_eq!(ended.status.code(), Some(exit::FAILURE.into()), "{program} with {descriptors}: {told}");
            let expected = format!("may have {descriptors} open files, and needs ");
            assert!(told.contains(&expected) && told.contains("ulimit -n"), "{program} with {descriptors}: {told}");
            assert!(!told.contains("panicked"), "{told}");
        }
    }
}

#[test]
fn memory_that_the_host_refuses_is_an_error_for_a_vm_and_for_a_log() {
    const ADDRESS_SPACE: u64 = 1 << 30;
    let directory = TempDir::new().unwrap();
    let limits = [(Resource::RLIMIT_AS, ADDRESS_SPACE)];
    let refused = |program: &str, arguments: &[&str], limits: &[(Resource, u64)]| {
        let ended = run(directory.path(), program, arguments, limits);
        let told = stderr(&ended);
        assert_eq!(ended.status.code(), Some(exit::FAILURE.into()), "{program}: {told}");
        assert!(told.contains("the host doesn't give the 4"), "{program}: {told}");
    };
    let start = ["--guest", "hello", "--memory", "4G"];
    let recorded = run(directory.path(), "ft-record", &[&start[..], &["--output", "log"]].concat(), &[]);
    assert_eq!(recorded.status.code(), Some(exit::OK.into()), "{}", stderr(&recorded));
    refused("ft-record", &[&start[..], &["--output", "other"]].concat(), &limits);
    assert!(!directory.path().join("other").exists(), "what can't begin leaves no log");
    refused("ft-replay", &["log"], &limits);
    refused("ft-primary", &[&start[..], &["--arbiter", "file:claims", "--listen", "127.0.0.1:0"]].concat(), &limits);
    // Listing entries makes no machine, so it needs no memory for one.
    let listed = run(directory.path(), "ft-replay", &["log", "--entries"], &limits);
    assert_eq!(listed.status.code(), Some(exit::OK.into()), "{}", stderr(&listed));
}

#[test]
fn errors_say_what_to_do() {
    let directory = TempDir::new().unwrap();
    let executable = std::env::current_exe().unwrap();
    let own = executable.to_str().unwrap();
    let cases: [(&str, &[&str], i32, &str); 9] = [
        ("ft-record", &["--memory", "9999999"], 2, "a machine has 4 MiB to 4 GiB of RAM"),
        ("ft-record", &["--memory", "64K"], 2, "say it in MiB, or as 64M or 2G"),
        ("ft-record", &["--memory", "18446744073709551615"], 2, "4 MiB to 4 GiB"),
        ("ft-primary", &["--kernel", own], 1, "ELF file for"),
        ("ft-lan", &["--listen", "192.0.2.1:7000"], 1, "this host has no such address"),
        ("ft-arbiter", &["--dir", "claims", "--listen", "192.0.2.1:0"], 1, "this host has no such address"),
        ("ft-backup", &["--listen", "192.0.2.1:0", "--arbiter", "file:claims"], 1, "this host has no such address"),
        ("ft-replay", &["."], 1, "no log that can be replayed"),
        ("ft-record", &["--output", "no/such/log", "--guest", "hello"], 1, "No such file or directory"),
    ];
    for (program, arguments, code, expected) in cases {
        let ended = run(directory.path(), program, arguments, &[]);
        let told = stderr(&ended);
        assert_eq!(ended.status.code(), Some(code), "{program} {arguments:?}: {told}");
        assert!(told.contains(expected) && !told.contains("panicked"), "{program} {arguments:?}: {told}");
    }
}

#[test]
fn a_closed_pipe_or_a_full_disk_causes_no_panic() {
    let directory = TempDir::new().unwrap();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let closed = || std::io::pipe().unwrap().1;
    for (stdout, stderr) in [(true, false), (true, true)] {
        for is_closed in [true, false] {
            let target = || -> Stdio { if is_closed { closed().into() } else { full().into() } };
            let mut command = programs!().command("ft-demo");
            command.args(["--kills", "1"]).current_dir(directory.path()).stdin(Stdio::null());
            command.stdout(if stdout { target() } else { Stdio::null() });
            command.stderr(if stderr { target() } else { Stdio::piped() });
            let ended = ended(&mut command);
            let expected = if is_closed { exit::PIPE_CLOSED } else { exit::FAILURE };
            let told = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(
                ended.status.code(),
                Some(expected.into()),
                "closed {is_closed}, also standard error {stderr}: {told}"
            );
            assert!(!told.contains("panicked"), "{told}");
        }
    }
}

fn ended(command: &mut Command) -> Output {
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn two_recordings_into_one_file_leave_one_that_replays() {
    let directory = TempDir::new().unwrap();
    let arguments = ["--guest", "counter", "--limit", "20000000", "--output", "log"];
    for options in [&[][..], &["--force"]] {
        let arguments = [&arguments[..], options].concat();
        let codes: Vec<_> = thread::scope(|scope| {
            let recorders: Vec<_> =
                (0..4).map(|_| scope.spawn(|| run(directory.path(), "ft-record", &arguments, &[]))).collect();
            recorders.into_iter().map(|recorder| recorder.join().unwrap()).collect()
        });
        let won = codes.iter().filter(|ended| ended.status.code() == Some(exit::OK.into())).count();
        assert!(won >= 1, "{codes:?}");
        for lost in codes.iter().filter(|ended| !ended.status.success()) {
            let told = stderr(lost);
            assert!(told.contains("exists; --force") || told.contains("is being written by another"), "{told}");
        }
        let replayed = run(directory.path(), "ft-replay", &["log", "--console", "none"], &[]);
        assert_eq!(replayed.status.code(), Some(exit::OK.into()), "{}", stderr(&replayed));
        assert!(stderr(&replayed).contains("the log is complete"), "{}", stderr(&replayed));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
