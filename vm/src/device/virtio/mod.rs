//! Virtio devices, version 1: what a guest's drivers expect of paravirtual hardware.
//!
//! ```text
//!   net, blk ──► mmio (registers, negotiation, interrupt status) ──► queue (split virtqueues in guest RAM)
//! ```
//!
//! A driver that breaks the ring layout stops its guest ([`BadRing`]); it can't read or write outside RAM, and no walk is
//! longer than the ring.

pub(crate) mod blk;
pub(crate) mod mmio;
pub(crate) mod net;
pub(crate) mod queue;
#[cfg(test)]
mod tests;

/// A queue that can't be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRing {
    pub(crate) queue: u16,
    /// The descriptor at fault; [`HaltReason::RING_ITSELF`](crate::HaltReason::RING_ITSELF) if it is the ring.
    pub(crate) descriptor: u16,
}
