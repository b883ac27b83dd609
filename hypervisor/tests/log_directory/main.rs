//! The log on disk: segments, resuming wherever they were cut, and disks that fail.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../ft/tests/roles_image/mod.rs"]
mod roles_image;

mod damage;
mod failing;
mod found;
mod joining;
mod lives;
mod replay;
mod segments;
mod vm;
