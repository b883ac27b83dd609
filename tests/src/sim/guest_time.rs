//! The guest's clock as the judge sees it: beside the time that has really passed.

use ft::guest_clock::PAUSE_NS;
use logchannel::session::NodeId;
use std::collections::BTreeMap;
use vm::TIMEBASE_HZ;

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// What two hosts' clocks are allowed for, over a whole run, and what passes from the word that a
/// clock runs to its start.
const DRIFT_NS: u64 = 4_000_000;

/// The guest's clock goes with the time, without what was a pause: a failover costs no more than
/// the delay with which the primary's clock came to the backup.
#[derive(Debug, Default)]
pub(super) struct GuestTime {
    /// When a clock that has lost nothing since the last read would have read 0; in nanoseconds, as
    /// all times here.
    zero_ns: Option<i128>,
    /// What the next read may have lost.
    allowed_ns: i128,
    /// The least delay with which a backup has heard of the clock, and the pauses that it has seen.
    delays: BTreeMap<NodeId, i128>,
    pauses: BTreeMap<NodeId, i128>,
    /// Pauses of the VM's owner since a backup has last heard of its clock: a successor that went
    /// on without it knows of none.
    unheard_ns: i128,
    /// By how much the next read may be ahead for that reason.
    ahead_ns: i128,
}

impl GuestTime {
    /// By how much `ticks` are behind what the clock would read now if it had lost nothing.
    fn behind_ns(&self, now_ns: u64, ticks: u64) -> i128 {
        let ticks_ns = i128::from(ticks) * i128::from(NS_PER_TICK);
        self.zero_ns.map_or(0, |zero_ns| i128::from(now_ns) - zero_ns - ticks_ns)
    }

    /// The VM's owner reads the clock.
    pub(super) fn reads(&mut self, now_ns: u64, ticks: u64) {
        let behind_ns = self.behind_ns(now_ns, ticks);
        let tick_ns = i128::from(NS_PER_TICK);
        assert!(
            behind_ns >= -self.ahead_ns - i128::from(DRIFT_NS),
            "the guest's clock is {} ns ahead of its time",
            -behind_ns
        );
        assert!(
            behind_ns <= self.allowed_ns + tick_ns,
            "the guest's clock has lost {behind_ns} ns, not {}",
            self.allowed_ns
        );
        if self.zero_ns.is_none() || self.allowed_ns > 0 {
            self.zero_ns = Some(i128::from(now_ns) - i128::from(ticks) * tick_ns);
            (self.allowed_ns, self.ahead_ns) = (0, 0);
        }
    }

    /// A backup hears what the clock of its primary reads.
    pub(super) fn is_told(&mut self, now_ns: u64, backup: NodeId, ticks: u64) {
        let delay_ns = self.behind_ns(now_ns, ticks);
        if delay_ns < -i128::from(DRIFT_NS) {
            // Said before the owner's last pause.
            return;
        }
        self.unheard_ns = 0;
        let least_ns = self.delays.entry(backup).or_insert(delay_ns);
        *least_ns = delay_ns.min(*least_ns);
    }

    /// A backup's host or arbiter makes it wait for `wait_ns`: it may take that for a pause.
    pub(super) fn waits(&mut self, backup: NodeId, wait_ns: u64) {
        if wait_ns > PAUSE_NS {
            *self.pauses.entry(backup).or_default() += i128::from(wait_ns);
        }
    }

    /// The VM's owner couldn't run for `pause_ns`, in which the guest's clock has to stand.
    pub(super) fn pauses(&mut self, pause_ns: u64) {
        self.zero_ns = self.zero_ns.map(|zero_ns| zero_ns + i128::from(pause_ns));
        self.unheard_ns += i128::from(pause_ns);
    }

    /// The VM goes on from a log: since the log's last read its clock has stood.
    pub(super) fn restarts(&mut self) {
        *self = Self::default();
    }

    /// A backup becomes the VM's owner.
    pub(super) fn goes_live(&mut self, node: NodeId) {
        let delay_ns = self.delays.remove(&node).unwrap_or_default();
        let pause_ns = self.pauses.remove(&node).unwrap_or_default();
        self.ahead_ns = std::mem::take(&mut self.unheard_ns);
        self.allowed_ns += delay_ns + pause_ns + i128::from(DRIFT_NS);
    }
}
