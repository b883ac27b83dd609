//! A process's log on disk: the production steps, called when the disk has done what they did
//! before.

use super::disk::SimDisk;
use super::env::Env;
use super::host::SimHost;
use super::sightings::Sighting;
use hypervisor::node::host::Next;
use hypervisor::node::log::{DiskLogOptions, DiskLogSteps, LogDirectory, LogWait, SideDiskLog};

/// What a disk takes for a write and a sync, at most, in nanoseconds.
const WRITE_NS: u32 = 200_000;
const SYNC_NS: u32 = 3_000_000;

/// The same of a slow one.
const SLOW_WRITE_NS: u32 = 8_000_000;
const SLOW_SYNC_NS: u32 = 40_000_000;

/// Steps of the guest from one segment to the next.
const SEGMENT_STEPS: u64 = 200_000;

/// The steps of a log, and when each is due.
#[derive(Debug)]
pub(super) struct LogWork {
    steps: DiskLogSteps<SimDisk>,
    writer_ns: u64,
    sync_ns: u64,
}

/// The log of a side that begins to run the VM.
pub(super) enum LogOfOwner {
    /// None is kept.
    None,
    /// It begins.
    Begins(DiskLogOptions<SimDisk>),
    /// It goes on, and is called through the same process.
    GoesOn(Box<SideDiskLog<SimHost>>),
}

impl LogWork {
    pub(super) const fn new(steps: DiskLogSteps<SimDisk>) -> Self {
        Self { steps, writer_ns: 0, sync_ns: 0 }
    }

    /// Does what is due, for the process `host`.
    pub(super) fn step(&mut self, env: &mut Env, host: &SimHost) {
        let is_slow = env.disks_are_slow();
        let hangs_until_ns = env.disk_hangs_until_ns(host.me().host);
        if env.now_ns < hangs_until_ns {
            env.saw(Sighting::DiskHangs);
            return;
        }
        let now_ns = env.now_ns;
        if self.writer_ns <= now_ns {
            let next = host.call(env, || self.steps.writer.step(now_ns));
            let cost_ns = env.random.below(if is_slow { SLOW_WRITE_NS } else { WRITE_NS });
            self.writer_ns = after(env, &next, cost_ns);
        }
        if self.sync_ns <= now_ns {
            let next = host.call(env, || self.steps.sync.step(now_ns));
            let cost_ns = env.random.below(if is_slow { SLOW_SYNC_NS } else { SYNC_NS });
            self.sync_ns = after(env, &next, cost_ns);
        }
    }

    /// When there is something to be done.
    pub(super) fn due_ns(&self, env: &Env, host: &SimHost) -> u64 {
        let writer_ns = if self.steps.writer.has_work() { self.writer_ns } else { u64::MAX };
        let sync_ns = if self.steps.sync.has_work() { self.sync_ns } else { u64::MAX };
        let due_ns = writer_ns.min(sync_ns);
        if due_ns == u64::MAX {
            due_ns
        } else {
            due_ns.max(env.disk_hangs_until_ns(host.me().host)).max(env.now_ns + 1)
        }
    }
}

/// When a step is due again that has taken `cost_ns` if it had something to do.
const fn after(env: &Env, next: &Next, cost_ns: u32) -> u64 {
    let done_ns = env.now_ns + cost_ns as u64;
    match next {
        Next::Now => done_ns,
        Next::Wait { until_ns } if *until_ns > done_ns => *until_ns,
        Next::Wait { .. } => done_ns,
        Next::Arrival { .. } | Next::Room { .. } => env.now_ns,
        Next::Done => u64::MAX,
    }
}

/// How a log is kept in `directory`: with segments that are short enough to see several.
pub(super) fn log_options(directory: LogDirectory<SimDisk>, wait: LogWait) -> DiskLogOptions<SimDisk> {
    let mut options = DiskLogOptions::new(directory, wait);
    options.limits.segment_steps = SEGMENT_STEPS;
    options
}

/// How a process on `host` keeps its log, if one is kept in this run. `None` if its directory can't
/// be used.
pub(super) fn options(env: &Env, host: usize, wait: Option<LogWait>) -> Option<Option<DiskLogOptions<SimDisk>>> {
    let Some(wait) = wait else { return Some(None) };
    let disk = env.disks.get(host)?.clone();
    match LogDirectory::lock(disk, &env.vms[env.vm_of_host[host]].id) {
        Ok(directory) => Some(Some(log_options(directory, wait))),
        Err(_) => None,
    }
}
