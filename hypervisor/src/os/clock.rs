//! The host's monotonic clock, the time of day, and the time that a thread has had of its cores.

use nix::time::{ClockId, clock_gettime};
use std::fmt;

/// Microseconds of the host's monotonic clock. All processes of one host share it, so that the
/// timelines of a primary, a backup and the program that killed one of them can be compared.
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

/// Milliseconds of UTC since 1970, for people who read reports; no decision depends on it.
///
/// # Panics
/// As [`wall_ns`].
#[must_use]
pub fn wall_ms() -> u64 {
    wall_ns() / 1_000_000
}

/// Nanoseconds of UTC since 1970, for the guest's real-time clock. It goes back if somebody sets
/// the host's clock back.
///
/// # Panics
/// If the host has no such clock, which no Linux is without.
#[must_use]
pub fn wall_ns() -> u64 {
    read_ns(ClockId::CLOCK_REALTIME)
}

/// A time of [`wall_ms`], in the form of RFC 3339: `2026-11-29T01:02:03.456Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime(pub u64);

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil_date(days);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
///
/// Years are counted from the first of March, so that the leap day is a year's last, and months
/// have 153 days in five.
const fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has these clocks");
    let seconds = u64::try_from(time.tv_sec()).expect("these clocks are not negative");
    let nanoseconds = u64::try_from(time.tv_nsec()).expect("nanoseconds are not negative");
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::WallTime;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let day = |days: u64| WallTime(days * 86_400_000).to_string();
        assert_eq!(day(0), "1970-01-01T00:00:00.000Z");
        // 2000 is a leap year and 2100 is not.
        assert_eq!((day(11_016), day(11_017)), ("2000-02-29T00:00:00.000Z".into(), "2000-03-01T00:00:00.000Z".into()));
        assert_eq!((day(47_540), day(47_541)), ("2100-02-28T00:00:00.000Z".into(), "2100-03-01T00:00:00.000Z".into()));
        assert_eq!(WallTime(1_795_914_123_456).to_string(), "2026-11-29T01:02:03.456Z");
    }
}
