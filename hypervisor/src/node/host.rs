//! What a side of a VM needs of whatever it runs on: a process with threads and sockets, or a
//! simulator.
//!
//! A side is driven by *steps* that never wait. A step says when it is to be called again; who
//! calls it, and on which thread, is for the host. The process and the simulator call the same
//! steps.

use super::io::lan::{Given, LanOutput};
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

/// What a side runs on.
pub trait Host: Clone + Send + Sync + 'static {
    /// A connection to the other side.
    type Connection: Connection;
    /// Where a running guest's events come from.
    type Source: GuestInput;
    /// Where a running guest's outputs go.
    type Sink: OutputSink<Connection = Self::Connection>;
    /// Where logs on disk are.
    type Storage: Storage;

    /// The time for the roles, in nanoseconds; never goes back.
    fn now_ns(&self) -> u64;

    /// Tells an operator something. It doesn't wait for who reads it.
    fn report(&self, report: &NodeReport);

    /// Connects to another program. A host that has a thread for this waits, but not for long.
    ///
    /// # Errors
    /// Of the connection.
    fn connect(&self, to: Listener) -> io::Result<Arc<Self::Connection>>;

    /// Gives the guest that runs here a packet, if there is room for it. A host that has a thread
    /// for this waits for room, but not for longer than a heartbeat's interval.
    fn give_packet(&self, number: u64, packet: Vec<u8>) -> Given;

    /// A step that waits has something to do. A wake that comes before the step waits isn't lost.
    fn wake(&self, step: StepKind);

    /// Calls the steps of a log on disk until they are done. They take as long as the disk does,
    /// and no other step waits for them.
    ///
    /// # Errors
    /// If the host can't run them.
    fn run_disk_log(&self, steps: DiskLogSteps<Self::Storage>) -> io::Result<()>;

    /// All console output below this has been written, or dropped because nobody reads it.
    fn console_left(&self) -> OutputId;

    /// How long the guest has run since `began_ns`, in which it has executed so many `steps`, in
    /// nanoseconds.
    fn guest_time_ns(&self, began_ns: u64, steps: u64) -> u64 {
        let _ = steps;
        self.now_ns() - began_ns
    }

    /// Something has happened inside this side. Only a simulator's judge wants to know.
    fn observe(&self, observation: Observation<'_>) {
        let _ = observation;
    }
}

/// Who listens where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A LAN.
    Lan(SocketAddr),
    /// A primary, as far as is known.
    Primary(SocketAddr),
}

/// A source of events whose guest's clock stands while its VM is paused.
pub trait GuestInput: EventSource {
    /// The guest's clock, as of the last look at it.
    fn clock(&self) -> &GuestClock;

    /// Makes the guest's clock run or stand from now on.
    fn set_clock_running(&mut self, runs: bool);

    /// Whether something has arrived that the guest can take now.
    fn has_input(&self, machine: &Machine) -> bool;
}

/// The host's side of the one way out. Only what an [`OutputGate`]
/// released comes here.
pub trait OutputSink: Send + 'static {
    /// A connection to a LAN.
    type Connection: Connection;

    /// Puts out a batch, in order. Packets without a network go nowhere, as on a network card
    /// without its cable.
    ///
    /// `true` if nobody will ever tell what became of them, so that they are as good as carried:
    /// only a LAN tells.
    fn write(&mut self, outputs: &[Released]) -> bool;

    /// The way to a LAN, which [`OutputSink::write`] takes.
    fn lan(&mut self) -> &mut LanOutput<Self::Connection>;
}

/// The steps of a side. A process has a thread for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// What a backup's primary says is heard, and acknowledged.
    Receive,
    /// A backup's machine is put together, and replays.
    Replay,
    /// Time passes: heartbeats, timeouts, and what another step had to leave.
    Timers,
    /// A guest runs.
    Vcpu,
    /// What takes time is done: questions to the arbiter, and the end.
    Control,
    /// Who has come to the port is heard, and sent the guest's memory.
    Pending,
    /// A LAN is attached to and read.
    Lan,
    /// The log on disk is written.
    DiskWrite,
    /// What was written of it is made durable.
    DiskSync,
}

/// How soon a step has to be called once it has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// At once, before any vCPU: it does little.
    Urgent,
    /// Like all others.
    Normal,
}

impl StepKind {
    /// Its priority.
    #[must_use]
    pub const fn priority(self) -> Priority {
        match self {
            // Outputs wait for the acknowledgement, and for the timers if the vCPU's thread isn't
            // let run.
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

    /// The name of its thread.
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

/// When a step is to be called again.
#[derive(Debug)]
pub enum Next {
    /// At once.
    Now,
    /// When something has arrived on the connection or in the queue that it reads, or at this time,
    /// in nanoseconds.
    Arrival {
        /// When at the latest.
        until_ns: u64,
    },
    /// When the guest has room for what has come for it, or at this time, in nanoseconds.
    Room {
        /// When at the latest.
        until_ns: u64,
    },
    /// Not before this time, in nanoseconds, or before [`Host::wake`].
    Wait {
        /// Until when.
        until_ns: u64,
    },
    /// Never: the step is done.
    Done,
}

/// What a side asks its arbiter.
#[derive(Clone, Copy, Debug)]
pub enum Question {
    /// A test-and-set.
    Claim(ClaimRequest),
    /// The VM's latest claim.
    Latest,
}

/// What became of a question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Of a test-and-set.
    Claim(ClaimAnswer),
    /// Of the question for the latest claim.
    Latest(LatestAnswer),
}

/// What happens inside a side, for who judges it.
#[derive(Debug)]
pub enum Observation<'a> {
    /// A backup has all of a snapshot.
    Snapshot(&'a Snapshot),
    /// Entries have come into a backup's log buffer.
    Received(&'a VecDeque<LogEntry>),
    /// A backup was told that it protects the VM in this generation.
    Told(Generation),
    /// A primary has appended an entry to its log, in this place.
    Appended(LogSeq, &'a LogEntry),
    /// This side owns the VM alone as this generation from now on.
    Owns(Generation),
    /// The LAN is there, and has carried all outputs below; what of the gate is in flight and
    /// hasn't been is sent again.
    Attached(OutputId, &'a OutputGate),
}
