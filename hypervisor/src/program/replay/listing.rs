//! The list of a log's entries.

use super::output::Output;
use super::output::{OutputError, json_line};
use super::{Failure, Options, in_file, open};
use crate::node::io::console_text::{Piece, hex};
use crate::os::clock::WallTime;
use crate::os::report::Grouped;
use crate::program::cli::exit;
use crate::program::cli::interrupt;
use crate::program::cli::interrupt::Interrupted;
use crate::recording::{Stretch, continuations};
use ft::divergence::entry_name;
use logchannel::entry::{EntryBody, LogEntry};
use logchannel::file::LogFileError;
use serde::Serialize;
use std::path::PathBuf;
use vm::Event;

/// The head of the table.
pub(super) const HEAD: &str = "       seq      instruction  entry          detail\n";

/// An entry as JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "entry")]
struct Listed {
    seq: u64,
    instruction_count: u64,
    #[serde(flatten)]
    body: Body,
}

/// An entry's body as JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
enum Body {
    ClockRead {
        ticks: u64,
    },
    Entropy {
        bits: u16,
    },
    TimerInterrupt,
    Packet {
        number: u64,
        /// The Ethernet frame, in hexadecimal.
        hex: String,
    },
    ConsoleInput(Piece),
    WallClock {
        /// Nanoseconds of UTC since 1970.
        ns: u64,
    },
    Alarm,
    RandomBytes {
        /// In hexadecimal.
        hex: String,
    },
    Output {
        id: u64,
        digest: String,
    },
    Progress,
    Digest {
        digest: String,
    },
    /// A digest that covers only these pages of RAM and disk.
    PartDigest {
        first_page: u64,
        end_page: u64,
        digest: String,
    },
    Stopped {
        reason: String,
    },
    Generation {
        generation: u64,
    },
}

impl Body {
    fn of(body: &EntryBody) -> Self {
        match body {
            EntryBody::Event(Event::ClockRead { ticks }) => Self::ClockRead { ticks: *ticks },
            EntryBody::Event(Event::Entropy { bits }) => Self::Entropy { bits: *bits },
            EntryBody::Event(Event::TimerInterrupt) => Self::TimerInterrupt,
            EntryBody::Event(Event::Packet { number, packet }) => Self::Packet { number: *number, hex: hex(packet) },
            EntryBody::Event(Event::ConsoleInput { bytes }) => {
                Self::ConsoleInput(Piece::of(bytes).unwrap_or(Piece { text: String::new(), hex: None }))
            }
            EntryBody::Event(Event::WallClock { ns }) => Self::WallClock { ns: *ns },
            EntryBody::Event(Event::Alarm) => Self::Alarm,
            EntryBody::Event(Event::RandomBytes { bytes }) => Self::RandomBytes { hex: hex(bytes) },
            EntryBody::Output { id, digest } => Self::Output { id: id.0, digest: format!("{digest:016x}") },
            EntryBody::Progress => Self::Progress,
            EntryBody::Digest(digest) => Self::Digest { digest: digest.to_string() },
            EntryBody::PartDigest { pages, digest } => {
                Self::PartDigest { first_page: pages.first, end_page: pages.end, digest: digest.to_string() }
            }
            EntryBody::Stopped(reason) => Self::Stopped { reason: reason.to_string() },
            EntryBody::Generation(generation) => Self::Generation { generation: generation.0 },
        }
    }
}

/// Why a log isn't listed to its end.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Log(#[from] LogFileError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Lists the entries of all `logs`.
pub(super) fn list(logs: &[PathBuf], options: &Options, output: &mut Output) -> Result<(u8, String), Failure> {
    let mut entries = 0;
    let mut ending = String::new();
    for (index, (path, continuation)) in logs.iter().zip(continuations(logs)).enumerate() {
        let (_, log) = open(path, options)?.into_log().map_err(|error| in_file(path, error))?;
        let mut log = Stretch::new(log, continuation);
        let has_head = index == 0 && !options.json;
        let listed = output.list(|write| list_entries(&mut log, options.json, has_head, write));
        entries += listed.map_err(|error| match error {
            ListError::Output(error) => error.into(),
            ListError::Log(error) => in_file(path, error),
            ListError::Interrupted(interrupted) => interrupted.into(),
        })?;
        ending = log.log.ending().map_or_else(String::new, ToString::to_string);
    }
    Ok((exit::OK, format!("{} entries; the log is {ending}", Grouped(entries))))
}

/// How many entries there were.
fn list_entries(
    log: &mut Stretch,
    is_json: bool,
    has_head: bool,
    write: &mut dyn FnMut(&[u8]) -> Result<(), OutputError>,
) -> Result<u64, ListError> {
    if has_head {
        write(HEAD.as_bytes())?;
    }
    let first = log.log.next_seq();
    while let Some(entry) = log.next_entry()? {
        interrupt::check()?;
        let seq = log.log.next_seq().0 - 1;
        write(&line(seq, &entry, is_json))?;
    }
    Ok(log.log.next_seq().0 - first.0)
}

/// The line of an entry in the list, as JSON or for a person.
pub(super) fn line(seq: u64, entry: &LogEntry, is_json: bool) -> Vec<u8> {
    if is_json {
        return json_line(&Listed { seq, instruction_count: entry.count.0, body: Body::of(&entry.body) });
    }
    let (seq, count) = (Grouped(seq), Grouped(entry.count.0));
    format!("{seq:>10} {count:>16}  {}\n", describe(entry).trim_end()).into_bytes()
}

fn describe(entry: &LogEntry) -> String {
    let detail = match &entry.body {
        EntryBody::Event(Event::ClockRead { ticks }) => format!("{} ticks", Grouped(*ticks)),
        EntryBody::Event(Event::Entropy { bits }) => format!("{bits:#06x}"),
        EntryBody::Event(Event::Packet { number, packet }) => {
            format!("frame {}, {} bytes", Grouped(*number), Grouped(packet.len() as u64))
        }
        EntryBody::Event(Event::ConsoleInput { bytes }) => format!("\"{}\"", bytes.escape_ascii()),
        EntryBody::Event(Event::WallClock { ns }) => WallTime(ns / 1_000_000).to_string(),
        EntryBody::Event(Event::RandomBytes { bytes }) => format!("{} bytes", bytes.len()),
        EntryBody::Output { id, digest } => format!("{} digest {digest:016x}", Grouped(id.0)),
        EntryBody::Digest(digest) => digest.to_string(),
        EntryBody::PartDigest { pages, digest } => format!("{digest} with pages {} to {}", pages.first, pages.end - 1),
        EntryBody::Stopped(reason) => reason.to_string(),
        EntryBody::Generation(generation) => generation.to_string(),
        EntryBody::Event(Event::TimerInterrupt | Event::Alarm) | EntryBody::Progress => String::new(),
    };
    format!("{:<14} {detail}", entry_name(&entry.body))
}
