//! Recording to files and replaying them.

mod bare_programs;
mod commands;
mod index;
mod machine_timer;
mod moments;
mod programs;
mod scripted;
