//! Every `ft-*` program in one executable, which is the one that its file's name says. The
//! end-to-end tests start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::multicall::run_as_named().unwrap_or_else(|| {
        eprintln!("ft-programs: start it under the name of one of the programs, such as ft-primary");
        ExitCode::FAILURE
    })
}
