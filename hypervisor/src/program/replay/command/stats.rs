//! `ft-replay stats`.

use super::{LogOptions, told};
use crate::os::report::{Grouped, Tenths};
use crate::program::Failure;
use crate::program::cli::interrupt;
use clap::Args;
use ft::divergence::entry_name;
use logchannel::codec::EntryEncoder;
use serde::Serialize;
use std::collections::BTreeMap;
use vm::TIMEBASE_HZ;

/// The most rows of the table over time; then each gets twice the time.
const ROWS_MAX: usize = 40;

/// The time of a row at first, in ticks of the guest's clock: a tenth of a second.
const ROW_TICKS: u64 = TIMEBASE_HZ / 10;

/// Options of `ft-replay stats`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
}

/// Entries of a kind, or in a time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Tally {
    entries: u64,
    /// As they are encoded in the log.
    bytes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

/// Tallies over the guest's clock.
#[derive(Debug)]
struct Rates {
    row_ticks: u64,
    rows: BTreeMap<u64, Row>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    tally: Tally,
    packets: u64,
    outputs: u64,
    last_count: u64,
}

impl Rates {
    fn add(&mut self, ticks: u64, count: u64, tally: Tally, kind: &str) {
        let row = self.rows.entry(ticks / self.row_ticks).or_default();
        row.tally.add(tally);
        row.packets += u64::from(kind == "packet");
        row.outputs += u64::from(kind == "output");
        row.last_count = count;
        while self.rows.len() > ROWS_MAX {
            self.row_ticks *= 2;
            let mut wider: BTreeMap<u64, Row> = BTreeMap::new();
            for (number, row) in &self.rows {
                let into = wider.entry(number / 2).or_default();
                into.tally.add(row.tally);
                into.packets += row.packets;
                into.outputs += row.outputs;
                into.last_count = row.last_count;
            }
            self.rows = wider;
        }
    }
}

#[derive(Serialize)]
struct KindLine<'a> {
    event: &'static str,
    kind: &'a str,
    #[serde(flatten)]
    tally: Tally,
}

#[derive(Serialize)]
struct RateLine {
    event: &'static str,
    from_seconds: f64,
    to_seconds: f64,
    entries: u64,
    bytes: u64,
    packets: u64,
    outputs: u64,
    instructions: u64,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let mut kinds: BTreeMap<&'static str, Tally> = BTreeMap::new();
        let mut rates = Rates { row_ticks: ROW_TICKS, rows: BTreeMap::new() };
        let mut entries = recording.entries().map_err(told)?;
        let (mut encoder, mut encoded, mut part) = (EntryEncoder::new(), Vec::new(), 0);
        let mut first_count = None;
        while let Some((_, entry)) = entries.next_entry().map_err(told)? {
            interrupt::check()?;
            if part != entries.part_number() {
                (encoder, part) = (EntryEncoder::new(), entries.part_number());
            }
            encoded.clear();
            encoder.encode(&entry, &mut encoded);
            let tally = Tally { entries: 1, bytes: encoded.len() as u64 };
            let kind = entry_name(&entry.body);
            kinds.entry(kind).or_default().add(tally);
            rates.add(entries.place().context.ticks, entry.count.0, tally, kind);
            first_count.get_or_insert(if entries.next_seq().0 == 1 { 0 } else { entry.count.0 });
        }
        let mut lines = self.log.lines();
        if !self.log.json {
            lines.text(format_args!("{:<18} {:>14} {:>16}", "kind", "entries", "bytes"))?;
        }
        let mut all = Tally::default();
        for (kind, tally) in kinds {
            all.add(tally);
            let text = format_args!("{kind:<18} {:>14} {:>16}", Grouped(tally.entries), Grouped(tally.bytes));
            lines.put(&KindLine { event: "kind", kind, tally }, text)?;
        }
        let text = format_args!("{:<18} {:>14} {:>16}", "all", Grouped(all.entries), Grouped(all.bytes));
        lines.put(&KindLine { event: "kind", kind: "all", tally: all }, text)?;
        self.put_rates(&rates, first_count.unwrap_or(0), &mut lines)?;
        Ok(lines.flush()?)
    }

    fn put_rates(&self, rates: &Rates, first_count: u64, lines: &mut super::Lines) -> Result<(), Failure> {
        if !self.log.json {
            lines.text(format_args!(
                "\n{:>12} {:>12} {:>12} {:>10} {:>10} {:>16}",
                "guest's time", "entries", "bytes", "packets", "outputs", "instructions"
            ))?;
        }
        let mut before = first_count;
        for (number, row) in &rates.rows {
            let from = super::guest_seconds(number.saturating_mul(rates.row_ticks));
            let to = super::guest_seconds(number.saturating_add(1).saturating_mul(rates.row_ticks));
            let instructions = row.last_count.saturating_sub(before);
            before = row.last_count;
            let line = RateLine {
                event: "rate",
                from_seconds: from,
                to_seconds: to,
                entries: row.tally.entries,
                bytes: row.tally.bytes,
                packets: row.packets,
                outputs: row.outputs,
                instructions,
            };
            let text = format_args!(
                "{:>12} {:>12} {:>12} {:>10} {:>10} {:>16}",
                format!("+{}s", Tenths(from)),
                Grouped(line.entries),
                Grouped(line.bytes),
                Grouped(line.packets),
                Grouped(line.outputs),
                Grouped(instructions)
            );
            lines.put(&line, text)?;
        }
        Ok(())
    }
}
