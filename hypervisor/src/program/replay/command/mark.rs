//! `ft-replay mark`.

use super::super::length::Length;
use super::bar::Bar;
use super::{LogOptions, complain, resolve, told};
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::recording::marks::{Mark, Marks};
use crate::recording::{Position, Seeker};
use clap::{Args, Subcommand};
use serde::Serialize;

/// Options of `ft-replay mark`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Give the moment at POSITION a name
    Add {
        /// The name: letters, digits, `-`, `_` and `.`, a letter first
        name: String,
        /// The moment
        #[arg(value_name = "POSITION", allow_hyphen_values = true)]
        position: Position,
    },
    /// Remove a name
    Remove {
        /// The name
        name: String,
    },
}

#[derive(Serialize)]
struct Listed<'a> {
    event: &'static str,
    #[serde(flatten)]
    mark: &'a Mark,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let mut marks = Marks::of(&recording)?;
        match &self.action {
            None => {}
            Some(Action::Remove { name }) => marks.remove(name)?,
            Some(Action::Add { name, position }) => {
                let target = resolve(&recording, position)?;
                let seeker = Seeker::new(&recording);
                let moment = seeker.seek(target, &Bar::new(Length::default(), self.log.json)).map_err(told)?.moment();
                complain(&seeker);
                marks.add(name, moment)?;
            }
        }
        let mut lines = self.log.lines();
        for mark in marks.all() {
            let (count, entry) = (Grouped(mark.instruction_count), Grouped(mark.entry));
            let text = format_args!("{:<20} instruction {count:>16}  entry {entry:>12}", mark.name);
            lines.put(&Listed { event: "mark", mark }, text)?;
        }
        Ok(lines.flush()?)
    }
}
