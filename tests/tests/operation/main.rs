//! The programs in operation: ends, limits, files, consoles, forwards.

mod console_output;
mod ends;
mod few_descriptors;
mod forwards;
mod guest_files;
mod guest_trouble;
mod host_limits;
mod host_names;
mod lifecycle;
mod limits;
mod reports;
mod unread_output;
