//! The progress of a long replay, as a line on a terminal; and the operator's Ctrl-C.

use super::super::length::Length;
use crate::os::clock;
use crate::program::cli::interrupt;
use crate::recording::Monitor;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long work takes before there is a line about it, in nanoseconds.
const FIRST_NS: u64 = 500_000_000;

/// Shows how far a replay is, how fast, and how long it will take, if standard error is a terminal.
#[derive(Debug)]
pub(super) struct Bar {
    started_ns: u64,
    done: AtomicU64,
    length: Length,
    is_shown: bool,
    bar: OnceLock<ProgressBar>,
}

impl Bar {
    /// For work that replays as many steps as `length` has.
    pub(super) fn new(length: Length, is_json: bool) -> Self {
        let is_shown = !is_json && io::stderr().is_terminal();
        Self { started_ns: clock::now_ns(), done: AtomicU64::new(0), length, is_shown, bar: OnceLock::new() }
    }

    /// Lets `write` write to the terminal.
    pub(super) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match self.bar.get() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn show(&self, done: u64) {
        let bar = self.bar.get_or_init(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)));
        if let Some(length) = self.length.steps()
            && bar.length() != Some(length)
        {
            bar.set_length(length);
            bar.set_style(style("{bar:30} {percent:>3} %  {prefix} M steps  {msg} M/s  {eta} left"));
        } else if bar.length().is_none() {
            bar.set_style(style("{spinner} {prefix} M steps  {msg} M/s"));
        }
        bar.set_position(done);
        let took_us = (clock::now_ns() - self.started_ns) / 1000;
        bar.set_prefix((done / 1_000_000).to_string());
        bar.set_message(done.checked_div(took_us).unwrap_or(0).to_string());
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are right").progress_chars("=> ")
}

impl Monitor for Bar {
    fn advanced(&self, steps: u64) -> ControlFlow<()> {
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if self.is_shown && clock::now_ns() - self.started_ns > FIRST_NS {
            self.show(done);
        }
        if interrupt::check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
