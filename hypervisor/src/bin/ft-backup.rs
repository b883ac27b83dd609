//! `ft-backup`: see [`hypervisor::program::backup`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::backup::main()
}
