//! Snapshots: a machine that is copied from one host to another, as pages of RAM, outputs that may
//! not have left, and the rest of its state.
//!
//! ```text
//!   Pages*  UnsentOutput*  Snapshot      then the entries from `Snapshot::seq` on
//! ```
//! Pages may come again, because the guest runs on while they are copied; the last counts.

use crate::entry::LogSeq;
use alloc::vec::Vec;
use vm::{OutputId, OutputOperation, PAGE_BYTES, StateDigest};

/// The most pages in one piece.
pub const PAGES_MAX: usize = 64;

/// Pages of RAM that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pages {
    /// Index of the first; that of the page at the beginning of RAM is 0.
    pub first: u64,
    /// Their contents: 1 to [`PAGES_MAX`] times [`PAGE_BYTES`].
    pub bytes: Vec<u8>,
}

/// An output that the guest had made before the snapshot and that may not have left its host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnsentOutput {
    /// Its position among the outputs.
    pub id: OutputId,
    /// What the guest sent.
    pub operation: OutputOperation,
}

/// The end of a snapshot: the machine's state without its memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// The position at which the log goes on.
    pub seq: LogSeq,
    /// The digest of the whole machine, RAM included: the restored machine must have the same.
    pub digest: StateDigest,
    /// [`vm::Machine::state`]; at most [`vm::STATE_BYTES_MAX`].
    pub state: Vec<u8>,
}

impl Pages {
    /// How many pages these are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.bytes.len() / PAGE_BYTES
    }
}
