//! The host's entropy.

use logchannel::session::NodeId;

/// Sixteen random bits.
///
/// # Panics
/// If the host's entropy source fails, which the kernel doesn't let happen after boot.
#[must_use]
pub fn bits() -> u16 {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the kernel's entropy source works after boot");
    u16::from_le_bytes(bytes)
}

/// A random id for a new incarnation of a node.
///
/// # Panics
/// As [`bits`].
#[must_use]
pub fn node_id() -> NodeId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel's entropy source works after boot");
    NodeId(u128::from_le_bytes(bytes))
}

/// A device tree's `rng-seed`.
///
/// # Panics
/// As [`bits`].
#[must_use]
pub fn seed() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel's entropy source works after boot");
    bytes
}
