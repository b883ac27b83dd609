//! What a program must be allowed by its host before it begins.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for a program that reads and writes files: those that every process has, and a few.
pub(super) const FILES: u64 = 16;

/// Descriptors for a program with connections.
pub(super) const CONNECTIONS: u64 = 64;

/// Makes sure that this process may have `needed` descriptors, and raises its limit if it may. A program that goes on with fewer
/// fails at any place, and at worst when it is needed.
pub(super) fn require_descriptors(needed: u64) -> Result<(), String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if maximum.is_none_or(|maximum| maximum >= needed)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).is_ok()
    {
        return Ok(());
    }
    let allowed = maximum.or(current).unwrap_or_default();
    Err(format!("this process may have {allowed} open files, and needs {needed}: raise the limit (ulimit -n)"))
}
