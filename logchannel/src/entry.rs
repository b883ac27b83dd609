//! Log entries: what happened at which instruction count.

use core::fmt;
use vm::{Event, InstructionCount, OutputId, PageRange, StateDigest, StopReason};

/// The position of an entry in a VM's log; the first is 0. As a cursor it counts entries: all with
/// `seq < cursor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogSeq(pub u64);

impl LogSeq {
    /// The position of the next entry.
    ///
    /// # Panics
    /// At the last number. No log that runs comes there, and decoders and roles refuse numbers of a
    /// peer that are near it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.strict_add(1))
    }
}

impl fmt::Display for LogSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing number of a VM's owner: of two that believe they run the same VM, the one with the
/// greater is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of this one's successor.
    ///
    /// # Panics
    /// At the last number. No log that runs comes there, and decoders and roles refuse numbers of a
    /// peer that are near it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.strict_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One entry: `body` happened when the machine had executed exactly `count` steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogEntry {
    /// The machine's instruction count; never less than that of the entry before.
    pub count: InstructionCount,
    /// What happened.
    pub body: EntryBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EntryBody {
    /// An input: replaying applies it.
    Event(Event),
    /// The guest sent something: replaying must produce it too, and the Output Rule waits for this
    /// entry.
    Output {
        /// Its position among the outputs.
        id: OutputId,
        /// [`vm::OutputOperation::digest`].
        digest: u64,
    },
    /// Nothing else happened up to this count, so the backup may run this far.
    Progress,
    /// A digest of the machine's state: replaying must come to the same.
    Digest(StateDigest),
    /// As [`Self::Digest`], but the digest covers only these pages of RAM and disk, so that a guest
    /// that has written much doesn't stand still until all of it is digested.
    PartDigest {
        /// The pages, at least one.
        pages: PageRange,
        /// The digest, as of [`vm::Machine::digest_of`].
        digest: StateDigest,
    },
    /// The guest came to its end by itself; the last entry.
    Stopped(StopReason),
    /// From here on the VM belongs to this generation.
    Generation(Generation),
}
