//! The command line that the programs share: options, signals, exit codes.

pub mod exit;
pub mod interrupt;
pub(crate) mod limits;
pub mod options;
pub(crate) mod progress;
pub(crate) mod stdout;
pub(crate) mod stop;
