//! Recording and replaying offline.

mod bare_programs;
mod programs;
mod scripted;
