//! A side of a VM as a process: threads, sockets and files around the roles.
//!
//! ```text
//!   LAN reader ─┐                                     ┌─► LAN, console   (output sink)
//!   stdin ──────┼─► inbox ─► vCPU thread ─► role ─────┤
//!               │            (recorder)      ▲  ▲     └─► logging channel
//!               │   channel reader ──────────┘  │
//!               │   timer ──────────────────────┘
//! ```

pub mod arbiter_client;
pub mod arbiter_thread;
pub mod backup;
pub mod channel;
pub mod distribution;
pub mod environment;
pub mod host;
pub mod io;
pub mod log;
pub mod owner_question;
pub mod primary;
pub mod process;
pub mod reports;
pub mod restart;
pub mod search;
pub mod start;
pub mod wait_reports;
