//! What a search finds while a piece of a recording is replayed.

use super::packets::{Headers, PacketFilter};
use super::search::TrapFilter;
use super::view::cause_name;
use crate::os::report::Grouped;
use crate::recording::{Observer, Step};
use ft::replay::Consumed;
use logchannel::entry::EntryBody;
use regex::bytes::Regex;
use serde::Serialize;
use std::fmt;
use vm::{Event, Hit, HitKind, Machine, OutputOperation, Probe, Writer};

/// The longest line of the console that is looked at as one, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What is looked for.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Console(Regex),
    Packets(PacketFilter),
    Probed {
        probe: Probe,
        trap: Option<TrapFilter>,
        /// Address and value that the memory must have, and its length.
        becomes: Option<(u64, u64, u64)>,
    },
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub(super) enum Found {
    Line {
        #[serde(skip)]
        count: u64,
        output: u64,
        text: String,
    },
    Packet {
        #[serde(skip)]
        count: u64,
        /// How the position of this packet is written.
        position: String,
        packet: String,
    },
    Instruction {
        #[serde(skip)]
        count: u64,
        pc: String,
    },
    Trap {
        #[serde(skip)]
        count: u64,
        pc: String,
        cause: String,
        name: String,
        value: String,
    },
    Write {
        #[serde(skip)]
        count: u64,
        pc: String,
        writer: &'static str,
        address: String,
        length: u64,
        /// The first 8 bytes written, as a number.
        value: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        packet: Option<u64>,
    },
}

impl Found {
    pub(super) const fn count(&self) -> u64 {
        match self {
            Self::Line { count, .. }
            | Self::Packet { count, .. }
            | Self::Instruction { count, .. }
            | Self::Trap { count, .. }
            | Self::Write { count, .. } => *count,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { output, text, .. } => write!(f, "output:{output:<8} {text}"),
            Self::Packet { position, packet, .. } => write!(f, "{position:<15} {packet}"),
            Self::Instruction { pc, .. } => write!(f, "pc {pc}"),
            Self::Trap { pc, cause, name, value, .. } => write!(f, "pc {pc}  {name} ({cause}), value {value}"),
            Self::Write { pc, writer, address, length, value, packet, .. } => {
                write!(f, "pc {pc}  {writer}")?;
                if let Some(packet) = packet {
                    write!(f, " packet:{packet}")?;
                }
                write!(f, " writes {} bytes at {address}: {value}", Grouped(*length))
            }
        }
    }
}

/// Console bytes with their place.
#[derive(Debug)]
struct Chunk {
    count: u64,
    output: u64,
    bytes: Vec<u8>,
}

/// Puts lines of the console together over the ends of pieces.
#[derive(Debug, Default)]
pub(super) struct ConsoleLines {
    line: Vec<u8>,
    /// For each chunk of the line: where in it, and in the recording, it begins.
    starts: Vec<(usize, u64, u64)>,
}

impl ConsoleLines {
    fn push(&mut self, chunk: &Chunk, regex: &Regex, hits: &mut Vec<Found>) {
        for part in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            self.starts.push((self.line.len(), chunk.count, chunk.output));
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() > LINE_BYTES_MAX {
                hits.extend(self.end_line(regex));
            }
        }
    }

    fn end_line(&mut self, regex: &Regex) -> Option<Found> {
        let line = std::mem::take(&mut self.line);
        let starts = std::mem::take(&mut self.starts);
        let text = line.trim_ascii_end();
        let found = regex.find(text)?;
        let (_, count, output) = *starts.iter().rev().find(|(at, ..)| *at <= found.start())?;
        Some(Found::Line { count, output, text: text.escape_ascii().to_string() })
    }

    /// The last line, which has no end.
    pub(super) fn finish(mut self, kind: &Kind) -> Vec<Found> {
        match kind {
            Kind::Console(regex) if !self.line.is_empty() => self.end_line(regex).into_iter().collect(),
            Kind::Console(_) | Kind::Packets(_) | Kind::Probed { .. } => Vec::new(),
        }
    }
}

/// Watches a piece.
#[derive(Debug)]
pub(super) struct Finder {
    kind: Kind,
    hits: Vec<Found>,
    chunks: Vec<Chunk>,
    /// Hits that were too many at once.
    pub(super) lost: u64,
}

impl Finder {
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind, hits: Vec::new(), chunks: Vec::new(), lost: 0 }
    }

    /// What was found, in order.
    pub(super) fn into_hits(mut self, lines: &mut ConsoleLines) -> Vec<Found> {
        if let Kind::Console(regex) = &self.kind {
            for chunk in &self.chunks {
                lines.push(chunk, regex, &mut self.hits);
            }
        }
        self.hits
    }

    fn take_hits(&mut self, machine: &mut Machine, packet: Option<u64>) {
        if !machine.has_hits() {
            return;
        }
        let (hits, lost) = machine.take_hits();
        self.lost += lost;
        let Kind::Probed { trap, becomes, .. } = &self.kind else { return };
        for Hit { count, pc, what } in hits {
            let pc = format!("{pc:#x}");
            match what {
                HitKind::Pc => self.hits.push(Found::Instruction { count, pc }),
                HitKind::Trap { cause, .. } if !trap.is_some_and(|trap| trap.matches(cause)) => {}
                HitKind::Trap { cause, value } => {
                    let (name, cause, value) = (cause_name(cause), format!("{cause:#x}"), format!("{value:#x}"));
                    self.hits.push(Found::Trap { count, pc, cause, name, value });
                }
                HitKind::Write { .. } if !is_wanted(what, *becomes) => {}
                HitKind::Write { writer, address, length, value } => self.hits.push(Found::Write {
                    count,
                    pc,
                    writer: writer_name(writer),
                    address: format!("{address:#x}"),
                    length,
                    value: format!("{value:#x}"),
                    packet: packet.filter(|_| writer == Writer::Event),
                }),
            }
        }
    }
}

/// `true` if the write gives the memory the value that is looked for, as far as it is known.
fn is_wanted(what: HitKind, becomes: Option<(u64, u64, u64)>) -> bool {
    let (HitKind::Write { address, length, value, .. }, Some((wanted_at, wanted, bytes))) = (what, becomes) else {
        return true;
    };
    let Some(offset) = wanted_at.checked_sub(address).filter(|offset| *offset < 8) else { return false };
    let known = length.min(8) - offset.min(length.min(8));
    let bytes = bytes.min(8);
    let mask = if bytes == 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
    known >= bytes && (value >> (8 * offset)) & mask == wanted & mask
}

const fn writer_name(writer: Writer) -> &'static str {
    match writer {
        Writer::Instruction => "instruction",
        Writer::PageTableMark => "address translation",
        Writer::Firmware => "firmware",
        Writer::Device => "device",
        Writer::Event => "event",
    }
}

impl Observer for Finder {
    fn begin(&mut self, machine: &mut Machine) {
        if let Kind::Probed { probe, .. } = &self.kind {
            machine.set_probe(Some(probe.clone()));
        }
    }

    fn step(&mut self, step: &Step, machine: &mut Machine) {
        let count = step.entry.count.0;
        let packet = if let EntryBody::Event(Event::Packet { number, packet }) = &step.entry.body {
            Some((*number, packet))
        } else {
            None
        };
        match &self.kind {
            Kind::Console(_) => {
                if let Consumed::Output(id, OutputOperation::Console(bytes)) = &step.consumed {
                    self.chunks.push(Chunk { count, output: id.0, bytes: bytes.clone() });
                }
            }
            Kind::Packets(filter) => {
                if let Some((number, packet)) = packet
                    && filter.matches(packet, false)
                {
                    let (position, packet) = (format!("packet:{number}"), format!("in  {}", Headers::of(packet)));
                    self.hits.push(Found::Packet { count, position, packet });
                }
                if let Consumed::Output(id, OutputOperation::Packet(packet)) = &step.consumed
                    && filter.matches(packet, true)
                {
                    let (position, packet) = (format!("output:{}", id.0), format!("out {}", Headers::of(packet)));
                    self.hits.push(Found::Packet { count, position, packet });
                }
            }
            Kind::Probed { .. } => self.take_hits(machine, packet.map(|(number, _)| number)),
        }
    }

    fn end(&mut self, machine: &mut Machine) {
        self.take_hits(machine, None);
        machine.set_probe(None);
    }
}
