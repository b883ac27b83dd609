//! How a backup comes to a running guest: its memory is copied while it runs on, then the rest under a short pause.
//!
//! ```text
//!   copying    memory, round by round                          the guest runs on
//!              the rest, tail outputs, the machine's state     the guest stands still
//!   restoring  the log from there on                           the guest runs on; nothing is held yet
//! ```
//! Source: Scales et al. 2010, §2.3.

use crate::mutation::{Mutation, mutated};
use crate::output_gate::OutputGate;
use crate::page_copy::PageCopying;
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use logchannel::snapshot::{Snapshot, TailOutput};
use vm::{Machine, PageCopy};

/// Bytes of memory that wait for the channel before no more are copied.
const COPY_AHEAD_BYTES: usize = 1 << 20;

/// Pages copied at a time: some 20 microseconds in which the guest doesn't run.
const PIECE_PAGES: usize = 16;

/// A backup on its way.
#[derive(Clone, Debug, Hash)]
pub(super) enum Join {
    /// It needs the guest's memory.
    Asked,
    /// It gets the guest's memory.
    Copying(PageCopying),
    /// It has the snapshot, gets the log, and hasn't said that its machine stands there.
    Restoring,
}

impl Join {
    /// Whether there is more to copy.
    pub(super) const fn is_copying(&self) -> bool {
        matches!(self, Self::Asked | Self::Copying(_))
    }

    /// Whether the driver is to copy more, with so many bytes waiting for the channel.
    pub(super) const fn wants_copy(&self, outgoing_bytes: usize) -> bool {
        self.is_copying() && outgoing_bytes < COPY_AHEAD_BYTES
    }

    /// Copies some memory of `machine` to `out`, or, when little is left, all that is left and the rest of the snapshot.
    /// `true` if the snapshot is complete: it stands at `seq`, with all in `gate` that isn't known to have left.
    pub(super) fn copy(&mut self, machine: &mut Machine, gate: &OutputGate, seq: LogSeq, out: &mut Vec<u8>) -> bool {
        let mut copying = match std::mem::replace(self, Self::Restoring) {
            Self::Asked => PageCopying::begin(PageCopy::Backup, machine),
            Self::Copying(copying) => copying,
            Self::Restoring => return false,
        };
        if !copying.copy_some(machine, PIECE_PAGES, |pages| Message::Pages(pages).encode(out)) {
            *self = Self::Copying(copying);
            return false;
        }
        if !mutated(Mutation::SkipLastPages) {
            copying.copy_rest(machine, |pages| Message::Pages(pages).encode(out));
        }
        // Also those that a log on disk still holds: the log from here on tells of none of them.
        for (id, operation) in gate.not_left() {
            if !mutated(Mutation::ForgetTailInSnapshot) {
                Message::Tail(TailOutput { id, operation: (*operation).clone() }).encode(out);
            }
        }
        Message::Snapshot(Snapshot { seq, digest: machine.digest(), state: machine.state() }).encode(out);
        true
    }
}
