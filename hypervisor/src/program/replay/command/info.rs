//! `ft-replay info`.

use super::{LogOptions, complain, told};
use crate::os::report::{Grouped, Tenths};
use crate::program::Failure;
use crate::program::cli::interrupt;
use crate::recording::marks::{Mark, Marks};
use crate::recording::{Recording, Seeker};
use clap::Args;
use serde::Serialize;
use std::fs;

/// Options of `ft-replay info`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
}

/// What a recording is.
#[derive(Serialize)]
struct Info {
    event: &'static str,
    vm: String,
    generation: u64,
    format_version: u32,
    behaviour_version: u32,
    guest: String,
    image_sha256: String,
    ram_bytes: u64,
    disk_bytes: u64,
    begins_at_reset: bool,
    first_entry: u64,
    end_entry: u64,
    first_instruction: u64,
    last_instruction: u64,
    guest_seconds: f64,
    last_packet: u64,
    next_output: u64,
    ending: String,
    logs: Vec<Log>,
    skipped: Vec<String>,
    /// The most steps that a seek to any moment replays.
    longest_seek: u64,
    marks: Vec<Mark>,
}

/// One log of the recording.
#[derive(Serialize)]
struct Log {
    path: String,
    bytes: u64,
    first_entry: u64,
    index: Option<IndexInfo>,
}

#[derive(Serialize)]
struct IndexInfo {
    path: String,
    bytes: u64,
    snapshots: usize,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let seeker = Seeker::new(&recording);
        complain(&seeker);
        let info = gather(&recording, &seeker)?;
        let mut lines = self.log.lines();
        if lines.is_json() {
            lines.json(&info)?;
        } else {
            lines.bytes(text(&info).as_bytes())?;
        }
        Ok(lines.flush()?)
    }
}

fn gather(recording: &Recording, seeker: &Seeker<'_>) -> Result<Info, Failure> {
    let first = &recording.parts()[0];
    let header = first.header();
    // Where seeks can begin, in instructions.
    let mut anchors = Vec::new();
    for number in 0..recording.parts().len() {
        let records = seeker.index(number).map_or(&[][..], |index| index.records());
        anchors.extend(records.iter().map(|record| record.count.0));
    }
    let mut entries = recording.entries().map_err(told)?;
    let mut first_instruction = None;
    let mut part = None;
    let first_entry = entries.next_seq().0;
    let failure = loop {
        interrupt::check()?;
        match entries.next_entry() {
            Ok(Some((_, entry))) => {
                first_instruction.get_or_insert(entry.count.0);
                if part != Some(entries.part_number()) {
                    part = Some(entries.part_number());
                    anchors.push(entry.count.0);
                }
            }
            Ok(None) => break None,
            // What comes before can be used.
            Err(error) => break Some(error.to_string()),
        }
    };
    let begins_at_reset = first_entry == 0;
    let place = entries.place();
    let last_instruction = place.context.count;
    if begins_at_reset {
        anchors.push(0);
    }
    anchors.push(last_instruction);
    anchors.sort_unstable();
    let ending = failure.or_else(|| entries.ending().map(ToString::to_string)).unwrap_or_default();
    let logs = recording.parts().iter().enumerate().map(|(number, part)| Log {
        path: part.path().display().to_string(),
        bytes: fs::metadata(part.path()).map_or(0, |metadata| metadata.len()),
        first_entry: part.begin().cursor.seq().0,
        index: seeker.index(number).map(|index| IndexInfo {
            path: index.path().display().to_string(),
            bytes: index.bytes(),
            snapshots: index.records().len(),
        }),
    });
    Ok(Info {
        event: "info",
        vm: header.vm.to_string(),
        generation: place.generation.0,
        format_version: first.version(),
        behaviour_version: header.behaviour.0,
        guest: header.image_name.clone(),
        image_sha256: header.image_digest.to_string(),
        ram_bytes: header.config.ram_bytes,
        disk_bytes: header.config.disk_bytes,
        begins_at_reset,
        first_entry,
        end_entry: entries.next_seq().0,
        first_instruction: if begins_at_reset { 0 } else { first_instruction.unwrap_or(0) },
        last_instruction,
        guest_seconds: super::guest_seconds(place.context.ticks),
        last_packet: place.context.packet,
        next_output: place.context.output,
        ending,
        logs: logs.collect(),
        skipped: recording.skipped().to_vec(),
        longest_seek: anchors.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
        marks: Marks::of(recording)?.all().to_vec(),
    })
}

fn text(info: &Info) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<14} {value}\n"));
    line("VM", format!("{}, generation {}", info.vm, info.generation));
    let disk = if info.disk_bytes == 0 { "no disk".into() } else { format!("{} MiB of disk", info.disk_bytes >> 20) };
    line("guest", format!("{}, {} MiB of RAM, {disk}", info.guest, info.ram_bytes >> 20));
    line("image", format!("SHA-256 {}", info.image_sha256));
    line("format", format!("version {}, machine behaviour {}", info.format_version, info.behaviour_version));
    let from = if info.begins_at_reset { "the guest's reset" } else { "a snapshot" };
    let (first, last) = (Grouped(info.first_instruction), Grouped(info.last_instruction));
    line("instructions", format!("{first} to {last}, from {from} on"));
    line("entries", format!("{} to {}", Grouped(info.first_entry), Grouped(info.end_entry)));
    line("guest's clock", format!("+{} s at the end", Tenths(info.guest_seconds)));
    line("numbers", format!("last packet {}, next output {}", Grouped(info.last_packet), Grouped(info.next_output)));
    line("ending", info.ending.clone());
    for log in &info.logs {
        line("log", format!("{}, {} bytes, from entry {}", log.path, Grouped(log.bytes), Grouped(log.first_entry)));
        line(
            "  index",
            match &log.index {
                Some(index) => {
                    let (count, mib) = (Grouped(index.snapshots as u64), Grouped(index.bytes >> 20));
                    format!("{}, {count} snapshots, {mib} MiB", index.path)
                }
                None => "none; `ft-replay index` makes one".into(),
            },
        );
    }
    info.skipped.iter().for_each(|skipped| line("left out", skipped.clone()));
    line("longest seek", format!("replays {} steps", Grouped(info.longest_seek)));
    for mark in &info.marks {
        line("mark", format!("{} at instruction {}", mark.name, Grouped(mark.instruction_count)));
    }
    text
}
