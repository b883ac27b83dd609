//! QEMU's `virt` board as an independent oracle: it runs the same executable as our machine.
//!
//! The board runs OpenSBI in M-mode, where our machine is the firmware itself; what a guest sees in
//! S-mode and U-mode must be the same. QEMU is the Debian package `qemu-system-misc`; tests that
//! need it report when they are skipped.

pub mod assembler;
pub mod conformance;
pub mod runtime;
pub mod snippet;
mod units;

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use vm::{Event, Exit, InstructionCount, Machine, MachineConfig, StopReason};

const PROGRAM: &str = "qemu-system-riscv64";

/// The extensions of our machine and no others.
pub const SAME_ISA: [&str; 2] = ["-cpu", "rv64,h=off,zbc=off"];

/// The extensions of our machine without floating point, whose initial state the firmware chooses.
pub const INTEGER_ISA: [&str; 2] = ["-cpu", "rv64,f=off,d=off,h=off,zbc=off,mmu=off"];

/// The beginning of the last line that OpenSBI prints before it starts the guest.
const BANNER_END: &str = "Boot HART MEDELEG";

/// `true` if QEMU is installed. Otherwise prints the line by which the checks before a merge count
/// skipped tests.
///
/// # Panics
/// If that can't be found out.
#[must_use]
pub fn is_installed() -> bool {
    match Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status() {
        Ok(status) => status.success(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Written directly, because the output of a passing test's macros is captured.
            let _ =
                writeln!(io::stderr().lock(), "SKIPPED: {PROGRAM} is not installed (Debian package qemu-system-misc)");
            false
        }
        Err(error) => panic!("{PROGRAM} can't be started: {error}"),
    }
}

/// A QEMU process; dropping it ends it.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    lines: Receiver<String>,
    /// The guest's output so far, line by line.
    console: Vec<String>,
    in_banner: bool,
}

impl Qemu {
    /// Starts the executable `kernel` on a board with 64 MiB, with more `arguments`.
    ///
    /// # Errors
    /// If the process can't be started.
    pub fn start(kernel: &Path, arguments: &[&str]) -> io::Result<Self> {
        Self::start_with(kernel, "default", arguments)
    }

    /// As [`Self::start`], without firmware: the executable begins in M-mode, at 0x8000_0000.
    ///
    /// # Errors
    /// If the process can't be started.
    pub fn start_bare(kernel: &Path, arguments: &[&str]) -> io::Result<Self> {
        Self::start_with(kernel, "none", arguments)
    }

    fn start_with(kernel: &Path, firmware: &str, arguments: &[&str]) -> io::Result<Self> {
        let mut child = Command::new(PROGRAM)
            .args(["-M", "virt", "-m", "64M", "-nographic", "-bios", firmware, "-kernel"])
            .arg(kernel)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("it is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, console: Vec::new(), in_banner: firmware != "none" })
    }

    /// Waits for a line of the guest's output that contains `text`; `false` if QEMU ends or that
    /// takes longer than `timeout`.
    pub fn wait_for_line(&mut self, text: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.console.iter().any(|line| line.contains(text)) {
                return true;
            }
            if self.take_line(deadline).is_err() {
                return false;
            }
        }
    }

    /// Waits until the guest powers off; returns its output.
    ///
    /// # Panics
    /// If that takes longer than `timeout`, or QEMU fails.
    #[must_use]
    pub fn run_to_end(mut self, timeout: Duration) -> Vec<String> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.take_line(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the guest on QEMU did not end in {timeout:?}; it printed {:?}", self.console)
                }
            }
        }
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "QEMU: {status}; the guest printed {:?}", self.console);
        std::mem::take(&mut self.console)
    }

    /// The guest's output so far.
    #[must_use]
    pub fn console(&self) -> &[String] {
        &self.console
    }

    fn take_line(&mut self, deadline: Instant) -> Result<(), RecvTimeoutError> {
        let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        if !self.in_banner {
            self.console.push(line);
        } else if line.starts_with(BANNER_END) {
            self.in_banner = false;
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs an executable on QEMU; returns its output, line by line.
///
/// # Panics
/// If QEMU fails, or the guest does not power off in `timeout`.
#[must_use]
pub fn run_on_qemu(image: &[u8], arguments: &[&str], timeout: Duration) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), image).expect("a temporary file can be written");
    Qemu::start(file.path(), arguments).expect("QEMU starts").run_to_end(timeout)
}

/// Runs an executable on our machine; returns its output, line by line, and how it ended. The clock
/// advances by a tick with every read.
///
/// # Panics
/// If it doesn't end within `steps_max`.
#[must_use]
pub fn run_on_machine(image: &[u8], steps_max: u64) -> (Vec<String>, StopReason) {
    run_on(&MachineConfig::default(), image, steps_max)
}

/// As [`run_on_machine`], with this configuration.
///
/// # Panics
/// As there.
#[must_use]
pub fn run_on(config: &MachineConfig, image: &[u8], steps_max: u64) -> (Vec<String>, StopReason) {
    let mut machine = Machine::new(config, image).expect("the image is loadable");
    let mut console = Vec::new();
    let end = loop {
        match machine.run(InstructionCount(steps_max)) {
            Exit::Stopped(reason) => break reason,
            Exit::ClockRead => {
                let ticks = machine.last_ticks() + 1;
                machine.apply(&Event::ClockRead { ticks }).expect("it stands at a read");
            }
            Exit::SeedRead => machine.apply(&Event::Entropy { bits: 0x5eed }).expect("it stands at a read"),
            Exit::WallClockNeeded => {
                let ns = machine.last_wall_ns() + 1;
                machine.apply(&Event::WallClock { ns }).expect("it stands there");
            }
            Exit::RandomBytesNeeded => {
                let bytes = vec![0x5e; machine.random_bytes_needed()];
                machine.apply(&Event::RandomBytes { bytes }).expect("it stands there");
            }
            Exit::Output => {
                while let Some((_, output)) = machine.take_output() {
                    console.extend_from_slice(output.bytes());
                }
            }
            Exit::WaitForInterrupt => machine.apply(&Event::TimerInterrupt).expect("it sleeps for its timer"),
            Exit::LimitReached => {
                panic!("no end in {steps_max} steps; it printed {}", String::from_utf8_lossy(&console))
            }
        }
    };
    let text = String::from_utf8_lossy(&console);
    (text.lines().map(str::to_owned).collect(), end)
}
