//! What to do when a listener can't accept: usually the process has no file descriptors left.

use super::clock;
use super::rate_limit::RateLimit;
use std::io;
use std::time::Duration;

/// How long to wait before the next try: descriptors become free when a connection ends.
const RETRY: Duration = Duration::from_millis(100);

/// The shortest time between two warnings, in nanoseconds.
const WARNING_NS: u64 = 10_000_000_000;

/// Warns of a listener's failures at a limited rate.
#[derive(Debug)]
pub struct AcceptTrouble {
    warnings: RateLimit,
}

impl Default for AcceptTrouble {
    fn default() -> Self {
        Self { warnings: RateLimit::every(WARNING_NS) }
    }
}

impl AcceptTrouble {
    /// A connection couldn't be accepted; `what` names the port's purpose for people. Returns how
    /// long to wait before the next try: zero if only this connection has gone again, or a signal
    /// came.
    #[must_use]
    pub fn failed(&mut self, what: &str, error: &io::Error) -> Duration {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
            return Duration::ZERO;
        }
        if let Some(left_out) = self.warnings.admit(clock::now_ns()) {
            tracing::warn!("{what}: {error}{left_out}");
        }
        RETRY
    }
}

#[cfg(test)]
mod tests {
    use super::{AcceptTrouble, RETRY};
    use std::io;
    use std::time::Duration;

    #[test]
    fn a_connection_that_has_gone_again_is_no_trouble() {
        let mut trouble = AcceptTrouble::default();
        let mut failed = |kind: io::ErrorKind| trouble.failed("a test can't accept connections", &kind.into());
        assert_eq!(failed(io::ErrorKind::ConnectionAborted), Duration::ZERO);
        assert_eq!(failed(io::ErrorKind::OutOfMemory), RETRY);
    }
}
