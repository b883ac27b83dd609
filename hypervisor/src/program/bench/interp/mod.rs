//! How fast guests compute: alone, recorded, replayed, stopped all the time, and on QEMU.

mod machine;
mod qemu;
mod results;

use crate::program::Failure;
use crate::program::cli::stdout::{note, out, print};
use crate::program::guest::Guest;
use clap::builder::PossibleValuesParser;
use results::{Results, Row, Way};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use vm::MachineConfig;

/// Steps between two stops, in the runs that measure stops.
const STOP_STEPS: u64 = 10_000;
/// Steps at a time of a plain run, which gets its timer interrupts in between: a hundred a second.
const PLAIN_STEPS: u64 = 1_000_000;

/// The names of the programs.
const PROGRAMS: [&str; 5] = ["sieve", "calls", "bytecode", "hash", "hash-paged"];

#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ft-bench interp --size 100 --rounds 1 --program sieve\n  ft-bench --json interp > interp.json"
)]
pub(super) struct Options {
    /// Units of work for each program, a million instructions or so each
    #[arg(long, value_name = "UNITS", default_value_t = 750, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    size: u64,
    /// Rounds; the best one of each counts
    #[arg(long, value_name = "ROUNDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Only this program; may be given more than once
    #[arg(long = "program", value_name = "NAME", value_parser = PossibleValuesParser::new(PROGRAMS))]
    programs: Vec<String>,
    /// Which time counts: that of the cores, which others who use the host don't make longer, or
    /// that of the wall
    #[arg(long, value_name = "TIME", value_enum, default_value_t = Time::Cpu)]
    time: Time,
    /// Don't compare with QEMU
    #[arg(long)]
    no_qemu: bool,
}

/// The clock that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Time {
    /// User and system time of the thread that runs our machine, or of QEMU's process.
    Cpu,
    /// Wall-clock time.
    Wall,
}

impl Time {
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU time",
            Self::Wall => "time",
        }
    }
}

/// A guest that has come to its end.
#[derive(Debug)]
struct Run {
    /// Steps since reset; 0 for QEMU, where they aren't counted.
    instructions: u64,
    /// How long they took.
    took: Took,
    /// What it printed.
    console: String,
}

/// How long something took, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Took {
    cpu_ns: u64,
    wall_ns: u64,
}

impl Took {
    const fn ns(self, time: Time) -> u64 {
        match time {
            Time::Cpu => self.cpu_ns,
            Time::Wall => self.wall_ns,
        }
    }
}

pub(super) fn run(options: &Options, json: bool) -> Result<(), Failure> {
    let image = Guest::load("bench")?.image;
    let qemu_version = if options.no_qemu { None } else { qemu::version() };
    if qemu_version.is_none() && !options.no_qemu {
        note!("without a comparison: qemu-system-riscv64 is not installed (Debian package qemu-system-misc)");
    }
    let directory = tempfile::Builder::new().prefix("ft-bench-").tempdir()?;
    let (kernel, log) = (directory.path().join("bench.elf"), directory.path().join("log"));
    fs::write(&kernel, &image)?;
    let is_wanted = |name: &&str| options.programs.is_empty() || options.programs.iter().any(|wanted| wanted == name);
    let mut programs = Vec::new();
    for name in PROGRAMS.into_iter().filter(is_wanted) {
        match Program::new(name, options, &image) {
            Ok(program) => programs.push(program),
            // A QEMU without translation still prints its version, for example.
            Err(error) => note!("without {name}, which doesn't run on this machine: {error}"),
        }
    }
    if programs.is_empty() {
        return Err("none of the programs runs on this machine".into());
    }
    for round in 1..=options.rounds {
        for program in &mut programs {
            note!("round {round} of {}: {} ...", options.rounds, program.name);
            program.on_machine(&image, &log)?;
            if qemu_version.is_some() {
                program.on_qemu(&kernel, &log)?;
            }
        }
    }
    let rows = programs.iter().map(Program::row).collect();
    let results = Results::new(options.size, options.rounds, options.time, qemu_version, rows);
    if json {
        out!("{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(format_args!("{results}"))?;
    }
    Ok(())
}

/// One of the programs, and what was measured of it.
struct Program {
    name: &'static str,
    size: u64,
    time: Time,
    /// The steps of our machine from reset to the end with no work.
    idle_instructions: u64,
    /// The steps with all the work; 0 before the first run.
    instructions: u64,
    /// What the guest printed with all the work; every run prints the same.
    checksum: Option<String>,
    /// The best so far, in steps per microsecond.
    mips: BTreeMap<Way, f64>,
    /// The shortest times so far with all the work, and with none, in nanoseconds.
    qemu_ns: BTreeMap<Way, (u64, u64)>,
}

impl Program {
    /// Runs the program once without work, to check that it starts and ends.
    fn new(name: &'static str, options: &Options, image: &[u8]) -> Result<Self, Failure> {
        let mut program = Self {
            name,
            size: options.size,
            time: options.time,
            idle_instructions: 0,
            instructions: 0,
            checksum: None,
            mips: BTreeMap::new(),
            qemu_ns: BTreeMap::new(),
        };
        program.idle_instructions = machine::alone(&program.config(0), image, PLAIN_STEPS)?.instructions;
        Ok(program)
    }

    fn boot_arguments(&self, size: u64) -> String {
        match self.name.strip_suffix("-paged") {
            Some(program) => format!("program={program} size={size} paged"),
            None => format!("program={} size={size}", self.name),
        }
    }

    fn config(&self, size: u64) -> MachineConfig {
        MachineConfig { bootargs: self.boot_arguments(size), ..MachineConfig::default() }
    }

    fn on_machine(&mut self, image: &[u8], log: &Path) -> Result<(), Failure> {
        let config = self.config(self.size);
        let plain = machine::alone(&config, image, PLAIN_STEPS)?;
        self.instructions = plain.instructions;
        self.take(Way::Plain, &plain)?;
        self.take(Way::Recording, &machine::recorded(&config, image, log)?)?;
        self.take(Way::Replaying, &machine::replayed(log)?)?;
        self.take(Way::Stops, &machine::alone(&config, image, STOP_STEPS)?)
    }

    fn on_qemu(&mut self, kernel: &Path, log: &Path) -> Result<(), Failure> {
        for (way, record) in [(Way::QemuRecording, Some(log)), (Way::Qemu, None)] {
            let run = qemu::run(kernel, &self.boot_arguments(self.size), record)?;
            self.check(way, &run)?;
            let start = qemu::run(kernel, &self.boot_arguments(0), record)?;
            let best = self.qemu_ns.entry(way).or_insert((u64::MAX, u64::MAX));
            *best = (best.0.min(run.took.ns(self.time)), best.1.min(start.took.ns(self.time)));
        }
        Ok(())
    }

    fn take(&mut self, way: Way, run: &Run) -> Result<(), Failure> {
        self.check(way, run)?;
        let best = self.mips.entry(way).or_insert(0.0);
        *best = best.max(mips(run.instructions, run.took.ns(self.time)));
        Ok(())
    }

    /// Checks that a run printed the same as the runs before: only equal work can be compared.
    fn check(&mut self, way: Way, run: &Run) -> Result<(), Failure> {
        let expected = self.checksum.get_or_insert_with(|| run.console.clone());
        if *expected == run.console && expected.contains("checksum") {
            return Ok(());
        }
        Err(format!("{}, {way}: it printed {:?}, and before {expected:?}", self.name, run.console).into())
    }

    fn row(&self) -> Row {
        let mut mips_by_way = self.mips.clone();
        for (way, (all_ns, idle_ns)) in &self.qemu_ns {
            // If the start-up took longer than the whole run, the noise is greater than the work.
            if let Some(ns) = all_ns.checked_sub(*idle_ns).filter(|ns| *ns > 0) {
                mips_by_way.insert(*way, mips(self.instructions - self.idle_instructions, ns));
            }
        }
        Row::new(self.name, self.instructions, mips_by_way)
    }
}

/// Millions of instructions per second.
fn mips(instructions: u64, ns: u64) -> f64 {
    instructions as f64 * 1000.0 / ns as f64
}
