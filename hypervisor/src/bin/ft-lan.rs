//! `ft-lan`; see [`hypervisor::program::lan`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::lan::main()
}
