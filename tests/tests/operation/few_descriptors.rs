//! Servers with few file descriptors: silent connections don't keep others out, and a failure to
//! accept isn't reported over and over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::arbiter::{Arbiter, TcpArbiter};
use hypervisor::lan::Attachment;
use hypervisor::lan::client::attach;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;
use tests::stage::{Node, wait_until};
use vm::OutputId;

/// Longer than any call takes on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

/// The fewest descriptors with which a server starts.
const DESCRIPTORS: u64 = 64;

/// More silent connections than the process has descriptors for.
const SILENT_CONNECTIONS: usize = 60;

/// A server that may have [`DESCRIPTORS`], and its directory.
struct Server {
    node: Node,
    address: SocketAddr,
    directory: TempDir,
}

impl Server {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (link, stderr) = (directory.path().join(program), directory.path().join("stderr"));
        symlink(env!("CARGO_BIN_EXE_ft-programs"), &link).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")]).arg(link);
        command.args(["--listen", "127.0.0.1:0", "--json"]).args(arguments).current_dir(directory.path());
        command.stdin(Stdio::null()).stderr(File::create(&stderr).unwrap());
        let mut node = Node::spawn(program, &mut command, stderr);
        let address = node.told_text("listening", "listen").parse().unwrap();
        Self { node, address, directory }
    }

    fn arbiter() -> Self {
        Self::start("ft-arbiter", &["--dir", "claims"])
    }

    fn lan() -> Self {
        Self::start("ft-lan", &[])
    }

    fn silent_connections(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect_timeout(&self.address, PATIENCE).unwrap()).collect()
    }

    /// Sets the process's limit of descriptors, which may be less than it has open.
    fn limit_descriptors(&self, current: u64) {
        let limit = Rlimit { current: Some(current), maximum: Some(DESCRIPTORS) };
        prlimit(Pid::from_raw(self.node.pid().cast_signed()), Resource::Nofile, limit).unwrap();
    }

    fn warnings(&self, text: &str) -> usize {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap().matches(text).count()
    }

    fn answers_as_arbiter(&self) {
        let client = TcpArbiter::new(self.address.to_string(), PATIENCE);
        assert_eq!(client.latest(&"vm0".parse().unwrap()).unwrap(), None);
    }

    fn answers_as_lan(&self) {
        let attachment = Attachment {
            vm: "guest".parse().unwrap(),
            node: NodeId(1),
            generation: Generation(1),
            mac: [2, 0, 0, 0, 0, 1],
            next_output: OutputId(0),
            output_end: OutputId(u64::MAX),
            last_packet: 0,
            booted: Generation(1),
        };
        attach(self.address, &attachment, PATIENCE).unwrap();
    }

    /// Checks that a server which can't accept reports it once, and serves again when it can.
    fn says_once_that_it_cannot_accept(&self, answers: impl Fn(&Self)) {
        self.limit_descriptors(3);
        let waiting = self.silent_connections(3);
        wait_until("the warning", || self.warnings("can't accept") > 0);
        // Time for fifteen tries.
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(self.warnings("can't accept"), 1);
        assert!(self.warnings("\n") < 5, "something else is told again and again");
        self.limit_descriptors(DESCRIPTORS);
        answers(self);
        drop(waiting);
    }
}

#[test]
fn silent_connections_do_not_exhaust_an_arbiter_with_few_descriptors() {
    let server = Server::arbiter();
    let silent = server.silent_connections(SILENT_CONNECTIONS);
    server.answers_as_arbiter();
    assert_eq!(server.warnings("can't accept"), 0, "it has fewer connections than it may have descriptors");
    assert!(server.warnings("\n") < 5, "refused connections are reported at a limited rate");
    // The arbiter can still open its claims' files.
    server.answers_as_arbiter();
    drop(silent);
}

#[test]
fn silent_connections_do_not_exhaust_a_lan_with_few_descriptors() {
    let server = Server::lan();
    let silent = server.silent_connections(SILENT_CONNECTIONS);
    server.answers_as_lan();
    assert_eq!(server.warnings("can't accept"), 0);
    drop(silent);
}

#[test]
fn an_arbiter_that_cannot_accept_reports_it_once_and_serves_later() {
    Server::arbiter().says_once_that_it_cannot_accept(Server::answers_as_arbiter);
}

#[test]
fn a_lan_that_cannot_accept_reports_it_once_and_serves_later() {
    Server::lan().says_once_that_it_cannot_accept(Server::answers_as_lan);
}

/// A connection to an arbiter must send a request in time.
#[test]
fn an_arbiter_closes_a_connection_that_asks_nothing() {
    let server = Server::arbiter();
    let [silent] = <[TcpStream; 1]>::try_from(server.silent_connections(1)).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(std::io::Read::read(&mut &silent, &mut [0; 1]).unwrap(), 0, "after some seconds");
}
