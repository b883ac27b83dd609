//! Exit codes, the same for all programs.

use ft::claim::Claim;
use ft::role::{BackupEnd, PrimaryEnd};
use vm::StopReason;

/// The program ended as it should.
pub const OK: u8 = 0;
/// An error that the program told on standard error.
pub const FAILURE: u8 = 1;
/// Fenced: another node owns the VM. Nothing has been put out since the pair broke.
pub const FENCED: u8 = 3;
/// Replay differed from the log.
pub const DIVERGED: u8 = 4;
/// A backup lost its primary before the pair was protected, so it may not go on.
pub const UNPROTECTED: u8 = 5;
/// The guest halted, powered off with a failure, or is a test program that ended without a result.
pub const GUEST_FAILED: u8 = 6;
/// The service's answer is no: a lock that another has, a key without the expected value.
pub const NO: u8 = 7;
/// Standard output has no reader any more: the code of a program that SIGPIPE ends.
pub const PIPE_CLOSED: u8 = 141;
/// Interrupted before there was anything to end in order.
pub const INTERRUPTED: u8 = 130;

/// The list of exit codes for `--help`.
const HELP: &str = "Exit codes: 0 in order; 1 error; 2 bad usage; 3 fenced, another node owns the VM; 4 replay \
                        diverged; 5 a backup lost its primary before it was protected; 6 the guest halted, \
                        powered off with a failure or told no result through tohost; 130 interrupted";

/// The end of `--help`: an example, and the exit codes.
#[must_use]
pub fn help(example: &str) -> String {
    format!("{example}\n\n{HELP}")
}

/// The code of a guest's end.
#[must_use]
pub const fn of_guest(reason: StopReason) -> u8 {
    match reason {
        StopReason::PowerOff { code: 0 } | StopReason::Reboot => OK,
        StopReason::PowerOff { .. } | StopReason::Halt(_) => GUEST_FAILED,
    }
}

/// The exit code and the message for a primary's end.
#[must_use]
pub fn of_primary(end: &PrimaryEnd) -> (u8, String) {
    match end {
        PrimaryEnd::GuestStopped(reason) => (of_guest(*reason), reason.to_string()),
        PrimaryEnd::Retired => (OK, "the operator ended the VM; it can be started again".into()),
        PrimaryEnd::Stranded => (
            FAILURE,
            "ended while it stood still: whether the backup owns the VM isn't known, and there is no end mark".into(),
        ),
        PrimaryEnd::Left => (
            OK,
            "the operator left; the VM stays owned, and goes on with ft-primary --resume from the directory of --log"
                .into(),
        ),
        PrimaryEnd::Interrupted => (
            INTERRUPTED,
            "interrupted before the VM had a log of its own; it can be resumed again from the same one".into(),
        ),
        PrimaryEnd::Fenced { holder } => (FENCED, fenced(holder)),
    }
}

/// The message of a side that another node, with this claim, has fenced. The first digits of a
/// node's id are enough for people.
fn fenced(holder: &Claim) -> String {
    let Claim { node, address, .. } = holder;
    let at = address.as_ref().map_or_else(String::new, |address| format!(" at {address}"));
    format!("fenced by node {:.8}{at}", node.to_string())
}

/// The exit code and the message for a backup's end.
#[must_use]
pub fn of_backup(end: &BackupEnd) -> (u8, String) {
    match end {
        BackupEnd::GuestStopped(reason) => (of_guest(*reason), reason.to_string()),
        BackupEnd::Fenced { holder } => (FENCED, fenced(holder)),
        BackupEnd::Unprotected { reason } => {
            (UNPROTECTED, format!("the primary was lost before the pair was protected: {reason}"))
        }
        BackupEnd::NoPlace { reason } => (UNPROTECTED, format!("there is no primary to back up: {reason}")),
        BackupEnd::Refused { reason } => (FAILURE, reason.clone()),
        BackupEnd::Diverged => (DIVERGED, "halted: this side's state differs from the primary's".into()),
    }
}
