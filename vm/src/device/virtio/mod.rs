//! Virtio devices, version 1: paravirtual disk, network and entropy.
//!
//! ```text
//!   net, blk, rng ──► mmio (registers, negotiation, interrupt status) ──► queue (split virtqueues in guest RAM)
//! ```
//!
//! After a driver's mistake ([`BadRing`]) its device sets DEVICE_NEEDS_RESET, raises the
//! configuration interrupt, and doesn't touch its queues until the driver resets it. The machine
//! goes on. A driver can't make the device read or write outside RAM, and no walk is longer than
//! the ring.
//!
//! The work of a step is bounded: a notification of more work than that leaves the rest to the
//! steps that follow ([`mmio::Transport::serve`]).

pub(crate) mod blk;
pub(crate) mod mmio;
pub(crate) mod net;
pub(crate) mod queue;
pub(crate) mod rng;
#[cfg(test)]
mod tests;

/// A queue that can't be used: the driver has made a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRing {
    pub(crate) queue: u16,
    /// The descriptor at fault; `None` if it is the ring.
    pub(crate) descriptor: Option<u16>,
}
