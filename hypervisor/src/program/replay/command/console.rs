//! `ft-replay console`.

use super::super::length::Length;
use super::bar::Bar;
use super::{JobOptions, LogOptions, complain, guest_seconds, resolve, told};
use crate::node::io::console_text::ConsoleText;
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::recording::{Observer, Position, PositionRange, RecordingError, Seeker, Span, Step, scan};
use clap::Args;
use ft::replay::Consumed;
use serde::Serialize;
use std::ops::ControlFlow;
use vm::{Machine, OutputOperation};

/// Options of `ft-replay console`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// From where to where, as in 12M..15M; without it, all
    #[arg(value_name = "FROM..TO", default_value = "..", conflicts_with = "at")]
    range: PositionRange,
    /// Up to this moment
    #[arg(long, value_name = "POSITION")]
    at: Option<Position>,
    /// Show the instruction count beside each line
    #[arg(long)]
    counts: bool,
    /// Write it as an asciicast (version 2) with the times of the guest's clock, for asciinema
    #[arg(long, conflicts_with_all = ["json", "counts"])]
    asciicast: bool,
    #[command(flatten)]
    jobs: JobOptions,
}

/// What the guest wrote at once.
struct Written {
    count: u64,
    output: u64,
    ticks: u64,
    bytes: Vec<u8>,
}

/// Gathers the console of a piece.
struct Gather(Vec<Written>);

impl Observer for Gather {
    fn begin(&mut self, _: &mut Machine) {}

    fn step(&mut self, step: &Step, machine: &mut Machine) {
        if let Consumed::Output(id, OutputOperation::Console(bytes)) = &step.consumed {
            let (count, ticks) = (step.entry.count.0, machine.last_ticks());
            self.0.push(Written { count, output: id.0, ticks, bytes: bytes.clone() });
        }
    }

    fn end(&mut self, _: &mut Machine) {}
}

#[derive(Serialize)]
struct Shown {
    event: &'static str,
    instruction_count: u64,
    output: u64,
    guest_seconds: f64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

#[derive(Serialize)]
struct CastHead {
    version: u8,
    width: u16,
    height: u16,
    title: String,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let to = self.at.as_ref().unwrap_or(&self.range.to);
        let (from, to) = (resolve(&recording, &self.range.from)?, resolve(&recording, to)?);
        let seeker = Seeker::new(&recording);
        let paths = recording.parts().iter().map(|part| part.path().to_owned()).collect();
        let bar = Bar::new(Length::of(paths), self.log.json);
        let mut lines = self.log.lines();
        if self.asciicast {
            let title = format!("console of {}", recording.parts()[0].header().vm);
            lines.json(&CastHead { version: 2, width: 80, height: 24, title })?;
        }
        let (mut text, mut is_line_start) = (ConsoleText::default(), true);
        let span = Span { from, to, is_backwards: false };
        let jobs = self.jobs.number(&recording);
        let scanned = scan(
            &seeker,
            span,
            jobs,
            &bar,
            || Gather(Vec::new()),
            |Gather(written)| {
                bar.suspend(|| -> Result<(), Failure> {
                    for written in written {
                        self.show(&written, &mut text, &mut is_line_start, &mut lines)?;
                    }
                    Ok(lines.flush()?)
                })?;
                Ok::<_, ConsoleError>(ControlFlow::Continue(()))
            },
        );
        complain(&seeker);
        scanned.map_err(|error| match error {
            ConsoleError::Recording(error) => told(error),
            ConsoleError::Output(error) => error,
        })?;
        if self.asciicast
            && let Some(piece) = text.finish()
        {
            lines.json(&(0.0, "o", piece.text))?;
        }
        Ok(lines.flush()?)
    }

    fn show(
        &self,
        written: &Written,
        text: &mut ConsoleText,
        is_line_start: &mut bool,
        lines: &mut super::Lines,
    ) -> Result<(), Failure> {
        let Written { count, output, ticks, bytes } = written;
        if self.asciicast {
            // What isn't whole yet comes with the next.
            if let Some(piece) = text.push(bytes) {
                lines.json(&(guest_seconds(*ticks), "o", piece.text))?;
            }
        } else if self.log.json {
            if let Some(piece) = text.push(bytes) {
                let (text, hex) = (piece.text, piece.hex);
                let (instruction_count, guest_seconds) = (*count, guest_seconds(*ticks));
                lines.json(&Shown {
                    event: "console",
                    instruction_count,
                    output: *output,
                    guest_seconds,
                    text,
                    hex,
                })?;
            }
        } else if self.counts {
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                if *is_line_start {
                    lines.bytes(format!("{:>16}  ", Grouped(*count).to_string()).as_bytes())?;
                }
                lines.bytes(line)?;
                *is_line_start = line.ends_with(b"\n");
            }
        } else {
            lines.bytes(bytes)?;
        }
        Ok(())
    }
}

/// Why the console isn't shown to its end.
enum ConsoleError {
    Recording(RecordingError),
    Output(Failure),
}

impl From<RecordingError> for ConsoleError {
    fn from(error: RecordingError) -> Self {
        Self::Recording(error)
    }
}

impl From<Failure> for ConsoleError {
    fn from(error: Failure) -> Self {
        Self::Output(error)
    }
}
