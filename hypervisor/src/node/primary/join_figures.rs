//! How long the guest stood still while its memory was copied for a joining backup.

use crate::node::reports::NodeReport;
use ft::role::SnapshotCopy;

/// The measurements of one join, from the first page copied to the first slice that the guest runs
/// after the last page.
#[derive(Debug, Default)]
pub(in crate::node) struct JoinFigures {
    began_ns: Option<u64>,
    /// Since when the guest has stood still only because memory is copied.
    stands_since_ns: Option<u64>,
    stood_ns: u64,
    longest_stand_ns: u64,
    pages: u64,
    is_complete: bool,
}

impl JoinFigures {
    /// The guest stands still so that memory can be copied.
    pub(in crate::node) fn guest_stands(&mut self, now_ns: u64) {
        self.began_ns.get_or_insert(now_ns);
        self.stands_since_ns.get_or_insert(now_ns);
    }

    /// The guest stands still for another reason, which isn't counted.
    pub(in crate::node) const fn guest_waits(&mut self) {
        self.stands_since_ns = None;
    }

    /// The guest runs on; `now_ns` is read only if it stood still.
    pub(in crate::node) fn guest_runs(&mut self, now_ns: impl FnOnce() -> u64) {
        if let Some(since_ns) = self.stands_since_ns.take() {
            let stood_ns = now_ns() - since_ns;
            self.stood_ns += stood_ns;
            self.longest_stand_ns = self.longest_stand_ns.max(stood_ns);
        }
    }

    /// A piece of memory has been copied.
    pub(in crate::node) fn copied(&mut self, copy: &SnapshotCopy) {
        self.pages = copy.pages_copied();
        self.is_complete |= copy.is_complete();
    }

    /// Resets the figures when no memory is being copied. Returns the report of a copy that was
    /// completed since the last call.
    pub(in crate::node) fn take_report(&mut self, now_ns: impl FnOnce() -> u64) -> Option<NodeReport> {
        let figures = std::mem::take(self);
        let began_ns = figures.began_ns.filter(|_| figures.is_complete)?;
        Some(NodeReport::MemoryCopied {
            pages: figures.pages,
            took_ms: (now_ns() - began_ns) / 1_000_000,
            stood_ms: figures.stood_ns / 1_000_000,
            longest_stand_us: figures.longest_stand_ns / 1000,
        })
    }
}
