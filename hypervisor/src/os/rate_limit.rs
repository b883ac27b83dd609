//! A rate limit for lines that a peer can cause as often as it likes, so that no peer fills a log.

use std::collections::BTreeMap;
use std::fmt;

/// The least time between two lines of a kind that peers can cause, in nanoseconds.
pub const PEER_LINE_INTERVAL_NS: u64 = 5_000_000_000;

/// Lets one line of a kind through in an interval, and counts the others. Times are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    interval_ns: u64,
    told_ns: Option<u64>,
    left_out: u64,
}

impl RateLimit {
    /// Lets the first line through, and then at most one in `interval_ns`.
    #[must_use]
    pub const fn every(interval_ns: u64) -> Self {
        Self { interval_ns, told_ns: None, left_out: 0 }
    }

    /// Asks whether one more line may be told. `None` if it comes too soon after the last one;
    /// otherwise the number of lines that were left out since then.
    pub fn admit(&mut self, now_ns: u64) -> Option<LeftOut> {
        if self.told_ns.is_some_and(|told_ns| now_ns.saturating_sub(told_ns) < self.interval_ns) {
            self.left_out += 1;
            return None;
        }
        self.told_ns = Some(now_ns);
        Some(LeftOut(std::mem::take(&mut self.left_out)))
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::every(PEER_LINE_INTERVAL_NS)
    }
}

/// A [`RateLimit`] for each kind of line, so that one kind doesn't leave out another. `K` names the
/// kinds: few, and not chosen by peers.
#[derive(Clone, Debug)]
pub struct RateLimits<K>(BTreeMap<K, RateLimit>);

impl<K: Ord> RateLimits<K> {
    /// The same as [`RateLimit::admit`], for lines of one kind.
    pub fn admit(&mut self, kind: K, now_ns: u64) -> Option<LeftOut> {
        self.0.entry(kind).or_default().admit(now_ns)
    }
}

impl<K> Default for RateLimits<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// How many lines were left out before one that is told. Displayed at the end of that line; nothing
/// if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 like it before was left out)"),
            count => write!(f, " ({count} like it before were left out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LeftOut, PEER_LINE_INTERVAL_NS, RateLimit, RateLimits};

    #[test]
    fn the_first_line_is_told_and_then_one_in_an_interval_with_the_number_of_those_left_out() {
        let mut limit = RateLimit::default();
        // A thousand lines a second for 12 s, and one that comes much later.
        let at_ns = (0..12_000).map(|ms| 7 + ms * 1_000_000).chain([100_000_000_000]);
        let told: Vec<_> = at_ns.filter_map(|now_ns| Some((now_ns, limit.admit(now_ns)?))).collect();
        let every = PEER_LINE_INTERVAL_NS;
        let expected = [(7, 0), (7 + every, 4999), (7 + 2 * every, 4999), (100_000_000_000, 1999)];
        assert_eq!(told, expected.map(|(now_ns, count)| (now_ns, LeftOut(count))));
    }

    #[test]
    fn one_kind_of_line_leaves_out_no_other() {
        let mut limits = RateLimits::default();
        assert_eq!([0, 1, 0, 1].map(|kind| limits.admit(kind, 9).is_some()), [true, true, false, false]);
    }

    #[test]
    fn no_line_says_that_none_was_left_out() {
        let words = [0, 1, 2].map(|count| LeftOut(count).to_string());
        assert_eq!(words, ["", " (1 like it before was left out)", " (2 like it before were left out)"]);
    }
}
