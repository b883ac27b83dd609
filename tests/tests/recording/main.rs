//! Recording to files and replaying them.

mod bare_programs;
mod commands;
mod index;
mod moments;
mod programs;
mod scripted;
