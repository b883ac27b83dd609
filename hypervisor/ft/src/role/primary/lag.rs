//! Bounded lag: a primary slows its guest, and at last stops it, when its backup replays too
//! slowly.
//!
//! The lag is the age of the oldest entry that the backup hasn't consumed: how much of the guest's
//! life a failover would have to catch up on. Source: Scales et al. 2010, §3.2.

use alloc::collections::VecDeque;
use logchannel::entry::LogSeq;

/// All of a vCPU's time.
pub const FULL_SHARE: u32 = 1024;

/// The least that a slowed guest gets.
const SHARE_MIN: u32 = FULL_SHARE / 64;

/// The interval of corrections, in nanoseconds: about as often as the backup reports.
const CORRECTION_NS: u64 = 20_000_000;

/// At this many times the bound the guest stops until the lag is within the bound again.
const STOP_FACTOR: u64 = 4;

/// How fast the guest may run, by its backup's execution lag.
#[derive(Clone, Debug, Hash)]
pub(super) struct LagControl {
    bound_ns: u64,
    /// (position, time the log reached it), oldest first, for positions that the backup has not
    /// consumed.
    marks: VecDeque<(LogSeq, u64)>,
    /// All entries below this one are consumed, or below the last mark: a log that hasn't grown
    /// gets no new mark.
    counted: LogSeq,
    /// All entries below this one are consumed.
    consumed: LogSeq,
    lag_ns: u64,
    share: u32,
    /// Below this share a guest's time is given back quickly: half of what it had before it was
    /// slowed last.
    quick_up_to: u32,
    /// The share was lowered, and the lag hasn't been small since.
    slowing: bool,
    stopped: bool,
    corrected_ns: u64,
    /// Entries that the backup had still to consume at the last correction.
    corrected_backlog: u64,
    /// While the guest is stopped: what the backup had consumed when it last consumed something,
    /// and when that was.
    stuck: Option<(LogSeq, u64)>,
}

impl LagControl {
    /// Full speed, for a backup that begins at `first`, with a lag of at most `bound_ns`
    /// nanoseconds.
    pub(super) const fn new(bound_ns: u64, first: LogSeq) -> Self {
        Self {
            bound_ns,
            marks: VecDeque::new(),
            counted: first,
            consumed: first,
            lag_ns: 0,
            share: FULL_SHARE,
            quick_up_to: FULL_SHARE,
            slowing: false,
            stopped: false,
            corrected_ns: 0,
            corrected_backlog: 0,
            stuck: None,
        }
    }

    /// The log has grown to `appended`.
    pub(super) fn appended(&mut self, now_ns: u64, appended: LogSeq) {
        if self.counted < appended {
            self.counted = appended;
            self.marks.push_back((appended, now_ns));
        }
    }

    /// The position below which the backup has consumed all entries, by its last report.
    pub(super) const fn consumed(&self) -> LogSeq {
        self.consumed
    }

    /// The backup has consumed all entries below `consumed`.
    pub(super) fn consume(&mut self, consumed: LogSeq) {
        self.counted = self.counted.max(consumed);
        self.consumed = consumed;
        while self.marks.front().is_some_and(|(seq, _)| *seq <= consumed) {
            self.marks.pop_front();
        }
    }

    /// Corrects the share, if it is time to.
    pub(super) fn correct(&mut self, now_ns: u64) {
        self.lag_ns = self.marks.front().map_or(0, |(_, since_ns)| now_ns.saturating_sub(*since_ns));
        self.stopped = self.lag_ns > if self.stopped { self.bound_ns } else { self.bound_ns * STOP_FACTOR };
        if !self.stopped {
            self.stuck = None;
        } else if self.stuck.is_none_or(|(consumed, _)| consumed != self.consumed) {
            self.stuck = Some((self.consumed, now_ns));
        }
        if now_ns.saturating_sub(self.corrected_ns) < CORRECTION_NS {
            return;
        }
        self.corrected_ns = now_ns;
        // The lag itself is no measure: it grows as long as the backup replays what the guest did
        // before it was slowed.
        let backlog = self.counted.0 - self.consumed.0;
        let grows = backlog >= core::mem::replace(&mut self.corrected_backlog, backlog);
        // A slow backup takes many times as long for its backlog as the guest took: halve at once.
        // A backup that was only away for a moment is as fast as before: double up to where it is
        // likely to keep up, and go slowly from there.
        if self.lag_ns > self.bound_ns && grows {
            if !core::mem::replace(&mut self.slowing, true) {
                self.quick_up_to = self.share / 2;
            }
            self.share = (self.share / 2).max(SHARE_MIN);
        } else if self.lag_ns < self.bound_ns / 2 {
            self.slowing = false;
            let step = if self.share < self.quick_up_to { self.share } else { FULL_SHARE / 64 };
            self.share = (self.share + step).min(FULL_SHARE);
        }
    }

    /// The part of the vCPU's time that the guest may have, of [`FULL_SHARE`].
    pub(super) const fn share(&self) -> u32 {
        self.share
    }

    /// `true` if the guest has to wait for its backup.
    pub(super) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How long the guest has been stopped while its backup consumed nothing, in nanoseconds.
    pub(super) fn stuck_ns(&self, now_ns: u64) -> u64 {
        self.stuck.map_or(0, |(_, since_ns)| now_ns.saturating_sub(since_ns))
    }

    /// The lag at the last correction, in nanoseconds.
    pub(super) const fn lag_ns(&self) -> u64 {
        self.lag_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const BOUND_MS: u64 = 100;

    /// The result of a simulated run of a guest and its backup.
    struct Run {
        lag: LagControl,
        lag_max_ns: u64,
    }

    /// A guest that makes one entry a millisecond at full speed, and a backup that consumes
    /// `permille` of one.
    fn run(permille: u64, ms: u64) -> Run {
        run_with(|_| permille, ms)
    }

    /// The same with a backup whose speed changes.
    fn run_with(permille: impl Fn(u64) -> u64, ms: u64) -> Run {
        let mut lag = LagControl::new(BOUND_MS * MS, LogSeq(0));
        let (mut appended, mut consumed, mut lag_max_ns) = (0, 0, 0);
        for now in 1..=ms {
            if !lag.is_stopped() {
                appended += 1000 * u64::from(lag.share()) / u64::from(FULL_SHARE);
            }
            consumed = appended.min(consumed + permille(now));
            lag.appended(now * MS, LogSeq(appended));
            if now % 20 == 0 {
                lag.consume(LogSeq(consumed));
            }
            if now % 5 == 0 {
                lag.correct(now * MS);
                lag_max_ns = lag_max_ns.max(lag.lag_ns());
            }
        }
        Run { lag, lag_max_ns }
    }

    #[test]
    fn a_backup_that_keeps_up_costs_nothing() {
        let ran = run(1100, 5_000);
        assert_eq!((ran.lag.share(), ran.lag.is_stopped()), (FULL_SHARE, false));
        assert!(ran.lag_max_ns <= 25 * MS, "{:?}", (ran.lag.lag_ns(), ran.lag_max_ns));
    }

    #[test]
    fn a_backup_ten_times_slower_slows_the_guest_to_its_speed() {
        let ran = run(100, 60_000);
        // The backlog from before the lag was noticed takes ten times as long to replay.
        assert!(ran.lag_max_ns <= 20 * BOUND_MS * MS, "{:?}", (ran.lag.lag_ns(), ran.lag_max_ns));
        assert!(ran.lag.lag_ns() <= 2 * BOUND_MS * MS, "{:?}", (ran.lag.lag_ns(), ran.lag_max_ns));
        assert!((FULL_SHARE / 64..FULL_SHARE / 4).contains(&ran.lag.share()), "{}", ran.lag.share());
    }

    #[test]
    fn a_backup_a_little_slower_slows_the_guest_a_little() {
        for permille in [300, 500, 800] {
            let ran = run(permille, 60_000);
            let least = FULL_SHARE * u32::try_from(permille).unwrap() / 2000;
            assert!(ran.lag.share() >= least, "{permille}: {}", ran.lag.share());
            assert!(ran.lag.lag_ns() <= 2 * BOUND_MS * MS, "{:?}", (ran.lag.lag_ns(), ran.lag_max_ns));
        }
    }

    #[test]
    fn a_backup_that_was_away_for_a_moment_slows_the_guest_for_a_moment() {
        let away = |from: u64| move |now| if (from..from + 220).contains(&now) { 0 } else { 5000 };
        let slowed = run_with(away(1000), 1_220);
        assert!(slowed.lag.share() <= FULL_SHARE / 32, "{}", slowed.lag.share());
        let ran = run_with(away(1000), 1_460);
        assert!(ran.lag.share() >= FULL_SHARE / 2, "{}", ran.lag.share());
        assert!(ran.lag_max_ns < 300 * MS, "{:?}", (ran.lag.lag_ns(), ran.lag_max_ns));
    }

    #[test]
    fn a_backup_that_stands_still_stops_the_guest() {
        let ran = run(0, 5_000);
        assert!(ran.lag.is_stopped());
    }
}
