//! Recording to files and replaying them.

mod bare_programs;
mod programs;
mod scripted;
