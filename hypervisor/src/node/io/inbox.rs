//! The vCPU thread's inbox: queues of packets and console input, and the event source that reads
//! them.

use super::guest_inputs::{GuestInputs, InputQueues};
use super::lan::GuestDelivery;
use crate::os::{clock, entropy};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm::{Event, Machine};

/// The most packets in the inbox. When it is full the LAN's reader stops reading.
const PACKETS_MAX: usize = 1024;

/// The most pieces of console input in the inbox. They have a queue of their own, because a guest
/// without a network driver never takes packets.
const CONSOLE_PIECES_MAX: usize = 64;

/// The guest's steps in one slice, after which inputs are checked. At about 150 million steps a
/// second they add at most about 30 microseconds to an input's latency.
pub const SLICE_STEPS: u64 = 5_000;

/// Wakes the vCPU thread, which sleeps in the kernel because it also waits for a socket.
#[derive(Debug)]
struct Waker {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    fn wake(&self) {
        // Fails only when the counter is full, and then the sleeper wakes anyway.
        let _ = self.event.write(1);
    }
}

/// The sending end of the inbox, which any number of threads may have.
#[derive(Clone, Debug)]
pub struct InboxSender {
    packets: Sender<(u64, Vec<u8>)>,
    console: Sender<Vec<u8>>,
    waker: Arc<Waker>,
}

impl InboxSender {
    /// Sends console input and wakes the vCPU; waits for room. `false` if the guest has ended.
    #[must_use]
    pub fn send_console(&self, bytes: Vec<u8>) -> bool {
        let sent = self.console.send(bytes).is_ok();
        self.wake_sleeper();
        sent
    }

    /// Sends a packet, waiting up to `timeout` for room, and wakes the vCPU.
    #[must_use]
    pub fn deliver_packet(&self, number: u64, packet: Vec<u8>, timeout: Duration) -> GuestDelivery {
        match self.packets.send_timeout((number, packet), timeout) {
            Ok(()) => {
                self.wake_sleeper();
                GuestDelivery::Taken
            }
            Err(SendTimeoutError::Timeout((_, packet))) => GuestDelivery::Full(packet),
            Err(SendTimeoutError::Disconnected(_)) => GuestDelivery::Gone,
        }
    }

    /// Wakes the vCPU thread from any sleep.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Wakes the vCPU thread if the guest sleeps; otherwise it checks the inbox before it sleeps.
    fn wake_sleeper(&self) {
        if self.waker.asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// The event source of a live guest in a process.
#[derive(Debug)]
pub struct HostEventSource {
    inputs: GuestInputs<Queues>,
    waker: Arc<Waker>,
}

/// The receiving ends of the inbox.
#[derive(Debug)]
struct Queues {
    packets: Receiver<(u64, Vec<u8>)>,
    console: Receiver<Vec<u8>>,
}

impl InputQueues for Queues {
    fn has_packet(&self) -> bool {
        !self.packets.is_empty()
    }

    fn take_packet(&mut self) -> Option<(u64, Vec<u8>)> {
        self.packets.try_recv().ok()
    }

    fn has_typed(&self) -> bool {
        !self.console.is_empty()
    }

    fn take_typed(&mut self) -> Option<Vec<u8>> {
        self.console.try_recv().ok()
    }
}

impl HostEventSource {
    /// The event source of a guest whose clock continues as `clock`, and the inbox's sending end.
    ///
    /// # Errors
    /// If the host has no file descriptor left.
    pub fn new(clock: GuestClock) -> io::Result<(Self, InboxSender)> {
        let (packet_sender, packets) = bounded(PACKETS_MAX);
        let (console_sender, console) = bounded(CONSOLE_PIECES_MAX);
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let waker = Arc::new(Waker { event, asleep: AtomicBool::new(false) });
        let inputs = GuestInputs::new(Queues { packets, console }, clock, clock::now_ns());
        let source = Self { inputs, waker: waker.clone() };
        Ok((source, InboxSender { packets: packet_sender, console: console_sender, waker }))
    }

    /// The guest's clock as of its last reading.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        self.inputs.clock()
    }

    /// Starts or stops the guest's clock.
    pub fn set_clock_running(&mut self, runs: bool) {
        self.inputs.set_clock_running(clock::now_ns(), runs);
    }

    /// `true` if an input is queued that the guest can take now.
    #[must_use]
    pub fn has_input(&self, machine: &Machine) -> bool {
        self.inputs.has_input(machine)
    }

    /// Sleeps until `until_ns`, until `socket` is readable, or until [`InboxSender::wake`]. If the
    /// guest may run, `machine` is `Some`, and its inputs, its timer and its alarm end the sleep
    /// too. A stopped guest takes none of them, so they would wake its thread again and again.
    pub fn sleep(&self, machine: Option<&Machine>, socket: Option<BorrowedFd<'_>>, until_ns: u64) {
        let timer = machine.and_then(Machine::timer_deadline);
        let timer_ns = timer.map_or(u64::MAX, |ticks| self.clock().ns_of(ticks));
        let alarm_ns = machine.and_then(Machine::alarm_wall_ns);
        let to_alarm_ns = alarm_ns.map_or(u64::MAX, |due_ns| due_ns.saturating_sub(clock::wall_ns()));
        let wait_ns = timer_ns.min(until_ns).saturating_sub(clock::now_ns()).min(to_alarm_ns);
        self.waker.asleep.store(machine.is_some(), Ordering::SeqCst);
        if wait_ns > 0 && !machine.is_some_and(|machine| self.has_input(machine)) {
            let mut files = vec![PollFd::new(self.waker.event.as_fd(), PollFlags::POLLIN)];
            files.extend(socket.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            // Fails only by a signal, which may end the sleep.
            let _ = ppoll(&mut files, Some(TimeSpec::from_duration(Duration::from_nanos(wait_ns))), None);
        }
        self.waker.asleep.store(false, Ordering::SeqCst);
        // Fails if there was no wake.
        let _ = self.waker.event.read();
    }
}

impl EventSource for HostEventSource {
    fn now_ns(&mut self) -> u64 {
        let now_ns = clock::now_ns();
        self.inputs.read_clock(now_ns);
        now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.inputs.read_clock(clock::now_ns())
    }

    fn wall_ns(&mut self) -> u64 {
        clock::wall_ns()
    }

    fn entropy(&mut self) -> u16 {
        entropy::bits()
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        self.inputs.poll(machine, clock::now_ns())
    }
}
