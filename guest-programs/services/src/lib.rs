//! Network services that know nothing of replication: a guest that serves one of them outlives its
//! host because its machine does.
//!
//! | module | is |
//! |---|---|
//! | [`rpc`] | calls that are executed at most once, over datagrams that may be lost, doubled or late |
//! | [`lock`] | a lock service |
//! | [`kv`] | a key/value store |
//! | [`linearizability`] | a check of what the clients of such a service saw |
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
