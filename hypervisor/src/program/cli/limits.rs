//! The limits that the host must allow a program before it begins.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for a program that reads and writes files: those that every process has, and a few.
pub(in crate::program) const FILES: u64 = 16;

/// Descriptors for a program with connections.
pub(in crate::program) const CONNECTIONS: u64 = 64;

/// Descriptors that a server needs beside those of its connections: those that every process has,
/// what it listens at, and what its threads have open.
pub(in crate::program) const BESIDE_CONNECTIONS: u64 = 32;

/// Makes sure that this process may have `needed` descriptors, and raises its limit if it may.
/// Otherwise the program would fail later, at an arbitrary point, and at the worst time.
pub(in crate::program) fn require_descriptors(needed: u64) -> Result<(), String> {
    raise_descriptors(needed, needed).map(|_| ())
}

/// How many of `wanted` connections a server may have at once so that descriptors are left for
/// everything else. Raises the limit of descriptors for them as far as the host allows.
pub(in crate::program) fn connections(wanted: usize) -> Result<usize, String> {
    let wanted_descriptors = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(BESIDE_CONNECTIONS);
    let allowed = raise_descriptors(CONNECTIONS, wanted_descriptors)?.saturating_sub(BESIDE_CONNECTIONS);
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX).min(wanted);
    if allowed < wanted {
        tracing::warn!(
            "this server takes {allowed} connections and not {wanted}: raise the limit of open files (ulimit -n)"
        );
    }
    Ok(allowed)
}

/// Raises the limit of descriptors to `wanted`, or as far as the host allows. Returns the limit.
fn raise_descriptors(needed: u64, wanted: u64) -> Result<u64, String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (now, most) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let target = wanted.min(most);
    let allowed = if now < target && setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum }).is_ok() {
        target
    } else {
        now
    };
    if allowed >= needed {
        return Ok(allowed);
    }
    Err(format!("this process may have {allowed} open files, and needs {needed}: raise the limit (ulimit -n)"))
}
