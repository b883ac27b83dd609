//! The host: the only place with clocks, sockets, threads and entropy for a VM.
//!
//! ```text
//!   LAN reader ─┐                                     ┌─► LAN, console   (outlets)
//!   stdin ──────┼─► inbox ─► vCPU thread ─► role ─────┤
//!               │            (recorder)      ▲  ▲     └─► logging channel
//!               │   channel reader ──────────┘  │
//!               │   timer ──────────────────────┘
//! ```

pub mod accept;
pub mod address;
pub mod announce;
pub mod backup;
pub mod channel;
pub mod clock;
pub mod console;
pub mod doorman;
pub mod entropy;
pub mod inbox;
mod join_figures;
pub mod kept_log;
pub mod live;
pub mod log_directory;
pub mod network;
pub mod node;
pub mod outlets;
pub mod owner_question;
pub mod priority;
pub mod rate_limit;
pub mod reports;
pub mod signals;
pub mod tap;
pub mod terminal;
mod vcpu;
mod visitors;
pub mod waiting;
pub mod writer;
