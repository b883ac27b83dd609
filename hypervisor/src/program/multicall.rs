//! All programs in one executable, chosen by the name it is started under.
//!
//! `cargo run --bin ft-demo` builds only that program, and the demo needs four others: it starts
//! itself under their names.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// Runs the program whose name this process was started under, if there is one.
///
/// Call it first in `main`; if it returns `None`, go on with the executable's own program.
#[must_use]
pub fn run_as_named() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let program = match Path::new(&name).file_name().and_then(OsStr::to_str)? {
        "ft-arbiter" => super::arbiter::main,
        "ft-backup" => super::backup::main,
        "ft-bench" => super::bench::main,
        "ft-client" => super::client::command::main,
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
