//! `ft-replay`: does again what a log says, and checks that it comes out the same.

use super::progress::Progress;
use super::{Failure, exit, finish, init_tracing};
use crate::divergence::{Divergence, entry_name};
use crate::guest::Guest;
use crate::host::reports::{NodeReport, Replayed};
use crate::host::{clock, log_directory};
use crate::replay::{Consumed, Replayer};
use crate::report::Reporter;
use crate::restore::{Restored, restore};
use crate::trouble::Watch;
use clap::Parser;
use logchannel::entry::{EntryBody, LogEntry};
use logchannel::file::{Ending, LogFileError, LogHead, LogReader};
use logchannel::session::{ImageDigest, SessionHeader};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vm::{Event, InstructionCount, Machine, OutputOperation, TIMEBASE_HZ};

/// How many entries are replayed from one look at the clock to the next.
const ENTRIES_PER_LOOK: u64 = 256;

/// Replays a log: the same console, the same outputs, the same state at the same instruction counts.
///
/// The guest's console comes out on standard output. Every output and every state digest in the log is compared with
/// what the machine does; the first difference ends the replay with exit code 4. A log that was cut off replays to its
/// last whole entry. Of the directory of a VM that keeps its log on disk, all segments that follow each other are replayed.
#[derive(Debug, Parser)]
#[command(
    name = "ft-replay",
    version,
    after_help = exit::help("Example:\n  \
    ft-replay echo.ftlog\n  \
    ft-replay echo.ftlog --entries | less")
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
    let mut replay = Replay::new(reporter, logs.iter().map(|path| file_bytes(path)).sum(), started_ns);
    let mut skipped = Vec::new();
    for path in &logs {
        let restored = open(path, options).and_then(|head| restore(head).map_err(|error| in_file(path, error)));
        match restored {
            Ok(restored) => {
                if let Err(divergence) =
                    replay.replay(restored, file_bytes(path)).map_err(|error| in_file(path, error))?
                {
                    reporter.tell(&NodeReport::Diverged { reason: divergence.to_string() });
                    return Ok((exit::DIVERGED, format!("{}: {divergence}", path.display())));
                }
            }
            Err(error) if options.log.is_dir() => skipped.push(format!("; skipped {error}")),
            Err(error) => return Err(error),
        }
    }
    let (skipped, from) = (skipped.concat(), options.log.display());
    let Some(replayed) = replay.result(clock::now_ns() - started_ns) else {
        return Err(format!("{from}: no log that can be replayed{skipped}").into());
    };
    let ending = replayed.ending.clone();
    reporter.tell(&NodeReport::Replayed(replayed));
    Ok((exit::OK, format!("{from}: every output and state digest equal; the log is {ending}{skipped}")))
}

/// How long a file is; 0 if nobody knows.
fn file_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn in_file(path: &Path, error: impl Display) -> Failure {
    format!("{}: {error}", path.display()).into()
}

fn open(path: &Path, options: &Options) -> Result<LogHead<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|error| format!("can't read the log {}: {error}", path.display()))?;
    let head = LogHead::read(BufReader::new(file)).map_err(|error| in_file(path, error))?;
    if let Some(name) = &options.guest {
        refuse_other_image(head.header(), name).map_err(|error| in_file(path, error))?;
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

fn list(logs: &[PathBuf], options: &Options) -> Result<(u8, String), Failure> {
    let mut entries = 0;
    let mut ending = String::new();
    for path in logs {
        let (_, mut log) = open(path, options)?.into_log().map_err(|error| in_file(path, error))?;
        match list_entries(&mut log).map_err(|error| in_file(path, error))? {
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

/// A replay of logs that follow each other.
struct Replay {
    reporter: Reporter,
    /// The last log's; none before the first.
    replayer: Option<Replayer>,
    entries: u64,
    outputs: u64,
    digests_checked: u64,
    watch: Watch,
    ending: Ending,
    progress: Progress,
    /// How long the logs are that have been replayed, in bytes, and how long all are.
    bytes: (u64, u64),
}

impl Replay {
    fn new(reporter: Reporter, bytes: u64, now_ns: u64) -> Self {
        Self {
            reporter,
            replayer: None,
            entries: 0,
            outputs: 0,
            digests_checked: 0,
            watch: Watch::running(),
            ending: Ending::Finished,
            progress: Progress::new(now_ns, 0),
            bytes: (0, bytes),
        }
    }

    /// Replays a log of a file of this length to its end. The outer error is the log's.
    fn replay(
        &mut self,
        restored: Restored<BufReader<File>>,
        bytes: u64,
    ) -> Result<Result<(), Divergence>, LogFileError> {
        let Restored { mut machine, mut log, .. } = restored;
        match self.replayer.take() {
            Some(before) if before.consumed() == log.next_seq() => {
                if let Err(divergence) = self.compare(before, &mut machine) {
                    return Ok(Err(divergence));
                }
            }
            // A log by itself: what was replayed before is of an earlier life of the VM, or there is a gap.
            Some(_) | None => (self.entries, self.outputs, self.digests_checked) = (0, 0, 0),
        }
        let mut replayer = Replayer::new(machine, log.next_seq());
        while let Some(entry) = log.next_entry()? {
            if let Err(divergence) = self.consume(&mut replayer, &entry) {
                return Ok(Err(divergence));
            }
            if matches!(entry.body, EntryBody::Digest(_)) || self.entries.is_multiple_of(ENTRIES_PER_LOOK) {
                self.tell_progress(entry.count, log.frame_offset());
            }
        }
        self.bytes.0 += bytes;
        self.digests_checked += replayer.digests_checked();
        self.ending = log.ending().cloned().unwrap_or(Ending::Finished);
        self.replayer = Some(replayer);
        Ok(Ok(()))
    }

    /// Compares where a log ends with the machine from which the next goes on: nothing happened in between.
    fn compare(&mut self, mut before: Replayer, machine: &mut Machine) -> Result<(), Divergence> {
        let body = EntryBody::Digest(machine.digest());
        before.consume(&LogEntry { count: machine.instruction_count(), body })?;
        self.digests_checked += 1;
        Ok(())
    }

    fn consume(&mut self, replayer: &mut Replayer, entry: &LogEntry) -> Result<(), Divergence> {
        self.entries += 1;
        let consumed = replayer.consume(entry)?;
        if let Some(trouble) = self.watch.look(replayer.machine_mut(), true, clock::now_ns) {
            self.reporter.tell(&NodeReport::from(trouble));
        }
        if let Consumed::Output(_, output) = consumed {
            self.outputs += 1;
            if let OutputOperation::Console(bytes) = output {
                self.show(&bytes);
            }
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

    /// `offset` is where in the present log the replay is.
    fn tell_progress(&mut self, count: InstructionCount, offset: u64) {
        if let Some(mips) = self.progress.due(clock::now_ns(), count.0) {
            let (instruction_count, entries) = (count.0, self.entries);
            let (before, all) = self.bytes;
            let percent = ((before + offset) * 100).checked_div(all).unwrap_or(0).min(100);
            self.reporter.tell(&NodeReport::Replaying { instruction_count, mips, entries, percent });
        }
    }

    /// What it came to; `None` if there was nothing to replay.
    fn result(self, took_ns: u64) -> Option<Replayed> {
        let mut machine = self.replayer?.into_machine();
        Some(Replayed {
            entries: self.entries,
            instruction_count: machine.instruction_count().0,
            outputs: self.outputs,
            digests_checked: self.digests_checked,
            state_digest: machine.digest().to_string(),
            seconds: Duration::from_nanos(took_ns).as_secs_f64(),
            guest_seconds: Duration::from_nanos(machine.last_ticks().saturating_mul(1_000_000_000 / TIMEBASE_HZ))
                .as_secs_f64(),
            ending: self.ending.to_string(),
        })
    }
}
