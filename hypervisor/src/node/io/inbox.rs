//! What flows into the vCPU thread, and the event source that the host makes of it.

use super::guest_inputs::{GuestInputs, InputQueues};
use super::lan::Given;
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

/// Packets that may wait for the guest; beyond them the LAN's reader waits, and TCP tells the LAN.
const PACKETS_MAX: usize = 1024;

/// Pieces of console input that may wait. They don't wait behind packets, which a guest without a
/// driver never takes.
const CONSOLE_PIECES_MAX: usize = 64;

/// How many steps the guest runs before the host's events are looked at again. At some 150 million
/// steps a second this bounds what a busy guest adds to an event's latency to about 30
/// microseconds.
pub const SLICE_STEPS: u64 = 5_000;

/// Wakes the vCPU thread out of its sleep, which is in the kernel because it also waits for a
/// socket there.
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
    packets: Sender<(u64, Vec<u8>)>,
    console: Sender<Vec<u8>>,
    waker: Arc<Waker>,
}

impl InboxSender {
    /// Sends typed bytes, once there is room for them, and wakes the vCPU. `false` if the guest is
    /// gone.
    #[must_use]
    pub fn send_console(&self, bytes: Vec<u8>) -> bool {
        let sent = self.console.send(bytes).is_ok();
        self.wake_sleeper();
        sent
    }

    /// Sends a packet, if there is room for it within `timeout`, and wakes the vCPU.
    #[must_use]
    pub fn give_packet(&self, number: u64, packet: Vec<u8>, timeout: Duration) -> Given {
        match self.packets.send_timeout((number, packet), timeout) {
            Ok(()) => {
                self.wake_sleeper();
                Given::Taken
            }
            Err(SendTimeoutError::Timeout((_, packet))) => Given::Full(packet),
            Err(SendTimeoutError::Disconnected(_)) => Given::Gone,
        }
    }

    /// Wakes the vCPU thread to look around.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// A vCPU that is awake looks here before it sleeps.
    fn wake_sleeper(&self) {
        if self.waker.asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// The event source that takes its events from the host.
#[derive(Debug)]
pub struct HostEventSource {
    inputs: GuestInputs<Queues>,
    waker: Arc<Waker>,
}

/// What a process's threads have sent.
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
    /// A source whose guest's clock goes on as `clock`, and the way to send to it.
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

    /// The guest's clock, as of the last look at it.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        self.inputs.clock()
    }

    /// Makes the guest's clock run or stand from now on.
    pub fn set_clock_running(&mut self, runs: bool) {
        self.inputs.set_clock_running(clock::now_ns(), runs);
    }

    /// Whether something has arrived that the guest can take now.
    #[must_use]
    pub fn has_input(&self, machine: &Machine) -> bool {
        self.inputs.has_input(machine)
    }

    /// Sleeps until something arrives on `socket`, somebody calls [`InboxSender::wake`], or it is
    /// `until_ns`, whichever is first. If the guest may run, and `machine` is there, an input for
    /// it and its due timer end the sleep too; nothing else would take them away.
    pub fn sleep(&self, machine: Option<&Machine>, socket: Option<BorrowedFd<'_>>, until_ns: u64) {
        let timer = machine.and_then(Machine::timer_deadline);
        let timer_ns = timer.map_or(u64::MAX, |ticks| self.clock().ns_of(ticks));
        let wait_ns = timer_ns.min(until_ns).saturating_sub(clock::now_ns());
        self.waker.asleep.store(machine.is_some(), Ordering::SeqCst);
        if wait_ns > 0 && !machine.is_some_and(|machine| self.has_input(machine)) {
            let mut files = vec![PollFd::new(self.waker.event.as_fd(), PollFlags::POLLIN)];
            files.extend(socket.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            // A signal, the only way to fail, ends the sleep as well as anything.
            let _ = ppoll(&mut files, Some(TimeSpec::from_duration(Duration::from_nanos(wait_ns))), None);
        }
        self.waker.asleep.store(false, Ordering::SeqCst);
        // Fails if nobody called.
        let _ = self.waker.event.read();
    }
}

impl EventSource for HostEventSource {
    fn now_ns(&mut self) -> u64 {
        let now_ns = clock::now_ns();
        self.inputs.look(now_ns);
        now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.inputs.look(clock::now_ns())
    }

    fn entropy(&mut self) -> u16 {
        entropy::bits()
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        self.inputs.poll(machine, clock::now_ns())
    }
}
