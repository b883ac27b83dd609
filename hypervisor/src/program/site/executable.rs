//! An executable that is all programs, by the name it is started under.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// An executable that begins with [`run_as_named`](crate::program::multicall::run_as_named).
#[derive(Clone, Debug)]
pub struct Executable(PathBuf);

impl Executable {
    /// The executable at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// This process's own.
    ///
    /// # Errors
    /// If the host doesn't tell where it is.
    pub fn current() -> io::Result<Self> {
        std::env::current_exe().map(Self)
    }

    /// A command that runs it as `program`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg0(program);
        command
    }
}
