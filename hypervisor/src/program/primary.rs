//! `ft-primary`: runs a VM and streams its log to a backup.

use super::cli::exit;
use super::cli::limits::{CONNECTIONS, require_descriptors};
use super::cli::options::{GuestOptions, NodeOptions, listen};
use super::cli::progress::Progress;
use super::cli::stop::{Origin, StopSwitch};
use super::patience::PatientArbiter;
use super::{Failure, begin, fail_stop, finish};
use crate::node::environment::Node;
use crate::node::log::{DiskLogOptions, HostDirectory, LogDirectory, ResumeProgress, SideDiskLog};
use crate::node::owner_question::ask_owner;
use crate::node::primary::{LiveEnd, LiveVm};
use crate::node::process::ProcessHost;
use crate::node::reports::NodeReport;
use crate::node::restart::{Replayed, Restart, RestartError, Restarter};
use crate::node::start::{claim_start, end_unstarted};
use crate::os::address::resolve;
use crate::os::report::Reporter;
use crate::os::{clock, entropy};
use clap::Parser;
use ft::claim::{Claim, ClaimKind};
use ft::role::{DiskLogState, PrimaryRole};
use ft::start::ResumeConsent;
use logchannel::entry::Generation;
use logchannel::session::SessionHeader;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use vm::Machine;

/// Runs a VM, and keeps a backup in lockstep with it.
///
/// The guest starts when its backup has joined. Nothing that it sends leaves before the backup has
/// acknowledged the log up to it. Ctrl-C hands a protected VM over to its backup, and ends a VM
/// that has none. SIGHUP and SIGQUIT do the same, except that a VM without backup whose log is kept
/// (--log) isn't ended: it goes on with --resume.
#[derive(Debug, Parser)]
#[command(name = "ft-primary", version, after_help = exit::help("Example:\n  \
    ft-lan --forward 127.0.0.1:7007=10.0.2.15:7 &\n  \
    ft-primary --guest echo --lan 127.0.0.1:7000 &\n  \
    ft-backup --lan 127.0.0.1:7000\n\n\
    With a Linux kernel instead of --guest:\n  \
    ft-primary --kernel Image --initrd initramfs.cpio --append console=ttyS0 \\\n    \
    --lan 127.0.0.1:7000\n\nSee also ft-backup --help."))]
struct Options {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    node: NodeOptions,
    /// Where the backup connects
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve, default_value = "127.0.0.1:7200")]
    listen: SocketAddr,
    /// Go on from the log that a side of this VM kept in this directory, after the death of both
    /// sides; the guest and its machine are the log's. The log is kept on in the same directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["log", "guest", "kernel", "initrd",
          "disk", "bare", "memory", "append", "mac", "unprotected", "force_new"])]
    resume: Option<PathBuf>,
    /// With --resume: go on though the log may lack the last of what clients have seen, as a
    /// backup's may
    #[arg(long, requires = "resume")]
    accept_loss: bool,
    /// With --resume: go on from a log that is older than generation N of the VM, the last one, and
    /// give up what it did as that. Refused if its owner answers
    #[arg(long, value_name = "N", requires = "resume")]
    give_up_generation: Option<u64>,
    /// Start the guest at once, without a backup
    #[arg(long)]
    unprotected: bool,
    /// Start the VM afresh though the arbiter says that it is owned: whoever runs it can't fail
    /// over any more, and its state is given up. Only when no side of it is alive
    #[arg(long)]
    force_new: bool,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let reporter = begin("ft-primary", options.node.json);
    fail_stop();
    finish(reporter, run(&options))
}

fn run(options: &Options) -> Result<(u8, String), Failure> {
    require_descriptors(CONNECTIONS)?;
    let stop = StopSwitch::install()?;
    if let Some(directory) = &options.resume {
        return resume(options, directory, &stop);
    }
    let guest = options.guest.load()?;
    let config = options.guest.machine(&options.node.vm, &guest);
    let machine = Machine::new(&config, &guest.image)
        .map_err(|error| format!("guest {} can't be started: {error}", guest.name))?;
    let listener = listen(options.listen)?;
    let arbiter = options.node.arbiter(Arc::new(stop.clone()))?;
    let mut node = options.node.node(entropy::node_id(), arbiter, config.mac, &listener, "ft-primary")?;
    node.keys = options.node.keys.unwrap_or_else(|| options.guest.keys());
    let log = options.node.disk_log()?;
    // Whose log this will be is there before the claim is.
    if let Some(DiskLogOptions { directory, .. }) = &log {
        directory.prepare_start(node.id)?;
    }
    let arbiter = PatientArbiter(&node);
    let generation =
        claim_start(&arbiter, &node.vm, node.id, &node.address, options.force_new, |last| ask_owner(last, &node.vm))
            .map_err(|error| match &log {
                Some(DiskLogOptions { directory, .. }) if directory.has_whole_segment() => {
                    error.with_known_log(directory.path())
                }
                Some(_) | None => error,
            })?;
    tell_owner(&node, generation);
    let session = SessionHeader::new(node.vm.clone(), generation, config, &guest.name, &guest.image);
    let started = session
        .map_err(Failure::from)
        .and_then(|session| start(options, &node, session, machine, log, listener, &stop));
    started.inspect_err(|_| {
        // Everything that can fail comes before the guest's first step.
        let ended = end_unstarted(&PatientArbiter(&node), &node.vm, generation, node.id, &node.address);
        if let Err(error) = ended {
            tracing::error!("{error}");
        }
    })
}

/// Starts a guest that hasn't run, and runs it to its end.
fn start(
    options: &Options,
    node: &Node,
    session: SessionHeader,
    machine: Machine,
    log: Option<DiskLogOptions<HostDirectory>>,
    listener: TcpListener,
    stop: &StopSwitch,
) -> Result<(u8, String), Failure> {
    let timing = options.node.timing();
    let disk_log = if log.is_some() { DiskLogState::Promised } else { DiskLogState::None };
    let role = if options.unprotected {
        PrimaryRole::alone(node.id, session, timing)
    } else {
        PrimaryRole::awaiting_backup(node.id, session, timing)
    };
    let role = role.with_disk_log(disk_log);
    let disk_log = begin_log(log, &role, node)?;
    run_live(node, role, machine, disk_log, listener, |running| stop.runs(running, Origin::Boot))
}

/// Goes on from a log on disk.
///
/// The arbiter is asked whether the log is the one to go on from before it is replayed, and the VM
/// is claimed when it has been. Nothing here leaves an end mark: whatever stops it, the same
/// directory can be resumed again.
fn resume(options: &Options, directory: &Path, stop: &StopSwitch) -> Result<(u8, String), Failure> {
    let directory = LogDirectory::open_existing(directory, &options.node.vm)?;
    let listener = listen(options.listen)?;
    let arbiter = options.node.arbiter(Arc::new(stop.clone()))?;
    let mut node = options.node.node(entropy::node_id(), arbiter, [0; 6], &listener, "ft-primary")?;
    let mut restart = Restart::survey(directory, &node.vm)?;
    for (segment, reason) in &restart.survey.skipped {
        tracing::warn!("{} is skipped: {reason}", segment.display());
    }
    node.mac = restart.survey.session.config.mac;
    let arbiter = PatientArbiter(&node);
    let restarter = Restarter {
        vm: &node.vm,
        arbiter: &arbiter,
        claim: Claim { node: node.id, kind: ClaimKind::Owner, address: Some(node.address.clone()) },
        consent: ResumeConsent {
            accept_loss: options.accept_loss,
            give_up: options.give_up_generation.map(Generation),
        },
        ask_owner: &|address| ask_owner(address, &node.vm),
    };
    restart.judge(&restarter)?;
    let continuation = replay(restart, node.reporter)?.claim(&restarter)?;
    tell_owner(&node, continuation.generation);
    let resumed = &continuation.resumed;
    node.reporter.tell(&NodeReport::Resumed {
        segment: resumed.segment.display().to_string(),
        ending: resumed.ending.to_string(),
        entries: resumed.entries_replayed,
        instruction_count: resumed.machine.instruction_count().0,
        tail_outputs: resumed.unsent.len(),
        may_lack: continuation.may_lack,
    });
    let (role, machine, directory) = continuation.take_over(node.id, options.node.timing());
    let log = DiskLogOptions::new(directory, options.node.log_wait);
    let disk_log = begin_log(Some(log), &role, &node)?;
    run_live(&node, role, machine, disk_log, listener, |running| stop.runs(running, Origin::Log))
}

/// Replays a log, and tells how far it is: a long one takes as long as the guest took to compute
/// it.
fn replay(restart: Restart<HostDirectory>, reporter: Reporter) -> Result<Replayed<HostDirectory>, RestartError> {
    let (begin, end) = (restart.survey.begin_count().0, restart.survey.end_count.0);
    let mut progress = Progress::new(clock::now_ns(), begin);
    restart.replay(|ResumeProgress { entries, entries_all, count }| {
        if let Some(mips) = progress.due(clock::now_ns(), count.0) {
            // A guest that only sleeps counts entries, and one that only computes, steps.
            let steps = (count.0 - begin).saturating_mul(100).checked_div(end.saturating_sub(begin));
            let percent = steps.or_else(|| (entries * 100).checked_div(entries_all)).unwrap_or(100).min(100);
            reporter.tell(&NodeReport::Replaying { instruction_count: count.0, mips, entries, percent: Some(percent) });
        }
    })
}

fn tell_owner(node: &Node, generation: Generation) {
    node.reporter.tell(&NodeReport::Owner {
        vm: node.vm.to_string(),
        generation: generation.0,
        node: node.id.to_string(),
    });
}

fn begin_log(
    log: Option<DiskLogOptions<HostDirectory>>,
    role: &PrimaryRole,
    node: &Node,
) -> std::io::Result<Option<SideDiskLog<ProcessHost>>> {
    let host = ProcessHost::new(node.reporter);
    log.map(|log| SideDiskLog::begin(&host, log, role.session().clone(), node.id)).transpose()
}

/// Runs a VM live to its end.
pub(super) fn run_live(
    node: &Node,
    role: PrimaryRole,
    machine: Machine,
    disk_log: Option<SideDiskLog<ProcessHost>>,
    listener: TcpListener,
    on_start: impl FnOnce(LiveVm),
) -> Result<(u8, String), Failure> {
    node.reporter.tell(&NodeReport::Listening { channel: node.address.clone() });
    Ok(match LiveVm::run(node, role, machine, disk_log, listener, on_start)? {
        LiveEnd::Role(end) => exit::of_primary(&end),
        LiveEnd::HandedOver => (exit::OK, "stopped by the operator; its backup goes on".into()),
    })
}
