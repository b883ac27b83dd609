//! What a hart does: instructions, CSRs, traps, paging, and what they cost in steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod float;
mod instructions;
mod machine_mode;
mod paging;
mod privileged;
