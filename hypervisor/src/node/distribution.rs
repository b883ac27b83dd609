//! Distributions of times, for reports and tables.

use crate::os::report::{Grouped, Tenths};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest time that the histogram tells apart, in nanoseconds.
const NS_MAX: u64 = 60_000_000_000;

/// A distribution of times, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The number of measured times.
    pub samples: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p99_9_us: f64,
    /// Maximum.
    pub max_us: f64,
}

/// An empty histogram for times in nanoseconds: up to a minute, with three significant digits.
///
/// # Panics
/// Never: its bounds are constants in range.
#[must_use]
pub fn histogram_ns() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NS_MAX, 3).expect("constant bounds are in range")
}

impl Distribution {
    /// The head of a table of [`Distribution::row`]s; it leaves 21 of a terminal's 80 columns to
    /// the names.
    pub const HEAD: &str = "samples       p50       p90       p99     p99.9         max";

    /// Computes the percentiles of a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram_ns: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "times up to a minute are below 2^53 nanoseconds")]
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile| us(histogram_ns.value_at_quantile(quantile));
        Self {
            samples: histogram_ns.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: us(histogram_ns.max()),
        }
    }

    /// A row of a table, under [`Distribution::HEAD`].
    #[must_use]
    pub fn row(&self) -> String {
        format!(
            "{:>7} {:>9} {:>9} {:>9} {:>9} {:>11}",
            Grouped(self.samples),
            Tenths(self.p50_us),
            Tenths(self.p90_us),
            Tenths(self.p99_us),
            Tenths(self.p99_9_us),
            Tenths(self.max_us)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_in_microseconds() {
        let mut histogram = histogram_ns();
        for ns in 1..=1000 {
            histogram.record(ns * 1000).unwrap();
        }
        let distribution = Distribution::of(&histogram);
        assert_eq!(distribution.samples, 1000);
        for (found, expected) in [
            (distribution.p50_us, 500.0),
            (distribution.p90_us, 900.0),
            (distribution.p99_us, 990.0),
            (distribution.max_us, 1000.0),
        ] {
            assert!((found - expected).abs() <= expected / 500.0, "{found} is not {expected}");
        }
    }
}
