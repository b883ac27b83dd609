//! `ft-primary`: see [`hypervisor::program::primary`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::primary::main()
}
