//! `ft-replay index`.

use super::super::length::Length;
use super::bar::Bar;
use super::{LogOptions, parse_size, parse_steps, told};
use crate::os::clock;
use crate::os::report::{Grouped, Tenths};
use crate::program::Failure;
use crate::recording::index::{BuildError, IndexLimits, build};
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Options of `ft-replay index`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// Steps of the guest from one snapshot to the next: a seek replays at most so many
    #[arg(long, value_name = "STEPS", default_value = "100M", value_parser = parse_steps)]
    spacing: u64,
    /// The longest that the index may become, for each log; the spacing doubles when it is reached
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_size)]
    size: u64,
    /// Throw away the index that is there
    #[arg(long)]
    rebuild: bool,
}

/// What was made, for one log.
#[derive(Serialize)]
struct Made {
    event: &'static str,
    log: String,
    index: String,
    snapshots: usize,
    found: usize,
    bytes: u64,
    spacing: u64,
    is_full: bool,
    seconds: f64,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let paths = recording.parts().iter().map(|part| part.path().to_owned()).collect();
        let bar = Bar::new(Length::of(paths), self.log.json);
        let mut lines = self.log.lines();
        let limits = IndexLimits { spacing: self.spacing, bytes_max: self.size, rebuild: self.rebuild };
        for part in recording.parts() {
            let started_ns = clock::now_ns();
            let indexed = build(part, limits, &bar).map_err(|error| match error {
                BuildError::Recording(error) => told(error),
                BuildError::Index(error) => error.into(),
            })?;
            let made = Made {
                event: "indexed",
                log: part.path().display().to_string(),
                index: part.index_path().display().to_string(),
                snapshots: indexed.snapshots,
                found: indexed.found,
                bytes: indexed.bytes,
                spacing: indexed.spacing,
                is_full: indexed.is_full,
                seconds: Duration::from_nanos(clock::now_ns() - started_ns).as_secs_f64(),
            };
            let full =
                if made.is_full { "; it is full, and later moments are reached from the last of them" } else { "" };
            let text = format_args!(
                "{}: {} snapshots ({} were there), {} MiB, one every {} M steps, in {} s{full}",
                made.index,
                Grouped(made.snapshots as u64),
                Grouped(made.found as u64),
                Grouped(made.bytes >> 20),
                Grouped(made.spacing / 1_000_000),
                Tenths(made.seconds),
            );
            bar.suspend(|| lines.put(&made, text).and_then(|()| lines.flush()))?;
        }
        Ok(())
    }
}
