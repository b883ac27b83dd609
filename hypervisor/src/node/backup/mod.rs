//! A backup: its role with the host's threads and sockets around it.
//!
//! The thread that reads the channel acknowledges; the thread that replays never delays it.

pub mod doorman;

use super::channel::{Arrived, Channel, ChannelReader, lock, serve};
use super::environment::Node;
use super::log::JoiningLog;
use super::log::kept_log::{Keeping, KeptLog};
use super::reports::NodeReport;
use crate::os::clock;
use crate::os::priority;
use crossbeam_channel::{Receiver, Sender, unbounded};
use ft::guest_clock::GuestClock;
use ft::replay::{Consumed, Replayer};
use ft::role::{BackupAction, BackupEnd, BackupMoments, BackupRole, ClaimRequest, DiskLogState};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::session::SessionHeader;
use logchannel::snapshot::{Pages, Snapshot};
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;
use vm::{Event, Machine, OutputId, OutputOperation, Restoration};

/// Bytes of memory and entries that may wait to be put in place or replayed before this side stops reading its channel, and
/// by that stops the primary.
pub const LOG_BUFFER_BYTES_MAX: usize = 64 << 20;

/// From one look at heartbeats and timeouts to the next.
const TICK: Duration = Duration::from_millis(5);

/// From one look of the claiming thread at heartbeats and timeouts to the next.
const WATCH: Duration = Duration::from_millis(50);

/// One bit of RAM to flip behind the guest's back, to see the divergence found.
#[derive(Clone, Copy, Debug)]
pub struct BitFlip {
    /// At the first entry with at least this instruction count.
    pub count: u64,
    /// Guest-physical address.
    pub address: u64,
    /// 0 to 7.
    pub bit: u8,
}

/// What is done to a backup on purpose, to see what comes of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultInjection {
    /// Its memory is damaged.
    pub flip: Option<BitFlip>,
    /// It replays so many times slower than it could; 0 and 1 change nothing.
    pub slowdown: u32,
}

/// How a backup's time as a backup ends.
#[derive(Debug)]
pub enum BackupOutcome {
    /// It owns the VM and has to run it.
    GoLive(Box<Succession>),
    /// It is over.
    End(BackupEnd),
}

/// All that a backup brings along when it goes live.
#[derive(Debug)]
pub struct Succession {
    /// The machine, standing behind the last entry.
    pub machine: Machine,
    /// The guest's clock, going on from its primary's.
    pub clock: GuestClock,
    /// What the VM is, of the generation that this node now owns.
    pub session: SessionHeader,
    /// Its log on disk, if one is kept.
    pub kept: Option<KeptLog>,
    /// How many entries the log has.
    pub entries: LogSeq,
    /// How many state digests were compared, and equal.
    pub digests_checked: u64,
    /// Outputs that the predecessor may not have sent.
    pub tail: VecDeque<(OutputId, OutputOperation)>,
    /// How many of them were dropped because there were too many.
    pub tail_dropped: u64,
    /// The output behind them. The machine may be further by some that the last entries don't tell of.
    pub next_output: OutputId,
    /// When the steps of the failover happened.
    pub moments: BackupMoments,
}

/// What the replaying thread has to do.
enum Work {
    Begin(SessionHeader, Option<Box<KeptLog>>),
    Pages(Pages),
    Restore(Snapshot),
    Replay(VecDeque<LogEntry>),
    Finish,
}

impl Work {
    /// What it occupies until it is done.
    fn bytes(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.bytes.len(),
            Self::Replay(entries) => entries.iter().map(buffered_bytes).sum(),
            Self::Begin(..) | Self::Restore(_) | Self::Finish => 0,
        }
    }
}

/// The machine, as far as it has come.
enum Stage {
    Nothing,
    Restoring(Box<Restoring>),
    Following(Box<Following>),
}

/// A machine that is being put together.
struct Restoring {
    session: SessionHeader,
    restoration: Restoration,
    kept: Option<Box<KeptLog>>,
    /// Bytes of memory received.
    snapshot_bytes: u64,
}

/// A machine in lockstep.
struct Following {
    session: SessionHeader,
    replayer: Replayer,
    kept: Option<Box<KeptLog>>,
}

#[derive(Debug)]
enum Step {
    CheckOwner,
    Claim(ClaimRequest),
    GoLive(Generation),
    End(BackupEnd),
}

struct Shared {
    node: Node,
    role: Mutex<BackupRole>,
    channel: Channel,
    work: Sender<Work>,
    /// Bytes of work not yet done.
    waiting: AtomicUsize,
    /// Until the session comes: where the log on disk is to be.
    keeping: Mutex<Option<Keeping>>,
    /// From then on: the log on disk, which takes what is received.
    joining_log: OnceLock<JoiningLog>,
    replay_thread: Mutex<Option<thread::Thread>>,
    steps: Sender<Step>,
    over: AtomicBool,
    /// The name of the guest's image.
    image: Mutex<String>,
}

/// Backs up the VM whose primary is at the other end of `stream`, in the calling thread, until this node goes live or
/// is over.
///
/// # Errors
/// If the socket or a thread can't be set up.
pub fn run(
    node: Node,
    role: BackupRole,
    stream: TcpStream,
    keeping: Option<Keeping>,
    faults: FaultInjection,
) -> io::Result<BackupOutcome> {
    let role = if keeping.is_some() { role.with_disk_log(DiskLogState::Promised) } else { role };
    let (work, work_queue) = unbounded();
    let (steps, step_queue) = unbounded();
    let shared = Arc::new(Shared {
        node,
        role: Mutex::new(role),
        channel: Channel::default(),
        work,
        waiting: AtomicUsize::new(0),
        keeping: Mutex::new(keeping),
        joining_log: OnceLock::new(),
        replay_thread: Mutex::new(None),
        steps,
        over: AtomicBool::new(false),
        image: Mutex::default(),
    });
    let stream = Arc::new(stream);
    shared.channel.connect(stream.clone())?;
    // The wish to join.
    shared.send_outgoing();
    start_reader(&shared, ChannelReader::new(stream))?;
    start_ticks(&shared)?;
    let replay = {
        let shared = shared.clone();
        thread::Builder::new().name("vcpu".into()).spawn(move || shared.work(&work_queue, faults))?
    };
    let outcome = shared.conduct(&step_queue);
    if outcome.is_ok() {
        // Before the end is announced: a replaying thread that sees the end and has nothing to do gives its machine up.
        shared.give_work(Work::Finish);
    }
    shared.over.store(true, Ordering::Release);
    shared.channel.cut();
    let generation = match outcome {
        Err(end) => {
            if matches!(end, BackupEnd::NoPlace { .. }) {
                // The caller looks for a primary again, and opens the directory anew.
                drop(lock(&shared.keeping).take());
            }
            return Ok(BackupOutcome::End(end));
        }
        Ok(generation) => generation,
    };
    let replayed = replay.join().map_err(|_| io::Error::other("the replaying thread panicked"))?;
    let Following { mut session, replayer, kept } =
        replayed.ok_or_else(|| io::Error::other("no machine to go live with"))?;
    session.generation = generation;
    let machine = replayer.machine();
    let mut role = lock(&shared.role);
    let clock = role.take_over_clock(clock::now_ns(), machine.last_ticks());
    Ok(BackupOutcome::GoLive(Box::new(Succession {
        entries: replayer.consumed(),
        digests_checked: replayer.digests_checked(),
        machine: replayer.into_machine(),
        clock,
        kept: kept.map(|kept| *kept),
        session,
        tail_dropped: role.tail_dropped(),
        tail: role.take_tail(),
        next_output: role.next_output(),
        moments: *role.moments(),
    })))
}

impl Shared {
    /// Gives the role an input, and does what it says.
    fn drive<T>(self: &Arc<Self>, input: impl FnOnce(&mut BackupRole, u64) -> T) -> T {
        let (actions, result) = self.give(input);
        // Acknowledgements leave before anything else is done.
        self.send_outgoing();
        for action in actions {
            self.act(action);
        }
        result
    }

    /// Gives the role an input; what it wants done has to be done next.
    fn give<T>(&self, input: impl FnOnce(&mut BackupRole, u64) -> T) -> (Vec<BackupAction>, T) {
        let mut role = lock(&self.role);
        let result = input(&mut role, clock::now_ns());
        (std::iter::from_fn(|| role.poll_action()).collect(), result)
    }

    fn act(self: &Arc<Self>, action: BackupAction) {
        let step = match action {
            BackupAction::Waits => return self.node.reporter.tell(&NodeReport::WaitsForPlace),
            BackupAction::Begin(session) => {
                *lock(&self.image) = session.image_name.clone();
                return self.begin(session);
            }
            BackupAction::CheckOwner => Step::CheckOwner,
            BackupAction::Joined => {
                return self.node.reporter.tell(&NodeReport::Joined { image: lock(&self.image).clone() });
            }
            BackupAction::ClaimsLost(generation) => {
                return self.node.reporter.tell(&NodeReport::PrimaryClaimLost { generation: generation.0 });
            }
            // The thread that receives gives the log on disk what has come before it gives it to the machine.
            BackupAction::Pages(pages) => {
                self.log(|log| log.pages(&pages));
                return self.give_work(Work::Pages(pages));
            }
            BackupAction::Restore(snapshot) => {
                self.log(|log| log.complete(lock(&self.role).tail().cloned(), &snapshot));
                return self.give_work(Work::Restore(snapshot));
            }
            BackupAction::Consume(entries) => {
                self.log(|log| log.entries(entries.iter()));
                return self.give_work(Work::Replay(entries));
            }
            BackupAction::Protected(generation) => {
                self.log(JoiningLog::protects);
                return self.node.reporter.tell(&NodeReport::Protected { generation: generation.0, again: false });
            }
            BackupAction::Lost { reason } => {
                self.channel.cut();
                return self.node.reporter.tell(&NodeReport::PrimaryLost { reason: reason.to_string() });
            }
            BackupAction::Claim(request) => Step::Claim(request),
            BackupAction::GoLive(generation) => Step::GoLive(generation),
            BackupAction::End(end) => Step::End(end),
        };
        // Fails only when this backup is over.
        let _ = self.steps.send(step);
    }

    /// Begins to put the machine together, and to log what is received.
    fn begin(self: &Arc<Self>, session: SessionHeader) {
        let kept = match lock(&self.keeping).take() {
            None => None,
            Some(keeping) => match KeptLog::begin_joining(keeping, session.clone(), self.node.id, self.node.reporter) {
                Ok((kept, joining)) => {
                    let _ = self.joining_log.set(joining);
                    let shared = self.clone();
                    kept.listen(move |state| shared.drive(|role, now_ns| role.handle_disk_log(now_ns, state)));
                    Some(Box::new(kept))
                }
                Err(error) => {
                    let reason = format!("the log can't be kept on disk: {error}");
                    return self.drive(|role, _| role.handle_restore_failure(&reason));
                }
            },
        };
        self.give_work(Work::Begin(session, kept));
    }

    /// Gives the log on disk something, if one is kept.
    fn log(&self, give: impl FnOnce(&JoiningLog)) {
        if let Some(log) = self.joining_log.get() {
            give(log);
        }
    }

    fn is_disk_full(&self) -> bool {
        self.joining_log.get().is_some_and(JoiningLog::is_full)
    }

    /// Tells the role that this side waits for its disk.
    fn wait_for_disk(self: &Arc<Self>) {
        let taken = self.joining_log.get().map_or(0, JoiningLog::taken);
        self.drive(|role, now_ns| role.handle_disk_wait(now_ns, taken));
    }

    /// Gives the role what the primary says, until the connection ends; says why it did.
    fn read(self: &Arc<Self>, mut reader: ChannelReader) -> String {
        loop {
            let (messages, end) = match reader.wait() {
                Arrived::Messages(messages) => (messages, None),
                Arrived::Last { messages, reason } => (messages, Some(reason)),
            };
            self.drive(|role, now_ns| {
                for message in messages {
                    role.handle_message(now_ns, message);
                }
            });
            if let Some(reason) = end {
                return reason;
            }
            while !self.over.load(Ordering::Acquire) {
                let is_disk_full = self.is_disk_full();
                if !is_disk_full && self.waiting.load(Ordering::Relaxed) <= LOG_BUFFER_BYTES_MAX {
                    break;
                }
                lock(&self.role).handle_not_listening(clock::now_ns());
                if is_disk_full {
                    self.wait_for_disk();
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn send_outgoing(&self) {
        serve(
            &self.channel.writer,
            || lock(&self.role).has_outgoing(),
            |writer| writer.write(&self.channel.sent, |buffer| lock(&self.role).poll_outgoing(buffer)),
        );
    }

    fn give_work(&self, work: Work) {
        self.waiting.fetch_add(work.bytes(), Ordering::Relaxed);
        // Fails only when replay has ended, in a divergence or with the guest.
        let _ = self.work.send(work);
        self.wake_replay();
    }

    fn wake_replay(&self) {
        if let Some(thread) = lock(&self.replay_thread).as_ref() {
            thread.unpark();
        }
    }

    /// Puts the machine together and replays until there is nothing more to do; `None` if the machine must not go live.
    fn work(self: &Arc<Self>, queue: &Receiver<Work>, mut faults: FaultInjection) -> Option<Following> {
        *lock(&self.replay_thread) = Some(thread::current());
        let mut stage = Stage::Nothing;
        loop {
            let work = match queue.try_recv() {
                Ok(work) => work,
                Err(_) if self.over.load(Ordering::Acquire) && queue.is_empty() => return None,
                Err(_) => {
                    thread::park_timeout(TICK);
                    continue;
                }
            };
            let bytes = work.bytes();
            stage = match (work, stage) {
                (Work::Finish, Stage::Following(following)) => return Some(*following),
                (Work::Replay(entries), Stage::Following(mut following)) => {
                    self.replay(&mut following, &entries, &mut faults)?;
                    Stage::Following(following)
                }
                (work, stage) => match self.restore(work, stage) {
                    Ok(stage) => stage,
                    Err(reason) => {
                        self.drive(|role, _| role.handle_restore_failure(&reason));
                        return None;
                    }
                },
            };
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Puts a piece of the machine in place.
    fn restore(self: &Arc<Self>, work: Work, stage: Stage) -> Result<Stage, String> {
        match (work, stage) {
            (Work::Begin(session, kept), _) => {
                let restoration = Restoration::new(&session.config).map_err(|error| error.to_string())?;
                Ok(Stage::Restoring(Box::new(Restoring { session, restoration, kept, snapshot_bytes: 0 })))
            }
            (Work::Pages(pages), Stage::Restoring(mut restoring)) => {
                restoring.snapshot_bytes += pages.bytes.len() as u64;
                restoring.restoration.put_pages(pages.first, &pages.bytes).map_err(|error| error.to_string())?;
                Ok(Stage::Restoring(restoring))
            }
            (Work::Restore(Snapshot { seq, digest, state }), Stage::Restoring(restoring)) => {
                let Restoring { session, restoration, mut kept, snapshot_bytes } = *restoring;
                let mut machine = restoration.finish(&state).map_err(|error| error.to_string())?;
                let found = machine.digest();
                if found != digest {
                    return Err(format!("its state digest is {found}, the primary's is {digest}"));
                }
                let next_output = machine.next_output_id();
                self.drive(|role, now_ns| role.handle_restored(now_ns, next_output));
                if let Some(kept) = &mut kept {
                    kept.restored(&machine, snapshot_bytes);
                }
                Ok(Stage::Following(Box::new(Following { session, replayer: Replayer::new(machine, seq), kept })))
            }
            (_, stage) => Ok(stage),
        }
    }

    /// Replays a batch, and tells the role; `None` after a divergence.
    fn replay(
        self: &Arc<Self>,
        following: &mut Following,
        entries: &VecDeque<LogEntry>,
        faults: &mut FaultInjection,
    ) -> Option<()> {
        let started_ns = clock::now_ns();
        let Following { replayer, kept, .. } = following;
        let outputs = self.replay_batch(replayer, entries, &mut faults.flip)?;
        if faults.slowdown > 1 {
            let took = Duration::from_nanos(clock::now_ns() - started_ns);
            thread::sleep(took.saturating_mul(faults.slowdown - 1));
        }
        let count = replayer.machine().instruction_count();
        self.drive(|role, now_ns| {
            for (id, output) in outputs {
                role.handle_output(id, output);
            }
            role.handle_consumed(now_ns, replayer.consumed(), count);
        });
        if let Some(kept) = kept {
            self.keep(kept, replayer, entries);
        }
        Some(())
    }

    /// Follows the machine in the log on disk, which has these entries: its next snapshot is made of the machine.
    fn keep(&self, kept: &mut KeptLog, replayer: &mut Replayer, entries: &VecDeque<LogEntry>) {
        entries.iter().for_each(|entry| kept.consumed(entry));
        // A snapshot is of a machine at rest; the entries to come take what the guest sent.
        if !replayer.machine().has_output() {
            let next = replayer.consumed();
            let tail = || lock(&self.role).tail().map(|(id, output)| (*id, Arc::new(output.clone()))).collect();
            let is_over = || self.over.load(Ordering::Acquire);
            kept.serve(replayer.machine_mut(), next, tail, is_over);
            // Replay writes memory faster than it is copied.
            while kept.steps_allowed(1, replayer.machine()).is_none() && !is_over() {
                if !kept.wants_copy() {
                    thread::sleep(TICK);
                }
                kept.serve(replayer.machine_mut(), next, tail, is_over);
            }
        }
    }

    /// Replays `entries`, and gives what the guest sent meanwhile; `None` after a divergence.
    fn replay_batch(
        self: &Arc<Self>,
        replayer: &mut Replayer,
        entries: &VecDeque<LogEntry>,
        flip: &mut Option<BitFlip>,
    ) -> Option<Vec<(OutputId, OutputOperation)>> {
        let mut outputs = Vec::new();
        for entry in entries {
            if let Some(due) = flip.take_if(|flip| entry.count.0 >= flip.count) {
                replayer.machine_mut().flip_ram_bit(due.address, due.bit);
            }
            match replayer.consume(entry) {
                Ok(Consumed::Nothing | Consumed::Stopped(_)) => {}
                Ok(Consumed::Output(id, output)) => outputs.push((id, output)),
                Err(divergence) => {
                    let reason = divergence.to_string();
                    self.node.reporter.tell(&NodeReport::Diverged { reason: reason.clone() });
                    self.drive(|role, now_ns| role.handle_divergence(now_ns, &reason));
                    return None;
                }
            }
        }
        Some(outputs)
    }

    /// Does what the role asks for that takes time. `Ok` if this node goes live.
    fn conduct(self: &Arc<Self>, steps: &Receiver<Step>) -> Result<Generation, BackupEnd> {
        let mut failed_claims = 0;
        loop {
            let Ok(step) = steps.recv_timeout(WATCH) else {
                // The thread that ticks may be stuck in writing to a primary that doesn't read. This one never writes then.
                let (actions, ()) = self.give(BackupRole::handle_tick);
                actions.into_iter().for_each(|action| self.act(action));
                continue;
            };
            match step {
                Step::CheckOwner => {
                    let answer = self.node.latest(&mut failed_claims);
                    self.drive(|role, now_ns| role.handle_owner(now_ns, answer));
                }
                Step::Claim(request) => {
                    let answer = self.node.claim(request, &mut failed_claims);
                    self.drive(|role, now_ns| role.handle_claim(now_ns, answer));
                }
                Step::GoLive(generation) => return Ok(generation),
                Step::End(end) => return Err(end),
            }
        }
    }
}

/// What an entry occupies in the log buffer.
fn buffered_bytes(entry: &LogEntry) -> usize {
    let content = match &entry.body {
        EntryBody::Event(Event::Packet { frame: bytes, .. } | Event::ConsoleInput { bytes }) => bytes.len(),
        EntryBody::Event(Event::ClockRead { .. } | Event::Entropy { .. } | Event::TimerInterrupt)
        | EntryBody::Output { .. }
        | EntryBody::Progress
        | EntryBody::Digest(_)
        | EntryBody::PartDigest { .. }
        | EntryBody::Stopped(_)
        | EntryBody::Generation(_) => 0,
    };
    size_of::<LogEntry>() + content
}

fn start_reader(shared: &Arc<Shared>, reader: ChannelReader) -> io::Result<()> {
    let shared = shared.clone();
    thread::Builder::new().name("log".into()).spawn(move || {
        priority::raise();
        let reason = shared.read(reader);
        shared.drive(|role, now_ns| role.handle_disconnect(now_ns, &reason));
    })?;
    Ok(())
}

fn start_ticks(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    thread::Builder::new().name("ticks".into()).spawn(move || {
        while !shared.over.load(Ordering::Acquire) {
            thread::sleep(TICK);
            if lock(&shared.role).waits_for_disk() {
                shared.wait_for_disk();
            }
            shared.drive(BackupRole::handle_tick);
        }
    })?;
    Ok(())
}
