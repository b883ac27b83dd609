//! `ft-replay`: does again what a log says, and checks that it comes out the same.

use super::{Failure, exit, finish, init_tracing};
use crate::divergence::{Divergence, entry_name};
use crate::guest::Guest;
use crate::host::reports::{NodeReport, Replayed};
use crate::host::{clock, log_directory};
use crate::replay::{Consumed, Replayer};
use crate::report::Reporter;
use crate::restore::{Restored, restore};
use clap::Parser;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::file::{Ending, LogFileError, LogHead, LogReader, LogStart};
use logchannel::session::{ImageDigest, SessionHeader};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vm::{Event, InstructionCount, OutputOperation, StateDigest, TIMEBASE_HZ};

/// From one progress line to the next, in nanoseconds.
const PROGRESS_NS: u64 = 5_000_000_000;

/// Replays a log: the same console, the same outputs, the same state at the same instruction counts.
///
/// The guest's console comes out on standard output. Every output and every state digest in the log is compared with
/// what the machine does; the first difference ends the replay with exit code 4. A log that was cut off replays to its
/// last whole entry. Of the directory of a VM that keeps its log on disk, all segments that follow each other are replayed.
#[derive(Debug, Parser)]
#[command(
    name = "ft-replay",
    version,
    after_help = "Example:\n  \
    ft-replay echo.ftlog\n  \
    ft-replay echo.ftlog --entries | less"
)]
struct Options {
    /// The log, or the directory of ft-primary --log
    #[arg(value_name = "FILE|DIR")]
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
    let logs = if options.log.is_dir() { log_directory::segments(&options.log)? } else { vec![options.log.clone()] };
    if options.entries {
        return list(&logs, options);
    }
    let started_ns = clock::now_ns();
    let mut replay = None;
    let mut skipped = Vec::new();
    for path in &logs {
        let log = match begin(path, options, &mut replay) {
            Ok(log) => log,
            Err(error) if options.log.is_dir() => {
                skipped.push(format!("; skipped {error}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some(replay) = &mut replay else { continue };
        if let Err(divergence) = replay.replay(log)? {
            reporter.tell(&NodeReport::Diverged { reason: divergence.to_string() });
            return Ok((exit::DIVERGED, format!("{}: {divergence}", path.display())));
        }
    }
    let (skipped, from) = (skipped.concat(), options.log.display());
    let Some(replay) = replay else { return Err(format!("{from}: no log that can be replayed{skipped}").into()) };
    let replayed = replay.result(clock::now_ns() - started_ns);
    let ending = replayed.ending.clone();
    reporter.tell(&NodeReport::Replayed(replayed));
    Ok((exit::OK, format!("{from}: every output and state digest equal; the log is {ending}{skipped}")))
}

fn open(path: &Path, options: &Options) -> Result<LogHead<BufReader<File>>, Failure> {
    let path_shown = path.display();
    let file = File::open(path).map_err(|error| format!("can't read the log {path_shown}: {error}"))?;
    let head = LogHead::read(BufReader::new(file)).map_err(|error| format!("{path_shown}: {error}"))?;
    if let Some(name) = &options.guest {
        refuse_other_image(head.header(), name).map_err(|error| format!("{path_shown}: {error}"))?;
    }
    Ok(head)
}

fn refuse_other_image(header: &SessionHeader, name: &str) -> Result<(), Failure> {
    let guest = Guest::load(name)?;
    let digest = ImageDigest::of(&guest.image);
    if digest == header.image_digest {
        return Ok(());
    }
    Err(format!("the log is of guest {} ({}), not of {name} ({digest})", header.image_name, header.image_digest).into())
}

/// The entries of a log, and in `replay` the machine that stands before them: the one that is there, if this log goes on
/// from where it stands.
fn begin(path: &Path, options: &Options, replay: &mut Option<Replay>) -> Result<Log, Failure> {
    let wrong = |error: &dyn Display| format!("{}: {error}", path.display());
    if let Some(replay) = replay {
        let (start, log) = open(path, options)?.into_log().map_err(|error| wrong(&error))?;
        if replay.goes_on_at(&start) {
            return Ok(log);
        }
    }
    let Restored { machine, log, .. } = restore(open(path, options)?).map_err(|error| wrong(&error))?;
    *replay = Some(Replay::new(Replayer::new(machine, log.next_seq()), Reporter::new("ft-replay", options.json)));
    Ok(log)
}

fn list(logs: &[PathBuf], options: &Options) -> Result<(u8, String), Failure> {
    let mut entries = 0;
    let mut ending = String::new();
    for path in logs {
        let (_, mut log) = open(path, options)?.into_log().map_err(|error| format!("{}: {error}", path.display()))?;
        match list_entries(&mut log).map_err(|error| format!("{}: {error}", path.display()))? {
            Some(listed) => entries += listed,
            None => return Ok((exit::OK, "the reader of the list has gone".into())),
        }
        ending = log.ending().map_or_else(String::new, ToString::to_string);
    }
    Ok((exit::OK, format!("{entries} entries; the log is {ending}")))
}

/// How many entries there were; `None` if nobody reads them any more.
fn list_entries(log: &mut Log) -> Result<Option<u64>, Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let first = log.next_seq();
    while let Some(entry) = log.next_entry()? {
        let seq = log.next_seq().0 - 1;
        if let Err(error) = writeln!(out, "{seq:>8} {:>16} {}", entry.count.to_string(), describe(&entry).trim_end()) {
            // `| head` closes the pipe when it has seen enough.
            return if error.kind() == io::ErrorKind::BrokenPipe { Ok(None) } else { Err(error.into()) };
        }
    }
    out.flush()?;
    Ok(Some(log.next_seq().0 - first.0))
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
    /// The first entry's place.
    first: LogSeq,
    reporter: Reporter,
    outputs: u64,
    progress_ns: u64,
    /// The state that the next log begins with, as it says.
    expected: Option<StateDigest>,
    ending: Ending,
}

impl Replay {
    fn new(replayer: Replayer, reporter: Reporter) -> Self {
        Self {
            first: replayer.consumed(),
            replayer,
            reporter,
            outputs: 0,
            progress_ns: clock::now_ns() + PROGRESS_NS,
            expected: None,
            ending: Ending::Finished,
        }
    }

    /// Whether a log with this start goes on where the machine stands. Its state is compared then.
    fn goes_on_at(&mut self, start: &LogStart) -> bool {
        let LogStart::Snapshot { snapshot, .. } = start else { return false };
        let goes_on = snapshot.seq == self.replayer.consumed();
        self.expected = goes_on.then_some(snapshot.digest);
        goes_on
    }

    /// Replays a log to its end. The outer error is the log's.
    fn replay(&mut self, mut log: Log) -> Result<Result<(), Divergence>, LogFileError> {
        if let Some(expected) = self.expected.take()
            && let Err(divergence) = self.replayer.check_state(expected)
        {
            return Ok(Err(divergence));
        }
        while let Some(entry) = log.next_entry()? {
            if let Err(divergence) = self.consume(&entry) {
                return Ok(Err(divergence));
            }
        }
        self.ending = log.ending().cloned().unwrap_or(Ending::Finished);
        Ok(Ok(()))
    }

    fn consume(&mut self, entry: &LogEntry) -> Result<(), Divergence> {
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
            let _ = io::stdout().lock().write_all(bytes);
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

    fn result(mut self, took_ns: u64) -> Replayed {
        let digest = self.replayer.machine_mut().digest();
        let machine = self.replayer.machine();
        let count: InstructionCount = machine.instruction_count();
        Replayed {
            entries: self.replayer.consumed().0 - self.first.0,
            instruction_count: count.0,
            outputs: self.outputs,
            digests_checked: self.replayer.digests_checked(),
            state_digest: digest.to_string(),
            seconds: Duration::from_nanos(took_ns).as_secs_f64(),
            guest_seconds: Duration::from_nanos(machine.last_ticks() * (1_000_000_000 / TIMEBASE_HZ)).as_secs_f64(),
            ending: self.ending.to_string(),
        }
    }
}
