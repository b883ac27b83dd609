//! Addresses.

/// A physical address: one on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestPhysAddr(pub(crate) u64);

/// A virtual address: one as an instruction computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestVirtAddr(pub(crate) u64);
