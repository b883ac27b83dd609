//! A simulated process as the host of the production sides: its calls reach the simulated
//! environment.

use super::arbiter::Said;
use super::connection::SimConnection;
use super::disk::SimDisk;
use super::env::Env;
use super::log::LogWork;
use super::plan::{Faults, RunSpec};
use super::process::Me;
use super::sightings::Sighting;
use super::sink::SimSink;
use super::source::SimSource;
use super::trace::{Kind, Lane, Note, State};
use super::wires::{End, Place};
use crate::random::Random;
use ft::claim::Verdict;
use hypervisor::arbiter::ArbiterError;
use hypervisor::lan::client::LanError;
use hypervisor::node::arbiter_client::{ArbiterCall, ArbiterReply, ArbiterTransport};
use hypervisor::node::host::{Destination, Host, Observation, StepKind};
use hypervisor::node::io::lan::GuestDelivery;
use hypervisor::node::log::DiskLogSteps;
use hypervisor::node::reports::NodeReport;
use hypervisor::os::report::Report;
use logchannel::entry::{EntryBody, Generation, LogSeq};
use logchannel::session::VmId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
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
        Self(Arc::new(Mutex::new(Env::new(Random::new(0), Faults::new(RunSpec::default(), Arc::default())))))
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

/// Frames that wait for the guest before no more are read.
const PACKETS_MAX: usize = 64;

/// The port at which everything listens.
const PORT: u16 = 7200;

/// Where the LAN listens.
pub(super) const LAN_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), PORT);

/// Where the process on a host listens.
pub(super) fn address(host: usize) -> SocketAddr {
    let [.., high, low] = host.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), PORT))
}

/// The host at an address.
fn host_at(address: SocketAddr) -> usize {
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("no host is at {address}") };
    let [.., high, low] = ip.octets();
    usize::from(u16::from_be_bytes([high, low]))
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
    /// It looks for a primary.
    Seeking,
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
    /// Outputs below were sent to the LAN, or would have been.
    sent_below: OutputId,
    /// Frames that wait for the guest.
    packets: VecDeque<(u64, Vec<u8>)>,
    /// A VM comes here, and doesn't count on this side yet.
    is_joining: bool,
    /// This flag was won already when it was asked for last, and nobody heard.
    lost_reply: Option<Generation>,
    /// It has just been told that it has won a flag.
    has_won: bool,
    /// The steps of a log on disk that has just been begun.
    log_work: Option<LogWork>,
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimHost").field(&self.me.host).finish()
    }
}

impl SimHost {
    pub(super) fn new(me: Me) -> Self {
        Self { me, env: Lent::new(), part: Part::Seeking, seen: Arc::default() }
    }

    /// The same process, which has become this.
    pub(super) fn become_part(&self, part: Part) -> Self {
        let generation = match part {
            Part::Primary(generation) => generation,
            Part::Backup | Part::Seeking => Generation(0),
        };
        *self.seen() = Seen { generation, ..Seen::default() };
        Self { part, ..self.clone() }
    }

    /// The steps of a log on disk, if one has been begun since this was last asked.
    pub(super) fn take_log_work(&self) -> Option<LogWork> {
        self.seen().log_work.take()
    }

    pub(super) const fn me(&self) -> &Me {
        &self.me
    }

    /// The environment, while a step is called.
    pub(super) fn env(&self) -> MutexGuard<'_, Env> {
        self.env.get()
    }

    /// The environment, if a step is being called.
    pub(super) fn try_env(&self) -> Option<MutexGuard<'_, Env>> {
        self.env.0.try_lock().ok()
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

    /// Whether it has been told that it has won a flag since this was last asked.
    pub(super) fn take_won(&self) -> bool {
        std::mem::take(&mut self.seen().has_won)
    }

    /// All console output below `next` is written.
    pub(super) fn set_console_left(&self, next: OutputId) {
        self.seen().console_left = next;
    }

    /// Outputs below were sent to the LAN, or would have been.
    pub(super) fn sent_below(&self) -> OutputId {
        self.seen().sent_below
    }

    /// Outputs below are sent to the LAN, if it is there.
    pub(super) fn has_sent(&self, next: OutputId) {
        let mut seen = self.seen();
        seen.sent_below = seen.sent_below.max(next);
    }

    /// Whether a frame waits for the guest.
    pub(super) fn has_packet(&self) -> bool {
        !self.seen().packets.is_empty()
    }

    /// The next frame for the guest.
    pub(super) fn take_packet(&self) -> Option<(u64, Vec<u8>)> {
        self.seen().packets.pop_front()
    }

    /// Whether it has begun to receive a VM and isn't told yet that it protects it.
    pub(super) fn is_joining(&self) -> bool {
        self.seen().is_joining
    }

    /// A VM comes here.
    pub(super) fn joins(&self) {
        self.seen().is_joining = true;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process's end of a connection to another side.
    pub(super) fn connection(&self, end: End) -> Arc<SimConnection> {
        Arc::new(self.end_of(end, true))
    }

    fn end_of(&self, end: End, is_channel: bool) -> SimConnection {
        SimConnection::new(self.clone(), end, is_channel)
    }
}

impl Host for SimHost {
    type Connection = SimConnection;
    type Source = SimSource;
    type Sink = SimSink;
    type Storage = SimDisk;

    fn run_disk_log(&self, steps: DiskLogSteps<SimDisk>) -> io::Result<()> {
        self.seen().log_work = Some(LogWork::new(steps));
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.env.get().now_ns
    }

    fn connect(&self, to: Destination) -> io::Result<Arc<SimConnection>> {
        let place = match to {
            Destination::Lan(_) => Place::Lan,
            Destination::Primary(address) => Place::Host(host_at(address)),
        };
        let end = self.env.get().dial(Place::Host(self.me.host), place);
        Ok(Arc::new(self.end_of(end, place != Place::Lan)))
    }

    fn deliver_packet(&self, number: u64, frame: Vec<u8>) -> GuestDelivery {
        let mut seen = self.seen();
        if seen.packets.len() >= PACKETS_MAX {
            return GuestDelivery::Full(frame);
        }
        seen.packets.push_back((number, frame));
        drop(seen);
        let mut env = self.env.get();
        if env.vm_of(self.me.host).packet_arrives(number) {
            env.saw(Sighting::PacketDeliveredAgain);
        }
        GuestDelivery::Taken
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most reports are nothing to a judge")]
    fn report(&self, report: &NodeReport) {
        let mut env = self.env.get();
        let kind = Kind::Report(report.level());
        env.tell(Note::new(Lane::Host(self.me.host), kind, "", &[]).words(&report.to_string()));
        match report {
            NodeReport::PrimaryClaimLost { .. } => env.saw(Sighting::BackupWaitsForClaim),
            NodeReport::ClaimsLost { .. } => env.saw(Sighting::ClaimsLost),
            NodeReport::ClaimsRestored { .. } => env.saw(Sighting::ClaimsRestored),
            NodeReport::Stranded { .. } => env.saw(Sighting::Stranded),
            NodeReport::OwnerConfirmed { .. } => env.saw(Sighting::OwnerConfirmed),
            NodeReport::BackupRefused { .. } => env.saw(Sighting::JoinRefused),
            NodeReport::SpareWaits { .. } => env.saw(Sighting::SpareWaits),
            NodeReport::LogUsable { .. } => env.saw(Sighting::LogUsable),
            NodeReport::LogLost { .. } => env.saw(Sighting::LogFailed),
            NodeReport::Owner { generation, .. } => {
                let what = "goes on alone as generation {}";
                env.note_role(self.me.host, State::Primary(*generation), what, &[*generation]);
                env.saw(Sighting::BackupLost);
                self.seen().has_lost_backup = true;
            }
            NodeReport::Protected { generation: 2.., .. } if matches!(self.part, Part::Primary(_)) => {
                env.saw(Sighting::Rejoin);
                if !self.seen().has_lost_backup {
                    env.saw(Sighting::JoinedSuccessor);
                }
            }
            NodeReport::LanLost { reason } if *reason == LanError::Silent.to_string() => {
                env.saw(Sighting::LanSilent);
            }
            NodeReport::LanLost { reason } if reason.contains("the arbiter is asked") => {
                env.saw(Sighting::FencedByLan);
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
                env.judge_of(self.me.host).joins(node, snapshot.seq);
                env.note_role(self.me.host, State::Joining, "is joining, from entry {} on", &[snapshot.seq.0]);
            }
            Observation::Appended(place, entry) => {
                let now_ns = env.now_ns;
                env.judge_of(self.me.host).appends(now_ns, node, place, entry);
                let mut seen = self.seen();
                seen.has_run = true;
                if let EntryBody::Output { id, .. } = entry.body {
                    let numbers = [id.0, place.0];
                    env.note(Lane::Host(self.me.host), Kind::Detail, "output {} is entry {} of the log", &numbers);
                    seen.places.insert(id, place);
                }
            }
            Observation::Owns(generation) => {
                env.vm_of(self.me.host).owns(node, generation);
                self.seen().generation = generation;
            }
            Observation::Attached(next, gate) => {
                let sent_below = self.seen().sent_below;
                for (id, _) in gate.unsent() {
                    if id < next {
                        env.saw(Sighting::UnsentOutputAlreadyCarried);
                    } else if sent_below > id {
                        env.saw(Sighting::SentAgain);
                    }
                }
            }
            Observation::Received(entries) => env.judge_of(self.me.host).receives(node, entries.iter().cloned()),
            Observation::Told(generation) => {
                self.seen().is_joining = false;
                let what = "BACKUP of generation {}: told that outputs are held for it";
                env.note_role(self.me.host, State::Backup(generation.0), what, &[generation.0]);
                env.judge_of(self.me.host).is_told(node, generation);
            }
        }
    }
}

impl ArbiterTransport for SimHost {
    fn next_number(&self) -> u64 {
        self.env.get().next_question()
    }

    fn send(&self, number: u64, _: &VmId, call: &ArbiterCall) -> bool {
        self.env.get().ask(&self.me, number, call.clone());
        true
    }

    fn take_reply(&self) -> Option<(u64, Result<ArbiterReply, ArbiterError>)> {
        let (number, said) = self.env.get().take_answer(self.me.node)?;
        Some(match said {
            Said::Reply(reply) => (number, Ok(reply)),
            Said::CantDecide => {
                (number, Err(ArbiterError::Failed { arbiter: self.spec().into(), reason: "no space".into() }))
            }
        })
    }

    fn spec(&self) -> &str {
        "tcp:arbiter"
    }

    fn asks(&self, call: &ArbiterCall) {
        if let ArbiterCall::Claim { generation, .. } = call {
            let mut env = self.env.get();
            env.note(Lane::Host(self.me.host), Kind::Claim, "asks the arbiter for flag {}", &[generation.0]);
            if env.vm_of(self.me.host).flag_asked(self.me.node, *generation) {
                env.saw(Sighting::BothClaimed);
            }
        }
    }

    fn settled(&self, _: &VmId, call: &ArbiterCall, outcome: Result<&ArbiterReply, &ArbiterError>) {
        let (mut env, mut seen) = (self.env.get(), self.seen());
        match (call, outcome) {
            (ArbiterCall::Claim { generation, .. }, Ok(reply)) => {
                seen.has_won = *reply == ArbiterReply::Verdict(Verdict::Won);
                if seen.has_won && seen.lost_reply == Some(*generation) {
                    env.saw(Sighting::LostReplyAskedAgain);
                }
            }
            (ArbiterCall::Claim { generation, .. }, Err(_)) => {
                env.saw(Sighting::ArbiterUnreachable);
                if env.vm_of(self.me.host).arbiter.holder(*generation) == Some(self.me.node) {
                    seen.lost_reply = Some(*generation);
                }
            }
            (ArbiterCall::Latest, Err(error)) if error.is_unreachable() => env.saw(Sighting::LookUnanswered),
            (ArbiterCall::Latest, Err(_)) => env.saw(Sighting::ArbiterUnwell),
            (ArbiterCall::Latest, Ok(_)) => {}
        }
    }
}
