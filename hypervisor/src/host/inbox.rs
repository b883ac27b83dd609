//! What flows into the vCPU thread, and the event source that the host makes of it.

use super::{clock, entropy};
use crate::event_source::EventSource;
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm::{Event, Machine, TIMEBASE_HZ};

/// Inputs that may wait for the guest; beyond them their senders wait, and TCP tells their peers.
const INBOX_LEN_MAX: usize = 1024;

/// The longest piece of console input in one event, in bytes.
const CONSOLE_BYTES_MAX: usize = 256;

/// How many steps the guest runs before the host's events are looked at again. At some 150 million steps a second this
/// bounds what a busy guest adds to an event's latency to about 30 microseconds.
pub const SLICE_STEPS: u64 = 5_000;

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;

/// An input on its way to the guest.
#[derive(Debug)]
pub enum HostInput {
    /// A frame from the network.
    Packet {
        /// The network's number for it.
        number: u64,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Typed bytes.
    Console(Vec<u8>),
}

/// Wakes the vCPU thread out of its sleep, which is in the kernel because it also waits for a socket there.
#[derive(Debug)]
struct Waker {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    fn wake(&self) {
        // Fails only when the counter is full, and then the sleeper is awake anyway.
        let _ = self.event.write(1);
    }
}

/// The sending side; any number of threads have one.
#[derive(Clone, Debug)]
pub struct InboxSender {
    sender: Sender<HostInput>,
    waker: Arc<Waker>,
}

impl InboxSender {
    /// Sends an input and wakes the vCPU. `false` if the guest is gone.
    #[must_use]
    pub fn send(&self, input: HostInput) -> bool {
        let sent = self.sender.send(input).is_ok();
        // A vCPU that is awake looks here before it sleeps.
        if self.waker.asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
        sent
    }

    /// Wakes the vCPU thread to look around.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

/// The event source that takes its events from the host.
#[derive(Debug)]
pub struct HostEventSource {
    receiver: Receiver<HostInput>,
    waker: Arc<Waker>,
    packets: VecDeque<(u64, Vec<u8>)>,
    console: VecDeque<u8>,
    /// The guest's clock read `start_ticks` at `start_ns`.
    start_ticks: u64,
    start_ns: u64,
}

impl HostEventSource {
    /// A source whose guest clock goes on from `ticks`, and the way to send to it.
    ///
    /// # Errors
    /// If the host has no file descriptor left.
    pub fn new(ticks: u64) -> io::Result<(Self, InboxSender)> {
        let (sender, receiver) = bounded(INBOX_LEN_MAX);
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let waker = Arc::new(Waker { event, asleep: AtomicBool::new(false) });
        let source = Self {
            receiver,
            waker: waker.clone(),
            packets: VecDeque::new(),
            console: VecDeque::new(),
            start_ticks: ticks,
            start_ns: clock::now_ns(),
        };
        Ok((source, InboxSender { sender, waker }))
    }

    /// Starts the guest's clock.
    pub fn start(&mut self) {
        self.start_ns = clock::now_ns();
    }

    /// Whether nothing has arrived that the guest hasn't been offered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Sleeps until an input arrives, the machine's timer is due, something arrives on `socket`, somebody calls
    /// [`InboxSender::wake`], or it is `until_ns`, whichever is first.
    pub fn sleep(&self, machine: &Machine, socket: Option<BorrowedFd<'_>>, until_ns: u64) {
        let timer_ns = machine.timer_deadline().map_or(u64::MAX, |ticks| {
            self.start_ns.saturating_add(ticks.saturating_sub(self.start_ticks).saturating_mul(NS_PER_TICK))
        });
        let wait_ns = timer_ns.min(until_ns).saturating_sub(clock::now_ns());
        self.waker.asleep.store(true, Ordering::SeqCst);
        if wait_ns > 0 && self.is_empty() {
            let mut files = vec![PollFd::new(self.waker.event.as_fd(), PollFlags::POLLIN)];
            files.extend(socket.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            // A signal, the only way to fail, ends the sleep as well as anything.
            let _ = ppoll(&mut files, Some(TimeSpec::from_duration(Duration::from_nanos(wait_ns))), None);
        }
        self.waker.asleep.store(false, Ordering::SeqCst);
        // Fails if nobody called.
        let _ = self.waker.event.read();
    }

    fn collect(&mut self) {
        // What the guest can't take yet waits here; the bound makes the senders wait.
        while self.packets.len() + self.console.len() < INBOX_LEN_MAX {
            match self.receiver.try_recv() {
                Ok(HostInput::Packet { number, frame }) => self.packets.push_back((number, frame)),
                Ok(HostInput::Console(bytes)) => self.console.extend(bytes),
                Err(_) => break,
            }
        }
    }
}

impl EventSource for HostEventSource {
    fn now_ns(&mut self) -> u64 {
        clock::now_ns()
    }

    fn ticks(&mut self) -> u64 {
        self.start_ticks + (clock::now_ns() - self.start_ns) / NS_PER_TICK
    }

    fn entropy(&mut self) -> u16 {
        entropy::bits()
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        if machine.timer_deadline().is_some_and(|deadline| deadline <= self.ticks()) {
            return Some(Event::TimerInterrupt);
        }
        self.collect();
        if !self.packets.is_empty() && machine.can_receive_packet() {
            return self.packets.pop_front().map(|(number, frame)| Event::Packet { number, frame });
        }
        let room = machine.console_room().min(CONSOLE_BYTES_MAX).min(self.console.len());
        if room > 0 {
            return Some(Event::ConsoleInput { bytes: self.console.drain(..room).collect() });
        }
        None
    }
}
