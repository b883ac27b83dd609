//! A test's own network: a kernel namespace with a bridge and TAP interfaces.
//!
//! It needs root, and `ip` and `bridge` of the Debian package `iproute2`; tests that need it report
//! when they are skipped.

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

/// The name of the bridge, which is also the host's interface on it.
pub const BRIDGE: &str = "ft-bridge";

/// Runs `test` in a new namespace that has only a loopback interface, or prints why that can't be
/// done.
///
/// Threads and processes that `test` starts are in the namespace too. The kernel removes it after
/// the last of them, so that nothing is left behind, however the test ends.
///
/// # Panics
/// If `test` panics, or the namespace can't be made although this is root.
pub fn in_own_network(test: impl FnOnce() + Send) {
    if let Err(missing) = is_possible() {
        // Written directly, because the output of a passing test's macros is captured.
        let _ = writeln!(io::stderr().lock(), "SKIPPED: {missing}");
        return;
    }
    // A new thread enters the namespace; the caller's thread stays outside.
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        run("ip", "link set lo up");
        test();
    };
    if let Err(panic) = thread::scope(|scope| scope.spawn(inside).join()) {
        resume_unwind(panic);
    }
}

/// Makes a bridge on which this host has `address`, such as `10.0.2.2/24`, and TAP interfaces on
/// it.
///
/// # Panics
/// If the kernel refuses.
pub fn make_bridge(address: &str, taps: &[&str]) {
    run("ip", &format!("link add {BRIDGE} type bridge"));
    run("ip", &format!("address add {address} dev {BRIDGE}"));
    for tap in taps {
        run("ip", &format!("tuntap add dev {tap} mode tap"));
        run("ip", &format!("link set {tap} master {BRIDGE} up"));
    }
    run("ip", &format!("link set {BRIDGE} up"));
}

/// The stations that the bridge knows, with their interfaces, as `bridge` prints them.
///
/// # Panics
/// If `bridge` fails.
#[must_use]
pub fn stations() -> String {
    run("bridge", &format!("fdb show br {BRIDGE}"))
}

fn is_possible() -> Result<(), String> {
    for command in ["ip", "bridge"] {
        match Command::new(command).arg("-Version").stdout(Stdio::null()).status() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("{command} is not installed (Debian package iproute2)"));
            }
            Err(error) => panic!("{command} can't be started: {error}"),
        }
    }
    // Tried on a thread that ends at once.
    match thread::scope(|scope| scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join()) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Errno::EPERM)) => Err("network namespaces take root".into()),
        Ok(Err(error)) => Err(format!("this kernel makes no network namespaces: {error}")),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a command whose arguments contain no spaces; returns its output.
///
/// # Panics
/// If it fails.
pub fn run(command: &str, arguments: &str) -> String {
    let output = Command::new(command).args(arguments.split(' ')).output().expect("its presence was checked");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command} {arguments}: {stderr}");
    stdout.into_owned()
}
