//! `ft-client`; see [`hypervisor::program::client::command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hypervisor::program::client::command::main()
}
