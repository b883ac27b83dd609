//! The guests' compilation target: where rustup has the toolchain but not the target, the build
//! installs it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why the target can't be had.
#[derive(Debug)]
pub(crate) enum Error {
    /// The compiler doesn't say where its targets are.
    Compiler { compiler: PathBuf, reason: String },
    /// Another build installs the target, and can't be waited for.
    Lock { folder: PathBuf, source: io::Error },
    /// rustup isn't there, or could not install the target.
    Install { target: String, command: String, reason: String },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Compiler { compiler, reason } => {
                write!(f, "can't ask {} for its compilation targets: {reason}", compiler.display())
            }
            Self::Lock { folder, source } => {
                write!(f, "can't lock {} to install the guests' target: {source}", folder.display())
            }
            Self::Install { target, command, reason } => write!(
                f,
                "the guests are built for {target}, for which this compiler has no standard library, and `{command}` \
                 failed: {reason}. Run that command where there is a network (or install the target as your \
                 distribution has it), then build again"
            ),
        }
    }
}

/// Makes sure that the compiler in use can build for `target`.
///
/// Builds may run at the same time, in other folders too: the compiler's own folder is locked while
/// rustup works, and whoever has waited for the lock looks again first.
///
/// # Errors
/// [`Error`], in words for the person who builds.
pub(crate) fn install(target: &str) -> Result<(), Error> {
    let compiler = Compiler::in_use();
    if compiler.has(target)? {
        return Ok(());
    }
    let folder = compiler.print(&["--print", "sysroot"])?;
    let lock = File::open(&folder).and_then(|lock| lock.lock().map(|()| lock));
    let _lock = lock.map_err(|source| Error::Lock { folder, source })?;
    if compiler.has(target)? {
        return Ok(());
    }
    let command = Rustup::add(target);
    let failed = |reason| Error::Install { target: target.into(), command: command.to_string(), reason };
    command.run().map_err(failed)?;
    if !compiler.has(target)? {
        return Err(failed(format!("{} still lacks it, and may not be rustup's compiler", compiler.0.display())));
    }
    println!("cargo::warning=installed the guests' target with `{command}`");
    Ok(())
}

/// The compiler that cargo builds the guests with.
struct Compiler(PathBuf);

impl Compiler {
    fn in_use() -> Self {
        Self(env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from))
    }

    /// Whether it has a standard library for `target`: it names the folder of one that isn't
    /// installed too.
    fn has(&self, target: &str) -> Result<bool, Error> {
        let folder = self.print(&["--print", "target-libdir", "--target", target])?;
        let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
        let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.into_string().ok()).any(|name| is_core(&name)))
    }

    fn print(&self, arguments: &[&str]) -> Result<PathBuf, Error> {
        let failed = |reason: String| Error::Compiler { compiler: self.0.clone(), reason };
        let output = Command::new(&self.0).args(arguments).output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(outcome(&output.stderr)));
        }
        let line = String::from_utf8(output.stdout).map_err(|error| failed(error.to_string()))?;
        Ok(Path::new(line.trim_end()).to_path_buf())
    }
}

/// A call of rustup that adds a target to the toolchain in use.
struct Rustup(Vec<OsString>);

impl Rustup {
    fn add(target: &str) -> Self {
        let mut arguments: Vec<OsString> = ["target", "add", target].map(OsString::from).into();
        // cargo under rustup tells its toolchain; without, rustup takes the one of
        // rust-toolchain.toml.
        if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
            arguments.extend(["--toolchain".into(), toolchain]);
        }
        Self(arguments)
    }

    fn run(&self) -> Result<(), String> {
        match Command::new("rustup").args(&self.0).env("RUST_BACKTRACE", "0").output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(outcome(&output.stderr)),
            Err(error) => Err(format!("rustup can't be run ({error})")),
        }
    }
}

impl std::fmt::Display for Rustup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rustup")?;
        self.0.iter().try_for_each(|argument| write!(f, " {}", argument.display()))
    }
}

/// The error that a program reports, and the last of its causes.
fn outcome(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(error) = lines.find(|line| line.starts_with("error")) else { return "it reports no error".into() };
    lines.next_back().map_or_else(|| error.into(), |cause| format!("{error} ({cause})"))
}
