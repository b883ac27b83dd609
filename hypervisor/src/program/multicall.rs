//! All programs in one executable, chosen by the name it is started under.
//!
//! `cargo run --bin ft-demo` builds no other program, and the demo needs four: it starts itself
//! under their names.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// Runs the program that this process was started as, if it is started under the name of one.
///
/// Call it before anything else in `main`; go on with the executable's own program if it gives
/// `None`.
#[must_use]
pub fn run_as_named() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let program = match Path::new(&name).file_name().and_then(OsStr::to_str)? {
        "ft-arbiter" => super::arbiter::main,
        "ft-backup" => super::backup::main,
        "ft-bench" => super::bench::main,
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
