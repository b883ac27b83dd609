//! `ft-demo`: see [`hypervisor::program::demo`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::multicall::run_as_named().unwrap_or_else(hypervisor::program::demo::main)
}
