//! Ordinary clients of an echo service: numbered messages without pause, over the host's own TCP and UDP, every reply
//! checked.

use super::interrupt;
use crate::host::clock;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The length of every message, in bytes.
pub const MESSAGE_BYTES: usize = 64;

/// Messages under way at once on the TCP connection.
const TCP_WINDOW: u64 = 4;

/// How long a client waits for a reply before it counts as lost. Nothing may be lost, so there is no hurry.
const TIMEOUT: Duration = Duration::from_secs(20);

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
    /// What ended it, if that wasn't its order to stop.
    pub error: Option<String>,
}

impl ClientResult {
    /// Whether every message came back once, unchanged, in order.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        self.error.is_none()
            && self.received > 0
            && self.received == self.sent
            && self.lost + self.out_of_order + self.changed == 0
    }

    /// Counts a reply that has come now, after one at `last_us`, if there was one.
    fn count(&mut self, watch: &Watch, last_us: &mut Option<u64>) {
        let now_us = clock::now_us();
        let gap_us = last_us.map_or(0, |last_us| now_us - last_us);
        *last_us = Some(now_us);
        self.received += 1;
        self.longest_gap_us = self.longest_gap_us.max(gap_us);
        watch.longest_gap_us.fetch_max(gap_us, Ordering::Relaxed);
        watch.received.store(self.received, Ordering::Relaxed);
    }
}

/// What can be seen of a client at work.
#[derive(Debug, Default)]
struct Watch {
    stop: AtomicBool,
    received: AtomicU64,
    /// Since it was last taken.
    longest_gap_us: AtomicU64,
}

/// A client at work on a thread of its own.
#[derive(Debug)]
pub struct EchoClient {
    watch: Arc<Watch>,
    thread: JoinHandle<ClientResult>,
}

impl EchoClient {
    /// Echoes over one TCP connection to `service`.
    ///
    /// # Errors
    /// If the service can't be connected to.
    pub fn tcp(service: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(service)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Self::start(move |watch| {
            let mut result = ClientResult::default();
            let ended = echo_tcp(stream, watch, &mut result);
            result.error = ended.err().map(|error| error.to_string());
            result.lost = result.sent - result.received - result.changed;
            result
        })
    }

    /// Echoes over one UDP flow to `service`, one message at a time.
    ///
    /// # Errors
    /// If the socket can't be set up.
    pub fn udp(service: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(service)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Self::start(move |watch| {
            let mut result = ClientResult::default();
            let ended = echo_udp(&socket, watch, &mut result);
            result.error = ended.err().map(|error| error.to_string());
            result
        })
    }

    fn start(body: impl FnOnce(&Watch) -> ClientResult + Send + 'static) -> io::Result<Self> {
        let watch = Arc::new(Watch::default());
        let watched = watch.clone();
        let thread = thread::Builder::new().name("client".into()).spawn(move || body(&watched))?;
        Ok(Self { watch, thread })
    }

    /// Right replies so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.watch.received.load(Ordering::Relaxed)
    }

    /// The longest time from one reply to the next since this was last asked, in microseconds.
    #[must_use]
    pub fn take_longest_gap_us(&self) -> u64 {
        self.watch.longest_gap_us.swap(0, Ordering::Relaxed)
    }

    /// Waits until it has had `count` more right replies; `false` if that takes longer than `timeout`.
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

    /// Lets it take the replies to what it has sent, and gives what it saw.
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

/// Message `number`: its number and a pattern that depends on it, so that bytes of two messages can't be confused.
fn message(number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in message.chunks_exact_mut(8) {
        state = state.rotate_left(25).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(number);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

fn echo_tcp(mut stream: TcpStream, watch: &Watch, result: &mut ClientResult) -> io::Result<()> {
    let mut last_us = None;
    let mut reply = [0; MESSAGE_BYTES];
    loop {
        while result.sent - result.received < TCP_WINDOW && !watch.stop.load(Ordering::Relaxed) {
            stream.write_all(&message(result.sent))?;
            result.sent += 1;
        }
        if result.received == result.sent {
            return Ok(());
        }
        stream.read_exact(&mut reply)?;
        if reply != message(result.received) {
            result.changed += 1;
            return Err(io::Error::other(format!("reply {} is not what was sent", result.received)));
        }
        result.count(watch, &mut last_us);
    }
}

fn echo_udp(socket: &UdpSocket, watch: &Watch, result: &mut ClientResult) -> io::Result<()> {
    let mut last_us = None;
    let mut reply = [0; MESSAGE_BYTES + 1];
    while !watch.stop.load(Ordering::Relaxed) {
        let number = result.sent;
        socket.send(&message(number))?;
        result.sent += 1;
        loop {
            match socket.recv(&mut reply) {
                Ok(length) if reply[..length] == message(number) => {
                    result.count(watch, &mut last_us);
                    break;
                }
                Ok(length) if is_earlier(&reply[..length], number) => result.out_of_order += 1,
                Ok(_) => result.changed += 1,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    result.lost += 1;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether `reply` is a right one to a message before `number`.
fn is_earlier(reply: &[u8], number: u64) -> bool {
    reply.first_chunk().is_some_and(|first| {
        let earlier = u64::from_le_bytes(*first);
        earlier < number && reply == message(earlier)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_in_every_word() {
        let (one, two) = (message(1), message(2));
        assert!(one.chunks(8).zip(two.chunks(8)).all(|(one, two)| one != two));
    }

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

    #[test]
    fn earlier_replies_are_told_from_changed_ones() {
        assert!(is_earlier(&message(4), 5));
        assert!(!is_earlier(&message(5), 5));
        let mut changed = message(4);
        changed[20] ^= 1;
        assert!(!is_earlier(&changed, 5));
        assert!(!is_earlier(&[1, 2], 5));
    }
}
