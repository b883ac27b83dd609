//! The host of a side: what the side needs from what runs it, which is a process with threads and
//! sockets, or the simulator.
//!
//! A side consists of *steps* that never wait. Each returns when it must be called again; the host
//! decides by whom and on which thread. The process and the simulator call the same steps.

use super::io::lan::{GuestDelivery, LanOutput};
use super::log::{DiskLogSteps, Storage};
use super::reports::NodeReport;
pub use crate::os::connection::Connection;
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use ft::output_gate::{OutputGate, Released};
use ft::role::{ClaimAnswer, ClaimRequest, LatestAnswer};
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::snapshot::Snapshot;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use vm::{Machine, OutputId};

/// What runs a side.
pub trait Host: Clone + Send + Sync + 'static {
    /// A connection to another program.
    type Connection: Connection;
    /// Where the events of a running guest come from.
    type Source: GuestInput;
    /// Where the outputs of a running guest go.
    type Sink: OutputSink<Connection = Self::Connection>;
    /// Where the log on disk is.
    type Storage: Storage;

    /// The roles' clock, in nanoseconds; it never goes back.
    fn now_ns(&self) -> u64;

    /// Reports something to the operator. Never waits for a reader.
    fn report(&self, report: &NodeReport);

    /// Connects to another program. May wait, for a bounded time, on a host with a thread for it.
    ///
    /// # Errors
    /// Of the connection.
    fn connect(&self, to: Destination) -> io::Result<Arc<Self::Connection>>;

    /// Gives the running guest a packet, if its inbox has room. May wait for room on a host with a
    /// thread for it, at most a heartbeat's interval.
    fn deliver_packet(&self, number: u64, packet: Vec<u8>) -> GuestDelivery;

    /// Makes a waiting step be called. If the step doesn't wait yet, its next wait ends at once.
    fn wake(&self, step: StepKind);

    /// Calls the steps of a log on disk until they are done. They may wait for the disk, and no
    /// other step waits for them.
    ///
    /// # Errors
    /// If the host can't run them.
    fn run_disk_log(&self, steps: DiskLogSteps<Self::Storage>) -> io::Result<()>;

    /// One past the last output such that it and all console outputs before it have been written,
    /// or dropped because their reader stalls.
    fn console_left(&self) -> OutputId;

    /// How long the guest has run since `began_ns`, in nanoseconds. A simulator computes it from
    /// the `steps` that the guest has executed.
    fn guest_time_ns(&self, began_ns: u64, steps: u64) -> u64 {
        let _ = steps;
        self.now_ns() - began_ns
    }

    /// Tells the simulator's checkers of an event inside the side; a process ignores it.
    fn observe(&self, observation: Observation<'_>) {
        let _ = observation;
    }
}

/// The address of another program, and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A LAN.
    Lan(SocketAddr),
    /// A VM's primary, as far as is known.
    Primary(SocketAddr),
}

/// The events of a guest whose clock can be stopped.
pub trait GuestInput: EventSource {
    /// The guest's clock as of its last reading.
    fn clock(&self) -> &GuestClock;

    /// Starts or stops the guest's clock.
    fn set_clock_running(&mut self, runs: bool);

    /// `true` if an event has arrived that the guest can take now.
    fn has_input(&self, machine: &Machine) -> bool;
}

/// The host's end of the one way out: it gets only what an [`OutputGate`] has released.
pub trait OutputSink: Send + 'static {
    /// A connection to a LAN.
    type Connection: Connection;

    /// Writes outputs, in order. Without a network, packets are dropped as by a network card
    /// without its cable.
    ///
    /// `true` if no report will follow of what has become of them, so that they count as carried:
    /// only a LAN reports that.
    fn write(&mut self, outputs: &[Released]) -> bool;

    /// The packets' way to the LAN, which [`OutputSink::write`] uses.
    fn lan(&mut self) -> &mut LanOutput<Self::Connection>;
}

/// The steps of a side. A process has a thread for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// Backup: reads the channel, and acknowledges.
    Receive,
    /// Backup: restores the machine, then replays.
    Replay,
    /// Heartbeats, timeouts, and what another step could not send.
    Timers,
    /// Primary: runs the guest.
    Vcpu,
    /// Questions to the arbiter, reports, and the end.
    Control,
    /// Primary: reads what a pending connection wants, and sends a joining backup the guest's
    /// memory.
    Pending,
    /// Attaches to the LAN, and reads its packets.
    Lan,
    /// Writes the log on disk.
    DiskWrite,
    /// Makes the written log durable.
    DiskSync,
}

/// How soon a step must be called once it has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Before any vCPU; for steps that do little.
    Urgent,
    /// Like any other thread.
    Normal,
}

impl StepKind {
    /// The step's priority.
    #[must_use]
    pub const fn priority(self) -> Priority {
        match self {
            // Outputs wait for the backup's acknowledgement, and for the timer step if the host
            // doesn't schedule the vCPU thread.
            Self::Receive | Self::Timers => Priority::Urgent,
            Self::Replay
            | Self::Vcpu
            | Self::Control
            | Self::Pending
            | Self::Lan
            | Self::DiskWrite
            | Self::DiskSync => Priority::Normal,
        }
    }

    /// The name of the step's thread.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "log",
            Self::Replay | Self::Vcpu => "vcpu",
            Self::Timers => "ticks",
            Self::Control => "control",
            Self::Pending => "pending",
            Self::Lan => "lan",
            Self::DiskWrite => "disk log",
            Self::DiskSync => "disk sync",
        }
    }
}

/// When to call a step again. Times are in nanoseconds of [`Host::now_ns`].
#[derive(Debug)]
pub enum Next {
    /// At once.
    Now,
    /// When something has arrived on the connection or the queue that the step reads.
    Arrival {
        /// The latest time.
        until_ns: u64,
    },
    /// When the guest's inbox has room.
    Room {
        /// The latest time.
        until_ns: u64,
    },
    /// At a fixed time, or earlier after [`Host::wake`].
    Wait {
        /// The latest time.
        until_ns: u64,
    },
    /// Never: the step is done.
    Done,
}

/// A role's question to the arbiter.
#[derive(Clone, Copy, Debug)]
pub enum Question {
    /// A test-and-set.
    Claim(ClaimRequest),
    /// The VM's latest claim.
    Latest,
}

/// The answer for the role.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To a test-and-set.
    Claim(ClaimAnswer),
    /// To the question for the latest claim.
    Latest(LatestAnswer),
}

/// An event inside a side, for the simulator's checkers.
#[derive(Debug)]
pub enum Observation<'a> {
    /// A backup has received a whole snapshot.
    Snapshot(&'a Snapshot),
    /// These entries are in a backup's log buffer.
    Received(&'a VecDeque<LogEntry>),
    /// A backup was told that it protects the VM in this generation, so it may claim.
    Told(Generation),
    /// A primary has appended an entry to its log, at this position.
    Appended(LogSeq, &'a LogEntry),
    /// This side owns the VM alone from now on, under this generation.
    Owns(Generation),
    /// The side has attached to the LAN, which has carried all outputs before this id. Outputs in
    /// flight that it hasn't carried are sent again.
    Attached(OutputId, &'a OutputGate),
}
