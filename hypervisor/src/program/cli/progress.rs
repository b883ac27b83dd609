//! The progress reports of long runs: when, and how fast.

/// The time before the first line, in nanoseconds: an operator who waits longer wants to know for
/// what.
const FIRST_NS: u64 = 2_000_000_000;

/// The time between two lines, in nanoseconds.
const PERIOD_NS: u64 = 10_000_000_000;

/// The progress of a guest. Times are the caller's.
#[derive(Debug)]
pub(in crate::program) struct Progress {
    next_ns: u64,
    told_ns: u64,
    told_count: u64,
}

impl Progress {
    /// A run that begins at `now_ns` with the guest at instruction `count`.
    pub(in crate::program) const fn new(now_ns: u64, count: u64) -> Self {
        Self { next_ns: now_ns + FIRST_NS, told_ns: now_ns, told_count: count }
    }

    /// How fast the guest ran since the last report, in millions of steps a second, if a report is
    /// due.
    pub(in crate::program) fn due(&mut self, now_ns: u64, count: u64) -> Option<f64> {
        if now_ns < self.next_ns {
            return None;
        }
        let took_us = std::time::Duration::from_nanos(now_ns - self.told_ns).as_secs_f64() * 1e6;
        // Scaled so that a float holds it exactly: no run makes 2^42 steps between two lines.
        let steps =
            f64::from(u32::try_from((count.saturating_sub(self.told_count)) >> 10).unwrap_or(u32::MAX)) * 1024.0;
        *self = Self { next_ns: now_ns + PERIOD_NS, told_ns: now_ns, told_count: count };
        Some(steps / took_us)
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn first_soon_then_at_a_slower_pace_each_with_the_speed_since_the_last() {
        let mut progress = Progress::new(1_000, 0);
        assert_eq!(progress.due(2_000_000_999, 5), None);
        assert_eq!(progress.due(2_000_001_000, 1024 * 1_000_000), Some(512.0));
        assert_eq!(progress.due(12_000_000_999, 1024 * 1_000_000), None);
        assert_eq!(progress.due(12_000_001_000, 1024 * 1_000_000), Some(0.0));
    }
}
