//! What a role knows of its side's log on disk, from which the VM can be resumed after the death of
//! both sides.

use crate::mutation::{Mutation, mutated};
use logchannel::entry::LogSeq;

/// The state of a side's log on disk, as its driver tells it.
///
/// ```text
///   None                    no log is kept
///   Promised ──► UpTo(n)    n grows
///      └────────────┴──► Failed
/// ```
/// A promise is worth nothing when both sides die: as long as no restart from this side's directory
/// is possible, no output leaves, and a backup isn't accepted. The order of the states is the one
/// in which they can follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskLogState {
    /// No log is kept, so that nothing waits for one.
    None,
    /// A log is to be kept, but the directory has no whole segment of it: no restart is possible
    /// from it.
    Promised,
    /// A restart is possible, and comes to all entries below this; outputs wait for their entries.
    UpTo(LogSeq),
    /// The log has failed and its directory is marked so: the VM goes on without it.
    Failed,
}

impl DiskLogState {
    /// `true` if the log is promised and no restart from it is possible yet.
    #[must_use]
    pub const fn is_promised(self) -> bool {
        matches!(self, Self::Promised)
    }

    /// The position below which outputs may leave if the pair allows all below `allowed`: the lower
    /// one of that and what the log on disk has.
    #[must_use]
    pub(super) fn limit(self, allowed: LogSeq) -> LogSeq {
        match self {
            Self::None | Self::Failed => allowed,
            Self::Promised if mutated(Mutation::ReleaseOnPromise) => allowed,
            Self::Promised => LogSeq(0),
            Self::UpTo(_) if mutated(Mutation::ReleaseBeforeDisk) => allowed,
            Self::UpTo(kept) => kept.min(allowed),
        }
    }
}
