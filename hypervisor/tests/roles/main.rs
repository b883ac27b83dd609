//! The two roles without sockets, clocks or machines: one pair, a wire between them that carries real frames, and an
//! arbiter in memory. One test per sentence of the protocol; the random ones print their seed.
#![allow(clippy::disallowed_methods, reason = "a test is a host of its own")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failover;
mod interleavings;
mod output_rule;
mod pair;
mod refusals;
mod stop;
