//! The host's monotonic clock, and the time that a thread has had of its cores.

use nix::time::{ClockId, clock_gettime};

/// Microseconds of the host's monotonic clock: the same clock in every process of one host, so that the timelines of
/// a primary, a backup and the program that killed one of them can be laid side by side.
#[must_use]
pub fn now_us() -> u64 {
    now_ns() / 1000
}

/// Nanoseconds of the same clock.
///
/// # Panics
/// If the host has no monotonic clock, which no Linux is without.
#[must_use]
pub fn now_ns() -> u64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds that the calling thread has run on a core.
///
/// # Panics
/// If the host has no such clock, which no Linux is without.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has these clocks");
    let seconds = u64::try_from(time.tv_sec()).expect("these clocks are not negative");
    let nanoseconds = u64::try_from(time.tv_nsec()).expect("nanoseconds are not negative");
    seconds * 1_000_000_000 + nanoseconds
}
