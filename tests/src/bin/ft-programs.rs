//! Every `ft-*` program in one executable, chosen by the name it is started under: what the
//! end-to-end tests start.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::multicall::run_as_named().unwrap_or_else(|| {
        eprintln!("ft-programs: start it under the name of one of the programs, such as ft-primary");
        ExitCode::FAILURE
    })
}
