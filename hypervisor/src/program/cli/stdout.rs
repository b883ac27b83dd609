//! Standard output of programs that may wait for its reader. `println!` would panic when the reader
//! has gone.

use super::exit;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints a line to standard output, as `println!` does, but returns an error instead of panicking.
macro_rules! out {
    ($($format:tt)*) => {
        $crate::program::cli::stdout::print(format_args!("{}\n", format_args!($($format)*)))
    };
}

/// Prints a line to standard error, as `eprintln!` does, but ignores a reader that has gone.
macro_rules! note {
    ($($format:tt)*) => {
        $crate::program::cli::stdout::print_note(format_args!($($format)*))
    };
}

pub(in crate::program) use {note, out};

/// Why standard output takes no more.
#[derive(Debug, thiserror::Error)]
pub(in crate::program) enum StdoutError {
    /// Its reader has gone, as behind `| head`: that needs no message.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    /// Another reason.
    #[error("can't write to standard output: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for StdoutError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::ReaderGone } else { Self::Failed(error) }
    }
}

/// Writes to standard output; use it as [`out!`].
pub(in crate::program) fn print(text: fmt::Arguments<'_>) -> Result<(), StdoutError> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    Ok(out.flush()?)
}

/// Writes a line to standard error and ignores errors; use it as [`note!`].
pub(in crate::program) fn print_note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Ends a program that has failed, with `exit_code` unless the reader of its output has gone.
pub(in crate::program) fn failed(program: &str, error: &crate::program::Failure, exit_code: u8) -> ExitCode {
    if matches!(error.downcast_ref(), Some(StdoutError::ReaderGone)) {
        return ExitCode::from(exit::PIPE_CLOSED);
    }
    note!("{program}: {error}");
    ExitCode::from(exit_code)
}
