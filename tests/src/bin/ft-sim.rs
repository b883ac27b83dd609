//! `ft-sim`: the simulator, for as many seeds as one likes.

use clap::{Args, Parser, ValueEnum};
use hypervisor::os::signals;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tests::sim::failures::{self, Told};
use tests::sim::{self, Event, Failure, Fault, RUNS_MAX, RunSpec, Sighting, Summary, View};

const HELP: &str = "\
Examples:
  ft-sim --seeds 100000                     all seeds from 0 on; those that fail are shrunk and kept
  ft-sim --from 5000 --seeds 100 --json     other seeds, and the results for a machine
  ft-sim --trace 1234 | less -R             what happens in a run, in a column for each process
  ft-sim --trace 1234 --all --show-from 400 --show-to 420
  ft-sim --trace 1234 --html run.html       the same as a page to scroll
  ft-sim --trace 1234 --without 3,a1,slow-disks --until 412
                                            the same seed with fewer faults: the line that a
                                            shrunk failure prints

Exit codes: 0 no rule was broken; 1 a rule was broken, or a file can't be written; 2 bad usage; 130 \
interrupted, after the results of the runs so far";

/// Simulates pairs of hosts, their network and their failures, and checks that nothing is lost or
/// doubled.
///
/// Each seed is a run of its own, the same every time. A run that breaks a rule is shrunk to fewer
/// faults and a shorter time, and kept in a folder with the line that runs it again.
#[derive(Debug, Parser)]
#[command(name = "ft-sim", version, after_help = HELP)]
struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Ends when so many seeds have failed
    #[arg(long, value_name = "N", default_value_t = NonZero::<usize>::MIN)]
    failures_max: NonZero<usize>,
    /// Fail unless all that a run may show was seen, as of 10,000 seeds
    #[arg(long)]
    all_sightings: bool,
    /// Where failing seeds are kept [default: target/ft-sim/failures]
    #[arg(long, value_name = "DIR")]
    failures: Option<PathBuf>,
    /// Run this seed alone
    #[arg(long, conflicts_with_all = ["seeds", "from", "failures_max"])]
    seed: Option<u64>,
    /// Show what happens in the run of this seed (or of --seed)
    #[arg(long, value_name = "SEED", num_args = 0..=1, conflicts_with_all = ["seeds", "from", "failures_max"])]
    trace: Option<Option<u64>>,
    #[command(flatten)]
    run: RunOptions,
    #[command(flatten)]
    view: ViewOptions,
    /// Say the results in JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Which run of a seed.
#[derive(Debug, Args)]
#[command(next_help_heading = "A part of a run")]
struct RunOptions {
    /// Leave out these faults, by the names that they have in a trace
    #[arg(long, value_name = "FAULTS", value_delimiter = ',')]
    without: Vec<Fault>,
    /// Let everything work from this time on, in milliseconds of the run's clock
    #[arg(long, value_name = "MS")]
    until: Option<u64>,
    /// Remove a rule of the protocol, by its name in `ft::mutation`
    #[cfg(feature = "mutations")]
    #[arg(long, value_name = "NAME", value_parser = mutation)]
    mutation: Option<ft::mutation::Mutation>,
}

#[cfg(feature = "mutations")]
fn mutation(name: &str) -> Result<ft::mutation::Mutation, String> {
    let all = ft::mutation::Mutation::ALL;
    let found = all.into_iter().find(|mutation| format!("{mutation:?}") == name);
    found.ok_or_else(|| format!("none of those that the simulator catches: {all:?}"))
}

/// How a run is shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --trace")]
struct ViewOptions {
    /// Show entries, acknowledgements, outputs and heartbeats too
    #[arg(long)]
    all: bool,
    /// Show what happens from this time on, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    show_from: u64,
    /// Show what happens before this time, in milliseconds
    #[arg(long, value_name = "MS")]
    show_to: Option<u64>,
    /// Columns of the table, 80 to 200 [default: the terminal's]
    #[arg(long, value_name = "COLUMNS")]
    width: Option<usize>,
    /// Colours; `auto` has them on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    color: Colour,
    /// Write a page to this file instead of the table
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

/// The operator has pressed Ctrl-C.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    let heard = signals::on_termination(|_| {
        if IS_INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    });
    match heard.and_then(|()| run(&options)) {
        Ok(code) => code,
        // Whoever read the table has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ft-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let begun = Instant::now();
    let is_traced = options.trace.is_some();
    let seed = options.trace.flatten().or(options.seed);
    if seed.is_none() && (is_traced || options.run.until.is_some() || !options.run.without.is_empty()) {
        eprintln!("ft-sim: which seed? Say --trace SEED or --seed SEED");
        return Ok(ExitCode::from(2));
    }
    let summary = match seed {
        Some(seed) => run_one(options, &spec(seed, &options.run), is_traced)?,
        None => run_many(options),
    };
    let folder = options.failures.clone().unwrap_or_else(failures::default_folder);
    // What is shown already is what its reader asked for.
    let told = if is_traced { Vec::new() } else { tell(&folder, &summary.failures) };
    if options.json {
        writeln!(io::stdout(), "{}", to_json(&summary, &told, begun.elapsed()))?;
    } else if !is_traced {
        print(&summary)?;
    }
    for told in &told {
        eprint!("{}", told.text);
    }
    let missing = summary.sightings.missing();
    if options.all_sightings && !missing.is_empty() {
        eprintln!("ft-sim: {} seeds never showed {missing:?}", summary.runs);
        return Ok(ExitCode::FAILURE);
    }
    if !summary.failures.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    Ok(if IS_INTERRUPTED.load(Ordering::Relaxed) { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn spec(seed: u64, options: &RunOptions) -> RunSpec {
    RunSpec {
        seed,
        without: options.without.iter().copied().collect(),
        until_ms: options.until,
        #[cfg(feature = "mutations")]
        mutation: options.mutation,
    }
}

fn run_one(options: &Options, spec: &RunSpec, is_traced: bool) -> io::Result<Summary> {
    let (result, events) = sim::run_kept(spec);
    if is_traced {
        show(options, spec, &events)?;
    }
    Ok(match result {
        Ok(outcome) => {
            eprintln!("trace hash {:016x}", outcome.trace_hash);
            Summary { runs: 1, sightings: outcome.sightings, virtual_ns: outcome.virtual_ns, failures: Vec::new() }
        }
        Err(failure) => {
            if is_traced {
                eprint!("{}", failures::describe(&failure));
            }
            Summary { failures: vec![*failure], ..Summary::default() }
        }
    })
}

fn show(options: &Options, spec: &RunSpec, events: &[Event]) -> io::Result<()> {
    let view = &options.view;
    let is_terminal = io::stdout().is_terminal();
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_coloured = match view.color {
        Colour::Auto => is_terminal && !is_plain,
        Colour::Always => true,
        Colour::Never => false,
    };
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let width = view.width.or(terminal.filter(|width| *width > 0)).unwrap_or(120);
    let ns = |ms: u64| ms.saturating_mul(1_000_000);
    let shown = View {
        is_detailed: view.all,
        range_ns: ns(view.show_from)..view.show_to.map_or(u64::MAX, ns),
        ..View::new(width, is_coloured)
    };
    if let Some(file) = &view.html {
        let title = format!("ft-sim --trace {spec}");
        return fs::write(file, sim::html(&title, events)).map_err(|error| {
            io::Error::new(error.kind(), format!("the page can't be written to {}: {error}", file.display()))
        });
    }
    let table = sim::table(events, &shown);
    if options.json { io::stderr().write_all(table.as_bytes()) } else { io::stdout().write_all(table.as_bytes()) }
}

fn run_many(options: &Options) -> Summary {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let progress = Progress::new(Duration::from_secs(10));
    let (seeds, begun) = (options.seeds, Instant::now());
    let summary =
        sim::run_many(&spec(options.from, &options.run), seeds, threads, options.failures_max.get(), &|summary| {
            progress.tell(|| {
                let runs = summary.runs + summary.failures.len() as u64;
                let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
                let left_s = (seeds - runs).saturating_mul(took_ms) / runs.max(1) / 1000;
                let rate = runs * 1000 / took_ms;
                format!("{runs} of {seeds} seeds, {rate} a second, {left_s} s left")
            });
            !IS_INTERRUPTED.load(Ordering::Relaxed)
        });
    progress.end();
    summary
}

/// Shrinks and keeps what has failed.
fn tell(folder: &std::path::Path, failed: &[Failure]) -> Vec<Told> {
    let progress = Progress::new(Duration::from_secs(2));
    let told = failures::tell_all(folder, failed, &mut |shrunk| {
        progress.tell(|| {
            let failure = &shrunk.failure;
            let (seed, faults, before) = (failure.spec.seed, failure.struck.len(), shrunk.faults_before);
            let (runs, ms) = (shrunk.runs, failure.at_ns / 1_000_000);
            format!(
                "shrinking seed {seed}: run {runs} of at most {RUNS_MAX}, {faults} of {before} faults left, {ms} ms"
            )
        });
        !IS_INTERRUPTED.load(Ordering::Relaxed)
    });
    progress.end();
    told
}

/// A line on standard error that says how far the program is: it changes on a terminal, and comes
/// again now and then elsewhere.
struct Progress {
    is_terminal: bool,
    period: Duration,
    /// When it was told last, and whether a line is on the terminal.
    told: Mutex<(Instant, bool)>,
}

impl Progress {
    /// Told with this period if there is no terminal.
    fn new(period: Duration) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let period = if is_terminal { Duration::from_millis(100) } else { period };
        Self { is_terminal, period, told: Mutex::new((Instant::now(), false)) }
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        let Ok(mut told) = self.told.try_lock() else { return };
        if told.0.elapsed() < self.period {
            return;
        }
        *told = (Instant::now(), true);
        let (begin, end) = if self.is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        // Progress that nobody can see is no failure.
        let _ = write!(io::stderr().lock(), "{begin}{}{end}", line());
    }

    fn end(self) {
        let is_line_there = self.told.into_inner().is_ok_and(|(_, is_line_there)| is_line_there);
        if self.is_terminal && is_line_there {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn print(summary: &Summary) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for sighting in Sighting::ALL {
        writeln!(out, "{:10}  {sighting:?}", summary.sightings.count(*sighting))?;
    }
    let interrupted = if IS_INTERRUPTED.load(Ordering::Relaxed) { "interrupted: " } else { "" };
    let virtual_s = summary.virtual_ns / 1_000_000_000;
    writeln!(out, "{interrupted}{} seeds without failure, {virtual_s} s of virtual time", summary.runs)
}

fn to_json(summary: &Summary, told: &[Told], took: Duration) -> serde_json::Value {
    let sightings = Sighting::ALL
        .iter()
        .map(|sighting| (format!("{sighting:?}"), summary.sightings.count(*sighting).into()))
        .collect::<serde_json::Map<_, _>>();
    let seconds = took.as_secs_f64();
    // A trace's failure isn't shrunk.
    let failures: Vec<_> = if told.is_empty() {
        summary.failures.iter().map(|failure| failure_to_json(failure, None)).collect()
    } else {
        told.iter().map(|told| failure_to_json(&told.shrunk.failure, Some(told))).collect()
    };
    serde_json::json!({
        "runs": summary.runs,
        "seconds": seconds,
        "interrupted": IS_INTERRUPTED.load(Ordering::Relaxed),
        "virtual_s": summary.virtual_ns / 1_000_000_000,
        "sightings": sightings,
        "failure": failures.first(),
        "failures": failures,
    })
}

fn failure_to_json(failure: &Failure, told: Option<&Told>) -> serde_json::Value {
    let shrunk = told.map(|told| &told.shrunk).filter(|shrunk| shrunk.runs > 0);
    serde_json::json!({
        "seed": failure.spec.seed,
        "reason": failure.reason,
        "rule": failure.rule,
        "at_ms": failure.at_ns / 1_000_000,
        "rerun": failure.spec.command(),
        "faults": failure.struck.iter().map(Fault::to_string).collect::<Vec<_>>(),
        "shrunk": shrunk.map(|shrunk| {
            serde_json::json!({
                "runs": shrunk.runs,
                "faults_before": shrunk.faults_before,
                "at_ms_before": shrunk.at_ns_before / 1_000_000,
            })
        }),
        "file": told.and_then(|told| told.file.as_ref()),
    })
}
