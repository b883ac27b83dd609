//! How a backup joins a running guest: the guest's memory is copied while it runs, then the rest
//! during a short pause.
//!
//! ```text
//!   asked      nothing yet                                     the guest runs on
//!   copying    memory, slower than it is copied if need be     the guest runs on
//!              the rest, unsent outputs, the machine's state     the guest stands still
//!   restoring  the log from there on                           the guest runs on; nothing is held yet
//! ```
//! The driver copies with a [`SnapshotCopy`] that the role lends it, so that heartbeats and
//! everything else that needs the role don't wait for the copying.
//!
//! Source: Scales et al. 2010, §2.3.

use super::link::Stream;
use crate::mutation::{Mutation, mutated};
use crate::page_copy::PageCopying;
use alloc::vec::Vec;
use logchannel::message::Message;
use vm::{Machine, PageCopy, StateDigest};

/// When this many bytes wait for the channel, no more memory is copied.
const COPY_AHEAD_BYTES: usize = 1 << 20;

/// How far a joining backup is.
#[derive(Clone, Debug, Hash)]
pub(super) enum Join {
    /// It receives the guest's memory. `None` while the driver has the copy.
    Copying(Option<SnapshotCopy>),
    /// It has the snapshot, receives the log, and hasn't accepted yet.
    Restoring(Stream),
}

impl Join {
    /// A join that begins with the guest's memory.
    pub(super) const fn asked() -> Self {
        Self::Copying(Some(SnapshotCopy { pages: None, bytes: Vec::new(), complete: None }))
    }

    /// `true` until all of the memory is copied.
    pub(super) const fn is_copying(&self) -> bool {
        matches!(self, Self::Copying(_))
    }

    /// `true` if the driver is to copy more while `outgoing_bytes` wait for the channel.
    pub(super) const fn wants_copy(&self, outgoing_bytes: usize) -> bool {
        matches!(self, Self::Copying(Some(_))) && outgoing_bytes < COPY_AHEAD_BYTES
    }
}

/// The copy of a machine for a joining backup, as long as it isn't complete.
#[derive(Clone, Debug, Hash)]
pub struct SnapshotCopy {
    /// `None` before the first piece.
    pages: Option<PageCopying>,
    /// Messages with the pages copied last.
    pub(super) bytes: Vec<u8>,
    /// The digest and state that end the snapshot, once all pages are copied.
    pub(super) complete: Option<(StateDigest, Vec<u8>)>,
}

impl SnapshotCopy {
    /// Copies a piece of the memory of `machine` or, when little is left, all that is left and the
    /// rest of the machine's state. Give the copy back with
    /// [`PrimaryRole::handle_copy`](super::PrimaryRole::handle_copy) before the guest runs on.
    ///
    /// The machine must have consumed all that was appended, and its outputs must have been taken.
    pub fn copy_piece(&mut self, machine: &mut Machine) {
        let pages = self.pages.get_or_insert_with(|| PageCopying::begin(PageCopy::Backup, machine));
        if !pages.copy_piece(machine, |pages| Message::Pages(pages).encode(&mut self.bytes)) {
            return;
        }
        if !mutated(Mutation::SkipLastPages) {
            pages.copy_rest(machine, |pages| Message::Pages(pages).encode(&mut self.bytes));
        }
        self.complete = Some((machine.digest(), machine.state()));
    }

    /// Whether the last piece has been copied.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete.is_some()
    }

    /// Pages copied so far; a page that was copied again counts again.
    #[must_use]
    pub fn pages_copied(&self) -> u64 {
        self.pages.as_ref().map_or(0, PageCopying::copied)
    }

    /// The copy of the memory, which says how far the guest may run meanwhile.
    #[must_use]
    pub(crate) const fn pages(&self) -> Option<&PageCopying> {
        self.pages.as_ref()
    }
}
