//! What flows into the vCPU thread, and the event source that the host makes of it.

use super::{clock, entropy};
use crate::event_source::EventSource;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;
use vm::{Event, Machine, TIMEBASE_HZ};

/// Inputs that may wait for the guest; beyond them their senders wait, and TCP tells their peers.
const INBOX_LEN_MAX: usize = 1024;

/// The longest piece of console input in one event, in bytes.
const CONSOLE_BYTES_MAX: usize = 256;

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

/// The sending side; any number of threads have one.
#[derive(Clone, Debug)]
pub struct InboxSender {
    sender: Sender<HostInput>,
    vcpu: Arc<OnceLock<Thread>>,
}

impl InboxSender {
    /// Sends an input and wakes the vCPU. `false` if the guest is gone.
    #[must_use]
    pub fn send(&self, input: HostInput) -> bool {
        let sent = self.sender.send(input).is_ok();
        self.wake();
        sent
    }

    /// Wakes the vCPU thread to look around.
    pub fn wake(&self) {
        if let Some(thread) = self.vcpu.get() {
            thread.unpark();
        }
    }
}

/// The event source that takes its events from the host.
#[derive(Debug)]
pub struct HostEventSource {
    receiver: Receiver<HostInput>,
    vcpu: Arc<OnceLock<Thread>>,
    packets: VecDeque<(u64, Vec<u8>)>,
    console: VecDeque<u8>,
    /// The guest's clock read `start_ticks` at `start_ns`.
    start_ticks: u64,
    start_ns: u64,
}

impl HostEventSource {
    /// A source whose guest clock goes on from `ticks`, and the way to send to it.
    #[must_use]
    pub fn new(ticks: u64) -> (Self, InboxSender) {
        let (sender, receiver) = bounded(INBOX_LEN_MAX);
        let vcpu = Arc::new(OnceLock::new());
        let source = Self {
            receiver,
            vcpu: vcpu.clone(),
            packets: VecDeque::new(),
            console: VecDeque::new(),
            start_ticks: ticks,
            start_ns: clock::now_ns(),
        };
        (source, InboxSender { sender, vcpu })
    }

    /// Makes the calling thread the one that inputs wake, and starts the guest's clock.
    pub fn start(&mut self) {
        let _ = self.vcpu.set(std::thread::current());
        self.start_ns = clock::now_ns();
    }

    /// Sleeps until an input arrives, the machine's timer is due, or `until_ns`, whichever is first.
    pub fn sleep(&self, machine: &Machine, until_ns: u64) {
        if !self.receiver.is_empty() {
            return;
        }
        let timer_ns = machine.timer_deadline().map_or(u64::MAX, |ticks| {
            self.start_ns.saturating_add(ticks.saturating_sub(self.start_ticks).saturating_mul(NS_PER_TICK))
        });
        let wait_ns = timer_ns.min(until_ns).saturating_sub(clock::now_ns());
        if wait_ns > 0 {
            // crossbeam's blocking receive yields before it parks, which beside a busy vCPU costs a scheduler tick.
            std::thread::park_timeout(Duration::from_nanos(wait_ns));
        }
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
