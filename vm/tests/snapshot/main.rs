//! Snapshots: a restored machine goes on exactly like the one that was copied, and anything that
//! isn't a snapshot is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod copying;
mod corrupted;
mod guests;
mod pages;
