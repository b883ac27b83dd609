//! When a wait is reported: after a second, and then ever more rarely.

/// The seconds after which a wait is reported; from the last on, once every so many seconds.
const REPORT_AFTER_S: [u64; 4] = [1, 10, 60, 600];

/// A wait whose reports become rarer. Times are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitReports {
    since_ns: u64,
    next_s: u64,
}

impl WaitReports {
    /// A wait that begins now.
    #[must_use]
    pub const fn since(now_ns: u64) -> Self {
        Self { since_ns: now_ns, next_s: REPORT_AFTER_S[0] }
    }

    /// The seconds waited, if a report is due.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let waited_s = now_ns.saturating_sub(self.since_ns) / 1_000_000_000;
        if waited_s < self.next_s {
            return None;
        }
        let [.., period_s] = REPORT_AFTER_S;
        let next_s = REPORT_AFTER_S.into_iter().find(|after_s| *after_s > waited_s);
        self.next_s = next_s.unwrap_or_else(|| (waited_s / period_s + 1) * period_s);
        Some(waited_s)
    }
}

#[cfg(test)]
mod tests {
    use super::WaitReports;

    #[test]
    fn a_wait_is_reported_after_a_second_and_then_rarely() {
        let mut waiting = WaitReports::since(500_000_000);
        let told: Vec<_> = (0..20_000).filter_map(|tenth| waiting.due(500_000_000 + tenth * 100_000_000)).collect();
        assert_eq!(told, [1, 10, 60, 600, 1200, 1800]);
    }
}
