//! The digest of the machine's state.

use crate::state::StateWriter;
use core::fmt;
use xxhash_rust::xxh3::xxh3_128;

/// A digest of the complete machine state: hart, devices, RAM, disk, instruction count.
///
/// Outputs that have been produced and not yet taken are not part of it, so that it doesn't depend
/// on when they are taken; their ids are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateDigest(pub u128);

impl StateDigest {
    /// The digest of all of the `state` that isn't contents of RAM or of the disk, and of their own
    /// digest.
    pub(crate) fn new(mut state: StateWriter, memory: u128) -> Self {
        state.u128(memory);
        Self(xxh3_128(&state.into_bytes()))
    }
}

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
