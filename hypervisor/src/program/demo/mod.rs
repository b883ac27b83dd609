//! `ft-demo`: a failover under load in one command.

mod guest;

use self::guest::{Checked, DemoGuest};
use super::Failure;
use super::cli::limits::{CONNECTIONS, require_descriptors};
use super::cli::stdout::{StdoutError, failed, out};
use super::cli::{exit, interrupt};
use super::client::{Client, ClientResult};
use super::site::cluster::{Cluster, PATIENCE};
use super::site::executable::Executable;
use super::site::process::ProcessError;
use crate::node::distribution::{Distribution, histogram_ns};
use crate::os::clock;
use crate::os::report::{Grouped, Level, Tenths, set_off};
use clap::Parser;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Replies that each client receives before the primary is killed, and again after the guest has
/// gone on.
const REPLIES: u64 = 500;

/// How long clients may take for these replies.
const REPLIES_TIMEOUT: Duration = Duration::from_secs(30);

/// Shows a guest server outliving its primary, again and again.
///
/// Starts a LAN, an arbiter, a primary and a backup, each its own process, and ordinary clients
/// that work without pause: of the echo server, one TCP connection and one UDP flow with numbered
/// messages; of the lock service and the key/value store, four clients that call at random; of
/// redis on a stock Linux, one connection on which a counter is incremented and keys are set. Kills
/// the primary with SIGKILL, shows how the backup goes on and what the clients saw of it, starts a
/// new backup, which joins the running guest, and kills again.
///
/// Exits with 1 if a message was lost, doubled, changed or came back out of order: if redis
/// acknowledged anything that isn't there at the end, once, or if no order of the calls of the lock
/// service or the store, one after the other, explains all answers.
#[derive(Debug, Parser)]
#[command(
    name = "ft-demo",
    version,
    after_help = "Examples:\n  ft-demo --kills 100\n  guest-programs/linux/build.sh && ft-demo --guest linux"
)]
struct Options {
    /// Who serves
    #[arg(long, value_enum, value_name = "GUEST", default_value_t)]
    guest: DemoGuest,
    /// Where the files of --guest linux are, as guest-programs/linux/build.sh makes them
    #[arg(long, value_name = "DIR", default_value = "target/linux")]
    linux_files: PathBuf,
    /// How many times to kill the primary, and to bring a new backup
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Tell the results as one JSON object
    #[arg(long)]
    json: bool,
}

/// One kill and its effects.
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
    generation: u64,
    /// The longest time that each client waited for a reply around the kill.
    gaps_us: Vec<u64>,
    /// From the start of the new backup until the pair is protected.
    rejoin_us: u64,
    /// The longest time that a client waited while the new backup joined.
    rejoin_gap_us: u64,
}

/// A client's results from the first kill to the last.
#[derive(Debug, Serialize)]
struct Witness {
    name: &'static str,
    #[serde(flatten)]
    result: ClientResult,
    /// Its longest times without a reply around the kills.
    gap: Distribution,
}

#[derive(Debug, Serialize)]
struct Verdict {
    kills: Vec<Kill>,
    clients: Vec<Witness>,
    /// Of the lock service and the store: whether one copy of it explains what all clients saw.
    checked: Option<Checked>,
    first_output: Distribution,
    rejoin: Distribution,
    rejoin_gap: Distribution,
    passed: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    crate::program::init_tracing("ft-demo");
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::FAILURE),
        Err(error) => failed("ft-demo", &error, interrupt::exit_code()),
    }
}

fn run(options: &Options) -> Result<bool, Failure> {
    require_descriptors(CONNECTIONS)?;
    interrupt::install()?;
    let executable = Executable::current()?;
    let directory = tempfile::Builder::new().prefix("ft-demo-").tempdir()?;
    let mut cluster = options.guest.boot(&executable, directory.path(), &options.linux_files, !options.json)?;
    if !options.json {
        let backup = cluster.backup().pid();
        out!(
            "{} at {}\n  pids: LAN {}, arbiter {}, primary {}, backup {backup}",
            options.guest.service(),
            cluster.service,
            cluster.lan.pid(),
            cluster.arbiter.pid(),
            cluster.primary.pid()
        )?;
    }
    let witnesses = options.guest.clients(cluster.service)?;
    let clients = &witnesses.clients;
    let mut kills = Vec::new();
    for number in 1..=options.kills {
        let kill = kill_and_rejoin(&mut cluster, clients)?;
        if !options.json {
            out!("kill {number} of {}:", options.kills)?;
            show(&kill, clients)?;
        }
        kills.push(kill);
    }
    let (clients, checked) = witnesses.finish();
    let verdict = judge(kills, clients, checked);
    if options.json {
        out!("{}", serde_json::to_string_pretty(&verdict)?)?;
    } else {
        show_verdict(&verdict)?;
    }
    Ok(verdict.passed)
}

/// Kills the primary, waits until the clients go on with its backup, and starts a new backup.
fn kill_and_rejoin(cluster: &mut Cluster, clients: &[(&str, Client)]) -> Result<Kill, Failure> {
    wait_for_replies(clients, "before the kill")?;
    take_gaps_us(clients);
    let killed_us = cluster.primary.kill()?;
    let live = cluster.backup().wait_for("live", PATIENCE)?;
    let first_output = cluster.backup().wait_for("first_output", PATIENCE)?;
    wait_for_replies(clients, "after the kill")?;
    let gaps_us = take_gaps_us(clients);
    cluster.succeed();
    let rejoin_began_us = clock::now_us();
    cluster.restore_redundancy()?;
    let rejoin_us = clock::now_us() - rejoin_began_us;
    wait_for_replies(clients, "after the new backup had joined")?;
    let rejoin_gap_us = take_gaps_us(clients).into_iter().max().unwrap_or_default();
    let primary = &cluster.primary;
    let since_kill = |at: Result<u64, ProcessError>| at.map(|at_us| at_us.cast_signed() - killed_us.cast_signed());
    let moment = |field| since_kill(primary.number(&live, field));
    Ok(Kill {
        last_entry_received_us: moment("last_entry_received_us")?,
        loss_noticed_us: moment("loss_noticed_us")?,
        test_and_set_won_us: moment("test_and_set_won_us")?,
        last_entry_consumed_us: moment("last_entry_consumed_us")?,
        live_us: moment("live_us")?,
        first_output_us: since_kill(primary.number(&first_output, "at_us"))?,
        entries: primary.number(&live, "entries")?,
        digests_checked: primary.number(&live, "digests_checked")?,
        generation: primary.number(&live, "generation")?,
        gaps_us,
        rejoin_us,
        rejoin_gap_us,
    })
}

/// The longest time that each client waited for a reply since the last call.
fn take_gaps_us(clients: &[(&str, Client)]) -> Vec<u64> {
    clients.iter().map(|(_, client)| client.take_longest_gap_us()).collect()
}

fn wait_for_replies(clients: &[(&str, Client)], when: &str) -> Result<(), Failure> {
    for (name, client) in clients {
        if !client.wait_for_replies(REPLIES, REPLIES_TIMEOUT) {
            interrupt::check()?;
            let error = client.error().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(
                format!("the {name} client had {} replies {when}, and then no more{error}", client.received()).into()
            );
        }
    }
    Ok(())
}

fn judge(kills: Vec<Kill>, clients: Vec<(&'static str, ClientResult)>, checked: Option<Checked>) -> Verdict {
    let distribution = |us: &dyn Fn(&Kill) -> u64| {
        let mut histogram = histogram_ns();
        kills.iter().for_each(|kill| histogram.saturating_record(us(kill).saturating_mul(1000)));
        Distribution::of(&histogram)
    };
    let gap = |client: usize| distribution(&|kill| kill.gaps_us[client]);
    let clients = clients.into_iter().enumerate();
    let clients: Vec<_> = clients.map(|(index, (name, result))| Witness { name, result, gap: gap(index) }).collect();
    Verdict {
        first_output: distribution(&|kill| kill.first_output_us.unsigned_abs()),
        rejoin: distribution(&|kill| kill.rejoin_us),
        rejoin_gap: distribution(&|kill| kill.rejoin_gap_us),
        passed: !kills.is_empty()
            && clients.iter().all(|client| client.result.is_perfect())
            && checked.as_ref().is_none_or(|checked| checked.linearizable),
        checked,
        kills,
        clients,
    }
}

fn show(kill: &Kill, clients: &[(&str, Client)]) -> Result<(), StdoutError> {
    out!("  microseconds since the kill (what was before it is negative):")?;
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
        let sign = if at_us < 0 { "-" } else { "" };
        out!("    {:>9}  {what}", format!("{sign}{}", Grouped(at_us.unsigned_abs())))?;
    }
    out!(
        "  generation {}, {} log entries, {} state digests equal on both sides",
        kill.generation,
        Grouped(kill.entries),
        Grouped(kill.digests_checked)
    )?;
    let gaps = clients.iter().zip(&kill.gaps_us).map(|((name, _), gap_us)| format!("{name} {} ms", ms(*gap_us)));
    out!("  longest time without a reply: {}", gaps.collect::<Vec<_>>().join(", "))?;
    out!("  a new backup joined in {} ms; meanwhile {} ms without a reply", ms(kill.rejoin_us), ms(kill.rejoin_gap_us))
}

const fn ms(us: u64) -> Tenths {
    Tenths(Duration::from_micros(us).as_secs_f64() * 1000.0)
}

fn show_verdict(verdict: &Verdict) -> Result<(), StdoutError> {
    out!("\n{:<21}{}", "microseconds", Distribution::HEAD)?;
    let row = |name: &str, distribution: &Distribution| out!("{name:<21}{}", distribution.row());
    row("kill to first output", &verdict.first_output)?;
    for client in &verdict.clients {
        row(&format!("longest gap on {}", client.name), &client.gap)?;
    }
    row("join of a new backup", &verdict.rejoin)?;
    row("longest gap meanwhile", &verdict.rejoin_gap)?;
    for Witness { name, result, .. } in &verdict.clients {
        out!(
            "{name}: {} sent, {} right, {} lost, {} out of order, {} changed{}",
            Grouped(result.sent),
            Grouped(result.received),
            Grouped(result.lost),
            Grouped(result.out_of_order),
            Grouped(result.changed),
            result.error.as_ref().map(|error| format!("; {error}")).unwrap_or_default()
        )?;
    }
    if let Some(checked) = &verdict.checked {
        out!("{checked}")?;
    }
    let (word, level) = if verdict.passed { ("PASSED", Level::Notice) } else { ("FAILED", Level::Error) };
    out!("{}: kills {}", set_off(word, level), verdict.kills.len())
}
