//! A network of a test's own: a namespace of the kernel's, with a bridge and TAP interfaces on it.
//!
//! It takes root, and `ip` and `bridge` of the Debian package `iproute2`; tests that need them say
//! clearly that they were skipped.

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

/// The bridge's name, and the host's end of it.
pub const BRIDGE: &str = "ft-bridge";

/// Runs `test` in a namespace of its own that has nothing but the loopback interface, or says why
/// it can't.
///
/// What `test` starts, threads and processes, is in the namespace too. The kernel removes it with
/// the last of them, so that nothing is left behind however the test ends.
///
/// # Panics
/// If `test` does, or the namespace can't be made although this is root.
pub fn in_own_network(test: impl FnOnce() + Send) {
    if let Err(missing) = is_possible() {
        // Not by a macro: what a passing test prints by one, nobody sees.
        let _ = writeln!(io::stderr().lock(), "SKIPPED: {missing}");
        return;
    }
    // A thread of its own enters the namespace: whoever calls stays where it is.
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        run("ip", "link set lo up");
        test();
    };
    if let Err(panic) = thread::scope(|scope| scope.spawn(inside).join()) {
        resume_unwind(panic);
    }
}

/// Makes a bridge on which this host is `address` (such as `10.0.2.2/24`), and TAP interfaces on
/// it.
///
/// # Panics
/// If the kernel doesn't.
pub fn make_bridge(address: &str, taps: &[&str]) {
    run("ip", &format!("link add {BRIDGE} type bridge"));
    run("ip", &format!("address add {address} dev {BRIDGE}"));
    for tap in taps {
        run("ip", &format!("tuntap add dev {tap} mode tap"));
        run("ip", &format!("link set {tap} master {BRIDGE} up"));
    }
    run("ip", &format!("link set {BRIDGE} up"));
}

/// Which stations the bridge knows, and on which of its interfaces, as `bridge` prints it.
///
/// # Panics
/// If `bridge` can't tell.
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
    // Tried on a thread that ends right after.
    match thread::scope(|scope| scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join()) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Errno::EPERM)) => Err("network namespaces take root".into()),
        Ok(Err(error)) => Err(format!("this kernel makes no network namespaces: {error}")),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a command whose arguments have no spaces in them; gives what it prints.
///
/// # Panics
/// If it fails.
pub fn run(command: &str, arguments: &str) -> String {
    let output = Command::new(command).args(arguments.split(' ')).output().expect("its presence was checked");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command} {arguments}: {stderr}");
    stdout.into_owned()
}
