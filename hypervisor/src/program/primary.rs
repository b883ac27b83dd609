//! `ft-primary`: runs a VM and streams its log to a backup.

use super::options::{GuestOptions, NodeOptions, listen};
use super::stop::StopSwitch;
use super::{Failure, exit, fail_stop, finish, init_tracing};
use crate::host::entropy;
use crate::host::live::{LiveEnd, LiveVm};
use crate::host::node::Node;
use crate::host::reports::NodeReport;
use crate::report::Reporter;
use crate::role::PrimaryRole;
use crate::start::claim_start;
use clap::Parser;
use logchannel::session::SessionHeader;
use std::net::SocketAddr;
use std::process::ExitCode;
use vm::Machine;

/// Runs a VM, and keeps a backup in lockstep with it.
///
/// The guest starts when its backup has joined. Nothing that it sends leaves before the backup has acknowledged the log
/// up to it. Ctrl-C hands a protected VM over to its backup, and ends a VM that has none.
#[derive(Debug, Parser)]
#[command(name = "ft-primary", version, after_help = concat!("Example:\n  \
    ft-lan --forward 127.0.0.1:7007=10.0.2.15:7 &\n  \
    ft-primary --guest echo --lan 127.0.0.1:7000 &\n  \
    ft-backup --lan 127.0.0.1:7000\n\nSee also ft-backup --help."))]
struct Options {
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    node: NodeOptions,
    /// Where the backup connects
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7200")]
    listen: SocketAddr,
    /// Start the guest at once, without a backup
    #[arg(long)]
    unprotected: bool,
    /// Start the VM afresh though the arbiter says that it is owned: whoever runs it can't fail over any more, and its
    /// state is given up. Only when no side of it is alive
    #[arg(long)]
    force_new: bool,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    init_tracing();
    fail_stop();
    finish(Reporter::new("ft-primary", options.node.json), run(&options))
}

fn run(options: &Options) -> Result<(u8, String), Failure> {
    let stop = StopSwitch::install()?;
    let guest = options.guest.load()?;
    let config = options.guest.machine(&options.node.vm);
    let machine = Machine::new(&config, &guest.image)
        .map_err(|error| format!("guest {} can't be started: {error}", guest.name))?;
    let listener = listen(options.listen)?;
    let arbiter = options.node.arbiter()?;
    let node = options.node.node(entropy::node_id(), arbiter, config.mac, &listener, "ft-primary")?;
    stop.owns();
    let generation = claim_start(&*node.arbiter, &node.vm, node.id, &node.address, options.force_new)?;
    node.reporter.tell(&NodeReport::Owner {
        vm: node.vm.to_string(),
        generation: generation.0,
        node: node.id.to_string(),
    });
    let session = SessionHeader::new(node.vm.clone(), generation, config, &guest.name, &guest.image)?;
    let timing = options.node.timing();
    let role = if options.unprotected {
        PrimaryRole::alone(session, timing)
    } else {
        PrimaryRole::awaiting_backup(session, timing)
    };
    run_live(node, role, machine, listener, |running| stop.runs(running))
}

/// Runs a VM live to its end.
pub(super) fn run_live(
    node: Node,
    role: PrimaryRole,
    machine: Machine,
    listener: std::net::TcpListener,
    on_start: impl FnOnce(LiveVm),
) -> Result<(u8, String), Failure> {
    node.reporter.tell(&NodeReport::Listening { channel: node.address.clone() });
    Ok(match LiveVm::run(node, role, machine, listener, on_start)? {
        LiveEnd::Role(end) => exit::of_primary(&end),
        LiveEnd::HandedOver => (exit::OK, "the operator stopped this primary; its backup goes on".into()),
    })
}
