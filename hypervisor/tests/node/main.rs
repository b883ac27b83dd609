//! A node: its sides with real threads and sockets, its guest's inbox, and its log on disk.
#![allow(clippy::disallowed_methods, reason = "a test is a host of its own")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "../../ft/tests/roles_image/mod.rs"]
mod roles_image;

mod bench_guest;
mod inbox;
mod log_directory;
mod peer;
mod sides;
