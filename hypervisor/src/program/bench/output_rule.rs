//! The benchmark of the Output Rule: how long it holds outputs.

use super::ping_pong::{PingPong, PingWait};
use crate::node::distribution::{Distribution, histogram_ns};
use crate::os::clock;
use crate::program::Failure;
use crate::program::cli::interrupt;
use crate::program::cli::stdout::{StdoutError, note, out};
use crate::program::site::cluster::{Cluster, ClusterOptions, PATIENCE};
use crate::program::site::cores::on_core;
use crate::program::site::executable::Executable;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

/// The length of an echoed message, in bytes.
const MESSAGE_BYTES: usize = 64;

/// The pause between two rounds, in microseconds, varied so that rounds don't fall in step with the
/// guest's timer.
const PAUSE_US: [u64; 4] = [100, 350, 200, 550];

/// The cores of primary and backup, and of the two sides of the ping-pong: in production they are
/// on two hosts and never share a core.
const CORES: [usize; 2] = [0, 1];

/// Rounds before the ones that count.
const WARM_UP_ROUNDS: usize = 200;

/// Rounds of the spinning ping-pong. It occupies two cores by itself, so it can't take turns with
/// the echoes.
const SPIN_ROUNDS: usize = 5_000;

/// The longest that the spinning ping-pong may take for them, in nanoseconds.
const SPIN_NS_MAX: u64 = 5_000_000_000;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// How long to measure each of the four clusters, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct Results {
    idle: Condition,
    busy: Condition,
}

/// The figures under one load.
#[derive(Debug, Serialize)]
struct Condition {
    /// Production of an output to its release.
    hold: Distribution,
    /// A round of the blocking ping-pong, in turn with the echoes.
    blocking_ping_pong: Distribution,
    /// A round of the spinning ping-pong, after the echoes, beside the same guests.
    spinning_ping_pong: Distribution,
    /// A client's echo through LAN and guest.
    echo: Distribution,
    /// A client's echo without a backup.
    echo_without_ft: Distribution,
    /// Medians: hold over blocking ping-pong. To reach: at most 1.1 idle, 1.0 busy.
    hold_over_blocking: f64,
    /// Medians: hold over spinning ping-pong.
    hold_over_spinning: f64,
    /// Medians: echo with over without FT.
    echo_over_without_ft: f64,
}

pub(super) fn run(options: &Options, json: bool) -> Result<(), Failure> {
    let executable = Executable::current()?;
    let length = Duration::from_secs(options.seconds);
    let measure = |name: &str, append: &str| {
        if !json {
            note!("measuring with {name}: with FT, then without, {} s each ...", options.seconds);
        }
        condition(&executable, append, length)
    };
    let results = Results { idle: measure("an idle guest", "")?, busy: measure("both vCPUs busy", "busy")? };
    if json {
        out!("{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        show("idle guest", &results.idle)?;
        show("both vCPUs busy", &results.busy)?;
    }
    Ok(())
}

fn condition(executable: &Executable, append: &str, length: Duration) -> Result<Condition, Failure> {
    let directory = tempfile::Builder::new().prefix("ft-bench-").tempdir()?;
    let options = ClusterOptions { append: append.into(), cores: Some(CORES), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(executable, directory.path(), &options)?;
    let rounds = on_core(Some(CORES[0]), || take_turns(executable, cluster.service, length))?;
    let spinning = on_core(Some(CORES[0]), || spin(executable))?;
    cluster.primary.interrupt()?;
    let figures = cluster.primary.wait_for("figures", PATIENCE)?;
    let hold = Distribution::deserialize(&figures["hold_time"])?;
    drop(cluster);

    let directory = tempfile::Builder::new().prefix("ft-bench-").tempdir()?;
    let options = ClusterOptions { protected: false, ..options };
    let cluster = Cluster::start(executable, directory.path(), &options)?;
    let without = on_core(Some(CORES[0]), || take_turns(executable, cluster.service, length))?;
    drop(cluster);

    let blocking = Distribution::of(&rounds.blocking);
    let spinning = Distribution::of(&spinning);
    let (echo, echo_without_ft) = (Distribution::of(&rounds.echo), Distribution::of(&without.echo));
    Ok(Condition {
        hold_over_blocking: hold.p50_us / blocking.p50_us,
        hold_over_spinning: hold.p50_us / spinning.p50_us,
        echo_over_without_ft: echo.p50_us / echo_without_ft.p50_us,
        hold,
        blocking_ping_pong: blocking,
        spinning_ping_pong: spinning,
        echo,
        echo_without_ft,
    })
}

struct Rounds {
    echo: Histogram<u64>,
    blocking: Histogram<u64>,
}

/// An echo, a round of ping-pong, a pause, and again.
fn take_turns(executable: &Executable, service: SocketAddr, length: Duration) -> Result<Rounds, Failure> {
    let mut ping_pong = PingPong::start(executable, PingWait::Block, CORES[1])?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(service)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut rounds = Rounds { echo: histogram_ns(), blocking: histogram_ns() };
    let mut end_ns = u64::MAX;
    for (number, pause_us) in PAUSE_US.into_iter().cycle().enumerate() {
        if number == WARM_UP_ROUNDS {
            rounds = Rounds { echo: histogram_ns(), blocking: histogram_ns() };
            end_ns = clock::now_ns() + u64::try_from(length.as_nanos())?;
        }
        interrupt::check()?;
        if clock::now_ns() >= end_ns {
            break;
        }
        rounds.echo.saturating_record(echo(&client, number as u64)?);
        thread::sleep(Duration::from_micros(pause_us));
        rounds.blocking.saturating_record(ping_pong.round()?);
        thread::sleep(Duration::from_micros(pause_us));
    }
    Ok(rounds)
}

/// One echo; returns its time in nanoseconds.
fn echo(client: &UdpSocket, number: u64) -> Result<u64, Failure> {
    let mut message = [0; MESSAGE_BYTES];
    message[..8].copy_from_slice(&number.to_le_bytes());
    let started_ns = clock::now_ns();
    client.send(&message)?;
    let mut reply = [0; MESSAGE_BYTES];
    loop {
        let length = client.recv(&mut reply).map_err(|error| format!("echo {number} did not come back: {error}"))?;
        if reply[..length] == message {
            return Ok(clock::now_ns() - started_ns);
        }
    }
}

fn spin(executable: &Executable) -> Result<Histogram<u64>, Failure> {
    let mut ping_pong = PingPong::start(executable, PingWait::Spin, CORES[1])?;
    let mut rounds = histogram_ns();
    let end_ns = clock::now_ns() + SPIN_NS_MAX;
    for number in 0..WARM_UP_ROUNDS + SPIN_ROUNDS {
        let round_ns = ping_pong.round()?;
        if number >= WARM_UP_ROUNDS || clock::now_ns() >= end_ns {
            rounds.saturating_record(round_ns);
        }
        if clock::now_ns() >= end_ns {
            break;
        }
    }
    Ok(rounds)
}

fn show(name: &str, condition: &Condition) -> Result<(), StdoutError> {
    out!("{name}, microseconds\n{condition}")
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:21}{}", "", Distribution::HEAD)?;
        for (what, distribution) in [
            ("output held", &self.hold),
            ("blocking ping-pong", &self.blocking_ping_pong),
            ("spinning ping-pong", &self.spinning_ping_pong),
            ("client's UDP echo", &self.echo),
            ("echo without FT", &self.echo_without_ft),
        ] {
            writeln!(f, "  {what:<19}{}", distribution.row())?;
        }
        writeln!(
            f,
            "  medians: hold/blocking {:.2}, hold/spinning {:.2}, echo/echo without FT {:.2}",
            self.hold_over_blocking, self.hold_over_spinning, self.echo_over_without_ft
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Condition, Distribution};

    #[test]
    fn the_table_has_80_columns() {
        let seconds = Distribution {
            samples: 999_999,
            p50_us: 999_999.9,
            p90_us: 999_999.9,
            p99_us: 999_999.9,
            p99_9_us: 999_999.9,
            max_us: 9_999_999.9,
        };
        let condition = Condition {
            hold: seconds,
            blocking_ping_pong: seconds,
            spinning_ping_pong: seconds,
            echo: seconds,
            echo_without_ft: seconds,
            hold_over_blocking: 99.99,
            hold_over_spinning: 99.99,
            echo_over_without_ft: 99.99,
        };
        let widths: Vec<_> = condition.to_string().lines().map(str::len).collect();
        assert_eq!(widths[..6], [80; 6], "{condition}");
        assert!(widths[6] <= 80, "{condition}");
    }
}
