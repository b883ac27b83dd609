//! A process as the host of a side: a thread for each step.

use super::channel::lock;
use super::host::{Destination, GuestInput, Host, Next, OutputSink, Priority, StepKind};
use super::io::inbox::{HostEventSource, InboxSender};
use super::io::lan::{GuestDelivery, LanOutput};
use super::io::network;
use super::io::sink::NetworkAndConsole;
use super::log::{DiskLogSteps, HostDirectory};
use super::reports::NodeReport;
use crate::lan::pulse;
use crate::os::clock;
use crate::os::priority;
use crate::os::report::Reporter;
use crate::os::writer;
use ft::guest_clock::GuestClock;
use ft::output_gate::Released;
use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Duration;
use vm::{Machine, OutputId};

/// How long connecting to a primary may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a packet waits for room in the guest's inbox: no longer than until the LAN's next
/// heartbeat is due.
const ROOM_TIMEOUT: Duration = Duration::from_micros(pulse::INTERVAL_US);

/// The host that this process is.
#[derive(Clone, Debug)]
pub struct ProcessHost {
    reporter: Reporter,
    /// The inbox of the guest that runs here, where its vCPU thread sleeps.
    inbox: Option<InboxSender>,
    /// The threads of the steps, to wake them.
    threads: Arc<Mutex<BTreeMap<StepKind, Thread>>>,
}

impl ProcessHost {
    /// A process in which no guest runs live: a backup's.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        Self { reporter, inbox: None, threads: Arc::default() }
    }

    /// A process whose live guest has this inbox.
    #[must_use]
    pub fn with_guest(reporter: Reporter, inbox: InboxSender) -> Self {
        Self { inbox: Some(inbox), ..Self::new(reporter) }
    }

    /// Calls `step` on a thread of its own until it is done.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn spawn(&self, kind: StepKind, step: impl FnMut() -> Next + Send + 'static) -> io::Result<()> {
        let host = self.clone();
        thread::Builder::new().name(kind.name().into()).spawn(move || host.run(kind, step))?;
        Ok(())
    }

    /// Calls `step` on this thread until it is done. [`Host::wake`] with `kind` ends its waits.
    pub fn run(&self, kind: StepKind, mut step: impl FnMut() -> Next) {
        self.register_thread(kind);
        while wait(&step()) {}
    }

    /// Makes this thread the one that runs steps of this kind: gives it their priority, and the
    /// wakes for them.
    pub fn register_thread(&self, kind: StepKind) {
        if kind.priority() == Priority::Urgent {
            priority::raise();
        }
        lock(&self.threads).insert(kind, thread::current());
    }
}

/// Waits as a step asked for; `false` if the step is done.
pub fn wait(next: &Next) -> bool {
    match next {
        // These steps wait by themselves: in reading the connection, or in giving the guest a
        // packet.
        Next::Now | Next::Arrival { .. } | Next::Room { .. } => true,
        Next::Wait { until_ns } => {
            thread::park_timeout(Duration::from_nanos(until_ns.saturating_sub(clock::now_ns())));
            true
        }
        Next::Done => false,
    }
}

impl Host for ProcessHost {
    type Connection = TcpStream;
    type Source = HostEventSource;
    type Sink = NetworkAndConsole;
    type Storage = HostDirectory;

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn connect(&self, to: Destination) -> io::Result<Arc<TcpStream>> {
        match to {
            Destination::Lan(address) => network::connect(address),
            Destination::Primary(address) => {
                let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                Ok(Arc::new(stream))
            }
        }
    }

    fn deliver_packet(&self, number: u64, packet: Vec<u8>) -> GuestDelivery {
        self.inbox.as_ref().map_or(GuestDelivery::Gone, |inbox| inbox.deliver_packet(number, packet, ROOM_TIMEOUT))
    }

    fn report(&self, report: &NodeReport) {
        self.reporter.tell(report);
    }

    fn run_disk_log(&self, DiskLogSteps { mut writer, mut sync }: DiskLogSteps<HostDirectory>) -> io::Result<()> {
        self.spawn(StepKind::DiskWrite, move || {
            writer.wait();
            writer.step(clock::now_ns())
        })?;
        self.spawn(StepKind::DiskSync, move || {
            sync.wait();
            sync.step(clock::now_ns())
        })
    }

    fn console_left(&self) -> OutputId {
        writer::stdout().console_left()
    }

    fn wake(&self, step: StepKind) {
        if let (StepKind::Vcpu, Some(inbox)) = (step, &self.inbox) {
            inbox.wake();
        } else if let Some(thread) = lock(&self.threads).get(&step) {
            thread.unpark();
        }
    }
}

impl GuestInput for HostEventSource {
    fn clock(&self) -> &GuestClock {
        self.clock()
    }

    fn set_clock_running(&mut self, runs: bool) {
        self.set_clock_running(runs);
    }

    fn has_input(&self, machine: &Machine) -> bool {
        self.has_input(machine)
    }
}

impl OutputSink for NetworkAndConsole {
    type Connection = TcpStream;

    fn lan(&mut self) -> &mut LanOutput<TcpStream> {
        self.lan()
    }

    fn write(&mut self, outputs: &[Released]) -> bool {
        self.write(outputs)
    }
}
