//! The backup's replay step: restores the machine from a snapshot, then replays the log in
//! lockstep.

use super::side::BackupSide;
use super::{BitFlip, FaultInjection};
use crate::node::channel::lock;
use crate::node::host::{Host, Next};
use crate::node::log::SideDiskLog;
use crate::node::reports::NodeReport;
use ft::replay::{Consumed, Replayer};
use logchannel::entry::{EntryBody, LogEntry};
use logchannel::session::SessionHeader;
use logchannel::snapshot::{Pages, Snapshot};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm::{Event, OutputId, OutputOperation, Restoration};

/// How often an idle replay checks for work, in nanoseconds; new work wakes it earlier.
const IDLE_NS: u64 = 5_000_000;

/// ReplayWork for the replay step, in the order of the channel.
#[derive(Debug)]
pub(super) enum ReplayWork<H: Host> {
    Begin(SessionHeader, Option<Box<SideDiskLog<H>>>),
    Pages(Pages),
    Restore(Snapshot),
    Replay(VecDeque<LogEntry>),
}

impl<H: Host> ReplayWork<H> {
    /// The bytes in the log buffer until the work is done.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.bytes.len(),
            Self::Replay(entries) => entries.iter().map(buffered_bytes).sum(),
            Self::Begin(..) | Self::Restore(_) => 0,
        }
    }
}

/// The bytes of an entry in the log buffer.
fn buffered_bytes(entry: &LogEntry) -> usize {
    let content = match &entry.body {
        EntryBody::Event(
            Event::Packet { packet: bytes, .. } | Event::ConsoleInput { bytes } | Event::RandomBytes { bytes },
        ) => bytes.len(),
        EntryBody::Event(
            Event::ClockRead { .. }
            | Event::Entropy { .. }
            | Event::TimerInterrupt
            | Event::WallClock { .. }
            | Event::Alarm,
        )
        | EntryBody::Output { .. }
        | EntryBody::Progress
        | EntryBody::Digest(_)
        | EntryBody::PartDigest { .. }
        | EntryBody::Stopped(_)
        | EntryBody::Generation(_) => 0,
    };
    size_of::<LogEntry>() + content
}

/// A machine of which not all memory has been received.
#[derive(Debug)]
struct Restoring<H: Host> {
    session: SessionHeader,
    restoration: Restoration,
    disk_log: Option<Box<SideDiskLog<H>>>,
    /// Bytes of memory received.
    snapshot_bytes: u64,
}

/// A machine that replays in lockstep.
#[derive(Debug)]
pub struct Following<H: Host> {
    /// The VM's session.
    pub session: SessionHeader,
    /// The machine.
    pub replayer: Replayer,
    /// The log on disk, if there is one.
    pub disk_log: Option<Box<SideDiskLog<H>>>,
}

/// How far the machine has got.
#[derive(Debug)]
enum ReplayStage<H: Host> {
    Nothing,
    Restoring(Box<Restoring<H>>),
    Following(Box<Following<H>>),
    /// All entries are consumed, and this side goes live with the machine.
    Finished(Box<Following<H>>),
    /// The machine must not go live.
    GivenUp,
}

/// A batch that has been replayed, but counts as replayed only at `due_ns`.
#[derive(Debug)]
struct ReplayedBatch {
    due_ns: u64,
    entries: VecDeque<LogEntry>,
    outputs: Vec<(OutputId, OutputOperation)>,
}

/// The state of the replay step.
#[derive(Debug)]
pub struct Replay<H: Host> {
    stage: ReplayStage<H>,
    /// The last batch of a backup that is slowed on purpose.
    replayed: Option<ReplayedBatch>,
    faults: FaultInjection,
}

impl<H: Host> Replay<H> {
    /// A replay that has received nothing yet.
    #[must_use]
    pub const fn new(faults: FaultInjection) -> Self {
        Self { stage: ReplayStage::Nothing, replayed: None, faults }
    }

    /// The machine, if this side goes live with it.
    #[must_use]
    pub fn into_finished(self) -> Option<Following<H>> {
        match self.stage {
            ReplayStage::Finished(following) => Some(*following),
            ReplayStage::Nothing | ReplayStage::Restoring(_) | ReplayStage::Following(_) | ReplayStage::GivenUp => None,
        }
    }

    fn end(&mut self, goes_live: bool) {
        self.stage = match std::mem::replace(&mut self.stage, ReplayStage::GivenUp) {
            ReplayStage::Following(following) if goes_live => ReplayStage::Finished(following),
            ReplayStage::Nothing
            | ReplayStage::Restoring(_)
            | ReplayStage::Following(_)
            | ReplayStage::Finished(_)
            | ReplayStage::GivenUp => ReplayStage::GivenUp,
        };
    }

    /// The machine, once it is restored.
    #[must_use]
    pub const fn replayer(&self) -> Option<&Replayer> {
        match &self.stage {
            ReplayStage::Following(following) | ReplayStage::Finished(following) => Some(&following.replayer),
            ReplayStage::Nothing | ReplayStage::Restoring(_) | ReplayStage::GivenUp => None,
        }
    }
}

impl<H: Host> BackupSide<H> {
    /// Does one piece of work. Done when this side goes live, or has ended.
    pub fn step_replay(self: &Arc<Self>, replay: &mut Replay<H>) -> Next {
        if self.is_over() {
            replay.end(self.goes_live.load(Ordering::Acquire));
            return Next::Done;
        }
        let now_ns = self.host.now_ns();
        if let Some(replayed) = replay.replayed.take_if(|replayed| replayed.due_ns <= now_ns) {
            self.report_replayed(replay, replayed);
            return Next::Now;
        }
        if let Some(ReplayedBatch { due_ns, .. }) = replay.replayed {
            return Next::Wait { until_ns: due_ns };
        }
        if let ReplayStage::Following(following) = &mut replay.stage
            && let Some(next) = self.copy_for_log(following)
        {
            return next;
        }
        let Some(work) = lock(&self.work).pop_front() else {
            return Next::Wait { until_ns: now_ns + IDLE_NS };
        };
        let bytes = work.bytes();
        self.run_work(replay, work);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if matches!(replay.stage, ReplayStage::GivenUp) { Next::Done } else { Next::Now }
    }

    fn run_work(self: &Arc<Self>, replay: &mut Replay<H>, work: ReplayWork<H>) {
        let stage = std::mem::replace(&mut replay.stage, ReplayStage::GivenUp);
        replay.stage = match (work, stage) {
            (ReplayWork::Replay(entries), ReplayStage::Following(following)) => {
                return self.replay(replay, following, entries);
            }
            (work, stage) => self.restore(work, stage).unwrap_or_else(|reason| {
                self.drive(|role, _| role.handle_restore_failure(&reason));
                ReplayStage::GivenUp
            }),
        };
    }

    /// Restores a part of the machine.
    fn restore(self: &Arc<Self>, work: ReplayWork<H>, stage: ReplayStage<H>) -> Result<ReplayStage<H>, String> {
        match (work, stage) {
            (ReplayWork::Begin(session, disk_log), _) => {
                let restoration = Restoration::new(&session.config).map_err(|error| error.to_string())?;
                Ok(ReplayStage::Restoring(Box::new(Restoring { session, restoration, disk_log, snapshot_bytes: 0 })))
            }
            (ReplayWork::Pages(pages), ReplayStage::Restoring(mut restoring)) => {
                restoring.snapshot_bytes += pages.bytes.len() as u64;
                restoring.restoration.put_pages(pages.first, &pages.bytes).map_err(|error| error.to_string())?;
                Ok(ReplayStage::Restoring(restoring))
            }
            (ReplayWork::Restore(snapshot), ReplayStage::Restoring(restoring)) => {
                let Restoring { session, restoration, mut disk_log, snapshot_bytes } = *restoring;
                let mut machine = restoration.finish(&snapshot.state).map_err(|error| error.to_string())?;
                let found = machine.digest();
                if found != snapshot.digest {
                    return Err(format!("its state digest is {found}, the primary's is {}", snapshot.digest));
                }
                let next_output = machine.next_output_id();
                self.drive(|role, now_ns| role.handle_restored(now_ns, next_output));
                if let Some(log) = &mut disk_log {
                    log.restored(&machine, snapshot_bytes);
                }
                let replayer = Replayer::new(machine, snapshot.seq);
                Ok(ReplayStage::Following(Box::new(Following { session, replayer, disk_log })))
            }
            (_, stage) => Ok(stage),
        }
    }

    /// Replays a batch of entries.
    fn replay(self: &Arc<Self>, replay: &mut Replay<H>, mut following: Box<Following<H>>, entries: VecDeque<LogEntry>) {
        let began_ns = self.host.now_ns();
        let Some(outputs) = self.replay_batch(&mut following.replayer, &entries, &mut replay.faults.flip) else {
            return;
        };
        replay.stage = ReplayStage::Following(following);
        let now_ns = self.host.now_ns();
        let slowdown = u64::from(replay.faults.slowdown.max(1));
        let replayed = ReplayedBatch { due_ns: now_ns + (now_ns - began_ns) * (slowdown - 1), entries, outputs };
        if replayed.due_ns <= now_ns {
            self.report_replayed(replay, replayed);
        } else {
            replay.replayed = Some(replayed);
        }
    }

    /// Reports a replayed batch to the role and to the log on disk.
    fn report_replayed(
        self: &Arc<Self>,
        replay: &mut Replay<H>,
        ReplayedBatch { entries, outputs, .. }: ReplayedBatch,
    ) {
        let ReplayStage::Following(following) = &mut replay.stage else { return };
        let Following { replayer, disk_log, .. } = &mut **following;
        let count = replayer.machine().instruction_count();
        self.drive(|role, now_ns| {
            for (id, output) in outputs {
                role.handle_output(id, output);
            }
            role.handle_consumed(now_ns, replayer.consumed(), count);
        });
        if let Some(log) = disk_log {
            entries.iter().for_each(|entry| log.consumed(entry));
            self.serve_log(log, replayer);
        }
    }

    /// Gives the log on disk its turn: it copies memory for its next snapshot, and hands entries
    /// on.
    fn serve_log(&self, log: &mut SideDiskLog<H>, replayer: &mut Replayer) {
        // A snapshot can't have outputs that the log doesn't have yet: the next entries take them
        // first.
        if replayer.machine().has_output() {
            return;
        }
        let next = replayer.consumed();
        let unsent = || lock(&self.role).unsent().map(|(id, output)| (*id, Arc::new(output.clone()))).collect();
        log.serve(replayer.machine_mut(), next, unsent);
    }

    /// `Some` if the replay must wait for a copy of the memory for the log on disk, because it
    /// writes pages faster than they are copied. Copies a piece, and says when to call the step
    /// again.
    fn copy_for_log(&self, following: &mut Following<H>) -> Option<Next> {
        let Following { replayer, disk_log, .. } = following;
        let log = disk_log.as_mut()?;
        if replayer.machine().has_output() || log.steps_allowed(1, replayer.machine()).is_some() {
            return None;
        }
        let next = if log.wants_copy() { Next::Now } else { Next::Wait { until_ns: self.host.now_ns() + IDLE_NS } };
        self.serve_log(log, replayer);
        Some(next)
    }

    /// Replays `entries`. Returns the guest's outputs, or `None` after a divergence.
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
                    self.host.report(&NodeReport::Diverged { reason: reason.clone() });
                    self.drive(|role, now_ns| role.handle_divergence(now_ns, &reason));
                    return None;
                }
            }
        }
        Some(outputs)
    }
}
