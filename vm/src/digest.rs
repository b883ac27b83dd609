//! The digest of the machine's state.
//!
//! Every component folds its own state in, after taking itself apart field by field (`let Self { a, b } = self;`), so that
//! a field which was forgotten here doesn't compile. Numbers are folded as little-endian bytes of a fixed width: the digest
//! is the same on every host.

use core::fmt;
use xxhash_rust::xxh3::Xxh3Default;

/// A digest of the complete machine state: hart, devices, RAM, instruction count.
///
/// Outputs that have been produced and not yet taken are not part of it, so that it doesn't depend on when they are taken;
/// their ids are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateDigest(pub u128);

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Gathers the state of the components, in an order that is fixed by the code.
pub(crate) struct StateHasher(Xxh3Default);

impl StateHasher {
    pub(crate) fn new() -> Self {
        Self(Xxh3Default::new())
    }

    pub(crate) fn finish(&self) -> StateDigest {
        StateDigest(self.0.digest128())
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.update(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.0.update(&value.to_le_bytes());
    }

    /// Folds in whether there is a value, and the value.
    pub(crate) fn optional_u64(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        self.u64(value.unwrap_or(0));
    }

    /// Folds in a sequence of any length, and its length.
    pub(crate) fn bytes(&mut self, bytes: impl ExactSizeIterator<Item = u8>) {
        self.u64(bytes.len() as u64);
        for byte in bytes {
            self.u8(byte);
        }
    }
}
