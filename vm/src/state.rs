//! The machine's state as bytes: what snapshots carry and what the digest is of.
//!
//! Every component writes itself after taking itself apart field by field (`let Self { a, b } =
//! self;`), so that a field which was forgotten here doesn't compile, and reads itself back in the
//! same order. Numbers are little-endian and of a fixed width, so that the bytes are the same on
//! every host.
//!
//! The bytes that are read may come from a faulty or hostile peer. A component checks everything
//! that the rest of the machine relies on, so that no bytes make a machine that panics later.

use alloc::vec::Vec;

/// Counters are below this, so that none can overflow: no machine lives long enough to get there.
const COUNTER_END: u64 = 1 << 62;

/// Why a snapshot can't be restored. Whoever sent it is faulty, or it belongs to another machine:
/// take another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Pages that the machine doesn't have.
    #[error(
        "pages {first} to {first}+{pages} of a snapshot, but the machine has {machine_pages}; the configurations differ"
    )]
    NoSuchPages {
        /// The index of the first one.
        first: u64,
        /// The number of pages.
        pages: usize,
        /// The number of the machine's pages: RAM's and the disk's.
        machine_pages: u64,
    },
    /// Contents of memory that aren't whole pages.
    #[error("{bytes} bytes are not whole pages of a snapshot; the sender is faulty")]
    NotWholePages {
        /// Length of the contents.
        bytes: usize,
    },
    /// The state ends too early.
    #[error("the machine state ends at byte {offset}, in the middle; it was cut short")]
    Cut {
        /// Its length, in bytes.
        offset: usize,
    },
    /// The state doesn't end where it should.
    #[error("the machine state has {bytes} bytes too many; the sender runs another version")]
    TooLong {
        /// The number of bytes too many.
        bytes: usize,
    },
    /// A value that no machine of this configuration has.
    #[error(
        "the machine state before byte {offset} is impossible: {what}; its sender is faulty or of another configuration"
    )]
    Impossible {
        /// Where the value ends.
        offset: usize,
        /// What is wrong with it, in words.
        what: &'static str,
    },
    /// Parts that contradict each other: an interrupt line, say, that is up while its device has
    /// nothing to tell.
    #[error("the parts of the machine state contradict each other; its sender is faulty")]
    NotAtRest,
}

/// Gathers the state of the components, in an order that is fixed by the code.
#[derive(Debug, Default)]
pub(crate) struct StateWriter(Vec<u8>);

impl StateWriter {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.array(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.array(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.array(value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.array(value.to_le_bytes());
    }

    /// Writes bytes whose number the reader knows.
    pub(crate) fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0.extend_from_slice(&bytes);
    }

    /// Writes whether there is a value, and the value.
    pub(crate) fn optional_u64(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        self.u64(value.unwrap_or(0));
    }

    /// Writes a sequence of any length, and its length.
    pub(crate) fn bytes(&mut self, bytes: impl ExactSizeIterator<Item = u8>) {
        self.u64(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// Reads what a [`StateWriter`] has written, in the same order.
#[derive(Debug)]
pub(crate) struct StateReader<'a> {
    state: &'a [u8],
    offset: usize,
}

impl<'a> StateReader<'a> {
    pub(crate) const fn new(state: &'a [u8]) -> Self {
        Self { state, offset: 0 }
    }

    /// Refuses the state unless `holds`, which is true for every machine; `what` says what is wrong
    /// with the value read last.
    pub(crate) fn require(&self, holds: bool, what: &'static str) -> Result<(), RestoreError> {
        if holds { Ok(()) } else { Err(self.impossible(what)) }
    }

    /// The error for the value read last.
    pub(crate) const fn impossible(&self, what: &'static str) -> RestoreError {
        RestoreError::Impossible { offset: self.offset, what }
    }

    pub(crate) fn bool(&mut self) -> Result<bool, RestoreError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.impossible("a flag is neither set nor clear")),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RestoreError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RestoreError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RestoreError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RestoreError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, RestoreError> {
        self.array().map(u128::from_le_bytes)
    }

    /// Reads a number that only grows, by one at a time.
    pub(crate) fn counter(&mut self) -> Result<u64, RestoreError> {
        let count = self.u64()?;
        self.require(count < COUNTER_END, "a counter has grown for longer than a machine lives")?;
        Ok(count)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let cut = RestoreError::Cut { offset: self.state.len() };
        let bytes = self.state.get(self.offset..).and_then(|rest| rest.first_chunk()).ok_or(cut)?;
        self.offset += N;
        Ok(*bytes)
    }

    pub(crate) fn optional_u64(&mut self) -> Result<Option<u64>, RestoreError> {
        let is_some = self.bool()?;
        let value = self.u64()?;
        self.require(is_some || value == 0, "a value that isn't there is not zero")?;
        Ok(is_some.then_some(value))
    }

    /// Reads a sequence of at most `max` bytes.
    pub(crate) fn bytes(&mut self, max: usize) -> Result<&'a [u8], RestoreError> {
        let length = self.u64()?;
        let length = usize::try_from(length).ok().filter(|length| *length <= max);
        let length = length.ok_or_else(|| self.impossible("a sequence is longer than it can become"))?;
        let cut = RestoreError::Cut { offset: self.state.len() };
        let bytes = self.state.get(self.offset..).and_then(|rest| rest.get(..length)).ok_or(cut)?;
        self.offset += length;
        Ok(bytes)
    }

    /// Checks that everything has been read.
    pub(crate) const fn finish(self) -> Result<(), RestoreError> {
        match self.state.len() - self.offset {
            0 => Ok(()),
            bytes => Err(RestoreError::TooLong { bytes }),
        }
    }
}
