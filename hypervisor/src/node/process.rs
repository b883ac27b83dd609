//! A process as the host of a side: a thread for each step.

use super::channel::lock;
use super::host::{Host, Next, StepKind};
use super::reports::NodeReport;
use crate::os::clock;
use crate::os::priority;
use crate::os::report::Reporter;
use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Duration;

/// This process.
#[derive(Clone, Debug)]
pub struct ProcessHost {
    reporter: Reporter,
    /// The threads of steps that can be woken.
    threads: Arc<Mutex<BTreeMap<StepKind, Thread>>>,
}

impl ProcessHost {
    /// This process, which tells what happens by `reporter`.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        Self { reporter, threads: Arc::default() }
    }

    /// Calls `step` in a thread of its own until it is done.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn spawn(&self, name: &str, step: impl FnMut() -> Next + Send + 'static) -> io::Result<()> {
        let host = self.clone();
        thread::Builder::new().name(name.into()).spawn(move || host.run(None, step))?;
        Ok(())
    }

    /// The same in a thread that runs as soon as it has something to do.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn spawn_urgent(&self, name: &str, step: impl FnMut() -> Next + Send + 'static) -> io::Result<()> {
        let host = self.clone();
        thread::Builder::new().name(name.into()).spawn(move || {
            priority::raise();
            host.run(None, step);
        })?;
        Ok(())
    }

    /// Calls `step` in this thread until it is done. [`Host::wake`] with its kind ends a wait.
    pub fn run(&self, kind: Option<StepKind>, mut step: impl FnMut() -> Next) {
        if let Some(kind) = kind {
            self.is_run_here(kind);
        }
        while self.wait(kind, &step()) {}
    }

    /// Steps of this kind are called in this thread.
    pub fn is_run_here(&self, kind: StepKind) {
        lock(&self.threads).insert(kind, thread::current());
    }

    /// Waits as a step says; `false` if it is done.
    pub fn wait(&self, kind: Option<StepKind>, next: &Next) -> bool {
        match next {
            // Whoever reads a connection waits in it.
            Next::Now | Next::Arrival => true,
            Next::Wait { until_ns } => {
                let duration = Duration::from_nanos(until_ns.saturating_sub(clock::now_ns()));
                match kind {
                    None => thread::sleep(duration),
                    Some(_) => thread::park_timeout(duration),
                }
                true
            }
            Next::Done => false,
        }
    }
}

impl Host for ProcessHost {
    type Connection = TcpStream;

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn report(&self, report: &NodeReport) {
        self.reporter.tell(report);
    }

    fn wake(&self, step: StepKind) {
        if let Some(thread) = lock(&self.threads).get(&step) {
            thread.unpark();
        }
    }
}
