//! `ft-bench`: see [`hypervisor::program::bench`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::multicall::run_as_named().unwrap_or_else(hypervisor::program::bench::main)
}
