//! The host's monotonic clock.

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
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux");
    let seconds = u64::try_from(time.tv_sec()).expect("monotonic time is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec()).expect("nanoseconds are not negative");
    seconds * 1_000_000_000 + nanoseconds
}
