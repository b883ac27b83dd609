//! The machine around its hart: loading, devices, timers, sleep, and a state that is a function of
//! image and events.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod determinism;
mod disk;
mod loader;
mod sleep;
mod time_of_day;
mod timers;
