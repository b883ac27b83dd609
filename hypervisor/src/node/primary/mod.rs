//! The primary as a process: a thread for each of its steps.

mod control;
mod join_figures;
mod pending;
mod side;
mod vcpu;

pub use control::{PrimaryControl, PrimaryStep};
pub use pending::PendingConnection;
pub use side::{Identity, PrimarySide};
pub use vcpu::{Sleeper, Vcpu, VcpuNext};

use self::pending::{FIRST_MESSAGE_TIMEOUT_NS, PendingLine, refuse};
use super::distribution::Distribution;
use super::environment::Node;
use super::host::StepKind;
use super::io::console;
use super::io::inbox::{HostEventSource, SLICE_STEPS};
use super::io::lan::AttachmentConfig;
use super::io::network::{self, NetworkAddress, TapAttachment};
use super::io::sink::NetworkAndConsole;
use super::log::SideDiskLog;
use super::process::{ProcessHost, wait};
use super::reports::{Figures, NodeReport, frames_dropped};
use crate::os::accept::AcceptTrouble;
use crate::os::clock;
use crate::os::writer;
use ft::role::{PrimaryEnd, PrimaryRole};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use vm::Machine;

/// The most connections that may be pending at once, each with its thread; others are refused.
const PENDING_MAX: usize = 32;

/// Why the process of a live VM ends.
#[derive(Debug)]
pub enum LiveEnd {
    /// The role has ended.
    Role(PrimaryEnd),
    /// The operator stopped a protected primary, and its backup goes on.
    HandedOver,
}

/// A running VM, as a handle with which other threads stop it.
#[derive(Clone, Debug)]
pub struct LiveVm {
    side: Arc<PrimarySide<ProcessHost>>,
}

impl LiveVm {
    /// Runs `machine` in the calling thread until the VM, or this node's part in it, ends. Backups
    /// connect to `listener`; `disk_log` is the log on disk, if there is one.
    ///
    /// `on_start` gets the handle before the guest runs.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub fn run(
        node: &Node,
        role: PrimaryRole,
        machine: Machine,
        disk_log: Option<SideDiskLog<ProcessHost>>,
        listener: TcpListener,
        on_start: impl FnOnce(Self),
    ) -> io::Result<LiveEnd> {
        let (source, inbox) = HostEventSource::new(*role.clock())?;
        let host = ProcessHost::with_guest(node.reporter, inbox.clone());
        let sink = NetworkAndConsole::new(node.reporter, matches!(node.network, Some(NetworkAddress::Lan(_))));
        let identity = Identity { vm: node.vm.clone(), node: node.id, address: node.address.clone() };
        let side = Arc::new(PrimarySide::new(host.clone(), identity, role, sink));
        start_network(&side, &host, node, &machine)?;
        on_start(Self { side: side.clone() });
        host.spawn(StepKind::Timers, {
            let side = side.clone();
            move || side.step_timers()
        })?;
        accept_connections(&side, &host, listener)?;
        console::start(inbox, node.keys, node.reporter)?;
        let listener = Arc::downgrade(&side);
        writer::stdout().on_console_left(move |next| {
            if let Some(side) = listener.upgrade() {
                side.console_left(next);
            }
        });
        let mut control =
            side.control(node.arbiter_client(), disk_log.as_ref().map(|log| log.disk_watch(clock::now_ns())));
        let intervals = node.intervals;
        let reporter = node.reporter;
        let controlled = thread::Builder::new().name(StepKind::Control.name().into()).spawn({
            let side = side.clone();
            move || {
                host.register_thread(StepKind::Control);
                loop {
                    match side.step_control(&mut control) {
                        PrimaryStep::Next(next) => _ = wait(&next),
                        PrimaryStep::End(end) => {
                            side.sink().finish_console();
                            side.end();
                            return end;
                        }
                    }
                }
            }
        })?;
        let machine = run_vcpu(&side, side.vcpu(machine, source, intervals, disk_log, SLICE_STEPS));
        let end = controlled.join().map_err(|_| io::Error::other("the control thread panicked"))?;
        // Outputs released while another thread held the sink, the guest's last ones among them,
        // may still be there.
        side.write_outputs(&mut side.sink());
        reporter.tell(&NodeReport::Figures(figures(&side, &machine)));
        Ok(end)
    }

    /// Ends this process at the operator's request. A VM without a backup ends with it.
    pub fn retire(&self) {
        self.side.drive(PrimaryRole::handle_retire);
    }

    /// Ends this process at the operator's request, but not the VM, if that can go on at its backup
    /// or later from its log.
    pub fn leave(&self) {
        self.side.drive(PrimaryRole::handle_leave);
    }
}

fn start_network(
    side: &Arc<PrimarySide<ProcessHost>>,
    host: &ProcessHost,
    node: &Node,
    machine: &Machine,
) -> io::Result<()> {
    let booted = side.role().session().booted;
    let last_packet = machine.last_packet_number();
    match node.network.clone() {
        None => Ok(()),
        Some(NetworkAddress::Lan(lan)) => {
            let config = AttachmentConfig { vm: node.vm.clone(), node: node.id, booted, mac: node.mac, lan };
            network::start_lan(host, network::attachment(config, last_packet), side.clone())
        }
        Some(NetworkAddress::Tap(name)) => {
            let (sink, over) = (side.sink.clone(), side.over.clone());
            let has_moved = side.role().generation() > booted;
            TapAttachment { name, mac: node.mac, sink, over, host: host.clone() }.start(last_packet, has_moved)
        }
    }
}

/// Accepts connections for as long as the process lives. Each has its own thread, so that one that
/// sends nothing keeps no other out.
fn accept_connections(
    side: &Arc<PrimarySide<ProcessHost>>,
    host: &ProcessHost,
    listener: TcpListener,
) -> io::Result<()> {
    let (side, host, pending_count) = (side.clone(), host.clone(), Arc::new(AtomicUsize::new(0)));
    thread::Builder::new().name("channel".into()).spawn(move || {
        let mut trouble = AcceptTrouble::default();
        loop {
            let (stream, address) = match listener.accept() {
                Ok(connection) => connection,
                Err(error) => {
                    thread::sleep(trouble.failed("the primary can't accept connections", &error));
                    continue;
                }
            };
            if pending_count.fetch_add(1, Ordering::AcqRel) >= PENDING_MAX {
                pending_count.fetch_sub(1, Ordering::AcqRel);
                refuse(&stream, "too many others are asking to join: try again");
                continue;
            }
            if let Err(error) = start_pending(&side, &host, stream, address, &pending_count) {
                pending_count.fetch_sub(1, Ordering::AcqRel);
                if let Some(left_out) = side.admit(PendingLine::NoThread) {
                    tracing::warn!("no thread for a pending connection: {error}{left_out}");
                }
            }
        }
    })?;
    Ok(())
}

fn start_pending(
    side: &Arc<PrimarySide<ProcessHost>>,
    host: &ProcessHost,
    stream: TcpStream,
    address: SocketAddr,
    pending_count: &Arc<AtomicUsize>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A read waits for the first message only, and no longer than the step's own deadline for it.
    stream.set_read_timeout(Some(Duration::from_nanos(FIRST_MESSAGE_TIMEOUT_NS)))?;
    let mut pending = PendingConnection::new(Arc::new(stream), address.to_string(), clock::now_ns());
    let (side, host, pending_count) = (side.clone(), host.clone(), pending_count.clone());
    thread::Builder::new().name(StepKind::Pending.name().into()).spawn(move || {
        host.run(StepKind::Pending, || side.step_pending(&mut pending));
        pending_count.fetch_sub(1, Ordering::AcqRel);
    })?;
    Ok(())
}

/// Calls the vCPU step until this side ends.
fn run_vcpu(side: &PrimarySide<ProcessHost>, mut vcpu: Vcpu<ProcessHost>) -> Machine {
    loop {
        match side.step_vcpu(&mut vcpu) {
            VcpuNext::Now => {}
            VcpuNext::Spin => thread::yield_now(),
            VcpuNext::Pause { until_ns } => {
                thread::sleep(Duration::from_nanos(until_ns.saturating_sub(clock::now_ns())));
            }
            VcpuNext::Sleep { until_ns, sleeper, wakes_for_backup } => {
                let channel = if wakes_for_backup { side.channel.connection() } else { None };
                let machine = (sleeper == Sleeper::Waiting).then(|| vcpu.machine());
                vcpu.source().sleep(machine, channel.as_ref().map(|stream| stream.as_fd()), until_ns);
            }
            VcpuNext::Done => return vcpu.into_machine(),
        }
    }
}

fn figures(side: &PrimarySide<ProcessHost>, machine: &Machine) -> Figures {
    let ((frames, frames_without_lan), hold_time) = {
        let sink = side.sink();
        (sink.packets(), Distribution::of(sink.hold_time_ns()))
    };
    let role = side.role();
    Figures {
        instruction_count: machine.instruction_count().0,
        entries: role.appended().0,
        channel_bytes: side.channel.sent(),
        frames,
        frames_without_lan,
        hold_time,
        lag_us: role.lag_ns().0 / 1000,
        lag_max_us: role.lag_ns().1 / 1000,
        frames_dropped: frames_dropped(machine),
        outputs_given_up: role.gate().given_up(),
    }
}
