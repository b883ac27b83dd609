//! A real etcd as the arbiter: a cluster of members on the loopback interface, which tests kill and
//! restart.
//!
//! etcd is the Debian package `etcd-server`; tests that need it report when they are skipped.

use crate::stage::wait_until;
use hypervisor::arbiter::{Arbiter, EtcdArbiter};
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = "etcd";

/// A cluster. Dropping it ends its members and removes their data.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    // Declared after the members, which write into it until they are dropped.
    _directory: TempDir,
}

#[derive(Debug)]
struct Member {
    client: String,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// Starts a cluster of `members`, and waits until it answers; `None` if etcd isn't installed.
    ///
    /// # Panics
    /// If it doesn't come up.
    #[track_caller]
    #[must_use]
    pub fn start(members: usize) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("ft-etcd-").tempdir().expect("the host has room for a test");
        let addresses: Vec<_> = (0..members).map(|_| (free_address(), free_address())).collect();
        let peers: Vec<_> =
            addresses.iter().enumerate().map(|(name, (_, peer))| format!("m{name}=http://{peer}")).collect();
        let start = |(name, (client, peer)): (usize, &(String, String))| {
            let arguments = arguments(&format!("m{name}"), directory.path(), client, peer, &peers.join(","));
            let mut member = Member { client: client.clone(), arguments, process: None };
            member.start();
            member
        };
        let members = addresses.iter().enumerate().map(start).collect();
        let cluster = Self { members, _directory: directory };
        let arbiter = cluster.arbiter(Duration::from_secs(2));
        let nobody = "nobody".parse().expect("it is a VM's name");
        wait_until("an answer of etcd", || arbiter.latest(&nobody).is_ok());
        Some(cluster)
    }

    /// The cluster as the value of `--arbiter`.
    #[must_use]
    pub fn spec(&self) -> String {
        let clients: Vec<_> = self.members.iter().map(|member| member.client.as_str()).collect();
        format!("etcd://{}", clients.join(","))
    }

    /// A new client of the arbiter, whose calls take at most `timeout`.
    #[must_use]
    pub fn arbiter(&self, timeout: Duration) -> EtcdArbiter {
        EtcdArbiter::new(self.members.iter().map(|member| member.client.as_str()), timeout)
    }

    /// The `HOST:PORT` at which a member serves its clients.
    ///
    /// # Panics
    /// If there is no such member.
    #[must_use]
    pub fn client_address(&self, member: usize) -> &str {
        &self.members[member].client
    }

    /// Kills a member with SIGKILL.
    ///
    /// # Panics
    /// If there is no such member.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Restarts a killed member with its data, and doesn't wait for it.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn restart(&mut self, member: usize) {
        self.members[member].start();
    }
}

impl Member {
    fn start(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("etcd is installed"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a child can be killed");
            process.wait().expect("a child can be waited for");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The arguments of a member. Elections are faster than by default, but slow enough for a busy
/// host.
fn arguments(name: &str, directory: &Path, client: &str, peer: &str, cluster: &str) -> Vec<String> {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let data = directory.join(name).display().to_string();
    let options = [
        ("name", name),
        ("data-dir", &data),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", cluster),
        ("heartbeat-interval", "50"),
        ("election-timeout", "500"),
    ];
    options.iter().map(|(option, value)| format!("--{option}={value}")).collect()
}

/// `true` if etcd is installed. Otherwise prints the line by which the checks before a merge count
/// skipped tests.
fn is_installed() -> bool {
    match Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status() {
        Ok(status) => status.success(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Written directly, because the output of a passing test's macros is captured.
            let _ = writeln!(io::stderr().lock(), "SKIPPED: etcd is not installed (Debian package etcd-server)");
            false
        }
        Err(error) => panic!("{PROGRAM} can't be started: {error}"),
    }
}

/// An address at which nothing listens. Its port is below those that Linux assigns by itself, so
/// that no connection of another test gets it as its own end.
fn free_address() -> String {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TRIED: AtomicU16 = AtomicU16::new(0);
    loop {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        // Test processes that run at the same time begin at different ports.
        let port = FIRST + (std::process::id().wrapping_mul(37) % COUNT + tried) % COUNT;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
