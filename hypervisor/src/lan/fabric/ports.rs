//! The gateway's local ports: which one the next connection to a guest gets.
//!
//! A guest that closes first keeps a connection for a minute (TIME-WAIT) and may refuse a new one
//! from the same port. So a port should come back later than that, also to an `ft-lan` that has
//! been started again and knows nothing of the ports that it had used. The ports follow the host's
//! monotonic clock, one for each millisecond that no connection has used: those of the last minute
//! are behind the next one, and come back after 64.5 s at the earliest. That holds for up to a
//! thousand connections a second to one port of a guest, which is more than a guest accepts.

use std::ops::RangeInclusive;

/// The ports that connections come from: all but those below 1024.
const EPHEMERAL_PORTS: RangeInclusive<u16> = 1024..=65535;
/// The number of [`EPHEMERAL_PORTS`].
const COUNT: u64 = 64_512;

const _: () = assert!(COUNT == *EPHEMERAL_PORTS.end() as u64 - *EPHEMERAL_PORTS.start() as u64 + 1);

/// The local ports of connections to one destination. Each destination has a sequence of its own,
/// so that many connections elsewhere don't bring a port back sooner.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortSequence {
    /// The next port's number, counted without wrapping: the ports used, or the milliseconds
    /// passed, whichever is more.
    next: u64,
}

impl PortSequence {
    /// The next port.
    pub(super) fn take(&mut self, now_us: u64) -> u16 {
        let index = self.next.max(now_us / 1000);
        self.next = index + 1;
        EPHEMERAL_PORTS.start() + u16::try_from(index % COUNT).expect("fewer ports than 2^16")
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNT, PortSequence};
    use std::collections::BTreeMap;

    /// The shortest time in which a port came back, when connections are made at `times_us` and the
    /// sequence is lost after every `restart_every` of them.
    fn comes_back_after_us(times_us: impl Iterator<Item = u64>, restart_every: usize) -> u64 {
        let (mut used_us, mut least_us) = (BTreeMap::new(), u64::MAX);
        let mut sequence = PortSequence::default();
        for (connections, now_us) in times_us.enumerate() {
            if connections % restart_every == restart_every - 1 {
                sequence = PortSequence::default();
            }
            if let Some(before_us) = used_us.insert(sequence.take(now_us), now_us) {
                least_us = least_us.min(now_us - before_us);
            }
        }
        least_us
    }

    #[test]
    fn all_ports_are_used_before_one_comes_back() {
        let mut sequence = PortSequence::default();
        let ports: std::collections::BTreeSet<_> = (0..COUNT).map(|_| sequence.take(7_000_000)).collect();
        assert_eq!(ports.len() as u64, COUNT);
    }

    /// 860 connections a second, of which the guest closes each first, fell to 14 when the ports
    /// came back before their minute.
    #[test]
    fn no_port_comes_back_within_a_minute_at_whatever_rate_and_across_restarts() {
        const MINUTE_US: u64 = 60_000_000;
        for per_s in [7, 100, 860, 1000] {
            let times_us = |count: u64| (0..count).map(move |n| 5_000_000 + n * 1_000_000 / per_s);
            for restart_every in [usize::MAX, 100, 10_000] {
                let after_us = comes_back_after_us(times_us(300 * per_s), restart_every);
                assert!(after_us > MINUTE_US, "{per_s} a second, {restart_every}: after {after_us} us");
            }
        }
        // In bursts with silence between them.
        let crowds_us = (0..40).flat_map(|crowd| (0..2000).map(move |n| crowd * 2_500_000 + n));
        assert!(comes_back_after_us(crowds_us, usize::MAX) > MINUTE_US);
    }
}
