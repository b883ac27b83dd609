//! The two roles without sockets and clocks: the pairs of one VM, wires with real frames between
//! them, an arbiter and a LAN in memory. One test per sentence of the protocol; the random ones
//! print their seed.
#![allow(clippy::disallowed_methods, reason = "a test is a host of its own")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clock;
mod copying;
mod disk_log;
mod exhaustion;
mod failover;
mod host;
mod hostile;
mod interleavings;
mod joining;
mod lag;
mod output_rule;
mod pair;
mod refusals;
#[path = "../roles_image/mod.rs"]
mod roles_image;
mod spares;
mod standing;
mod stop;
mod world;
