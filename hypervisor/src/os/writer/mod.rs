//! Standard output and standard error: written by threads of their own, so that a reader that
//! doesn't read stops no other thread.
//!
//! ```text
//!   reports, console, tracing, panics ──push──► WriteQueue ──writer thread──► stdout or stderr
//!                                                   ▲   └─► the output gate: console output has left
//!                             watch thread ──shed───┘
//! ```
//! A program that doesn't call [`start`] writes at once, blocks, and drops nothing.

mod queue;
mod stream;

pub use queue::{CONSOLE_BYTES_KEPT, LINE_BYTES_MAX, Lost, STALL_NS, WriteQueue};
pub use stream::Stream;

use super::clock;
use super::report::{Grouped, Level, Report, Reporter};
use nix::sys::signal::{SigSet, SigmaskHow};
use serde::Serialize;
use std::backtrace::Backtrace;
use std::fmt;
use std::io;
use std::panic::PanicHookInfo;
use std::thread;
use std::time::Duration;

/// How long an ending process waits for its last output to be written, and for a reader that takes
/// nothing.
const DRAIN_NS: u64 = 5_000_000_000;
const DRAIN_STALL_NS: u64 = 1_000_000_000;

/// How often the watch looks for a stalled reader while something waits to be written.
const WATCH: Duration = Duration::from_millis(100);

static STDOUT: Stream = Stream::of_process(stream::Descriptor::Stdout);
static STDERR: Stream = Stream::of_process(stream::Descriptor::Stderr);

/// This process's standard output: the guest's console and, for machines, reports.
#[must_use]
pub fn stdout() -> &'static Stream {
    &STDOUT
}

/// This process's standard error: reports for people, and logs.
#[must_use]
pub fn stderr() -> &'static Stream {
    &STDERR
}

/// Starts the writing threads: from here on no other thread of this process waits for a reader of
/// its output. `reporter` reports what was dropped.
///
/// # Errors
/// If threads can't be started.
pub fn start(reporter: Reporter) -> io::Result<()> {
    // Signals are for the program's own threads.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = start_threads(reporter);
    before.thread_set_mask()?;
    started
}

fn start_threads(reporter: Reporter) -> io::Result<()> {
    let watch = thread::Builder::new().name("output watch".into()).spawn(|| {
        loop {
            let now_ns = clock::now_ns();
            // Both streams are watched: no short-circuit.
            if STDOUT.watch(now_ns) | STDERR.watch(now_ns) {
                thread::park_timeout(WATCH);
            } else {
                thread::park();
            }
        }
    })?;
    for stream in [&STDOUT, &STDERR] {
        stream.start(watch.thread().clone(), reporter)?;
    }
    Ok(())
}

/// Waits until all output is written, for a bounded time, before the process ends.
pub fn drain() {
    let end_ns = clock::now_ns() + DRAIN_NS;
    if let Some(Lost { console_bytes, lines }) = STDOUT.drain(end_ns, DRAIN_STALL_NS) {
        let (bytes, lines) = (Grouped(console_bytes), Grouped(lines));
        tracing::warn!("standard output was not taken: {bytes} bytes of console and {lines} lines are lost");
    }
    let _ = STDERR.drain(end_ns, DRAIN_STALL_NS);
}

/// Reports a panic as the standard library does, but without waiting for the reader of standard
/// error.
pub fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let backtrace = Backtrace::capture();
    let text = format!("thread '{}' {panic}\n{backtrace}\n", thread.name().unwrap_or("<unnamed>"));
    STDERR.push_in_panic(text.into_bytes());
    let _ = STDERR.drain(clock::now_ns() + DRAIN_NS, DRAIN_STALL_NS);
}

/// Lines of `tracing`, each written at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogLines;

impl io::Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.push_line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output was dropped because its reader took nothing for a while, or its disk was full. Reported
/// once output is taken again.
#[derive(Serialize)]
#[serde(tag = "event", rename = "output_dropped")]
struct OutputDropped {
    /// `standard output` or `standard error`.
    stream: &'static str,
    /// Bytes of the guest's console, as they would have been written.
    console_bytes: u64,
    /// Whole lines of reports and logs.
    lines: u64,
}

impl Report for OutputDropped {
    fn level(&self) -> Level {
        Level::Warn
    }
}

impl fmt::Display for OutputDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, bytes, lines) = (self.stream, Grouped(self.console_bytes), Grouped(self.lines));
        write!(f, "{stream} was not taken: {bytes} bytes of console and {lines} lines are lost")
    }
}
