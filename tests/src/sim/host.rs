//! A simulated process as the host of the production sides: its calls reach the simulated
//! environment.

use super::env::Env;
use super::process::Me;
use super::sightings::Sighting;
use super::sink::SimSink;
use super::source::SimSource;
use super::wires::End;
use crate::random::Random;
use hypervisor::node::host::{Connection, Host, Observation, StepKind};
use hypervisor::node::log::{DiskLogSteps, HostDirectory};
use hypervisor::node::reports::NodeReport;
use logchannel::entry::{EntryBody, Generation, LogSeq};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm::OutputId;

/// Where a process finds its environment while one of its steps is called.
///
/// A step is production code, and gives nothing through to its host; so who calls it lends the
/// environment to the host meanwhile.
#[derive(Clone)]
struct Lent(Arc<Mutex<Env>>);

impl Lent {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Env::new(Random::new(0), false))))
    }

    fn swap(&self, env: &mut Env) {
        std::mem::swap(&mut *self.get(), env);
    }

    /// The environment: never while something of it is in use already.
    fn get(&self) -> MutexGuard<'_, Env> {
        self.0.try_lock().unwrap_or_else(|error| match error {
            std::sync::TryLockError::Poisoned(error) => PoisonError::into_inner(error),
            std::sync::TryLockError::WouldBlock => panic!("the environment is in use"),
        })
    }
}

/// A simulated process.
#[derive(Clone)]
pub(super) struct SimHost {
    me: Me,
    env: Lent,
    part: Part,
    seen: Arc<Mutex<Seen>>,
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Backup,
    /// It owns the VM as this generation.
    Primary(Generation),
}

/// What a process has been seen to do.
#[derive(Debug, Default)]
struct Seen {
    /// Steps that were woken since it was last asked about them.
    woken: BTreeSet<StepKind>,
    /// As which it owns the VM.
    generation: Generation,
    /// The places of the entries of outputs that were made here.
    places: BTreeMap<OutputId, LogSeq>,
    /// It has appended an entry.
    has_run: bool,
    has_lost_backup: bool,
    /// All console output below is written.
    console_left: OutputId,
    /// A VM comes here, and doesn't count on this side yet.
    is_joining: bool,
}

impl SimHost {
    pub(super) fn new(me: Me, part: Part) -> Self {
        let generation = match part {
            Part::Primary(generation) => generation,
            Part::Backup => Generation(0),
        };
        Self { me, env: Lent::new(), part, seen: Arc::new(Mutex::new(Seen { generation, ..Seen::default() })) }
    }

    pub(super) const fn me(&self) -> &Me {
        &self.me
    }

    /// The environment, while a step is called.
    pub(super) fn env(&self) -> MutexGuard<'_, Env> {
        self.env.get()
    }

    /// Calls a step of this process.
    pub(super) fn call<T>(&self, env: &mut Env, step: impl FnOnce() -> T) -> T {
        self.env.swap(env);
        let result = step();
        self.env.swap(env);
        result
    }

    /// Whether a step was woken since this was last asked.
    pub(super) fn was_woken(&self, step: StepKind) -> bool {
        self.seen().woken.remove(&step)
    }

    /// As which generation this process owns the VM.
    pub(super) fn generation(&self) -> Generation {
        self.seen().generation
    }

    /// The place of an output's entry, if the output was made here.
    pub(super) fn place_of(&self, output: OutputId) -> Option<LogSeq> {
        self.seen().places.get(&output).copied()
    }

    /// All outputs that were made here are below.
    pub(super) fn made_below(&self) -> OutputId {
        self.seen().places.last_key_value().map_or(OutputId(0), |(last, _)| last.next())
    }

    /// Whether the guest has begun to run here.
    pub(super) fn has_run(&self) -> bool {
        self.seen().has_run
    }

    /// All console output below `next` is written.
    pub(super) fn set_console_left(&self, next: OutputId) {
        self.seen().console_left = next;
    }

    /// Whether it has begun to receive a VM and isn't told yet that it protects it.
    pub(super) fn is_joining(&self) -> bool {
        self.seen().is_joining
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process's end of a connection to another side.
    pub(super) fn connection(&self, end: End) -> Arc<SimConnection> {
        Arc::new(SimConnection { host: self.clone(), end, state: Mutex::default() })
    }
}

impl Host for SimHost {
    type Connection = SimConnection;
    type Source = SimSource;
    type Sink = SimSink;
    type Storage = HostDirectory;

    fn run_disk_log(&self, _: DiskLogSteps<HostDirectory>) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn now_ns(&self) -> u64 {
        self.env.get().now_ns
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most reports are nothing to a judge")]
    fn report(&self, report: &NodeReport) {
        let mut env = self.env.get();
        match report {
            NodeReport::Joined { .. } => env.note("backup: accepts, on host", &[self.me.host as u64]),
            NodeReport::PrimaryLost { .. } => env.note("backup: the primary is lost, on host", &[self.me.host as u64]),
            NodeReport::PrimaryClaimLost { .. } => env.saw(Sighting::BackupWaitsForClaim),
            NodeReport::ClaimsLost { .. } => env.saw(Sighting::ClaimsLost),
            NodeReport::ClaimsRestored { .. } => env.saw(Sighting::ClaimsRestored),
            NodeReport::Stranded { .. } => env.saw(Sighting::Stranded),
            NodeReport::OwnerConfirmed { .. } => env.saw(Sighting::OwnerConfirmed),
            NodeReport::BackupRefused { .. } => env.saw(Sighting::JoinRefused),
            NodeReport::SpareWaits { .. } => env.saw(Sighting::SpareWaits),
            NodeReport::BackupConnected { .. } => {
                env.note("primary: a backup joins on host", &[self.me.host as u64]);
            }
            NodeReport::Owner { generation, .. } => {
                env.note("primary: goes on alone as generation, on host", &[*generation, self.me.host as u64]);
                env.saw(Sighting::BackupLost);
                self.seen().has_lost_backup = true;
            }
            NodeReport::Protected { generation, .. } if self.part != Part::Backup => {
                env.note("primary: protected as generation, on host", &[*generation, self.me.host as u64]);
                if *generation > 1 {
                    env.saw(Sighting::Rejoin);
                    if !self.seen().has_lost_backup {
                        env.saw(Sighting::JoinedSuccessor);
                    }
                }
            }
            NodeReport::Diverged { reason } => panic!("a backup diverges: {reason}"),
            _ => {}
        }
    }

    fn console_left(&self) -> OutputId {
        self.seen().console_left
    }

    fn guest_time_ns(&self, _: u64, steps: u64) -> u64 {
        steps * self.me.setup.ns_per_step
    }

    fn wake(&self, step: StepKind) {
        self.seen().woken.insert(step);
    }

    fn observe(&self, observation: Observation<'_>) {
        let mut env = self.env.get();
        let node = self.me.node;
        match observation {
            Observation::Snapshot(snapshot) => {
                env.judge.joins(node, snapshot.seq);
                env.note("backup: has a snapshot of entry, on host", &[snapshot.seq.0, self.me.host as u64]);
            }
            Observation::Appended(place, entry) => {
                let now_ns = env.now_ns;
                env.judge.appends(now_ns, node, place, entry);
                let mut seen = self.seen();
                seen.has_run = true;
                if let EntryBody::Output { id, .. } = entry.body {
                    seen.places.insert(id, place);
                }
            }
            Observation::Owns(generation) => {
                let Env { judge, arbiter, has_forgotten, .. } = &mut *env;
                judge.owns(arbiter, *has_forgotten, node, generation);
                self.seen().generation = generation;
            }
            Observation::Received(entries) => env.judge.receives(node, entries.iter().cloned()),
            Observation::Told(generation) => {
                self.seen().is_joining = false;
                env.judge.is_told(node, generation);
            }
        }
    }
}

/// A process's end of a connection.
pub(super) struct SimConnection {
    host: SimHost,
    end: End,
    state: Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    /// What has arrived and wasn't read yet.
    arrived: Vec<u8>,
    has_ended: bool,
    is_cut: bool,
    /// The judge reads along.
    tap: FrameDecoder,
}

impl fmt::Debug for SimConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimConnection").field(&self.end).finish()
    }
}

impl SimConnection {
    fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the judge what this side now knows.
    fn read_along(&self, env: &mut Env, tap: &mut FrameDecoder, bytes: &[u8], has_ended: bool) {
        tap.push(bytes);
        while let Some(frame) = tap.next_frame().unwrap_or_else(|error| panic!("a bad frame on a cut channel: {error}"))
        {
            match Message::decode(frame) {
                Ok(Message::Clock { ticks, .. }) => {
                    let now_ns = env.now_ns;
                    env.judge.guest_time.is_told(now_ns, self.host.me.node, ticks);
                }
                Ok(Message::Session { .. }) => self.host.seen().is_joining = true,
                Ok(_) => {}
                Err(error) => panic!("a bad message on a channel that only cuts: {error}"),
            }
        }
        if has_ended && !tap.unread().is_empty() {
            env.saw(Sighting::TornFrame);
        }
    }
}

impl Connection for SimConnection {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_now(buffer)
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        if state.is_cut {
            return Ok(0);
        }
        if state.arrived.is_empty() && !state.has_ended {
            let mut env = self.host.env.get();
            let received = env.receive(self.end);
            self.read_along(&mut env, &mut state.tap, &received.bytes, received.has_ended);
            state.arrived = received.bytes;
            state.has_ended = received.has_ended;
        }
        if state.arrived.is_empty() {
            return if state.has_ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let length = state.arrived.len().min(buffer.len());
        buffer[..length].copy_from_slice(&state.arrived[..length]);
        state.arrived.drain(..length);
        Ok(length)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.state().is_cut {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut env = self.host.env.get();
        if !env.wires.has_room(self.end) {
            return Err(ErrorKind::WouldBlock.into());
        }
        env.send(self.host.me.host, self.end, bytes);
        Ok(bytes.len())
    }

    fn cut(&self) {
        if !std::mem::replace(&mut self.state().is_cut, true) {
            self.host.env.get().close(self.end);
        }
    }
}
