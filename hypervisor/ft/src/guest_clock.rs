//! The guest's clock: which ticks it reads at a time of the host's monotonic clock, when it stands,
//! and how a backup follows its primary's.
//!
//! Every value that the guest reads is logged, so replay needs none of this. A new owner may go on
//! with any value that isn't below the last logged one; these rules choose the one that a guest on
//! a single machine would have read:
//!
//! - A failover isn't a pause: the backup goes on from what the primary's clock was last known to
//!   read, plus its own time since.
//! - A paused VM's clock stands: while the role says so
//!   ([`clock_stands`](crate::role::PrimaryRole::clock_stands)), and over a gap of more than
//!   [`PAUSE_NS`] in which the host didn't run the vCPU thread. A guest that found such a time on
//!   its clock would take it for its own standstill. Its wall-clock time is behind afterwards.

use crate::mutation::{Mutation, mutated};
use vm::TIMEBASE_HZ;

/// How long the host must not have run the guest for the gap to count as a pause, in nanoseconds.
/// Shorter gaps happen on any busy host.
pub const PAUSE_NS: u64 = 1_000_000_000;

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// The most ticks by which a primary's clock message may be late because this side stood still, for
/// example. A message that is later means that the primary's clock stood, which it does only in a
/// pause.
const LATE_TICKS_MAX: u64 = PAUSE_NS / NS_PER_TICK;

/// The rates of two hosts' monotonic clocks are assumed to differ by less than 1/`DRIFT`.
const DRIFT: u64 = 1_000;

/// The guest's clock as a function of the host's monotonic time. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestClock {
    ticks: u64,
    /// When the clock read `ticks`; `None` while it stands.
    since_ns: Option<u64>,
}

impl GuestClock {
    /// A clock that stands at `ticks`.
    #[must_use]
    pub const fn standing(ticks: u64) -> Self {
        Self { ticks, since_ns: None }
    }

    /// A clock that reads `ticks` at `now_ns`, and runs.
    #[must_use]
    pub const fn running(ticks: u64, now_ns: u64) -> Self {
        Self { ticks, since_ns: Some(now_ns) }
    }

    /// The clock's reading at `now_ns`, in ticks of [`vm::TIMEBASE_HZ`].
    #[must_use]
    pub fn ticks(&self, now_ns: u64) -> u64 {
        self.since_ns
            .map_or(self.ticks, |since_ns| self.ticks.saturating_add(now_ns.saturating_sub(since_ns) / NS_PER_TICK))
    }

    /// `true` if the clock runs, `false` if it stands.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.since_ns.is_some()
    }

    /// The host's time at which the clock reads `ticks`, in nanoseconds; `u64::MAX` if the clock
    /// stands before that.
    #[must_use]
    pub fn ns_of(&self, ticks: u64) -> u64 {
        match (ticks.saturating_sub(self.ticks), self.since_ns) {
            (0, since_ns) => since_ns.unwrap_or(0),
            (_, None) => u64::MAX,
            (left, Some(since_ns)) => since_ns.saturating_add(left.saturating_mul(NS_PER_TICK)),
        }
    }

    /// Starts or stops the clock at `now_ns`.
    pub fn set_running(&mut self, now_ns: u64, runs: bool) {
        if runs != self.is_running() {
            *self = Self { ticks: self.ticks(now_ns), since_ns: runs.then_some(now_ns) };
        }
    }

    /// Takes the last `gap_ns` back: the clock didn't run in them.
    fn skip(&mut self, gap_ns: u64) {
        self.since_ns = self.since_ns.map(|since_ns| since_ns.saturating_add(gap_ns));
    }
}

/// A clock that its owner reads several times a second: a gap of more than [`PAUSE_NS`] between two
/// readings is a pause, in which the clock stood.
#[derive(Clone, Copy, Debug, Hash)]
pub struct WatchedClock {
    clock: GuestClock,
    /// When the clock was last read, in nanoseconds.
    seen_ns: u64,
}

impl WatchedClock {
    /// A watched clock that was last read at `now_ns`.
    #[must_use]
    pub const fn new(clock: GuestClock, now_ns: u64) -> Self {
        Self { clock, seen_ns: now_ns }
    }

    /// The clock as of the last reading.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        &self.clock
    }

    /// Reads the clock, in ticks, and leaves out a pause since the last reading.
    pub fn read(&mut self, now_ns: u64) -> u64 {
        let gap_ns = now_ns.saturating_sub(self.seen_ns);
        if gap_ns > PAUSE_NS && !mutated(Mutation::ClockRunsInPause) {
            self.clock.skip(gap_ns);
        }
        self.seen_ns = self.seen_ns.max(now_ns);
        self.clock.ticks(now_ns)
    }

    /// Starts or stops the clock at `now_ns`.
    pub fn set_running(&mut self, now_ns: u64, runs: bool) {
        if runs != self.clock.is_running() {
            self.read(now_ns);
            self.clock.set_running(now_ns, runs);
        }
    }
}

/// A backup's estimate of its primary's clock: the primary's last message about it, plus the
/// backup's own time since.
#[derive(Clone, Copy, Debug, Hash)]
pub struct PrimaryClock {
    estimate: WatchedClock,
    /// The primary's last message said that its clock runs.
    runs: bool,
    heard_ns: u64,
}

impl PrimaryClock {
    /// An estimate from the primary's first message about its clock.
    #[must_use]
    pub const fn new(told: GuestClock, now_ns: u64) -> Self {
        Self { estimate: WatchedClock::new(told, now_ns), runs: told.is_running(), heard_ns: now_ns }
    }

    /// Takes another message of the primary about its clock.
    ///
    /// Any delay makes what it says too small, so the greatest of its messages counts. It counts a
    /// little less with time: two hosts' clocks don't run at quite the same rate. A clock that
    /// stands, or stood, is as the last message says.
    pub fn hear(&mut self, told: GuestClock, now_ns: u64) {
        if !self.runs || !told.is_running() {
            *self = Self::new(told, now_ns);
            return;
        }
        let ticks = told.ticks(now_ns);
        let own = self.estimate.read(now_ns);
        let drift = now_ns.saturating_sub(self.heard_ns) / NS_PER_TICK / DRIFT;
        let is_late = own.saturating_sub(ticks) <= LATE_TICKS_MAX;
        let best = if is_late { ticks.max(own.saturating_sub(drift)) } else { ticks };
        *self = Self::new(GuestClock::running(best, now_ns), now_ns);
    }

    /// Lets time pass. It doesn't count while `is_paused`: neither side may run the guest then.
    pub fn pass(&mut self, now_ns: u64, is_paused: bool) {
        self.estimate.read(now_ns);
        self.estimate.set_running(now_ns, self.runs && !is_paused);
    }

    /// The clock with which this node goes on with a guest that has read `last_ticks`: not behind
    /// the primary's clock, and never below what is logged.
    #[must_use]
    pub fn take_over(&mut self, now_ns: u64, last_ticks: u64) -> GuestClock {
        let ticks = self.estimate.read(now_ns);
        if mutated(Mutation::ClockOfLastEntry) {
            return GuestClock::running(last_ticks, now_ns);
        }
        GuestClock::running(ticks.max(last_ticks), now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestClock, NS_PER_TICK, PAUSE_NS, PrimaryClock, WatchedClock};

    const S: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;

    #[test]
    fn a_clock_stands_and_runs_and_never_goes_back() {
        let mut clock = GuestClock::standing(500);
        assert_eq!((clock.ticks(0), clock.ticks(S), clock.ns_of(500), clock.ns_of(501)), (500, 500, 0, u64::MAX));
        clock.set_running(S, true);
        clock.set_running(2 * S, true);
        assert_eq!((clock.ticks(S), clock.ticks(2 * S), clock.ticks(0)), (500, 500 + S / NS_PER_TICK, 500));
        assert_eq!((clock.ns_of(400), clock.ns_of(501), clock.ns_of(u64::MAX)), (S, S + NS_PER_TICK, u64::MAX));
        clock.set_running(2 * S, false);
        assert_eq!(clock, GuestClock::standing(500 + S / NS_PER_TICK));
        assert_eq!(GuestClock::running(u64::MAX - 1, 0).ticks(S), u64::MAX, "a guest's clock of any value saturates");
    }

    #[test]
    fn a_gap_of_more_than_a_second_between_two_looks_does_not_count() {
        let mut watched = WatchedClock::new(GuestClock::running(0, 0), 0);
        assert_eq!(watched.read(PAUSE_NS), PAUSE_NS / NS_PER_TICK, "a host that is only busy");
        let course = *watched.clock();
        assert_eq!(watched.read(PAUSE_NS + 30 * S), PAUSE_NS / NS_PER_TICK);
        assert_ne!(*watched.clock(), course, "the driver sees that the clock has changed its course");
        assert_eq!(watched.read(PAUSE_NS + 30 * S + MS), (PAUSE_NS + MS) / NS_PER_TICK);
        assert_eq!(
            watched.clock().ns_of((PAUSE_NS + MS) / NS_PER_TICK),
            PAUSE_NS + 30 * S + MS,
            "a timer is due as much later"
        );
        // A clock that stands has nothing to leave out, and goes on from where it stood.
        watched.set_running(40 * S, false);
        let stands_at = watched.read(40 * S);
        watched.set_running(90 * S, true);
        assert_eq!((watched.read(90 * S), watched.read(91 * S)), (stands_at, stands_at + S / NS_PER_TICK));
    }

    #[test]
    fn a_late_message_costs_nothing_and_a_primary_that_was_paused_is_believed() {
        let mut clock = PrimaryClock::new(GuestClock::running(0, 0), 0);
        // Most come at once, one comes 40 ms late.
        for at in 1..=100 {
            let delay_ns = if at == 100 { 40 * MS } else { 0 };
            let now_ns = at * 50 * MS + delay_ns;
            clock.hear(GuestClock::running(at * 50 * MS / NS_PER_TICK, now_ns), now_ns);
        }
        let now_ns = 5 * S + 40 * MS;
        let ticks = clock.take_over(now_ns, 0).ticks(now_ns);
        assert!(ticks <= now_ns / NS_PER_TICK && ticks >= (now_ns - MS) / NS_PER_TICK, "{ticks}");
        // This side stood still for a while, and finds all that came meanwhile at once.
        for sent_ns in [5 * S + 50 * MS, 5 * S + 100 * MS] {
            let now_ns = 5 * S + 750 * MS;
            clock.hear(GuestClock::running(sent_ns / NS_PER_TICK, now_ns), now_ns);
        }
        let now_ns = 5 * S + 750 * MS;
        let ticks = clock.take_over(now_ns, 0).ticks(now_ns);
        assert!(ticks <= now_ns / NS_PER_TICK && ticks >= (now_ns - MS) / NS_PER_TICK, "{ticks}");
        // It stood for three seconds, and says so.
        clock.hear(GuestClock::running(2 * S / NS_PER_TICK, now_ns), now_ns);
        assert_eq!(clock.take_over(now_ns, 0).ticks(now_ns), 2 * S / NS_PER_TICK);
    }

    /// Two hosts' clocks differ by 100 parts in a million, for a week.
    #[test]
    fn a_backup_whose_own_clock_is_fast_does_not_run_away() {
        let mut clock = PrimaryClock::new(GuestClock::running(0, 0), 0);
        let (told_ns, own_ns) = (S / 2, S / 2 + S / 20_000);
        for time in 1..=1_200_000 {
            clock.hear(GuestClock::running(time * told_ns / NS_PER_TICK, time * own_ns), time * own_ns);
        }
        let now_ns = 1_200_000 * own_ns;
        let ahead = clock.take_over(now_ns, 0).ticks(now_ns).abs_diff(1_200_000 * told_ns / NS_PER_TICK);
        assert!(ahead < MS / NS_PER_TICK, "{ahead} ticks");
    }

    /// A primary that waits for its backup says that its clock stands, and starts it when the pair
    /// is complete.
    #[test]
    fn a_clock_that_stands_is_not_followed_as_if_it_ran() {
        let mut clock = PrimaryClock::new(GuestClock::standing(0), 0);
        clock.pass(45 * MS, false);
        clock.hear(GuestClock::standing(0), 45 * MS);
        clock.hear(GuestClock::running(0, 45 * MS), 45 * MS);
        assert_eq!(clock.take_over(50 * MS, 0).ticks(50 * MS), 5 * MS / NS_PER_TICK);
        clock.hear(GuestClock::standing(7), 60 * MS);
        assert_eq!(clock.take_over(S, 0), GuestClock::running(7, S));
    }

    #[test]
    fn a_new_owner_goes_on_from_the_primarys_clock_and_never_below_the_last_logged_value() {
        let mut clock = PrimaryClock::new(GuestClock::running(1_000, 0), 0);
        assert_eq!(clock.take_over(S, 7), GuestClock::running(1_000 + S / NS_PER_TICK, S));
        assert_eq!(clock.take_over(S, u64::MAX), GuestClock::running(u64::MAX, S));
    }

    #[test]
    fn a_suspended_backup_leaves_the_pause_out_too() {
        let mut clock = PrimaryClock::new(GuestClock::running(0, 0), 0);
        clock.pass(MS, false);
        clock.pass(60 * S, false);
        assert_eq!(clock.take_over(60 * S, 0).ticks(60 * S), MS / NS_PER_TICK);
        clock.pass(60 * S, true);
        clock.pass(60 * S + 500 * MS, true);
        clock.pass(61 * S, false);
        assert_eq!(clock.take_over(61 * S, 0).ticks(61 * S), MS / NS_PER_TICK, "it waited for the arbiter");
    }
}
