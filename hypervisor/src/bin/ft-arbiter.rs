//! The test-and-set server. See [`hypervisor::program::arbiter`].

fn main() -> std::process::ExitCode {
    hypervisor::program::arbiter::main()
}
