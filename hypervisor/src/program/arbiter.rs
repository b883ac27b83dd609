//! `ft-arbiter`: the test-and-set server.

use super::cli::exit;
use super::cli::interrupt::termination;
use super::cli::limits::connections;
use super::{Failure, begin, finish};
use crate::arbiter::FileArbiter;
use crate::arbiter::server::{ArbiterServer, CONNECTIONS_MAX, DISK_THREADS_MAX};
use crate::os::address::{advice, resolve};
use crate::os::report::Reporter;
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Builder;

/// Decides which side of a broken pair goes on: a durable test-and-set server.
///
/// Run it where neither the primary nor the backup runs, so that it outlives both.
#[derive(Debug, Parser)]
#[command(
    name = "ft-arbiter",
    version,
    after_help = "Example:\n  ft-arbiter --listen 127.0.0.1:7100 --dir claims\n  \
                  ft-primary --arbiter tcp:127.0.0.1:7100\n\n\
                  Claims are files in the directory: file:DIR and a server on the same directory know of each other's.\n\
                  Debug logs: FT_LOG=debug.\n\nExit codes: 0 stopped by SIGINT or SIGTERM; 1 error; 2 bad usage"
)]
struct Options {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve, default_value = "127.0.0.1:7100")]
    listen: SocketAddr,
    /// Where to keep the claims; made if it isn't there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Tell what happens as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let reporter = begin("ft-arbiter", options.json);
    finish(reporter, run(options, reporter))
}

fn run(options: Options, reporter: Reporter) -> Result<(u8, String), Failure> {
    let connections_max = connections(CONNECTIONS_MAX)?;
    let stopped = termination()?;
    let arbiter = FileArbiter::open(options.dir)?;
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(DISK_THREADS_MAX).build()?;
    let ended = runtime.block_on(async {
        let server = ArbiterServer::bind(options.listen, arbiter, connections_max, reporter)
            .await
            .map_err(|error| format!("can't listen at {}: {error}; {}", options.listen, advice(&error)))?;
        server.run(stopped).await;
        Ok((exit::OK, "stopped by a signal; the claims stay".into()))
    });
    // In the background: a request whose disk hangs must not keep this program from ending.
    runtime.shutdown_background();
    ended
}
