//! The operating system: the only readers of clocks and entropy, signals, terminals, and what is
//! written to them.

pub mod accept;
pub mod address;
pub mod clock;
pub mod connection;
pub mod entropy;
pub mod priority;
pub mod rate_limit;
pub mod report;
pub mod signals;
pub mod terminal;
pub mod writer;
