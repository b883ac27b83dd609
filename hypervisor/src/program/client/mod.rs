//! Clients of a guest's service, each on a thread of its own, with every reply checked.

pub mod command;
pub mod echo;
pub mod history;
pub mod history_svg;
pub mod random;
pub mod redis;
pub mod rpc;
pub mod torture;

use super::cli::interrupt;
use crate::os::clock;
use serde::Serialize;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a client saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientResult {
    /// Messages sent.
    pub sent: u64,
    /// Right replies.
    pub received: u64,
    /// Replies that never came.
    pub lost: u64,
    /// Replies that came again, late, or before their turn.
    pub out_of_order: u64,
    /// Replies that differ from what was sent.
    pub changed: u64,
    /// The longest time from one reply to the next, in microseconds.
    pub longest_gap_us: u64,
    /// The error that ended it, if it wasn't told to stop.
    pub error: Option<String>,
}

impl ClientResult {
    /// `true` if every message had its right reply, once and in order.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        self.error.is_none()
            && self.received > 0
            && self.received == self.sent
            && self.lost + self.out_of_order + self.changed == 0
    }

    /// Counts a reply that has come now, after one at `last_us`, if there was one.
    pub(in crate::program) fn count(&mut self, watch: &Watch, last_us: &mut Option<u64>) {
        let now_us = clock::now_us();
        let gap_us = last_us.map_or(0, |last_us| now_us - last_us);
        *last_us = Some(now_us);
        self.received += 1;
        self.longest_gap_us = self.longest_gap_us.max(gap_us);
        watch.longest_gap_us.fetch_max(gap_us, Ordering::Relaxed);
        watch.received.store(self.received, Ordering::Relaxed);
    }
}

/// The figures of a running client, which others can read.
#[derive(Debug, Default)]
pub(in crate::program) struct Watch {
    stop: AtomicBool,
    received: AtomicU64,
    /// The longest gap since it was last taken.
    longest_gap_us: AtomicU64,
    /// The error that ended it early.
    error: OnceLock<String>,
}

impl Watch {
    /// `true` if the client is to send nothing more.
    pub(in crate::program) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A client that runs on a thread of its own.
#[derive(Debug)]
pub struct Client {
    watch: Arc<Watch>,
    thread: JoinHandle<ClientResult>,
}

impl Client {
    /// Runs `body` on a new thread. It counts its messages, replies and faults in the result; if it
    /// fails, its error is in the result.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(in crate::program) fn start(
        body: impl FnOnce(&Watch, &mut ClientResult) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let watch = Arc::new(Watch::default());
        let watched = watch.clone();
        let work = move || {
            let mut result = ClientResult::default();
            if let Err(error) = body(&watched, &mut result) {
                result.error = Some(watched.error.get_or_init(|| error.to_string()).clone());
            }
            result
        };
        let thread = thread::Builder::new().name("client".into()).spawn(work)?;
        Ok(Self { watch, thread })
    }

    /// Right replies so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.watch.received.load(Ordering::Relaxed)
    }

    /// The error that ended it early, if one has.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.watch.error.get().map(String::as_str)
    }

    /// `true` until it has ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// The longest time from one reply to the next since this was last asked, in microseconds.
    #[must_use]
    pub fn take_longest_gap_us(&self) -> u64 {
        self.watch.longest_gap_us.swap(0, Ordering::Relaxed)
    }

    /// Waits until it has received `count` more right replies; `false` if that takes longer than
    /// `timeout`.
    #[must_use]
    pub fn wait_for_replies(&self, count: u64, timeout: Duration) -> bool {
        let (target, deadline_us) = (self.received() + count, clock::now_us() + micros(timeout));
        while self.received() < target {
            if clock::now_us() > deadline_us || self.thread.is_finished() || interrupt::check().is_err() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits for the replies to the messages sent, and returns the result.
    #[must_use]
    pub fn finish(self) -> ClientResult {
        self.watch.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| ClientResult { error: Some("the client panicked".into()), ..ClientResult::default() })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_perfect_only_without_any_flaw() {
        let good = ClientResult { sent: 3, received: 3, ..ClientResult::default() };
        assert!(good.is_perfect());
        assert!(!ClientResult::default().is_perfect(), "a client that did nothing proves nothing");
        assert!(!ClientResult { lost: 1, ..good.clone() }.is_perfect());
        assert!(!ClientResult { changed: 1, ..good.clone() }.is_perfect());
        assert!(!ClientResult { out_of_order: 1, ..good.clone() }.is_perfect());
        assert!(!ClientResult { sent: 4, ..good.clone() }.is_perfect());
        assert!(!ClientResult { error: Some("reset".into()), ..good }.is_perfect());
    }
}
