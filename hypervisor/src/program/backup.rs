//! `ft-backup`: replays a VM in lockstep with its primary, and becomes its primary.

use super::cli::exit;
use super::cli::limits::{CONNECTIONS, require_descriptors};
use super::cli::options::{NodeOptions, listen};
use super::cli::stop::{Origin, StopSwitch};
use super::guest::Guest;
use super::primary::run_live;
use super::{Failure, begin, fail_stop, finish};
use crate::node::arbiter_thread::ArbiterThread;
use crate::node::backup;
use crate::node::backup::no_primary_port::NoPrimaryPort;
use crate::node::backup::{BackupOutcome, BitFlip, FaultInjection, Succession};
use crate::node::environment::Node;
use crate::node::primary::LiveVm;
use crate::node::process::{ProcessHost, wait};
use crate::node::reports::NodeReport;
use crate::node::search::{Search, SearchStep, SearchTiming};
use crate::os::address::resolve;
use crate::os::{clock, entropy, writer};
use clap::Parser;
use ft::role::{BackupRole, Expectation, Timing};
use logchannel::session::ImageDigest;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long to wait before starting over.
const START_OVER: Duration = Duration::from_secs(1);

/// Replays a VM in lockstep with its primary, and goes on with it when the primary is lost.
///
/// It joins at any time, also a guest that has been running for long: the guest's memory comes from
/// the primary while the guest runs on. It waits until there is a primary.
#[derive(Debug, Parser)]
#[command(
    name = "ft-backup",
    version,
    after_help = exit::help("Example:\n  \
    ft-backup --lan 127.0.0.1:7000 --keep\n\n\
    finds the primary of VM vm0 through the arbiter; `--primary 127.0.0.1:7200` says where it is.")
)]
struct Options {
    #[command(flatten)]
    node: NodeOptions,
    /// Where the primary listens; without it, where the arbiter says that the VM's owner does
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve)]
    primary: Option<SocketAddr>,
    /// Where the next backup connects, once this one has become the primary
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve, default_value = "127.0.0.1:7201")]
    listen: SocketAddr,
    /// Never end but by Ctrl-C: whatever ends this side's part in the VM, start over as a backup,
    /// and wait for a primary for ever. All that a service manager needs to start
    #[arg(long)]
    keep: bool,
    /// Refuse a primary that runs another guest than this
    #[arg(long, value_name = "NAME|PATH")]
    guest: Option<String>,
    /// Fault injection: at this instruction count, flip this bit (0 to 7) of the byte at this
    /// address of the guest's RAM, to see the divergence found
    #[arg(long, value_name = "COUNT:ADDRESS:BIT", value_parser = parse_bit_flip)]
    inject_bit_flip: Option<BitFlip>,
    /// Fault injection: replay so many times slower, to see the primary wait
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    inject_slowdown: u32,
}

fn parse_bit_flip(text: &str) -> Result<BitFlip, String> {
    let bad = || format!("`{text}` is not like 1000000:0x80200000:3");
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let [count, address, bit] = text.split(':').collect::<Vec<_>>().try_into().map_err(|_| bad())?;
    let bit = bit.parse().ok().filter(|bit| *bit < 8).ok_or_else(bad)?;
    Ok(BitFlip { count: number(count).map_err(|_| bad())?, address: number(address).map_err(|_| bad())?, bit })
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let reporter = begin("ft-backup", options.node.json);
    fail_stop();
    let stop = match StopSwitch::install() {
        Ok(stop) => stop,
        Err(error) => return finish(reporter, Err(error)),
    };
    let code = finish(reporter, run(&options, &stop));
    if options.keep && stop.disowns() {
        thread::sleep(START_OVER);
        let error = start_over();
        tracing::error!("can't start over: {error}");
        writer::drain();
    }
    code
}

/// Replaces the process image, with the same arguments: nothing of the former life, its threads and
/// sockets, is left, and it is another incarnation to the arbiter. Returns only if that fails.
fn start_over() -> io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "ft-backup".into());
    // A file that was replaced or removed has no path any more, but this process still has it. The
    // new file may speak another version than the VM's other side: the operator decides when to
    // start it.
    let own = PathBuf::from("/proc/self/exe");
    let executable = std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or(own);
    Command::new(executable).arg0(name).args(arguments).exec()
}

fn run(options: &Options, stop: &StopSwitch) -> Result<(u8, String), Failure> {
    require_descriptors(CONNECTIONS)?;
    let image = match &options.guest {
        Some(name) => Guest::load(name).map(|guest| Some((guest.name, ImageDigest::of(&guest.image))))?,
        None => None,
    };
    let listener = listen(options.listen)?;
    let arbiter = options.node.arbiter(Arc::new(stop.clone()))?;
    let mut node = options.node.node(entropy::node_id(), arbiter, [0; 6], &listener, "ft-backup")?;
    // Other backups that wait for a primary may connect here, and must not take this side for one.
    let no_primary_port = NoPrimaryPort::start(listener)?;
    let timing = options.node.timing();
    let faults = FaultInjection { flip: options.inject_bit_flip, slowdown: options.inject_slowdown };
    let expectation = Expectation { vm: node.vm.clone(), image };
    let host = ProcessHost::new(node.reporter);
    let own_address = node.address.clone();
    let mut search =
        Search::new(node.arbiter_client(), node.vm.clone(), own_address, options.primary, SearchTiming::default());
    loop {
        let log = options.node.disk_log()?;
        let connection = find_primary(&host, &mut search)?;
        let role = BackupRole::new(clock::now_ns(), node.id, expectation.clone(), timing);
        match backup::run(&node, role, connection, log, faults)? {
            BackupOutcome::End(end) if search.searches_again(clock::now_ns(), &end) => {}
            BackupOutcome::End(end) => return Ok(exit::of_backup(&end)),
            BackupOutcome::GoLive(succession) => {
                node.mac = succession.session.config.mac;
                return go_live(&node, *succession, timing, no_primary_port.stop()?, |running| {
                    stop.runs(running, Origin::Primary);
                });
            }
        }
    }
}

/// Connects to the primary, as soon as there is one.
fn find_primary(host: &ProcessHost, search: &mut Search<ArbiterThread>) -> Result<Arc<TcpStream>, Failure> {
    loop {
        match search.step(host) {
            SearchStep::Next(next) => _ = wait(&next),
            SearchStep::Found(connection) => return Ok(connection),
            SearchStep::Failed(error) => return Err(error.into()),
        }
    }
}

fn go_live(
    node: &Node,
    succession: Succession<ProcessHost>,
    timing: Timing,
    listener: TcpListener,
    on_start: impl FnOnce(LiveVm),
) -> Result<(u8, String), Failure> {
    let (reporter, generation, tail_outputs) =
        (node.reporter, succession.session.generation.0, succession.unsent.len());
    let (entries, digests_checked, tail_dropped) =
        (succession.entries, succession.digests_checked, succession.unsent_dropped);
    let moments = succession.moments;
    let (role, machine, disk_log) = succession.take_over(node.id, timing);
    run_live(node, role, machine, disk_log, listener, |running| {
        reporter.tell(&NodeReport::Live {
            generation,
            last_entry_received_us: moments.last_entry_received_ns / 1000,
            loss_noticed_us: moments.loss_noticed_ns / 1000,
            test_and_set_won_us: moments.test_and_set_won_ns / 1000,
            last_entry_consumed_us: moments.last_entry_consumed_ns / 1000,
            live_us: clock::now_us(),
            entries: entries.0,
            digests_checked,
            tail_outputs,
            tail_dropped,
        });
        on_start(running);
    })
}
