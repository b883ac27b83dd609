//! `ft-record`: see [`hypervisor::program::record`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::record::main()
}
