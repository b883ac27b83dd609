//! `ft-client`: a client of the lock service and the key/value store.

use super::history::{self, Answer, Call, Entry, History};
use super::random::Random;
use super::rpc::{NetworkFaults, RpcClient};
use super::torture::{Target, Torture, ask};
use super::{ClientResult, history_svg};
use crate::os::clock;
use crate::os::entropy;
use crate::os::report::{Grouped, Level, Tenths, set_off};
use crate::program::cli::stdout::{failed, note, out};
use crate::program::cli::{exit, interrupt};
use crate::program::{Failure, files};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Calls the lock service (guest `lock`) or the key/value store (guest `kv`).
///
/// Each call is executed once, however often its datagrams are lost or arrive twice, and whatever
/// happens to the hosts of the guest: it is sent again until its answer comes. The exit code is 0
/// for yes and 7 for no: a lock that another has, a key without a value, a value that isn't the
/// expected one.
#[derive(Debug, Parser)]
#[command(
    name = "ft-client",
    version,
    after_help = "Examples (with ft-lan --forward 127.0.0.1:7007=10.0.2.15:7 and ft-primary --guest lock):\n  \
                  ft-client lock printer && lpr report.txt; ft-client unlock printer\n  \
                  ft-client torture lock --clients 8 --calls 20000 --lost-percent 5\n  \
                  ft-client put greeting hello && ft-client get greeting   # of ft-primary --guest kv"
)]
struct Options {
    /// Where the service is reached, by UDP
    #[arg(long, global = true, value_name = "ADDRESS", default_value = "127.0.0.1:7007")]
    service: SocketAddr,
    /// How long an answer is waited for, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    /// Tell the result as one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a lock, if it is free
    Lock {
        /// The lock's name
        name: String,
        /// Wait until it is free
        #[arg(long)]
        wait: bool,
    },
    /// Release a lock, whoever has taken it
    Unlock {
        /// The lock's name
        name: String,
    },
    /// Print the value of a key
    Get {
        /// The key
        key: String,
    },
    /// Set the value of a key
    Put {
        /// The key
        key: String,
        /// Its value
        value: String,
    },
    /// Add to the end of a key's value
    Append {
        /// The key
        key: String,
        /// What is added
        value: String,
    },
    /// Set the value of a key, if it is as expected
    Cas {
        /// The key
        key: String,
        /// The value that must be there; without it there must be none
        #[arg(long, value_name = "VALUE")]
        old: Option<String>,
        /// The value to be set
        value: String,
    },
    /// Call at random from several clients, and check that they saw one copy of the service
    Torture(TortureOptions),
    /// Check a history that torture has kept
    Check {
        /// The file
        file: PathBuf,
        /// Draw what can't be explained, as SVG
        #[arg(long, value_name = "FILE")]
        draw: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct TortureOptions {
    /// The service
    #[arg(value_enum)]
    target: Target,
    /// How many clients call at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// How many calls each client makes
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    calls: u64,
    /// How many keys or locks there are: the fewer, the more often clients meet
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// How many in a hundred datagrams are lost on purpose, in both directions
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=50))]
    lost_percent: u32,
    /// How many in a hundred requests are sent twice on purpose
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=50))]
    doubled_percent: u32,
    /// Decides what the clients do; another one each time if it isn't given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Where the history is kept; without it, only one that can't be explained is, in
    /// ft-client-SEED.history
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// What torture has shown.
#[derive(Debug, Serialize)]
struct Verdict {
    calls: u64,
    seconds: f64,
    longest_gap_us: u64,
    unanswered: u64,
    linearizable: bool,
    /// Where the history is, if it was kept.
    history: Option<PathBuf>,
    /// Where the picture is of what can't be explained.
    picture: Option<PathBuf>,
    errors: Vec<String>,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    crate::program::init_tracing("ft-client");
    match run(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed("ft-client", &error, interrupt::exit_code()),
    }
}

fn run(options: &Options) -> Result<u8, Failure> {
    interrupt::install()?;
    let call = match &options.command {
        Command::Torture(torture) => return self::torture(options, torture),
        Command::Check { file, draw } => return check_file(options, file, draw.as_deref()),
        Command::Lock { name, wait: false } => Call::Lock { key: name.clone() },
        Command::Lock { name, wait: true } => Call::Acquire { key: name.clone() },
        Command::Unlock { name } => Call::Unlock { key: name.clone() },
        Command::Get { key } => Call::Get { key: key.clone() },
        Command::Put { key, value } => Call::Put { key: key.clone(), value: value.clone() },
        Command::Append { key, value } => Call::Append { key: key.clone(), value: value.clone() },
        Command::Cas { key, old, value } => {
            Call::CompareAndSwap { key: key.clone(), old: old.clone(), value: value.clone() }
        }
    };
    let patience = Duration::from_secs(options.patience);
    let mut rpc = RpcClient::open(options.service, patience, NetworkFaults::default(), Random::new(seed()))?;
    let answer = ask(&mut rpc, &call)?;
    if options.json {
        out!("{}", serde_json::to_string(&answer)?)?;
    } else if let Answer::Value(Some(value)) = &answer {
        out!("{value}")?;
    }
    Ok(match (&call, answer) {
        (_, Answer::Yes) | (Call::Get { .. }, Answer::Value(Some(_))) => exit::OK,
        (_, Answer::No | Answer::Value(_)) => exit::NO,
        (_, Answer::Refused) => {
            return Err(
                "the server refuses: it is no such service, or a value or the number of locks would be too large"
                    .into(),
            );
        }
        (_, Answer::Full) => return Err("the store is full".into()),
    })
}

fn seed() -> u64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = entropy::seed();
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

fn torture(options: &Options, torture: &TortureOptions) -> Result<u8, Failure> {
    let seed = torture.seed.unwrap_or_else(seed);
    let faults = NetworkFaults { lost_percent: torture.lost_percent, doubled_percent: torture.doubled_percent };
    let how = Torture { target: torture.target, keys: torture.keys, calls: torture.calls, faults, seed };
    let history = History::default();
    let began_us = clock::now_us();
    let start = |number| how.start(options.service, number, history.clone());
    let clients = (1..=torture.clients).map(start).collect::<Result<Vec<_>, _>>()?;
    let all = torture.calls * u64::from(torture.clients);
    let mut next_us = began_us + 1_000_000;
    while clients.iter().any(super::Client::is_running) {
        std::thread::sleep(Duration::from_millis(5));
        if interrupt::check().is_err() {
            break;
        }
        if clock::now_us() >= next_us && !options.json {
            next_us += 5_000_000;
            let made: u64 = clients.iter().map(super::Client::received).sum();
            note!("{} of {} calls answered", Grouped(made), Grouped(all));
        }
    }
    let results: Vec<_> = clients.into_iter().map(super::Client::finish).collect();
    let verdict = judge(torture, seed, &results, &history.take(), clock::now_us() - began_us)?;
    if options.json {
        out!("{}", serde_json::to_string_pretty(&verdict)?)?;
    } else {
        show(&verdict, seed)?;
    }
    interrupt::check()?;
    Ok(if verdict.linearizable && verdict.errors.is_empty() { exit::OK } else { exit::FAILURE })
}

fn judge(
    torture: &TortureOptions,
    seed: u64,
    results: &[ClientResult],
    history: &[Entry],
    took_us: u64,
) -> Result<Verdict, Failure> {
    let checked = history::check(history);
    let default = || PathBuf::from(format!("ft-client-{seed}.history"));
    let kept = torture.history.clone().or_else(|| checked.is_err().then(default));
    if let Some(path) = &kept {
        keep(history, path)?;
    }
    let picture = match &checked {
        Ok(()) => None,
        Err(unexplained) => {
            let path = kept.clone().unwrap_or_else(default).with_extension("svg");
            std::fs::write(&path, history_svg::draw(unexplained))
                .map_err(|error| format!("can't write the picture {}: {error}", path.display()))?;
            Some(path)
        }
    };
    Ok(Verdict {
        calls: results.iter().map(|result| result.received).sum(),
        seconds: Duration::from_micros(took_us).as_secs_f64(),
        longest_gap_us: results.iter().map(|result| result.longest_gap_us).max().unwrap_or_default(),
        unanswered: results.iter().map(|result| result.lost).sum(),
        linearizable: checked.is_ok(),
        history: kept,
        picture,
        errors: results.iter().filter_map(|result| result.error.clone()).collect(),
    })
}

fn keep(history: &[Entry], path: &Path) -> Result<(), Failure> {
    File::create(path)
        .and_then(|file| history::write(history, BufWriter::new(file)))
        .map_err(|error| format!("can't keep the history in {}: {error}", path.display()).into())
}

fn show(verdict: &Verdict, seed: u64) -> Result<(), Failure> {
    out!(
        "{} calls answered in {:.1} s, {} not; the longest time without an answer {} ms; seed {seed}",
        Grouped(verdict.calls),
        verdict.seconds,
        Grouped(verdict.unanswered),
        Tenths(Duration::from_micros(verdict.longest_gap_us).as_secs_f64() * 1_000.0)
    )?;
    for error in &verdict.errors {
        out!("a client ended: {error}")?;
    }
    if let Some(history) = &verdict.history {
        out!("history: {}", history.display())?;
    }
    if let Some(picture) = &verdict.picture {
        out!("what can't be explained is drawn in {}", picture.display())?;
    }
    let (word, level) =
        if verdict.linearizable { ("LINEARIZABLE", Level::Notice) } else { ("NOT LINEARIZABLE", Level::Error) };
    out!("{}", set_off(word, level))?;
    Ok(())
}

fn check_file(options: &Options, file: &Path, draw: Option<&Path>) -> Result<u8, Failure> {
    let unreadable = |error: std::io::Error| format!("can't read the history {}: {error}", file.display());
    let history = history::read(BufReader::new(files::open(file).map_err(unreadable)?)).map_err(unreadable)?;
    let checked = history::check(&history);
    if let (Err(unexplained), Some(path)) = (&checked, draw) {
        std::fs::write(path, history_svg::draw(unexplained))
            .map_err(|error| format!("can't write the picture {}: {error}", path.display()))?;
    }
    if options.json {
        let wrong = checked.as_ref().err().map(|unexplained| unexplained.call());
        out!(
            "{}",
            serde_json::json!({ "calls": history.len(), "linearizable": checked.is_ok(), "unexplained": wrong })
        )?;
    } else {
        match &checked {
            Ok(()) => out!("{} calls: linearizable", Grouped(history.len() as u64))?,
            Err(unexplained) => {
                let Entry { client, answer, .. } = unexplained.call();
                out!(
                    "NOT linearizable: of {} calls of {}, no order explains what client {client} was answered: {answer:?}",
                    Grouped(unexplained.entries.len() as u64),
                    unexplained.key
                )?;
            }
        }
    }
    Ok(if checked.is_ok() { exit::OK } else { exit::FAILURE })
}
