//! Virtio devices, version 1: what a guest's drivers expect of paravirtual hardware.
//!
//! ```text
//!   net, blk ──► mmio (registers, negotiation, interrupt status) ──► queue (split virtqueues in guest RAM)
//! ```
//!
//! A driver that breaks the ring layout ([`BadRing`]) has a device that needs a reset:
//! DEVICE_NEEDS_RESET is set, the configuration interrupt raised, and nothing in the queues is
//! touched until the driver has reset the device. The machine goes on. A driver can't make the
//! device read or write outside RAM, and no walk is longer than the ring.
//!
//! What a step does is bounded: a notification of more than that leaves the rest to the steps that
//! follow ([`mmio::Transport::serve`]).

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
    /// The descriptor at fault; `None` if it is the ring.
    pub(crate) descriptor: Option<u16>,
}
