//! A backup as a process: a thread for each of its steps.
//!
//! The thread that reads the channel acknowledges, so that replay never delays an acknowledgement.

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

/// The log buffer's limit, in bytes of entries and memory pages. Beyond it the backup stops reading
/// the channel, which stops the primary.
pub const LOG_BUFFER_BYTES_MAX: usize = 64 << 20;

/// A bit of RAM to flip in the backup's machine, to test that the divergence is found.
#[derive(Clone, Copy, Debug)]
pub struct BitFlip {
    /// The flip happens before the first entry with at least this instruction count.
    pub count: u64,
    /// The guest-physical address.
    pub address: u64,
    /// The bit of the byte, 0 to 7.
    pub bit: u8,
}

/// Faults injected into a backup, for tests and demonstrations.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultInjection {
    /// Corrupts its memory.
    pub flip: Option<BitFlip>,
    /// Makes replay this many times slower; 0 and 1 don't.
    pub slowdown: u32,
}

/// How a backup's process ends its role as backup.
#[derive(Debug)]
pub enum BackupOutcome {
    /// It owns the VM, and goes live.
    GoLive(Box<Succession<ProcessHost>>),
    /// It ends.
    End(BackupEnd),
}

/// Everything that a backup takes along when it goes live.
#[derive(Debug)]
pub struct Succession<H: Host> {
    /// The machine, after the last entry.
    pub machine: Machine,
    /// The guest's clock, which continues the primary's.
    pub clock: GuestClock,
    /// The session of the generation that this node owns now.
    pub session: SessionHeader,
    /// The log on disk, if there is one.
    pub disk_log: Option<SideDiskLog<H>>,
    /// One past the last entry of the log.
    pub entries: LogSeq,
    /// The number of state digests that were compared with the primary's.
    pub digests_checked: u64,
    /// Outputs that the lost primary may not have sent.
    pub unsent: VecDeque<(OutputId, OutputOperation)>,
    /// The number of unsent outputs that were dropped because there were too many.
    pub unsent_dropped: u64,
    /// One past the last output of the log. The machine may have produced more, which the last
    /// entries don't have.
    pub next_output: OutputId,
    /// The times of the failover's phases.
    pub moments: BackupMoments,
}

impl<H: Host> Succession<H> {
    /// What the backup of `role` takes along, with the machine of `following`. It owns the VM as
    /// `generation`.
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

    /// Makes the primary that `node` is from now on: its role, the machine, and the log on disk.
    #[must_use]
    pub fn take_over(self, node: NodeId, timing: Timing) -> (PrimaryRole, Machine, Option<SideDiskLog<H>>) {
        let Self { machine, clock, session, mut disk_log, entries, unsent, next_output, .. } = self;
        // Outputs don't wait for a log that has failed. Any other has its first segment, because
        // the backup waits for that before it accepts.
        let state = disk_log.as_ref().map_or(DiskLogState::None, SideDiskLog::state);
        if let Some(log) = &mut disk_log {
            log.owns();
        }
        let inheritance = Inheritance { clock, first: entries, next_output, unsent, disk_log: state };
        (PrimaryRole::gone_live(node, session, timing, inheritance), machine, disk_log)
    }
}

/// Runs the backup of the primary at the other end of `connection`, in the calling thread, until
/// this node goes live or ends.
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
    host.register_thread(StepKind::Control);
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
