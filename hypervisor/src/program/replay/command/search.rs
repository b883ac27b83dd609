//! `ft-replay search`.

use super::super::length::Length;
use super::bar::Bar;
use super::finder::{Finder, Found, Kind};
use super::packets::PacketFilter;
use super::{JobOptions, Lines, LogOptions, complain, parse_address, resolve, told};
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::recording::{PositionRange, Recording, RecordingError, Seeker, Span, Target, scan};
use clap::{ArgGroup, Args};
use regex::bytes::Regex;
use serde::Serialize;
use std::ops::{ControlFlow, Range};
use vm::Probe;

/// The most bytes that one search for writes covers.
const WRITES_BYTES_MAX: u64 = 1 << 30;

/// Options of `ft-replay search`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("what").required(true).args(["console", "packet", "pc", "trap", "write"])))]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// From where to where, as in ..crash; without it, all
    #[arg(value_name = "FROM..TO", default_value = "..")]
    range: PositionRange,
    /// Lines of the console that match this regular expression
    #[arg(long, value_name = "REGEX")]
    console: Option<Regex>,
    /// Packets: words that must all hold, of in, out, ip, ip6, arp, icmp, tcp, udp, host ADDRESS,
    /// port N, all
    #[arg(long, value_name = "WORDS")]
    packet: Option<PacketFilter>,
    /// Executions of the instruction at this address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pc: Option<u64>,
    /// Exceptions and interrupts that are taken: all, exception, interrupt, page-fault, illegal, or
    /// a cause as in scause
    #[arg(long, value_name = "CAUSE", value_parser = TrapFilter::parse)]
    trap: Option<TrapFilter>,
    /// Writes to the memory at this address, by instructions, devices, packets, the firmware or
    /// address translation; virtual in the address space at the end of the range
    #[arg(long, value_name = "ADDRESS[,LENGTH]", value_parser = parse_memory)]
    write: Option<Memory>,
    /// The address of --write is a physical one
    #[arg(long, requires = "write")]
    physical: bool,
    /// Only writes after which the memory at --write's address has this value, in its LENGTH bytes,
    /// 8 at most
    #[arg(long, value_name = "VALUE", requires = "write", value_parser = parse_address)]
    becomes: Option<u64>,
    /// Show the first one only
    #[arg(long, conflicts_with = "last")]
    first: bool,
    /// Show the last one only, looked for from the end of the range backwards
    #[arg(long)]
    last: bool,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    jobs: JobOptions,
}

/// Which traps are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrapFilter {
    All,
    Exceptions,
    Interrupts,
    PageFaults,
    Cause(u64),
}

impl TrapFilter {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "all" => Self::All,
            "exception" => Self::Exceptions,
            "interrupt" => Self::Interrupts,
            "page-fault" => Self::PageFaults,
            "illegal" => Self::Cause(2),
            number => Self::Cause(parse_address(number).map_err(|_| {
                format!("`{number}` is no cause: all, exception, interrupt, page-fault, illegal, or a number")
            })?),
        })
    }

    pub(super) const fn matches(self, cause: u64) -> bool {
        match self {
            Self::All => true,
            Self::Exceptions => cause >> 63 == 0,
            Self::Interrupts => cause >> 63 == 1,
            Self::PageFaults => matches!(cause, 12 | 13 | 15),
            Self::Cause(wanted) => cause == wanted,
        }
    }
}

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    address: u64,
    length: u64,
}

fn parse_memory(text: &str) -> Result<Memory, String> {
    let (address, length) = text.split_once(',').unwrap_or((text, "8"));
    let memory = Memory { address: parse_address(address)?, length: parse_address(length)? };
    match memory.length {
        1..=WRITES_BYTES_MAX => Ok(memory),
        _ => Err(format!("a length is 1 to {WRITES_BYTES_MAX}")),
    }
}

/// A hit as JSON.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    instruction_count: u64,
    #[serde(flatten)]
    found: &'a Found,
}

/// Why a search isn't done to its end.
enum SearchError {
    Recording(RecordingError),
    Output(Failure),
}

impl From<RecordingError> for SearchError {
    fn from(error: RecordingError) -> Self {
        Self::Recording(error)
    }
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let (from, to) = (resolve(&recording, &self.range.from)?, resolve(&recording, &self.range.to)?);
        let seeker = Seeker::new(&recording);
        let paths = recording.parts().iter().map(|part| part.path().to_owned()).collect();
        let bar = Bar::new(Length::of(paths), self.log.json);
        let kind = self.kind(&seeker, to, &bar)?;
        // Lines of the console are put together from the front.
        let is_backwards = self.last && self.console.is_none();
        let span = Span { from, to, is_backwards };
        let searched = self.search(&seeker, span, &kind, &bar, &recording);
        complain(&seeker);
        let found = searched.map_err(|error| match error {
            SearchError::Recording(error) => told(error),
            SearchError::Output(error) => error,
        })?;
        drop(bar);
        if found == 0 && !self.log.json {
            tracing::warn!("nothing was found");
        }
        Ok(())
    }

    /// How many hits were shown.
    fn search(
        &self,
        seeker: &Seeker<'_>,
        span: Span,
        kind: &Kind,
        bar: &Bar,
        recording: &Recording,
    ) -> Result<usize, SearchError> {
        let limit = if self.first || self.last { 1 } else { self.limit };
        let mut lines = self.log.lines();
        let (mut shown, mut last, mut console) = (0, None, super::finder::ConsoleLines::default());
        let make = || Finder::new(kind.clone());
        scan(seeker, span, self.jobs.number(recording), bar, make, |finder| {
            let lost = finder.lost;
            let mut hits = finder.into_hits(&mut console);
            if lost > 0 {
                let reason = format!("{lost} hits were too many at once; name a smaller range, or --first");
                return Err(SearchError::Output(reason.into()));
            }
            if span.is_backwards {
                hits.reverse();
            }
            if self.last && !span.is_backwards {
                last = hits.pop().or(last.take());
                return Ok(ControlFlow::Continue(()));
            }
            hits.truncate(limit - shown);
            shown += hits.len();
            bar.suspend(|| hits.iter().try_for_each(|hit| show(hit, &mut lines)).and_then(|()| Ok(lines.flush()?)))
                .map_err(SearchError::Output)?;
            Ok(if shown >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let rest = console.finish(kind);
        for hit in last.into_iter().chain(rest).rev().take(if self.last { 1 } else { limit - shown }) {
            shown += 1;
            show(&hit, &mut lines).and_then(|()| Ok(lines.flush()?)).map_err(SearchError::Output)?;
        }
        Ok(shown)
    }

    fn kind(&self, seeker: &Seeker<'_>, to: Target, bar: &Bar) -> Result<Kind, Failure> {
        if let Some(regex) = &self.console {
            return Ok(Kind::Console(regex.clone()));
        }
        if let Some(filter) = &self.packet {
            return Ok(Kind::Packets(filter.clone()));
        }
        if let Some(pc) = self.pc {
            return Ok(Kind::Probed { probe: Probe { pcs: vec![pc], ..Probe::default() }, trap: None, becomes: None });
        }
        if self.trap.is_some() {
            let probe = Probe { traps: true, ..Probe::default() };
            return Ok(Kind::Probed { probe, trap: self.trap, becomes: None });
        }
        let memory = self.write.ok_or("nothing to search for")?;
        let range = self.physical_range(memory, seeker, to, bar)?;
        let becomes = self.becomes.map(|value| (range.start, value, range.end - range.start));
        Ok(Kind::Probed { probe: Probe { writes: Some(range), ..Probe::default() }, trap: None, becomes })
    }

    /// The physical addresses of --write.
    fn physical_range(
        &self,
        memory: Memory,
        seeker: &Seeker<'_>,
        to: Target,
        bar: &Bar,
    ) -> Result<Range<u64>, Failure> {
        let Memory { address, length } = memory;
        if self.physical {
            return Ok(address..address.saturating_add(length));
        }
        let replay = seeker.seek(to, bar).map_err(told)?;
        let machine = replay.machine();
        let unmapped =
            || format!("virtual address {address:#x} is not mapped at {to}; --physical takes a physical one");
        let start = machine.physical_address(address).ok_or_else(unmapped)?;
        let end = machine.physical_address(address.saturating_add(length - 1)).ok_or_else(unmapped)?;
        if end.wrapping_sub(start) != length - 1 {
            return Err("these virtual addresses are not together in memory; search for each page by itself".into());
        }
        Ok(start..end + 1)
    }
}

fn show(found: &Found, lines: &mut Lines) -> Result<(), Failure> {
    let line = Line { event: "found", instruction_count: found.count(), found };
    Ok(lines.put(&line, format_args!("{:>16}  {found}", Grouped(found.count())))?)
}
