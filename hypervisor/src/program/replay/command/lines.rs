//! The result of a command on standard output: JSON lines, or text.

use crate::program::cli::stdout::StdoutError;
use serde::Serialize;
use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};

/// Writes lines to standard output, which may block, and whose reader may go.
#[derive(Debug)]
pub(super) struct Lines {
    out: BufWriter<Stdout>,
    is_json: bool,
}

impl Lines {
    pub(super) fn new(is_json: bool) -> Self {
        Self { out: BufWriter::with_capacity(64 << 10, io::stdout()), is_json }
    }

    /// `true` if the result is told as JSON.
    pub(super) const fn is_json(&self) -> bool {
        self.is_json
    }

    /// Writes `value` as JSON, or `text`, whichever was asked for; each as a line.
    pub(super) fn put(&mut self, value: &impl Serialize, text: fmt::Arguments<'_>) -> Result<(), StdoutError> {
        if self.is_json { self.json(value) } else { self.text(text) }
    }

    /// Writes a JSON line.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), StdoutError> {
        let line = serde_json::to_vec(value).expect("plain structs with string keys");
        self.out.write_all(&line)?;
        Ok(self.out.write_all(b"\n")?)
    }

    /// Writes a line of text.
    pub(super) fn text(&mut self, text: fmt::Arguments<'_>) -> Result<(), StdoutError> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Writes bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), StdoutError> {
        Ok(self.out.write_all(bytes)?)
    }

    /// Writes what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), StdoutError> {
        Ok(self.out.flush()?)
    }
}
