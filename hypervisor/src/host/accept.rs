//! A listener that can't accept: the process has no file descriptors left, as a rule.

use super::clock;
use std::io;
use std::time::Duration;

/// How long to wait before the next try: what is missing comes back when a connection ends.
const RETRY: Duration = Duration::from_millis(100);

/// From one warning to the next, in nanoseconds.
const WARNING_NS: u64 = 10_000_000_000;

/// Warns of a listener's failures, and not of each.
#[derive(Debug, Default)]
pub struct AcceptTrouble {
    told_ns: Option<u64>,
    failures: u64,
}

impl AcceptTrouble {
    /// Another connection could not be accepted. `what` says what can't be done, for people. Returns how long to wait before the
    /// next try: not at all if only this connection has gone again, or a signal came.
    #[must_use]
    pub fn failed(&mut self, what: &str, error: &io::Error) -> Duration {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
            return Duration::ZERO;
        }
        let now_ns = clock::now_ns();
        self.failures += 1;
        if self.is_due(now_ns) {
            tracing::warn!("{what} ({} tries failed): {error}", self.failures);
        }
        RETRY
    }

    fn is_due(&mut self, now_ns: u64) -> bool {
        let is_due = self.told_ns.is_none_or(|told_ns| now_ns.saturating_sub(told_ns) >= WARNING_NS);
        if is_due {
            self.told_ns = Some(now_ns);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::{AcceptTrouble, RETRY, WARNING_NS};
    use std::io;
    use std::time::Duration;

    #[test]
    fn a_connection_that_has_gone_again_is_no_trouble() {
        let mut trouble = AcceptTrouble::default();
        let mut failed = |kind: io::ErrorKind| trouble.failed("a test can't accept connections", &kind.into());
        assert_eq!(failed(io::ErrorKind::ConnectionAborted), Duration::ZERO);
        assert_eq!(failed(io::ErrorKind::OutOfMemory), RETRY);
    }

    #[test]
    fn a_listener_that_fails_a_hundred_times_a_second_warns_every_ten_seconds() {
        let mut trouble = AcceptTrouble::default();
        let warnings = (0..3_000).filter(|at| trouble.is_due(at * 10_000_000)).count();
        assert_eq!(warnings, 3);
        assert!(trouble.is_due(40 * WARNING_NS));
    }
}
