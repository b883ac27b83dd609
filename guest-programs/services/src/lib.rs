//! Network services without replication of their own: a guest that serves one of them survives its
//! host because its VM does.
//!
//! | module | is |
//! |---|---|
//! | [`rpc`] | calls that are executed at most once, over datagrams that may be lost, doubled or late |
//! | [`lock`] | a lock service |
//! | [`kv`] | a key/value store |
//! | [`linearizability`] | a check of the history of a service's clients |
//!
//! Everything here is a function of its arguments: no clock, no network, no randomness. Servers run
//! in a guest (`guest-programs`), clients on a host (`ft-client`), and tests run both in one
//! thread.
#![no_std]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod bytes;
pub mod kv;
pub mod linearizability;
pub mod lock;
pub mod rpc;
