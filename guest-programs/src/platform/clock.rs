//! The clock (CSR `time`) and the tick (SBI TIME).
//!
//! Each read of the clock is an entry of the machine's log, so the clock is read only where it must
//! be: otherwise the deadline of the last tick is the time, to 1/[`TICK_HZ`] of a second.

use core::sync::atomic::{AtomicU64, Ordering};
use riscv::register::{sie, time};
use smoltcp::time::Instant;

/// Timer interrupts per second.
pub const TICK_HZ: u64 = 100;

static TICK_PERIOD: AtomicU64 = AtomicU64::new(0);
static NEXT_DEADLINE: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The time since power-on. It never goes back.
#[derive(Debug)]
pub struct Clock {
    timebase_hz: u64,
    /// In ticks of CSR `time`.
    latest: u64,
}

impl Clock {
    /// Starts the tick; the clock runs at `timebase_hz`.
    #[must_use]
    pub fn start(timebase_hz: u64) -> Self {
        let now = time::read64();
        let period = timebase_hz / TICK_HZ;
        TICK_PERIOD.store(period, Ordering::Relaxed);
        NEXT_DEADLINE.store(now + period, Ordering::Relaxed);
        sbi_rt::set_timer(now + period);
        // SAFETY: the trap handler handles timer interrupts.
        unsafe { sie::set_stimer() };
        Self { timebase_hz, latest: now }
    }

    /// The time now, read from the clock.
    pub fn read(&mut self) -> Instant {
        self.latest = self.latest.max(time::read64());
        self.instant()
    }

    /// The time of the latest tick or read, without reading the clock: at most one tick late.
    pub fn estimate(&mut self) -> Instant {
        let latest_deadline = NEXT_DEADLINE.load(Ordering::Relaxed) - TICK_PERIOD.load(Ordering::Relaxed);
        self.latest = self.latest.max(latest_deadline);
        self.instant()
    }

    fn instant(&self) -> Instant {
        let micros = u128::from(self.latest) * 1_000_000 / u128::from(self.timebase_hz);
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

/// Handles a timer interrupt: sets the deadline of the next one.
///
/// The deadline is computed from the one before, so that ticks don't drift and the clock isn't
/// read. Once a second the clock is read nevertheless, or a guest that was paused for hours would
/// take every missed tick one after the other.
pub(super) fn tick() {
    let period = TICK_PERIOD.load(Ordering::Relaxed);
    let mut deadline = NEXT_DEADLINE.load(Ordering::Relaxed) + period;
    let ticks = TICKS.load(Ordering::Relaxed) + 1;
    if ticks.is_multiple_of(TICK_HZ) {
        deadline = deadline.max(time::read64());
    }
    TICKS.store(ticks, Ordering::Relaxed);
    NEXT_DEADLINE.store(deadline, Ordering::Relaxed);
    sbi_rt::set_timer(deadline);
}
