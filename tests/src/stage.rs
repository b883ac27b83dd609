//! The site of an end-to-end test: a LAN, an arbiter, and as many nodes as the test starts.

use crate::Executable;
use crate::link::Link;
use hypervisor::program::cli::exit;
use hypervisor::program::site::cluster::{PATIENCE, Site};
use hypervisor::program::site::process::{Process, ProcessError};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How often a condition is checked that a test waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The option for the silence after which the other side counts as lost.
const FAILURE_TIMEOUT: &str = "--failure-timeout-ms";

/// Waits until `condition` holds.
///
/// # Panics
/// If that takes longer than [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Stops a process (SIGSTOP), as on a suspended host, and waits until none of its threads runs.
///
/// # Panics
/// If one runs on.
#[track_caller]
pub fn pause(process: &Process) {
    process.signal(Signal::SIGSTOP);
    wait_until("all threads stopped", || is_stopped(process.pid()).unwrap_or(false));
}

/// `true` if the kernel has stopped all threads of the process.
fn is_stopped(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("stat"))?;
        // The state follows the name, which is in brackets and may contain brackets.
        if status.rsplit(") ").next().is_none_or(|rest| !rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets a process run on (SIGCONT).
pub fn wake(process: &Process) {
    process.signal(Signal::SIGCONT);
}

/// A running program under test. Its reports and its standard error are recorded.
#[derive(Debug)]
pub struct Node {
    process: Process,
    stderr: PathBuf,
}

/// A command that runs `program` with the signal handling of a process started at a terminal. Tests
/// in the background or under `nohup` ignore some signals, which their programs would inherit.
fn command(executable: &Executable, program: &str) -> Command {
    const HANGUP_INTERRUPT_QUIT: u64 = 0b111;
    let direct = executable.command(program);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if ignored.unwrap_or(0) & HANGUP_INTERRUPT_QUIT == 0 {
        return direct;
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT", "bash", "-c", "exec -a \"$0\" \"$@\"", program]);
    command.arg(direct.get_program());
    command
}

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The reason that it reported; empty if none.
    pub reason: String,
}

impl Node {
    /// Starts `program` with `arguments` and `--json`; its standard error goes to a file in
    /// `directory`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    #[must_use]
    pub fn start(executable: &Executable, directory: &Path, program: &str, arguments: &[&str]) -> Self {
        Self::start_with_input(executable, directory, program, arguments, Stdio::null())
    }

    /// As [`start`](Self::start), with bytes on standard input.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[track_caller]
    #[must_use]
    pub fn start_with_input(
        executable: &Executable,
        directory: &Path,
        program: &str,
        arguments: &[&str],
        input: Stdio,
    ) -> Self {
        let stderr = tempfile::Builder::new().prefix(program).suffix(".stderr").tempfile_in(directory);
        let (file, stderr) = stderr.expect("a temporary directory takes files").keep().expect("a file can be kept");
        let mut command = command(executable, program);
        command.args(arguments).arg("--json").stdin(input).stderr(file);
        Self::spawn(program, &mut command, stderr)
    }

    /// Starts `command`, which runs `program` with `--json` and writes its standard error to the
    /// file `stderr`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    #[must_use]
    pub fn spawn(program: &str, command: &mut Command, stderr: PathBuf) -> Self {
        let process = Process::spawn(program, command).expect("the programs are built with the tests");
        Self { process, stderr }
    }

    /// Waits for a report of `event`, and returns it; an earlier one counts.
    ///
    /// # Panics
    /// If none arrives within [`PATIENCE`].
    #[track_caller]
    pub fn told(&mut self, event: &str) -> Value {
        match self.process.wait_for(event, PATIENCE) {
            Ok(report) => report,
            Err(error) => panic!("{error}\nstandard error:\n{}", self.stderr()),
        }
    }

    /// Waits for a report of `event`, and returns one of its texts.
    ///
    /// # Panics
    /// If none arrives, or it has no such text.
    #[track_caller]
    pub fn told_text(&mut self, event: &str, field: &str) -> String {
        let report = self.told(event);
        report[field].as_str().unwrap_or_else(|| panic!("no text {field} in {report}")).into()
    }

    /// Waits for a report of `event`, and returns one of its numbers.
    ///
    /// # Panics
    /// If none arrives, or it has no such number.
    #[track_caller]
    pub fn told_number(&mut self, event: &str, field: &str) -> u64 {
        let report = self.told(event);
        report[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {report}"))
    }

    /// The number of reports of `event` so far.
    pub fn count(&mut self, event: &str) -> usize {
        self.reports().iter().filter(|report| report["event"] == event).count()
    }

    /// Waits for `more` further reports of `event`.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn told_again(&mut self, event: &str, more: usize) {
        let target = self.count(event) + more;
        wait_until(event, || self.count(event) >= target);
    }

    /// The generations that this node reported to own, in order: at its start, after losing a
    /// backup, after going live.
    pub fn owned(&mut self) -> Vec<u64> {
        let owning = |report: &&Value| report["event"] == "owner" || report["event"] == "live";
        self.reports().iter().filter(owning).filter_map(|report| report["generation"].as_u64()).collect()
    }

    /// Waits until the node owns the VM as `generation`.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn comes_to_own(&mut self, generation: u64) {
        wait_until("the VM's ownership", || self.owned().last() == Some(&generation));
    }

    /// The guest's console output, as this node reported it.
    pub fn console(&mut self) -> String {
        self.reports().iter().filter_map(|report| report["text"].as_str()).collect()
    }

    /// The node's standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for the node to end by itself.
    ///
    /// # Panics
    /// If it doesn't within [`PATIENCE`], or if it has panicked.
    #[track_caller]
    pub fn end(&mut self) -> Ended {
        let code = self.process.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", self.stderr()));
        self.assert_no_panic();
        let end = self.reports().iter().rfind(|report| report["event"] == "end").cloned().unwrap_or_default();
        Ended { code, reason: end["reason"].as_str().unwrap_or_default().into() }
    }

    /// Ends the node as Ctrl-C does.
    ///
    /// # Panics
    /// As [`end`](Self::end).
    #[track_caller]
    pub fn interrupt(&mut self) -> Ended {
        self.process.signal(Signal::SIGINT);
        self.end()
    }

    /// Kills the node with SIGKILL.
    ///
    /// # Panics
    /// If it can't be waited for.
    pub fn kill(&mut self) {
        self.process.kill().expect("a child can be killed and waited for");
    }

    /// Waits for the node to end because another node owns the VM.
    ///
    /// # Panics
    /// As [`end`](Self::end), and if it ends otherwise.
    #[track_caller]
    pub fn ends_fenced(&mut self) {
        let Ended { code, reason } = self.end();
        assert_eq!(code, Some(i32::from(exit::FENCED)), "{reason}");
        assert!(reason.contains("fenced"), "{reason}");
    }

    /// Checks that the node has written no output and hasn't reported that it owns the VM.
    ///
    /// # Panics
    /// If it has.
    #[track_caller]
    pub fn has_put_nothing_out(&mut self) {
        for event in ["live", "owner", "lan_attached", "first_output", "console"] {
            assert!(!self.has_told(event), "pid {} told {event}", self.pid());
        }
    }

    /// Checks that no thread of the node has panicked so far.
    ///
    /// # Panics
    /// If one has.
    #[track_caller]
    pub fn assert_no_panic(&self) {
        let stderr = self.stderr();
        assert!(!stderr.contains("panicked"), "pid {} panicked:\n{stderr}", self.pid());
    }
}

impl Deref for Node {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The LAN and the arbiter of a test, and its directory.
#[derive(Debug)]
pub struct Stage {
    /// LAN, arbiter, and the address of the guest's service.
    pub site: Site,
    executable: Executable,
    directory: TempDir,
}

/// A primary and the backup that protects it.
#[derive(Debug)]
pub struct Pair {
    /// The primary.
    pub primary: Node,
    /// The backup.
    pub backup: Node,
}

impl Stage {
    /// Starts the LAN and the arbiter, for a guest with the echo service.
    ///
    /// # Panics
    /// If they don't come up.
    #[track_caller]
    #[must_use]
    pub fn new(executable: Executable) -> Self {
        Self::at(executable, Site::start)
    }

    /// Starts the LAN and the arbiter, for guests whose service is at `guest_service` on the LAN.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[track_caller]
    #[must_use]
    pub fn serving(executable: Executable, guest_service: &str) -> Self {
        Self::at(executable, |executable, claims| Site::serving(executable, claims, guest_service))
    }

    #[track_caller]
    fn at(executable: Executable, start: impl Fn(&Executable, &Path) -> Result<Site, ProcessError>) -> Self {
        let directory = tempfile::Builder::new().prefix("ft-test-").tempdir().expect("the host has room for a test");
        let site = start(&executable, &claims(&directory)).expect("a LAN and an arbiter come up");
        Self { site, executable, directory }
    }

    /// Starts a program with these arguments and `--json`.
    #[track_caller]
    #[must_use]
    pub fn program(&self, program: &str, arguments: &[&str]) -> Node {
        Node::start(&self.executable, self.directory.path(), program, arguments)
    }

    /// Starts `ft-primary` or `ft-backup` at this LAN and arbiter, with more options.
    ///
    /// Unless the options have a timeout, silence loses no side: the host may stop either for a
    /// while, and a test that kills a process or closes a connection needs no timeout.
    #[track_caller]
    #[must_use]
    pub fn node(&self, program: &str, options: &[&str]) -> Node {
        self.node_with_input(program, options, Stdio::null())
    }

    /// The same, with something to read on standard input: the guest's keyboard.
    #[track_caller]
    #[must_use]
    pub fn node_with_input(&self, program: &str, options: &[&str], input: Stdio) -> Node {
        let site = self.site.options();
        let mut arguments: Vec<_> = site.iter().map(String::as_str).chain(options.iter().copied()).collect();
        if !options.contains(&FAILURE_TIMEOUT) {
            arguments.extend([FAILURE_TIMEOUT, "60000"]);
        }
        Node::start_with_input(&self.executable, self.directory.path(), program, &arguments, input)
    }

    /// Starts a backup, which finds the VM's owner through the arbiter, and waits until it has
    /// joined.
    ///
    /// # Panics
    /// If it doesn't join.
    #[track_caller]
    #[must_use]
    pub fn joined_backup(&self) -> Node {
        let mut backup = self.node("ft-backup", &[]);
        backup.told("protected");
        backup
    }

    /// Starts a primary and a backup, and waits until the backup protects the primary.
    #[track_caller]
    #[must_use]
    pub fn pair(&self, primary_options: &[&str], backup_options: &[&str]) -> Pair {
        let mut primary = self.node("ft-primary", primary_options);
        let channel = primary.told_text("listening", "channel");
        self.join(primary, &channel, backup_options)
    }

    /// Starts a primary and a backup with a link between them.
    #[track_caller]
    #[must_use]
    pub fn linked_pair(&self, primary_options: &[&str], backup_options: &[&str]) -> (Pair, Link) {
        let mut primary = self.node("ft-primary", primary_options);
        let channel = primary.told_text("listening", "channel").parse().expect("a node tells its socket's address");
        let link = Link::to(channel);
        let pair = self.join(primary, &link.address().to_string(), backup_options);
        (pair, link)
    }

    #[track_caller]
    fn join(&self, mut primary: Node, channel: &str, backup_options: &[&str]) -> Pair {
        let mut backup = self.node("ft-backup", &[&["--primary", channel], backup_options].concat());
        backup.told("protected");
        primary.told("console");
        Pair { primary, backup }
    }

    /// Kills the arbiter.
    ///
    /// # Panics
    /// If it can't be waited for.
    pub fn kill_arbiter(&mut self) {
        self.site.arbiter.kill().expect("a child can be killed and waited for");
    }

    /// Restarts the arbiter at its address and with its claims.
    ///
    /// # Panics
    /// If it doesn't come up.
    #[track_caller]
    pub fn restart_arbiter(&mut self) {
        let directory = claims(&self.directory).display().to_string();
        let arguments = ["--listen", self.site.arbiter_address(), "--dir", &directory];
        let mut arbiter = Process::start(&self.executable, "ft-arbiter", &arguments).expect("an arbiter starts again");
        arbiter.wait_for("listening", PATIENCE).expect("it gets its port again");
        self.site.arbiter = arbiter;
    }
}

fn claims(directory: &TempDir) -> PathBuf {
    directory.path().join("claims")
}
