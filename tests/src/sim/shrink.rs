//! Makes a failing run smaller: fewer faults, and a shorter time to the broken rule.

use super::plan::{Fault, RunSpec};
use super::{Failure, run};

/// Runs after which a failure is small enough.
pub const RUNS_MAX: u32 = 400;

/// What a fault less is worth, in nanoseconds of a run.
const FAULT_NS: u64 = 20_000_000;

/// A failure that has been shrunk.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest run that still breaks the same rule.
    pub failure: Failure,
    /// How many faults the run had before.
    pub faults_before: usize,
    /// When it broke the rule before, in nanoseconds of its clock.
    pub at_ns_before: u64,
    /// How many runs it took.
    pub runs: u32,
}

/// Looks for smaller runs that break the rule of `failure`, for at most [`RUNS_MAX`] runs: without
/// half of the faults, a quarter, and so on to single ones, and with everything working from an
/// earlier time on. The same failure is always shrunk to the same. `goes_on` is told of each run,
/// and ends the search with `false`.
#[must_use]
pub fn shrink(failure: &Failure, goes_on: &mut dyn FnMut(&Shrunk) -> bool) -> Shrunk {
    let best =
        Shrunk { failure: failure.clone(), faults_before: failure.struck.len(), at_ns_before: failure.at_ns, runs: 0 };
    let mut search = Search { best, is_over: false, goes_on };
    loop {
        let before = search.size();
        search.end_earlier();
        search.leave_out();
        if search.is_over || search.size() == before {
            return search.best;
        }
    }
}

struct Search<'a> {
    best: Shrunk,
    is_over: bool,
    goes_on: &'a mut dyn FnMut(&Shrunk) -> bool,
}

impl Search<'_> {
    /// What is to become smaller.
    fn size(&self) -> u64 {
        size(&self.best.failure)
    }

    /// Tries another run; `true` if it is smaller, and breaks the same rule.
    fn try_run(&mut self, spec: &RunSpec) -> bool {
        self.is_over |= self.best.runs >= RUNS_MAX || !(self.goes_on)(&self.best);
        if self.is_over {
            return false;
        }
        self.best.runs += 1;
        match run(spec) {
            Err(failure) if failure.rule == self.best.failure.rule && size(&failure) < self.size() => {
                self.best.failure = *failure;
                true
            }
            Err(_) | Ok(_) => false,
        }
    }

    /// Lets everything work from an earlier time on.
    fn end_earlier(&mut self) {
        for eighths in [0, 1, 2, 4, 6, 7, 8] {
            let spec = &self.best.failure.spec;
            let end_ms = spec.until_ms.unwrap_or(u64::MAX).min(self.best.failure.at_ns / 1_000_000 + 1);
            let earlier = RunSpec { until_ms: Some(end_ms * eighths / 8), ..spec.clone() };
            if earlier != *spec && self.try_run(&earlier) {
                return;
            }
        }
    }

    /// Leaves out faults, ever fewer at once.
    fn leave_out(&mut self) {
        let mut length = self.best.failure.struck.len();
        while length > 0 && !self.is_over {
            let mut start = 0;
            while start < self.best.failure.struck.len() && !self.is_over {
                let failure = &self.best.failure;
                // From the last to the first: what strikes early changes all that follows.
                let some: Vec<Fault> = failure.struck.iter().rev().skip(start).take(length).copied().collect();
                let mut spec = failure.spec.clone();
                spec.without.extend(some);
                // What is left moves up.
                if !self.try_run(&spec) {
                    start += length;
                }
            }
            length /= 2;
        }
    }
}

/// How much there is to be understood: a fault less is worth some milliseconds more.
fn size(failure: &Failure) -> u64 {
    failure.at_ns + FAULT_NS * failure.struck.len() as u64
}
