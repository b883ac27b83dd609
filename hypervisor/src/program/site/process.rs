//! A program of this project as a child process that reports in JSON lines.

use super::executable::Executable;
use crate::os::clock;
use crate::program::cli::interrupt;
use crate::program::cli::interrupt::Interrupted;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// How long a process may take to end when it is asked to, before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a wait checks whether the operator has interrupted the program.
const LOOK: Duration = Duration::from_millis(50);

/// A running program. Dropping it kills the process, so that a harness that fails leaves none
/// behind.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    reports: Receiver<Value>,
    seen: Vec<Value>,
}

/// Why a process didn't do what was expected of it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It can't be started or waited for.
    #[error("{name}: {source}")]
    Io {
        /// Which program.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The operator has interrupted the wait.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The process ended instead.
    #[error("{name} ended while `{event}` was awaited; it told {seen}")]
    Ended {
        /// Which program.
        name: String,
        /// What was awaited.
        event: String,
        /// What it told before.
        seen: String,
    },
    /// It took too long.
    #[error("{name} did not tell `{event}` in {timeout:?}; it told {seen}")]
    Timeout {
        /// Which program.
        name: String,
        /// What was awaited.
        event: String,
        /// How long.
        timeout: Duration,
        /// What it told before.
        seen: String,
    },
    /// A report lacks a field.
    #[error("{name} told {report} without `{field}`")]
    Field {
        /// Which program.
        name: String,
        /// What it told.
        report: String,
        /// What is missing.
        field: String,
    },
}

impl Process {
    /// Starts `executable` as `program` with `arguments` and `--json`.
    ///
    /// # Errors
    /// [`ProcessError::Io`] if it can't be started.
    pub fn start(executable: &Executable, program: &str, arguments: &[&str]) -> Result<Self, ProcessError> {
        Self::spawn(program, executable.command(program).args(arguments).arg("--json").stdin(Stdio::null()))
    }

    /// Runs `command`, which tells its reports on standard output.
    ///
    /// # Errors
    /// [`ProcessError::Io`] if it can't be started.
    pub fn spawn(program: &str, command: &mut Command) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Io { name: program.into(), source };
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (sender, reports) = unbounded();
        if let Some(stdout) = child.stdout.take() {
            let read = move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                for report in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name(format!("{program} reports")).spawn(read).map_err(failed)?;
        }
        Ok(Self { name: program.into(), child, reports, seen: Vec::new() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has reported `event`, and returns that report; an earlier one counts.
    ///
    /// # Errors
    /// [`ProcessError`] if it ends or takes longer than `timeout`.
    pub fn wait_for(&mut self, event: &str, timeout: Duration) -> Result<Value, ProcessError> {
        self.wait_for_nth(event, 1, timeout)
    }

    /// Waits until it has reported `event` for the `nth` time since its start, and returns that
    /// report.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_for_nth(&mut self, event: &str, nth: usize, timeout: Duration) -> Result<Value, ProcessError> {
        let deadline_us = deadline_us(timeout);
        loop {
            let mut reports = self.seen.iter().filter(|report| report["event"] == event);
            if let Some(report) = reports.nth(nth.saturating_sub(1)) {
                return Ok(report.clone());
            }
            if !self.receive(event, deadline_us)? {
                return Err(self.timed_out(event, timeout));
            }
        }
    }

    /// Waits until the guest's console, as this process reports it, contains `text`; earlier output
    /// counts. `look` gets the console's text piece by piece.
    ///
    /// # Errors
    /// [`ProcessError`] if it ends or takes longer than `timeout`.
    pub fn wait_for_console(
        &mut self,
        text: &str,
        timeout: Duration,
        mut look: impl FnMut(&str),
    ) -> Result<(), ProcessError> {
        let deadline_us = deadline_us(timeout);
        let (mut looked_at, mut console) = (0, String::new());
        loop {
            for piece in self.seen[looked_at..].iter().filter_map(|report| report["text"].as_str()) {
                look(piece);
                console.push_str(piece);
            }
            looked_at = self.seen.len();
            if console.contains(text) {
                return Ok(());
            }
            if !self.receive(text, deadline_us)? {
                return Err(self.timed_out(text, timeout));
            }
        }
    }

    /// Waits a moment for its next report; `false` if `deadline_us` has passed. `awaited` is for
    /// error messages.
    fn receive(&mut self, awaited: &str, deadline_us: u64) -> Result<bool, ProcessError> {
        interrupt::check()?;
        match self.reports.recv_timeout(LOOK) {
            Ok(report) => self.seen.push(report),
            Err(RecvTimeoutError::Timeout) => return Ok(clock::now_us() < deadline_us),
            Err(RecvTimeoutError::Disconnected) => {
                let (name, seen) = (self.name.clone(), self.told());
                return Err(ProcessError::Ended { name, event: awaited.into(), seen });
            }
        }
        Ok(true)
    }

    /// All reports so far.
    pub fn reports(&mut self) -> &[Value] {
        self.seen.extend(self.reports.try_iter());
        &self.seen
    }

    /// `true` if it has reported `event`.
    pub fn has_told(&mut self, event: &str) -> bool {
        self.reports().iter().any(|report| report["event"] == event)
    }

    /// A number in one of its reports.
    ///
    /// # Errors
    /// [`ProcessError::Field`] if it isn't there.
    pub fn number(&self, report: &Value, field: &str) -> Result<u64, ProcessError> {
        report[field].as_u64().ok_or_else(|| ProcessError::Field {
            name: self.name.clone(),
            report: report.to_string(),
            field: field.into(),
        })
    }

    /// Kills it with SIGKILL. Returns when, in microseconds of the host's monotonic clock.
    ///
    /// # Errors
    /// [`ProcessError::Io`] if it can't be waited for.
    pub fn kill(&mut self) -> Result<u64, ProcessError> {
        let killed_us = clock::now_us();
        self.signal(Signal::SIGKILL);
        self.child.wait().map_err(|source| ProcessError::Io { name: self.name.clone(), source })?;
        Ok(killed_us)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            // Fails only for a process that is gone. The pid is still its own: it isn't reaped
            // before it is waited for.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Asks it to end, by SIGINT, and returns its exit code; `None` if a signal ended it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn interrupt(&mut self) -> Result<Option<i32>, ProcessError> {
        self.signal(Signal::SIGINT);
        self.wait(END_TIMEOUT)
    }

    /// Waits for it to end, and returns its exit code; `None` if a signal ended it.
    ///
    /// # Errors
    /// [`ProcessError::Timeout`] if it takes longer than `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<i32>, ProcessError> {
        let deadline_us = deadline_us(timeout);
        loop {
            let status =
                self.child.try_wait().map_err(|source| ProcessError::Io { name: self.name.clone(), source })?;
            if let Some(status) = status {
                // The pipe closes with the process: reads what is left in it.
                while let Ok(report) = self.reports.recv_timeout(END_TIMEOUT) {
                    self.seen.push(report);
                }
                return Ok(status.code());
            }
            if clock::now_us() >= deadline_us {
                return Err(self.timed_out("its end", timeout));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn timed_out(&mut self, event: &str, timeout: Duration) -> ProcessError {
        ProcessError::Timeout { name: self.name.clone(), event: event.into(), timeout, seen: self.told() }
    }

    /// Its last reports, for an error message.
    fn told(&mut self) -> String {
        let reports = self.reports();
        let last = &reports[reports.len().saturating_sub(8)..];
        last.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// The time `timeout` from now, on the host's monotonic clock.
fn deadline_us(timeout: Duration) -> u64 {
    clock::now_us().saturating_add(u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX))
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
