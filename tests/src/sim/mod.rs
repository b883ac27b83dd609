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
pub mod failures;
mod guest_time;
mod host;
mod judge;
mod lan;
mod log;
mod plan;
mod primary;
mod process;
mod restart;
mod shrink;
mod sightings;
mod sink;
mod source;
mod trace;
mod vm;
mod wires;
mod world;

pub use plan::{Fault, Habit, RunSpec};
pub use shrink::{RUNS_MAX, Shrunk, shrink};
pub use sightings::{Sighting, Sightings};
pub use trace::{Event, Kind, Lane, State, View, html, table};

use plan::Record;
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use world::World;

/// A run in which no rule was broken.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The same for the same run and build.
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
    pub spec: RunSpec,
    /// Which rule: the line of the source that says so.
    pub rule: String,
    /// How it was broken.
    pub reason: String,
    /// When, in nanoseconds of the run's clock.
    pub at_ns: u64,
    /// What had gone wrong in the run, and can be left out.
    pub struck: BTreeSet<Fault>,
}

/// Makes a run.
///
/// # Errors
/// [`Failure`] if a rule was broken.
pub fn run(spec: &RunSpec) -> Result<Outcome, Box<Failure>> {
    run_recorded(spec, &Arc::default())
}

/// Makes a run, and keeps all that happened; a broken rule is the last event.
pub fn run_kept(spec: &RunSpec) -> (Result<Outcome, Box<Failure>>, Vec<Event>) {
    let record = Arc::new(Record::with_events());
    let result = run_recorded(spec, &record);
    let events =
        record.events.as_ref().map(|events| events.lock().unwrap_or_else(PoisonError::into_inner).split_off(0));
    let mut events = events.unwrap_or_default();
    if let Err(failure) = &result {
        let text = format!("({}): {}", failure.rule, failure.reason);
        let lane = Lane::World;
        let at_ns = failure.at_ns;
        events.push(Event { at_ns, lane, kind: Kind::Verdict, from: None, state: None, fault: None, text });
    }
    (result, events)
}

thread_local! {
    /// Where a run on this thread has panicked; the outer one is `None` while there is no run.
    static PANICKED_AT: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// Keeps where a run panics, and says nothing: a broken rule is a result.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_run = PANICKED_AT.with_borrow_mut(|place| {
                let is_run = place.is_some();
                if is_run {
                    *place = Some(info.location().map(|location| format!("{}:{}", location.file(), location.line())));
                }
                is_run
            });
            if !is_run {
                other(info);
            }
        }));
    });
}

fn run_recorded(spec: &RunSpec, record: &Arc<Record>) -> Result<Outcome, Box<Failure>> {
    hear_panics();
    PANICKED_AT.set(Some(None));
    #[cfg(feature = "mutations")]
    ft::mutation::activate(spec.mutation);
    let result = catch_unwind(AssertUnwindSafe(|| World::new(spec, record.clone()).run()));
    #[cfg(feature = "mutations")]
    ft::mutation::activate(None);
    let place = PANICKED_AT.take().flatten();
    match result {
        Ok((trace_hash, virtual_ns, sightings)) => Ok(Outcome { trace_hash, virtual_ns, sightings }),
        Err(payload) => Err(Box::new(Failure {
            spec: spec.clone(),
            rule: place.unwrap_or_else(|| "unknown".into()),
            reason: trace::for_people(&reason(&*payload)),
            at_ns: record.now_ns(),
            struck: record.struck(),
        })),
    }
}

fn reason(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many were run to their end.
    pub runs: u64,
    /// All that they showed.
    pub sightings: Sightings,
    /// How long they were together on their own clocks, in nanoseconds.
    pub virtual_ns: u64,
    /// Those that broke a rule, by their seeds.
    pub failures: Vec<Failure>,
}

/// Makes the run `first` and those of the seeds after it, `seeds` together, on `threads` threads,
/// until `failures_max` of them have broken a rule. `goes_on` is told of each run what there is so
/// far, and ends it all with `false`.
#[must_use]
pub fn run_many(
    first: &RunSpec,
    seeds: u64,
    threads: usize,
    failures_max: usize,
    goes_on: &(dyn Fn(&Summary) -> bool + Sync),
) -> Summary {
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    let worker = || {
        while !is_over.load(Ordering::Relaxed) {
            let offset = next.fetch_add(1, Ordering::Relaxed);
            if offset >= seeds {
                return;
            }
            let result = run(&RunSpec { seed: first.seed.wrapping_add(offset), ..first.clone() });
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(outcome) => {
                    summary.runs += 1;
                    summary.virtual_ns += outcome.virtual_ns;
                    summary.sightings.add(&outcome.sightings);
                }
                Err(failure) => summary.failures.push(*failure),
            }
            if summary.failures.len() >= failures_max || !goes_on(&summary) {
                is_over.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failures.sort_by_key(|failure| failure.spec.seed);
    summary
}
