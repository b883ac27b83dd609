//! `ft-replay`: does again what a log says, and checks that it comes out the same.

use super::{Failure, exit, finish, init_tracing};
use crate::divergence::entry_name;
use crate::guest::Guest;
use crate::host::clock;
use crate::host::reports::{NodeReport, Replayed};
use crate::replay::{Consumed, Replayer};
use crate::report::Reporter;
use clap::Parser;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::file::{Ending, LogReader};
use logchannel::session::ImageDigest;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use vm::{Event, InstructionCount, Machine, OutputOperation, TIMEBASE_HZ};

/// From one progress line to the next, in nanoseconds.
const PROGRESS_NS: u64 = 5_000_000_000;

/// Replays a log: the same console, the same outputs, the same state at the same instruction counts.
///
/// The guest's console comes out on standard output. Every output and every state digest in the log is compared with
/// what the machine does; the first difference ends the replay with exit code 4. A log that was cut off replays to its
/// last whole entry.
#[derive(Debug, Parser)]
#[command(
    name = "ft-replay",
    version,
    after_help = "Example:\n  \
    ft-replay echo.ftlog\n  \
    ft-replay echo.ftlog --entries | less"
)]
struct Options {
    /// The log
    log: PathBuf,
    /// Refuse a log of another guest than this
    #[arg(long, value_name = "NAME|PATH")]
    guest: Option<String>,
    /// List the log's entries without replaying them
    #[arg(long)]
    entries: bool,
    /// Tell what happens as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    init_tracing();
    finish(Reporter::new("ft-replay", options.json), run(&options))
}

type Log = LogReader<BufReader<File>>;

fn run(options: &Options) -> Result<(u8, String), Failure> {
    let reporter = Reporter::new("ft-replay", options.json);
    let path = options.log.display();
    let file = File::open(&options.log).map_err(|error| format!("can't read the log {path}: {error}"))?;
    let mut log = LogReader::open(BufReader::new(file)).map_err(|error| format!("{path}: {error}"))?;
    if let Some(name) = &options.guest {
        refuse_other_image(&log, name).map_err(|error| format!("{path}: {error}"))?;
    }
    if options.entries {
        return list(&mut log);
    }
    let machine = Machine::new(&log.header().config, log.image())
        .map_err(|error| format!("{path}: its guest {} can't be started: {error}", log.header().image_name))?;
    let mut replay = Replay {
        replayer: Replayer::new(machine, LogSeq(0)),
        reporter,
        outputs: 0,
        progress_ns: clock::now_ns() + PROGRESS_NS,
    };
    let started_ns = clock::now_ns();
    while let Some(entry) = log.next_entry().map_err(|error| format!("{path}: {error}"))? {
        if let Err(divergence) = replay.consume(&entry) {
            reporter.tell(&NodeReport::Diverged { reason: divergence.to_string() });
            return Ok((exit::DIVERGED, format!("{path}: {divergence}")));
        }
    }
    let ending = log.ending().cloned().unwrap_or(Ending::Finished);
    reporter.tell(&NodeReport::Replayed(replay.result(clock::now_ns() - started_ns, &ending)));
    Ok((exit::OK, format!("{path}: every output and state digest equal; the log is {ending}")))
}

fn refuse_other_image(log: &Log, name: &str) -> Result<(), Failure> {
    let guest = Guest::load(name)?;
    let (header, digest) = (log.header(), ImageDigest::of(&guest.image));
    if digest == header.image_digest {
        return Ok(());
    }
    Err(format!("the log is of guest {} ({}), not of {name} ({digest})", header.image_name, header.image_digest).into())
}

fn list(log: &mut Log) -> Result<(u8, String), Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    while let Some(entry) = log.next_entry()? {
        let seq = log.next_seq().0 - 1;
        if let Err(error) = writeln!(out, "{seq:>8} {:>16} {}", entry.count.to_string(), describe(&entry).trim_end()) {
            // `| head` closes the pipe when it has seen enough.
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                return Ok((exit::OK, "the reader of the list has gone".into()));
            }
            return Err(error.into());
        }
    }
    out.flush()?;
    let ending = log.ending().map_or_else(String::new, ToString::to_string);
    Ok((exit::OK, format!("{} entries; the log is {ending}", log.next_seq())))
}

fn describe(entry: &LogEntry) -> String {
    let detail = match &entry.body {
        EntryBody::Event(Event::ClockRead { ticks }) => format!("{ticks} ticks"),
        EntryBody::Event(Event::Entropy { bits }) => format!("{bits:#06x}"),
        EntryBody::Event(Event::Packet { number, frame }) => format!("frame {number}, {} bytes", frame.len()),
        EntryBody::Event(Event::ConsoleInput { bytes }) => format!("{:?}", String::from_utf8_lossy(bytes)),
        EntryBody::Output { id, digest } => format!("{} digest {digest:016x}", id.0),
        EntryBody::Digest(digest) => digest.to_string(),
        EntryBody::Stopped(reason) => reason.to_string(),
        EntryBody::Generation(generation) => generation.to_string(),
        EntryBody::Event(Event::TimerInterrupt) | EntryBody::Progress => String::new(),
    };
    format!("{:<14} {detail}", entry_name(&entry.body))
}

struct Replay {
    replayer: Replayer,
    reporter: Reporter,
    outputs: u64,
    progress_ns: u64,
}

impl Replay {
    fn consume(&mut self, entry: &LogEntry) -> Result<(), crate::divergence::Divergence> {
        if let Consumed::Output(_, output) = self.replayer.consume(entry)? {
            self.outputs += 1;
            if let OutputOperation::Console(bytes) = output {
                self.show(&bytes);
            }
        }
        if matches!(entry.body, EntryBody::Digest(_)) {
            self.tell_progress();
        }
        Ok(())
    }

    fn show(&self, bytes: &[u8]) {
        if self.reporter.is_json() {
            self.reporter.tell(&NodeReport::Console { text: String::from_utf8_lossy(bytes).into_owned() });
        } else {
            // A reader that went away doesn't make the replay wrong.
            let _ = std::io::stdout().lock().write_all(bytes);
        }
    }

    fn tell_progress(&mut self) {
        let now_ns = clock::now_ns();
        if now_ns >= self.progress_ns {
            self.progress_ns = now_ns + PROGRESS_NS;
            let instruction_count = self.replayer.machine().instruction_count().0;
            self.reporter.tell(&NodeReport::Replaying { instruction_count, entries: self.replayer.consumed().0 });
        }
    }

    fn result(mut self, took_ns: u64, ending: &Ending) -> Replayed {
        let digest = self.replayer.machine_mut().digest();
        let machine = self.replayer.machine();
        let count: InstructionCount = machine.instruction_count();
        Replayed {
            entries: self.replayer.consumed().0,
            instruction_count: count.0,
            outputs: self.outputs,
            digests_checked: self.replayer.digests_checked(),
            state_digest: digest.to_string(),
            seconds: Duration::from_nanos(took_ns).as_secs_f64(),
            guest_seconds: Duration::from_nanos(machine.last_ticks() * (1_000_000_000 / TIMEBASE_HZ)).as_secs_f64(),
            ending: ending.to_string(),
        }
    }
}
