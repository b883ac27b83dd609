//! `ft-replay entries`.

use super::super::listing;
use super::{LogOptions, complain, resolve, told};
use crate::program::Failure;
use crate::program::cli::interrupt;
use crate::recording::{PositionRange, Seeker, Target};
use clap::Args;

/// Options of `ft-replay entries`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// From where to where, as in 12M..15M or packet:3..; without it, all
    #[arg(value_name = "FROM..TO", default_value = "..")]
    range: PositionRange,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let (from, to) = (resolve(&recording, &self.range.from)?, resolve(&recording, &self.range.to)?);
        let seeker = Seeker::new(&recording);
        complain(&seeker);
        let mut entries = seeker.entries_before(from).map_err(told)?;
        let mut lines = self.log.lines();
        if !lines.is_json() {
            lines.bytes(listing::HEAD.as_bytes())?;
        }
        let mut is_inside = from == Target::Start;
        while let Some((seq, entry)) = entries.next_entry().map_err(told)? {
            interrupt::check()?;
            is_inside |= from.stops_before(seq, &entry);
            if to != Target::End && to.stops_before(seq, &entry) {
                break;
            }
            if is_inside {
                lines.bytes(&listing::line(seq.0, &entry, self.log.json))?;
            }
        }
        Ok(lines.flush()?)
    }
}
