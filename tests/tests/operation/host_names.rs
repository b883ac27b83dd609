//! Host names and IPv6 addresses as HOST:PORT.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::{Command, Stdio};
use tests::programs;
use tests::stage::{Node, wait_until};

fn start(directory: &tempfile::TempDir, program: &str, arguments: &[&str]) -> Node {
    Node::start(&programs!(), directory.path(), program, arguments)
}

/// `address` with the host's name in it.
fn named(address: &str) -> String {
    format!("localhost:{}", address.rsplit_once(':').unwrap().1)
}

#[test]
fn a_pair_finds_everything_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let claims = directory.path().join("claims");
    let mut arbiter = start(&directory, "ft-arbiter", &["--listen", "localhost:0", "--dir", claims.to_str().unwrap()]);
    let arbiter = format!("tcp:{}", named(&arbiter.told_text("listening", "listen")));
    let forward = "tcp:localhost:0=10.0.2.15:7";
    let mut lan = start(&directory, "ft-lan", &["--listen", "localhost:0", "--forward", forward]);
    let lan = named(&lan.told_text("listening", "listen"));
    let net = format!("lan={lan}");
    let mut primary = start(
        &directory,
        "ft-primary",
        &["--arbiter", &arbiter, "--net", &net, "--listen", "localhost:0", "--advertise", "localhost:7"],
    );
    assert_eq!(primary.told_text("listening", "channel"), "localhost:7", "backups are told what the operator says");
    // The claim has no address that others could use, so the backup gets one by an option.
    let port = listening_port(primary.pid());
    let there = format!("localhost:{port}");
    let mut backup = start(
        &directory,
        "ft-backup",
        &["--arbiter", &arbiter, "--lan", &lan, "--listen", "localhost:0", "--primary", &there],
    );
    primary.told("lan_attached");
    backup.told("protected");
    backup.interrupt();
    primary.interrupt();
}

/// The TCP port on which a process listens.
fn listening_port(pid: u32) -> u16 {
    let mut found = None;
    wait_until("it listens", || {
        let inodes: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        found = sockets.lines().skip(1).find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_listening = fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9]);
            is_listening.then(|| u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok()).flatten()
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn an_invalid_address_is_refused_with_the_reason() {
    let uses: [(&str, &[&str], &str); 12] = [
        ("ft-arbiter", &["--dir", "claims", "--listen", "localhost"], "names no port"),
        ("ft-lan", &["--listen", "::1:7000"], "without brackets"),
        ("ft-lan", &["--qemu", "no-such-host.invalid:1"], "can't be looked up"),
        ("ft-lan", &["--forward", "no-such-host.invalid:1=10.0.2.15:7"], "can't be looked up"),
        ("ft-primary", &["--listen", "7200"], "names no port"),
        ("ft-primary", &["--lan", "[localhost]:7000"], "no IPv6 address in its brackets"),
        ("ft-primary", &["--net", "lan=localhost:http"], "no port number"),
        ("ft-primary", &["--advertise", "primary"], "names no port"),
        ("ft-backup", &["--primary", "no-such-host.invalid:7200"], "can't be looked up"),
        ("ft-backup", &["--listen", ":7201"], "names no host"),
        ("ft-record", &["--lan", "localhost:99999"], "no port number"),
        ("ft-record", &["--net", "localhost:7000"], "lan=HOST:PORT"),
    ];
    for (program, arguments, reason) in uses {
        let output = programs!().command(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}: {told}");
        assert!(told.contains(reason), "{program} {arguments:?}: {told}");
    }
    for spec in ["tcp:localhost", "tcp:::1:7100", "etcd://localhost:2379,[::1]"] {
        let mut command: Command = programs!().command("ft-primary");
        let output = command.args(["--arbiter", spec, "--listen", "127.0.0.1:0"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{spec}: {told}");
        assert!(told.contains("it names no host and port"), "{spec}: {told}");
    }
}
