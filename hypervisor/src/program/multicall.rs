//! All programs in one executable, chosen by the name it is started under.
//!
//! `cargo run --bin ft-demo` builds no other program, and the demo needs four: it starts itself under their names.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Runs the program that this process was started as, if it is started under the name of one.
///
/// Call it before anything else in `main`; go on with the executable's own program if it gives `None`.
#[must_use]
pub fn run_as_named() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let program = match Path::new(&name).file_name().and_then(OsStr::to_str)? {
        "ft-arbiter" => super::arbiter::main,
        "ft-backup" => super::backup::main,
        "ft-demo" => super::demo::main,
        "ft-lan" => super::lan::main,
        "ft-pong" => super::bench::pong_main,
        "ft-primary" => super::primary::main,
        "ft-record" => super::record::main,
        "ft-replay" => super::replay::main,
        _ => return None,
    };
    Some(program())
}

/// An executable that begins with [`run_as_named`].
#[derive(Clone, Debug)]
pub struct Executable(PathBuf);

impl Executable {
    /// The one at `path`.
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
