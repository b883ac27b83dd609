//! The benchmark of joining: how long a guest stands still when a backup joins, while it writes its
//! memory faster than that can be copied.

use crate::os::report::Grouped;
use crate::program::Failure;
use crate::program::cli::interrupt;
use crate::program::cli::stdout::out;
use crate::program::site::cluster::{PATIENCE, Site};
use crate::program::site::executable::Executable;
use crate::program::site::process::Process;
use serde::Serialize;
use std::time::Duration;

/// How long one join may take: all of a large memory is copied up to three times, on a busy
/// machine.
const JOIN_PATIENCE: Duration = Duration::from_secs(300);

/// Memory of the machine beyond what the guest writes, in MiB.
const SPARE_MIB: u32 = 32;

/// The least memory of a machine in which the guest runs, in MiB.
const MEMORY_MIN_MIB: u32 = 64;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// How much memory the guest writes, round and round, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=2000))]
    mib: u32,
    /// How many backups join, one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    joins: u32,
}

#[derive(Debug, Serialize)]
struct Results {
    mib: u32,
    joins: Vec<Join>,
    /// The longest stand of each join: the median.
    longest_stand_p50_us: u64,
    /// The same: the 99th percentile, of fewer than a hundred joins the longest of all. To reach:
    /// at most 10,000.
    longest_stand_p99_us: u64,
}

/// The figures of one join.
#[derive(Clone, Copy, Debug, Serialize)]
struct Join {
    /// From the first page copied to the last.
    took_ms: u64,
    /// Pages sent; a page that was sent again counts again.
    pages: u64,
    /// How long the guest stood still in all, in many short pauses.
    stood_ms: u64,
    /// The longest time that it stood still at once.
    longest_stand_us: u64,
}

pub(super) fn run(options: &Options, json: bool) -> Result<(), Failure> {
    let executable = Executable::current()?;
    let directory = tempfile::Builder::new().prefix("ft-bench-").tempdir()?;
    let site = Site::start(&executable, directory.path())?;
    let common = site.options();
    let memory = (options.mib + SPARE_MIB).max(MEMORY_MIN_MIB).to_string();
    let append = format!("mib={}", options.mib);
    let guest = ["--guest", "rewrite", "--append", &append, "--memory", &memory, "--unprotected"];
    let arguments: Vec<&str> = common.iter().map(String::as_str).chain(guest).collect();
    let mut primary = Process::start(&executable, "ft-primary", &arguments)?;
    // All pages have been written by then.
    primary.wait_for("console", PATIENCE)?;
    let mut joins = Vec::new();
    if !json {
        out!("{:>6} {:>9} {:>12} {:>10} {:>17}", "join", "took ms", "pages sent", "stood ms", "longest stand us")?;
    }
    for number in 1..=options.joins {
        interrupt::check()?;
        let join = join(&executable, &common, &mut primary, joins.len() + 1)?;
        if !json {
            let Join { took_ms, pages, stood_ms, longest_stand_us } = join;
            let [took_ms, pages, stood_ms, longest_us] = [took_ms, pages, stood_ms, longest_stand_us].map(Grouped);
            out!("{number:>6} {took_ms:>9} {pages:>12} {stood_ms:>10} {longest_us:>17}")?;
        }
        joins.push(join);
    }
    let mut longest: Vec<_> = joins.iter().map(|join| join.longest_stand_us).collect();
    longest.sort_unstable();
    let at = |percent: usize| longest[(longest.len() * percent).div_ceil(100) - 1];
    let results = Results { mib: options.mib, longest_stand_p50_us: at(50), longest_stand_p99_us: at(99), joins };
    if json {
        out!("{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        let Results { mib, longest_stand_p50_us, longest_stand_p99_us, .. } = results;
        let [p50, p99] = [longest_stand_p50_us, longest_stand_p99_us].map(Grouped);
        out!("longest stand of a guest that rewrites {mib} MiB: p50 {p50} us, p99 {p99} us")?;
    }
    Ok(())
}

/// A backup joins, the `nth`, and is lost again.
fn join(executable: &Executable, common: &[String], primary: &mut Process, nth: usize) -> Result<Join, Failure> {
    let arguments: Vec<&str> = common.iter().map(String::as_str).collect();
    let mut backup = Process::start(executable, "ft-backup", &arguments)?;
    backup.wait_for("protected", JOIN_PATIENCE)?;
    let copied = primary.wait_for_nth("memory_copied", nth, PATIENCE)?;
    drop(backup);
    // The primary has claimed, and owns the VM alone again.
    primary.wait_for_nth("owner", nth + 1, PATIENCE)?;
    let field =
        |name: &str| copied[name].as_u64().ok_or_else(|| format!("`memory_copied` has no number {name}: {copied}"));
    Ok(Join {
        took_ms: field("took_ms")?,
        pages: field("pages")?,
        stood_ms: field("stood_ms")?,
        longest_stand_us: field("longest_stand_us")?,
    })
}
