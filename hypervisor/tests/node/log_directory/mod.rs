//! The log on disk: segments, resuming wherever they were cut, and disks that fail.

mod damage;
mod failing;
mod found;
mod joining;
mod lives;
mod order;
mod replay;
mod segments;
mod vm;
