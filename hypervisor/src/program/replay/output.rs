//! Standard output of `ft-replay`: the guest's console, the list of entries, and JSON. Unlike that
//! of a live VM it may block, loses nothing, and its errors end the program.

use crate::node::io::console_filter::ConsoleFilter;
use crate::node::io::console_text::ConsoleText;
use crate::node::reports::NodeReport;
use crate::os::clock;
use crate::os::report::{self, Reporter};
use crate::program::cli::interrupt;
use crate::program::cli::stdout::StdoutError;
use serde::Serialize;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Stdout, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the guest's console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConsoleChoice {
    /// To standard output, as the guest wrote it.
    Raw,
    /// To standard output, without what a terminal answers.
    Filtered,
    /// Nowhere.
    Nowhere,
    /// To this file, as the guest wrote it.
    File(PathBuf),
}

impl FromStr for ConsoleChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "raw" => Self::Raw,
            "filtered" => Self::Filtered,
            "none" => Self::Nowhere,
            path => Self::File(path.into()),
        })
    }
}

/// Why output can't be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// Standard output takes no more.
    #[error(transparent)]
    Stdout(#[from] StdoutError),
    /// The file for the console can't be written.
    #[error("can't write the console to {}: {source}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for the console is the log that is replayed.
    #[error("the console can't go to {}, which is the log that is replayed", .0.display())]
    IsLog(PathBuf),
}

impl OutputError {
    fn of_stdout(error: io::Error) -> Self {
        Self::Stdout(error.into())
    }
}

/// Writes the console, the reports and the list of entries.
#[derive(Debug)]
pub(super) struct Output {
    reporter: Reporter,
    stdout: Stdout,
    console: Console,
    filter: Option<ConsoleFilter>,
    text: ConsoleText,
}

#[derive(Debug)]
enum Console {
    Stdout,
    Nowhere,
    File(PathBuf, File),
}

impl Output {
    /// `logs` are the logs that are replayed.
    pub(super) fn new(
        reporter: Reporter,
        choice: Option<&ConsoleChoice>,
        logs: &[PathBuf],
    ) -> Result<Self, OutputError> {
        let stdout = io::stdout();
        let is_watched = stdout.is_terminal() && !reporter.is_json();
        let filter =
            (choice == Some(&ConsoleChoice::Filtered) || (choice.is_none() && is_watched)).then(ConsoleFilter::default);
        let console = match choice {
            Some(ConsoleChoice::Nowhere) => Console::Nowhere,
            Some(ConsoleChoice::File(path)) => Console::File(path.clone(), create(path, logs)?),
            Some(ConsoleChoice::Raw | ConsoleChoice::Filtered) | None => Console::Stdout,
        };
        Ok(Self { reporter, stdout, console, filter, text: ConsoleText::default() })
    }

    /// Shows what the guest wrote to its console.
    pub(super) fn show(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        let is_shown = matches!(self.console, Console::Stdout) && !self.reporter.is_json();
        let mut shown = Vec::new();
        let bytes = match &mut self.filter {
            Some(filter) => {
                filter.push(bytes, &mut shown);
                if is_shown {
                    interrupt::set_undo(filter.undo());
                }
                &shown
            }
            None => bytes,
        };
        if is_shown {
            report::console_shown(bytes);
        }
        self.put(bytes)
    }

    /// Writes the rest of the console, and restores the terminal.
    pub(super) fn finish_console(&mut self) -> Result<(), OutputError> {
        let mut rest = Vec::new();
        if let Some(filter) = &mut self.filter {
            filter.finish(&mut rest);
        }
        self.put(&rest)?;
        match self.text.finish() {
            Some(piece) => self.tell(&NodeReport::Console(piece)),
            None => Ok(()),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        match &mut self.console {
            Console::Nowhere => Ok(()),
            Console::File(path, file) => {
                file.write_all(bytes).map_err(|source| OutputError::File { path: path.clone(), source })
            }
            Console::Stdout if self.reporter.is_json() => match self.text.push(bytes) {
                Some(piece) => self.tell(&NodeReport::Console(piece)),
                None => Ok(()),
            },
            Console::Stdout => {
                let mut out = self.stdout.lock();
                out.write_all(bytes).and_then(|()| out.flush()).map_err(OutputError::of_stdout)
            }
        }
    }

    /// Reports on standard output with `--json`, otherwise on standard error.
    pub(super) fn tell(&mut self, report: &NodeReport) -> Result<(), OutputError> {
        if !self.reporter.is_json() {
            self.reporter.tell(report);
            return Ok(());
        }
        let line = self.reporter.json_line(clock::now_us(), report);
        let mut out = self.stdout.lock();
        out.write_all(&line).and_then(|()| out.flush()).map_err(OutputError::of_stdout)
    }

    /// Lets `write` write many lines to standard output.
    pub(super) fn list<E>(
        &mut self,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), OutputError>) -> Result<u64, E>,
    ) -> Result<u64, E>
    where
        E: From<OutputError>,
    {
        let mut out = io::BufWriter::with_capacity(64 << 10, self.stdout.lock());
        let listed = write(&mut |line| out.write_all(line).map_err(OutputError::of_stdout))?;
        out.flush().map_err(OutputError::of_stdout)?;
        Ok(listed)
    }
}

/// One JSON object as a line.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain structs with string keys");
    line.push(b'\n');
    line
}

/// Opens the file for the console, which is emptied, unless it is one of `logs`.
fn create(path: &Path, logs: &[PathBuf]) -> Result<File, OutputError> {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let console = identity(path);
    if console.is_some() && logs.iter().any(|log| identity(log) == console) {
        return Err(OutputError::IsLog(path.into()));
    }
    File::create(path).map_err(|source| OutputError::File { path: path.into(), source })
}
