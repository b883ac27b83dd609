//! The programs that run a fault-tolerant VM, its LAN and its arbiter.
//!
//! ```text
//!   program   one module for each ft-* program: options, messages, exit codes
//!   recording a log as something to move about in: positions, seek, index, marks
//!   node      a side of a VM as a process: threads and sockets around the roles of the crate `ft`, and the log on disk
//!   lan       the network that guests and clients are on
//!   arbiter   the durable test-and-set, its clients and its server
//!   os        clocks, entropy, signals, terminals, and what is written to them
//! ```
//! Each layer uses those below it only. What decides is in the crate [`ft`], which knows none of
//! them.

pub mod arbiter;
pub mod lan;
pub mod node;
pub mod os;
pub mod program;
pub mod recording;
