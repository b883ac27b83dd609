//! Arrows point one way: `vm <- logchannel <- hypervisor <- tests`, and only the host's side of the hypervisor knows a host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 5] = ["vm", "logchannel", "hypervisor", "guest-programs", "tests"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The crates of this workspace that `package` depends on, for whatever purpose but its tests.
fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest = read(&workspace().join(package).join("Cargo.toml"));
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let counts = section.ends_with("dependencies") && section != "dev-dependencies";
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default().trim_matches('"');
        if counts && CRATES.contains(&name) {
            found.insert(name.to_owned());
        }
    }
    found
}

/// Rust files under `path`, or the one at it.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut files: Vec<_> = entries.flat_map(|entry| sources(&entry.unwrap().path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// A file's code: without comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = read(path);
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every occurrence of one of `words` in the code under `path`.
fn occurrences(path: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources(path) {
        let code = code(&file);
        for (number, line) in code.lines().enumerate() {
            let words = words.iter().filter(|word| line.contains(**word));
            found.extend(words.map(|word| format!("{}:{}: {word}", file.display(), number + 1)));
        }
    }
    found
}

#[test]
fn crates_depend_on_those_below_them_only() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(dependencies("vm"), set(&[]));
    assert_eq!(dependencies("logchannel"), set(&["vm"]));
    assert_eq!(dependencies("hypervisor"), set(&["vm", "logchannel"]));
    assert_eq!(dependencies("guest-programs"), set(&[]));
    assert_eq!(dependencies("tests"), set(&["vm", "logchannel", "hypervisor"]));
    let manifest = read(&workspace().join("Cargo.toml"));
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    assert_eq!(members.matches('"').count(), 2 * CRATES.len(), "a crate this test doesn't know: {members}");
}

#[test]
fn machine_knows_no_standard_library() {
    let root = code(&workspace().join("vm/src/lib.rs"));
    assert!(root.contains("no_std"), "the compiler is the reviewer of vm/ only without std");
    let found = occurrences(&workspace().join("vm/src"), &["extern crate std", "std::"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn recording_replaying_and_the_roles_know_no_clock_socket_or_thread() {
    let words = ["std::time", "std::net", "std::thread", "Instant", "SystemTime", "tokio", "crate::host", "getrandom"];
    let source = workspace().join("hypervisor/src");
    for part in ["record.rs", "replay.rs", "divergence.rs", "event_source.rs", "output_gate.rs", "role"] {
        let found = occurrences(&source.join(part), &words);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn only_the_hosts_side_reads_clocks() {
    let source = workspace().join("hypervisor/src");
    // The LAN's server and the arbiter's have an event loop with timers of its own; the programs wait for processes.
    let allowed = ["host", "lan", "arbiter", "program"].map(|part| source.join(part));
    let words = ["Instant::now", "SystemTime", "UdpSocket", "TcpListener", "thread::spawn", "thread::sleep"];
    let found: Vec<_> = occurrences(&source, &words)
        .into_iter()
        .filter(|found| !allowed.iter().any(|part| Path::new(found.split(':').next().unwrap()).starts_with(part)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
    let found = occurrences(&workspace().join("logchannel/src"), &[&words[..], &["std::net", "std::time"]].concat());
    assert!(found.is_empty(), "{found:#?}");
}
