//! Heartbeats on the connection of a VM port: when one is due, and when silence means that the
//! connection is dead.
//!
//! A connection can be dead without being closed: the peer's host has lost its power, a firewall
//! has forgotten the connection, a cable is out. TCP notices that after minutes, and on an idle
//! connection never. So each side sends a heartbeat every [`INTERVAL_US`], and gives up a peer that
//! was silent for [`SILENT_INTERVALS_MAX`] intervals. Intervals are counted instead of time: for a
//! process that stood still only one interval has passed, and it reads the bytes that came
//! meanwhile before the next one.

use ft::mutation::{Mutation, mutated};

/// The interval of heartbeats, in microseconds.
pub const INTERVAL_US: u64 = 500_000;

/// After this many intervals without a byte from the peer the connection is given up: after 1.5 to
/// 2 s.
pub const SILENT_INTERVALS_MAX: u32 = 3;

/// Watches whether the peer of one connection is alive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    was_heard: bool,
    silent_intervals: u32,
}

impl Pulse {
    /// The peer has sent something, or this side was kept from reading.
    pub const fn hear(&mut self) {
        self.was_heard = true;
    }

    /// Another interval has passed. `true` if the peer is to be given up; otherwise a heartbeat is
    /// due.
    pub fn is_silent(&mut self) -> bool {
        self.silent_intervals = if std::mem::take(&mut self.was_heard) { 0 } else { self.silent_intervals + 1 };
        self.silent_intervals >= SILENT_INTERVALS_MAX && !mutated(Mutation::TrustSilentPort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_without_a_break_is_a_failure() {
        let mut pulse = Pulse::default();
        for _ in 0..10 {
            pulse.hear();
            assert_eq!([pulse.is_silent(), pulse.is_silent(), pulse.is_silent()], [false; 3]);
        }
        assert!(pulse.is_silent());
    }
}
