//! The simulator: the production sides of a VM, with their roles, recorder, replayer and gate, the
//! LAN and the machine under a virtual clock, with everything around them going wrong by a seed.
//!
//! ```text
//!   world ── hosts: Process ─ Seeking ─► Backup ─► Primary        (they call the steps of BackupSide and PrimarySide)
//!     │                          │         │          │
//!     │       env: time · wires (TCP-like, late, cut anywhere) · arbiter (late, deaf, asked again) · judge
//!     │                                               │
//!     └── lan: production fabric ◄────────────────────┘ ── stations that ask the guest `tally`
//! ```
//!
//! One thread, no host clock, no host entropy: a seed is a run. The judge sees what no process can,
//! and a broken rule is a panic: one owner per generation; the Output Rule at every output that
//! leaves; the log and all that left the hosts equal one machine's run; the stations' replies are
//! one machine's history; after the faults, service and protection are back in bounded time.
//!
//! In half of the runs each side keeps a log on its host's disk (`disk.rs`), the hosts lose their
//! power with it, and after the death of both sides an operator resumes the VM from one of the
//! logs.
//!
//! What the simulator doesn't show: two steps at once, and damaged bytes (TCP and the frames'
//! checksums are for those).

mod arbiter;
mod backup;
mod client;
mod connection;
mod disk;
mod env;
mod guest_time;
mod host;
mod judge;
mod lan;
mod log;
mod primary;
mod process;
mod restart;
mod sightings;
mod sink;
mod source;
mod trace;
mod vm;
mod wires;
mod world;

pub use sightings::{Sighting, Sightings};
pub use trace::{Event, Kind, Lane, State};

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use trace::Recorder;
use world::World;

/// A run in which no rule was broken.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The same for the same seed and build.
    pub trace_hash: u64,
    /// How long the run was on its own clock, in nanoseconds.
    pub virtual_ns: u64,
    /// What it showed.
    pub sightings: Sightings,
}

/// A run in which a rule was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which run.
    pub seed: u64,
    /// Which rule, and by what.
    pub reason: String,
}

/// Runs one seed.
///
/// # Errors
/// [`Failure`] if a rule was broken.
pub fn run(seed: u64) -> Result<Outcome, Failure> {
    run_with(seed, None)
}

/// Runs one seed, and keeps what happened.
pub fn run_kept(seed: u64) -> (Result<Outcome, Failure>, Vec<Event>) {
    let recorder = Recorder::default();
    let result = run_with(seed, Some(recorder.clone()));
    let events = std::mem::take(&mut *recorder.lock().unwrap_or_else(PoisonError::into_inner));
    (result, events)
}

fn run_with(seed: u64, recorder: Option<Recorder>) -> Result<Outcome, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| World::new(seed, recorder).run()));
    match result {
        Ok((trace_hash, virtual_ns, sightings)) => Ok(Outcome { trace_hash, virtual_ns, sightings }),
        Err(payload) => Err(Failure { seed, reason: reason(&*payload) }),
    }
}

fn reason(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many were run.
    pub runs: u64,
    /// All that they showed.
    pub sightings: Sightings,
    /// How long they were together on their own clocks, in nanoseconds.
    pub virtual_ns: u64,
    /// The first that broke a rule.
    pub failure: Option<Failure>,
}

/// Runs the seeds `from..from + seeds` on `threads` threads, until one of them breaks a rule.
/// `progress` is told how many are done.
#[must_use]
pub fn run_many(from: u64, seeds: u64, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Summary {
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    let worker = || {
        while !is_over.load(Ordering::Relaxed) {
            let offset = next.fetch_add(1, Ordering::Relaxed);
            if offset >= seeds {
                return;
            }
            let result = run(from.wrapping_add(offset));
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(outcome) => {
                    summary.runs += 1;
                    summary.virtual_ns += outcome.virtual_ns;
                    summary.sightings.add(&outcome.sightings);
                    progress(summary.runs);
                }
                Err(failure) => {
                    is_over.store(true, Ordering::Relaxed);
                    summary.failure.get_or_insert(failure);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    summary.into_inner().unwrap_or_else(PoisonError::into_inner)
}
