//! `ft-demo`: the main job in one command.

use super::cluster::{Cluster, ClusterOptions, PATIENCE};
use super::echo_client::{ClientResult, EchoClient};
use super::executable::Executable;
use super::process::ProcessError;
use super::{Failure, exit, interrupt};
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Replies that each client has before the primary is killed, and again after the guest has gone on.
const REPLIES: u64 = 500;

/// How long clients may take for those.
const REPLIES_TIMEOUT: Duration = Duration::from_secs(30);

/// Shows a guest echo server outliving its primary.
///
/// Starts a LAN, an arbiter, a primary and a backup, each its own process, and two ordinary clients that echo numbered
/// messages without pause: one TCP connection, one UDP flow. Kills the primary with SIGKILL and shows how the backup
/// goes on and what the clients saw of it.
///
/// Exits with 1 if a message was lost, changed or came back out of order on TCP.
#[derive(Debug, Parser)]
#[command(name = "ft-demo", version, after_help = "Example:\n  ft-demo --kills 5")]
struct Options {
    /// How many times to kill a primary, each time that of a fresh pair
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Tell the results as one JSON object
    #[arg(long)]
    json: bool,
}

/// One kill and what came of it. All times in microseconds since the kill.
#[derive(Clone, Debug, Serialize)]
struct Kill {
    last_entry_received_us: i64,
    loss_noticed_us: i64,
    test_and_set_won_us: i64,
    last_entry_consumed_us: i64,
    live_us: i64,
    first_output_us: i64,
    entries: u64,
    digests_checked: u64,
    tcp: ClientResult,
    udp: ClientResult,
}

#[derive(Debug, Serialize)]
struct Verdict {
    kills: Vec<Kill>,
    tcp_messages: u64,
    udp_messages: u64,
    udp_lost: u64,
    udp_out_of_order: u64,
    longest_cutover_us: i64,
    passed: bool,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    super::init_tracing();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::FAILURE),
        Err(error) => {
            eprintln!("ft-demo: {error}");
            ExitCode::from(interrupt::exit_code())
        }
    }
}

fn run(options: &Options) -> Result<bool, Failure> {
    interrupt::install()?;
    let executable = Executable::current()?;
    let mut kills = Vec::new();
    for number in 1..=options.kills {
        if !options.json {
            println!("kill {number} of {}", options.kills);
        }
        let kill = one_kill(&executable, !options.json)?;
        if !options.json {
            show(&kill);
        }
        kills.push(kill);
    }
    let verdict = judge(kills);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        show_verdict(&verdict);
    }
    Ok(verdict.passed)
}

/// Starts a fresh pair with clients, kills its primary, and lets the clients go on for a while.
fn one_kill(executable: &Executable, talk: bool) -> Result<Kill, Failure> {
    let directory = tempfile::Builder::new().prefix("ft-demo-").tempdir()?;
    let mut cluster = Cluster::start(executable, directory.path(), &ClusterOptions::default())?;
    if talk {
        let backup = cluster.backup().pid();
        println!(
            "  echo guest serves TCP and UDP at {}: LAN pid {}, arbiter pid {}, primary pid {}, backup pid {backup}",
            cluster.service,
            cluster.lan.pid(),
            cluster.arbiter.pid(),
            cluster.primary.pid()
        );
    }
    let clients = [EchoClient::tcp(cluster.service)?, EchoClient::udp(cluster.service)?];
    wait_for_replies(&clients, "before the kill")?;
    let killed_us = cluster.primary.kill()?;
    let live = cluster.backup().wait_for("live", PATIENCE)?;
    let first_output = cluster.backup().wait_for("first_output", PATIENCE)?;
    wait_for_replies(&clients, "after the kill")?;
    let [tcp, udp] = clients.map(EchoClient::finish);
    let since_kill = |at: Result<u64, ProcessError>| at.map(|at_us| at_us.cast_signed() - killed_us.cast_signed());
    let backup = cluster.backup();
    let moment = |field| since_kill(backup.number(&live, field));
    Ok(Kill {
        last_entry_received_us: moment("last_entry_received_us")?,
        loss_noticed_us: moment("loss_noticed_us")?,
        test_and_set_won_us: moment("test_and_set_won_us")?,
        last_entry_consumed_us: moment("last_entry_consumed_us")?,
        live_us: moment("live_us")?,
        first_output_us: since_kill(backup.number(&first_output, "at_us"))?,
        entries: backup.number(&live, "entries")?,
        digests_checked: backup.number(&live, "digests_checked")?,
        tcp,
        udp,
    })
}

fn wait_for_replies(clients: &[EchoClient], when: &str) -> Result<(), Failure> {
    for client in clients {
        if !client.wait_for_replies(REPLIES, REPLIES_TIMEOUT) {
            interrupt::check()?;
            return Err(format!("a client had {} replies {when}, and then no more", client.received()).into());
        }
    }
    Ok(())
}

fn judge(kills: Vec<Kill>) -> Verdict {
    let sum = |count: fn(&Kill) -> u64| kills.iter().map(count).sum();
    Verdict {
        tcp_messages: sum(|kill| kill.tcp.received),
        udp_messages: sum(|kill| kill.udp.received),
        udp_lost: sum(|kill| kill.udp.lost),
        udp_out_of_order: sum(|kill| kill.udp.out_of_order),
        longest_cutover_us: kills.iter().map(|kill| kill.first_output_us).max().unwrap_or(0),
        passed: !kills.is_empty() && kills.iter().all(|kill| kill.tcp.is_perfect() && kill.udp.changed == 0),
        kills,
    }
}

fn show(kill: &Kill) {
    println!("  microseconds since the kill (what was before it is negative):");
    let mut timeline = [
        ("last entry received", kill.last_entry_received_us),
        ("loss noticed", kill.loss_noticed_us),
        ("test-and-set won", kill.test_and_set_won_us),
        ("last entry consumed", kill.last_entry_consumed_us),
        ("live", kill.live_us),
        ("first output", kill.first_output_us),
    ];
    // The log is consumed while the flag is asked for: which is first differs.
    timeline.sort_by_key(|(_, at_us)| *at_us);
    for (what, at_us) in timeline {
        println!("    {at_us:>8}  {what}");
    }
    println!(
        "  log entries: {}; state digests compared, and equal on both sides: {}",
        kill.entries, kill.digests_checked
    );
    for (name, client) in [("TCP", &kill.tcp), ("UDP", &kill.udp)] {
        println!(
            "  {name}: {} of {} messages echoed, {} lost, {} out of order, {} changed; longest gap {:.1} ms{}",
            client.received,
            client.sent,
            client.lost,
            client.out_of_order,
            client.changed,
            Duration::from_micros(client.longest_gap_us).as_secs_f64() * 1000.0,
            client.error.as_ref().map(|error| format!("; {error}")).unwrap_or_default()
        );
    }
}

fn show_verdict(verdict: &Verdict) {
    println!(
        "{}: kills {}; messages on TCP {}, on UDP {} ({} lost, {} out of order); longest cutover {:.1} ms",
        if verdict.passed { "PASSED" } else { "FAILED" },
        verdict.kills.len(),
        verdict.tcp_messages,
        verdict.udp_messages,
        verdict.udp_lost,
        verdict.udp_out_of_order,
        Duration::from_micros(verdict.longest_cutover_us.unsigned_abs()).as_secs_f64() * 1000.0
    );
}
