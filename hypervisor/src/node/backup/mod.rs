//! A backup as a process: a thread for each of its steps.
//!
//! The thread that reads the channel acknowledges; the thread that replays never delays it.

pub mod no_primary_port;
mod replay;
mod side;

pub use replay::{Following, Replay};
pub use side::{BackupControl, BackupSide, Control};

use super::environment::Node;
use super::host::{Host, StepKind};
use super::log::{DiskLogOptions, HostDirectory, SideDiskLog};
use super::process::{ProcessHost, wait};
use crate::os::clock;
use ft::guest_clock::GuestClock;
use ft::role::{BackupEnd, BackupMoments, BackupRole, DiskLogState, Inheritance, PrimaryRole, Timing};
use logchannel::entry::{Generation, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use vm::{Machine, OutputId, OutputOperation};

/// Bytes of memory and entries that may wait to be put in place or replayed before this side stops
/// reading its channel, and by that stops the primary.
pub const LOG_BUFFER_BYTES_MAX: usize = 64 << 20;

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
    GoLive(Box<Succession<ProcessHost>>),
    /// It is over.
    End(BackupEnd),
}

/// All that a backup brings along when it goes live.
#[derive(Debug)]
pub struct Succession<H: Host> {
    /// The machine, standing behind the last entry.
    pub machine: Machine,
    /// The guest's clock, going on from its primary's.
    pub clock: GuestClock,
    /// What the VM is, of the generation that this node now owns.
    pub session: SessionHeader,
    /// Its log on disk, if one is kept.
    pub disk_log: Option<SideDiskLog<H>>,
    /// How many entries the log has.
    pub entries: LogSeq,
    /// How many state digests were compared, and equal.
    pub digests_checked: u64,
    /// Outputs that the predecessor may not have sent.
    pub unsent: VecDeque<(OutputId, OutputOperation)>,
    /// How many of them were dropped because there were too many.
    pub unsent_dropped: u64,
    /// The output behind them. The machine may be further by some that the last entries don't tell
    /// of.
    pub next_output: OutputId,
    /// When the steps of the failover happened.
    pub moments: BackupMoments,
}

impl<H: Host> Succession<H> {
    /// What the backup of `role` brings along, which owns the VM as `generation` and whose machine
    /// is `following`.
    pub fn new(role: &mut BackupRole, following: Following<H>, generation: Generation, now_ns: u64) -> Self {
        let Following { session, replayer, disk_log } = following;
        Self {
            session: SessionHeader { generation, ..session },
            clock: role.take_over_clock(now_ns, replayer.machine().last_ticks()),
            entries: replayer.consumed(),
            digests_checked: replayer.digests_checked(),
            machine: replayer.into_machine(),
            disk_log: disk_log.map(|log| *log),
            unsent_dropped: role.unsent_dropped(),
            unsent: role.take_unsent(),
            next_output: role.next_output(),
            moments: *role.moments(),
        }
    }

    /// Makes the owner that `node` is now of what it has: its role, the machine, and the log on
    /// disk.
    #[must_use]
    pub fn take_over(self, node: NodeId, timing: Timing) -> (PrimaryRole, Machine, Option<SideDiskLog<H>>) {
        let Self { machine, clock, session, mut disk_log, entries, unsent, next_output, .. } = self;
        // A log that has failed is waited for by nobody; one that hasn't is whole, or this side
        // would not have been accepted.
        let state = disk_log.as_ref().map_or(DiskLogState::None, SideDiskLog::state);
        if let Some(log) = &mut disk_log {
            log.owns();
        }
        let inheritance = Inheritance { clock, first: entries, next_output, unsent, disk_log: state };
        (PrimaryRole::gone_live(node, session, timing, inheritance), machine, disk_log)
    }
}

/// Backs up the VM whose primary is at the other end of `connection`, in the calling thread, until
/// this node goes live or is over.
///
/// # Errors
/// If a thread can't be started.
pub fn run(
    node: &Node,
    role: BackupRole,
    connection: Arc<TcpStream>,
    log: Option<DiskLogOptions<HostDirectory>>,
    faults: FaultInjection,
) -> io::Result<BackupOutcome> {
    let host = ProcessHost::new(node.reporter);
    let log = log.map(|options| (node.id, options));
    let side = Arc::new(BackupSide::new(host.clone(), role, connection, log, LOG_BUFFER_BYTES_MAX));
    host.spawn(StepKind::Receive, {
        let side = side.clone();
        move || side.step_receive()
    })?;
    host.spawn(StepKind::Timers, {
        let side = side.clone();
        move || side.step_timers()
    })?;
    let replay = {
        let (side, mut replay) = (side.clone(), Replay::new(faults));
        let host = host.clone();
        thread::Builder::new().name(StepKind::Replay.name().into()).spawn(move || {
            host.run(StepKind::Replay, || side.step_replay(&mut replay));
            replay
        })?
    };
    let mut control = BackupControl::new(node.arbiter_client());
    host.is_run_here(StepKind::Control);
    let generation = loop {
        match side.step_control(&mut control) {
            Control::Next(next) => _ = wait(&next),
            Control::GoLive(generation) => break generation,
            Control::End(end) => return Ok(BackupOutcome::End(end)),
        }
    };
    let replayed = replay.join().map_err(|_| io::Error::other("the replaying thread panicked"))?;
    let following = replayed.into_finished().ok_or_else(|| io::Error::other("no machine to go live with"))?;
    Ok(BackupOutcome::GoLive(Box::new(Succession::new(&mut side.role(), following, generation, clock::now_ns()))))
}
