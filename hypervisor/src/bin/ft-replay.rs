//! `ft-replay`: see [`hypervisor::program::replay`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::replay::main()
}
