//! What a side of a VM needs of whatever it runs on: a process with threads and sockets, or a
//! simulator.
//!
//! A side is driven by *steps* that never wait. A step says when it is to be called again; who
//! calls it, and on which thread, is for the host. The process and the simulator call the same
//! steps.

use super::log::{DiskLogSteps, Storage};
use super::reports::NodeReport;
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use ft::output_gate::Released;
use ft::role::{ClaimAnswer, ClaimRequest, LatestAnswer};
use logchannel::entry::{Generation, LogEntry, LogSeq};
use logchannel::snapshot::Snapshot;
use std::collections::VecDeque;
use std::io;
use vm::{Machine, OutputId};

/// What a side runs on.
pub trait Host: Clone + Send + Sync + 'static {
    /// A connection to the other side.
    type Connection: Connection;
    /// Where a running guest's events come from.
    type Source: GuestInput;
    /// Where a running guest's outputs go.
    type Sink: OutputSink;
    /// Where logs on disk are.
    type Storage: Storage;

    /// The time for the roles, in nanoseconds; never goes back.
    fn now_ns(&self) -> u64;

    /// Tells an operator something. It doesn't wait for who reads it.
    fn report(&self, report: &NodeReport);

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

/// A connection to the other side of a VM: bytes in order, as TCP carries them.
pub trait Connection: Send + Sync + 'static {
    /// Reads what has arrived; 0 if nothing more will come. A host that has a thread for this waits
    /// until something has.
    ///
    /// # Errors
    /// `WouldBlock` or `Interrupted` if nothing has arrived; others end the connection.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// The same, without waiting.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends as many of these bytes as the connection takes now.
    ///
    /// # Errors
    /// `WouldBlock` or `Interrupted` if it takes none now; others mean that nothing can be sent any
    /// more.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends the connection: whoever reads or writes it finds that out at once.
    fn cut(&self);
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

/// The host's side of the one way out. Only what an [`OutputGate`](ft::output_gate::OutputGate)
/// released comes here.
pub trait OutputSink: Send + 'static {
    /// Puts out a batch, in order. Frames without a network go nowhere, as on a network card
    /// without its cable.
    ///
    /// `true` if nobody will ever tell what became of them, so that they are as good as carried:
    /// only a LAN tells.
    fn write(&mut self, outputs: &[Released]) -> bool;
}

/// The steps of a side that wait for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// A backup's machine is put together, and replays.
    Replay,
    /// A guest runs.
    Vcpu,
    /// What takes time is done: questions to the arbiter, and the end.
    Control,
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
    /// Not before this time, in nanoseconds, or before [`Host::wake`] if the step has a
    /// [`StepKind`].
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
}
