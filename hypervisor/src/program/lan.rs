//! `ft-lan`: the network that outlives the hosts of the VMs on it.

use super::cli::exit;
use super::cli::interrupt::termination;
use super::cli::limits::connections;
use super::{Failure, begin, finish};
use crate::lan::server::{LanConfig, LanServer};
use crate::lan::{ConnectionLimits, Forward};
use crate::os::address::resolve;
use crate::os::report::Reporter;
use clap::Parser;
use std::net::SocketAddr;
use std::process::ExitCode;

/// The network of fault-tolerant VMs: a learning Ethernet switch with a gateway, in user space.
///
/// The LAN is 10.0.2.0/24 and the gateway 10.0.2.2. A VM that fails over keeps its port, and a
/// client that came through a forward keeps its connection.
#[derive(Debug, Parser)]
#[command(
    name = "ft-lan",
    version,
    after_help = "Example: make the guest's echo port reachable, and say something to it\n  \
                  ft-lan --listen 127.0.0.1:7000 --forward 127.0.0.1:7007=10.0.2.15:7\n  \
                  nc 127.0.0.1 7007\n\n\
                  Limits: 512 TCP connections through forwards, 256 through one, 192 of one client address; one more takes the \
                  place of a connection over which nothing has passed for a minute, or is reset. A connection is closed when \
                  nothing has passed for a day, or for two minutes after one side has closed it. As many UDP flows, of which the \
                  longest silent makes room at once. All are counted in the event `dropped`.\n\n\
                  FT_LOG=debug shows connections that come and go."
)]
struct Options {
    /// Where VMs attach; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve, default_value = "127.0.0.1:7000")]
    listen: SocketAddr,
    /// Make a guest's port reachable: [tcp:|udp:]HOST:PORT=GUEST:PORT, TCP and UDP unless chosen;
    /// may be repeated; port 0 before '=' picks a free one
    #[arg(long = "forward", value_name = "SPEC")]
    forwards: Vec<Forward>,
    /// Where QEMU processes (-netdev stream,server=off) and passt connect
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve)]
    qemu: Option<SocketAddr>,
    /// Tell what happens as JSON, one object a line, on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let reporter = begin("ft-lan", options.json);
    finish(reporter, run(options, reporter))
}

fn run(options: Options, reporter: Reporter) -> Result<(u8, String), Failure> {
    // Each forward has a socket or two of its own.
    let listeners = options.forwards.len() * 2;
    let limits = ConnectionLimits::within(connections(ConnectionLimits::ALL + listeners)?.saturating_sub(listeners));
    let config = LanConfig { listen: options.listen, qemu: options.qemu, forwards: options.forwards, limits };
    let stopped = termination()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = LanServer::bind(&config, reporter).await?;
        server.run(stopped).await;
        Ok((exit::OK, "stopped by a signal".into()))
    })
}
