//! The arbiters: a directory, a server over the network, etcd.
#![allow(clippy::disallowed_methods, reason = "a test is a host of its own")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod claims;
mod etcd_members;
