//! The LAN over real sockets: its server, and attachments that break.
#![allow(clippy::disallowed_methods, reason = "a test is a host of its own")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod guest;
mod reattach;
mod server;
