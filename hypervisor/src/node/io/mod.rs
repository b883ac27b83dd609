//! A guest's inputs and outputs.

pub mod announce;
pub mod console;
pub mod console_filter;
pub mod console_text;
pub mod guest_inputs;
pub mod inbox;
pub mod lan;
pub mod network;
pub mod sink;
pub mod tap;
