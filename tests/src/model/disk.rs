//! Logs on disk: what a process's death leaves of them, and what a restart makes of that.
//!
//! A directory outlives its process, which loses what its writer hasn't written yet. The simulator
//! has the loss of a host's page cache.

use super::guest::Guest;
use super::state::vm_id;
use ft::claim::Claim;
use ft::role::DiskLogState;
use ft::start::{LogIdentity, LogWriterKind, ResumeClaim, ResumeConsent, judge_resume};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::session::NodeId;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// A log directory, and the writer of a live process.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Disk {
    /// The newest whole segment.
    segment: Option<Segment>,
    /// The nodes that have sent no outputs that the segment lacks.
    nodes: Vec<NodeId>,
    /// The node that writes, until its first segment is whole.
    beginner: Option<NodeId>,
    /// What the process has passed to the writer, which hasn't written it yet.
    orders: VecDeque<Order>,
}

/// A segment: a snapshot, and the entries after it.
#[derive(Clone, Debug, Hash)]
struct Segment {
    first: LogSeq,
    guest: Guest,
    entries: Vec<LogEntry>,
    /// The generation under which the VM last ran in it.
    generation: Generation,
    kind: LogWriterKind,
}

#[derive(Clone, Debug, Hash)]
enum Order {
    Snapshot(Segment),
    Entry(LogEntry),
    /// The writer is of this kind from now on, in this generation.
    Become(LogWriterKind, Generation),
}

/// What a restart begins with.
pub(super) struct Restart {
    pub(super) guest: Guest,
    pub(super) next: LogSeq,
    pub(super) unsent: VecDeque<(OutputId, OutputOperation)>,
}

impl Disk {
    /// `node` begins its log in this directory, with a snapshot of `guest` at position `first`.
    pub(super) fn begin(
        &mut self,
        node: NodeId,
        (first, guest): (LogSeq, Guest),
        generation: Generation,
        kind: LogWriterKind,
    ) {
        self.beginner = Some(node);
        self.orders =
            VecDeque::from([Order::Snapshot(Segment { first, guest, entries: Vec::new(), generation, kind })]);
    }

    /// Passes entries to the writer.
    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = LogEntry>) {
        self.orders.extend(entries.into_iter().map(Order::Entry));
    }

    /// Makes the writer one of this kind.
    pub(super) fn become_kind(&mut self, kind: LogWriterKind, generation: Generation) {
        self.orders.push_back(Order::Become(kind, generation));
    }

    /// `true` if the writer has orders.
    pub(super) fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The writer does its oldest order.
    pub(super) fn write(&mut self) {
        match (self.orders.pop_front(), &mut self.segment) {
            (Some(Order::Snapshot(segment)), _) => {
                self.segment = Some(segment);
                self.nodes = self.beginner.take().into_iter().collect();
            }
            (Some(Order::Entry(entry)), Some(segment)) => segment.entries.push(entry),
            (Some(Order::Become(kind, generation)), Some(segment)) => {
                (segment.kind, segment.generation) = (kind, generation);
            }
            (Some(Order::Entry(_) | Order::Become(..)), None) => unreachable!("a snapshot comes first"),
            (None, _) => {}
        }
    }

    /// The writing process has died.
    pub(super) fn lose_orders(&mut self) {
        self.orders.clear();
        self.beginner = None;
    }

    /// What the writing process knows of its log.
    pub(super) fn state(&self) -> DiskLogState {
        match &self.segment {
            Some(segment) if self.beginner.is_none() => DiskLogState::UpTo(segment.end()),
            Some(_) | None => DiskLogState::Promised,
        }
    }

    /// `true` if the segment is another node's, because the writer has none of its own yet.
    pub(super) fn is_anothers(&self) -> bool {
        self.beginner.is_some() && self.segment.is_some()
    }

    /// `true` if a restart from this directory has output `id`.
    pub(super) fn has_output(&self, id: OutputId) -> bool {
        let is_entry_of = |entry: &LogEntry| matches!(entry.body, EntryBody::Output { id: made, .. } if made == id);
        let has_it = |segment: &Segment| id < segment.guest.next_output() || segment.entries.iter().any(is_entry_of);
        self.segment.as_ref().is_some_and(has_it)
    }

    /// The claim with which the VM may be resumed from here; `None` if that would lose something.
    pub(super) fn judge(&self, latest: Option<(Generation, Claim)>) -> Option<ResumeClaim> {
        let segment = self.segment.as_ref()?;
        let is_owners = segment.kind == LogWriterKind::Owner;
        let log = LogIdentity { generation: segment.generation, nodes: &self.nodes, is_owners };
        let losses = |_| match segment.kind.may_lack_outputs() {
            true => vec!["a backup wrote it".into()],
            false => Vec::new(),
        };
        judge_resume(&vm_id(), latest, log, losses, ResumeConsent::default()).ok()
    }

    /// `true` if the log is `holder`'s and may lack outputs, so that only an operator can decide.
    pub(super) fn may_lack_of(&self, holder: NodeId) -> bool {
        self.nodes.contains(&holder) && self.segment.as_ref().is_some_and(|segment| segment.kind.may_lack_outputs())
    }

    /// `node` resumes from here; it is in the list before it claims.
    pub(super) fn restart(&mut self, node: NodeId) -> Option<Restart> {
        let segment = self.segment.as_ref()?;
        self.nodes.push(node);
        let mut guest = segment.guest.clone();
        for entry in &segment.entries {
            guest.replay(entry).ok()?;
        }
        // A restart sends all outputs in the log again; the LAN drops those that it has carried.
        let unsent = (0..guest.next_output().0).filter_map(|id| {
            let bytes = guest.output(usize::try_from(id).ok()?)?.to_vec();
            Some((OutputId(id), OutputOperation::Packet(bytes)))
        });
        Some(Restart { unsent: unsent.collect(), next: segment.end(), guest })
    }
}

impl Segment {
    fn end(&self) -> LogSeq {
        LogSeq(self.first.0 + self.entries.len() as u64)
    }
}
