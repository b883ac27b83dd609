//! How long a call to an arbiter over the network may take.

use crate::os::clock;
use std::io;
use std::time::Duration;

/// The time at which a call gives up, on the host's monotonic clock.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at_us: u64,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        let timeout_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        Self { at_us: clock::now_us().saturating_add(timeout_us) }
    }

    /// The time that is left; never zero, which would mean no timeout to the socket.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it has passed.
    pub(super) fn remaining(self) -> io::Result<Duration> {
        match self.at_us.saturating_sub(clock::now_us()) {
            0 => Err(io::ErrorKind::TimedOut.into()),
            remaining_us => Ok(Duration::from_micros(remaining_us)),
        }
    }
}
