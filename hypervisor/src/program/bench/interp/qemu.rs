//! QEMU's `virt` board: the same executable there, plain and with its own record and replay.

use super::{Run, Took};
use crate::os::clock;
use crate::program::Failure;
use crate::program::cli::interrupt;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

const PROGRAM: &str = "qemu-system-riscv64";

/// How often it is checked whether QEMU has ended: the error of its wall-clock time.
const LOOK: Duration = Duration::from_millis(1);

/// The longest that a run may take, in nanoseconds.
const RUN_NS_MAX: u64 = 1_800_000_000_000;

/// The first line of what `--version` says; `None` if it isn't installed.
pub(super) fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// Runs `kernel` until it powers off; with `record`, QEMU counts instructions and records to that
/// file.
///
/// The time is that of the whole process: the board's firmware and the translator's start are in
/// it.
pub(super) fn run(kernel: &Path, boot_arguments: &str, record: Option<&Path>) -> Result<Run, Failure> {
    let mut command = Command::new(PROGRAM);
    command.args(["-M", "virt", "-m", "64M", "-nographic", "-nic", "none", "-bios", "default", "-kernel"]);
    command.arg(kernel).args(["-append", boot_arguments]);
    if let Some(log) = record {
        command.arg("-icount").arg(format!("shift=0,rr=record,rrfile={}", log.display()));
    }
    let (started_ns, before_ns) = (clock::now_ns(), children_cpu_ns()?);
    let mut process = Process(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let status = loop {
        if let Some(status) = process.0.try_wait()? {
            break status;
        }
        interrupt::check()?;
        if clock::now_ns() - started_ns > RUN_NS_MAX {
            return Err(format!("{PROGRAM} doesn't come to an end with {boot_arguments}").into());
        }
        thread::sleep(LOOK);
    };
    let took = Took { cpu_ns: children_cpu_ns()?.saturating_sub(before_ns), wall_ns: clock::now_ns() - started_ns };
    let mut printed = Vec::new();
    // The pipe holds all that firmware and guest print, so that it needn't be read before.
    if let Some(stdout) = &mut process.0.stdout {
        stdout.read_to_end(&mut printed)?;
    }
    let printed = String::from_utf8_lossy(&printed);
    let Some(line) = printed.lines().find(|line| line.starts_with("bench: ")).filter(|_| status.success()) else {
        return Err(format!("{PROGRAM}, {boot_arguments}: {status}; it printed {printed:?}").into());
    };
    Ok(Run { instructions: 0, took, console: line.trim_end().to_owned() })
}

/// CPU time of all child processes that have ended, in nanoseconds: only one ends between two
/// readings.
fn children_cpu_ns() -> Result<u64, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(u64::try_from(usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds())?)
}

/// A process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Errors don't matter: it has ended, or does so now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
