//! Programs that run other programs: processes, and a cluster of them.

pub(crate) mod claims_directory;
pub mod cluster;
pub mod cores;
pub mod executable;
pub mod process;
