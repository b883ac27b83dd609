//! Going on from a log on disk: what is in it, and its replay.

use super::identity::{LogProvenance, read_nodes, read_writer};
use super::restore::{RestoreError, Restored, restore};
use super::storage::Storage;
use super::{HostDirectory, LogDirectory, LogDirectoryError, STOPPED, failed, read_note, segment_names};
use ft::mutation::{Mutation, mutated};
use ft::replay::{Consumed, Replayer};
use logchannel::entry::{EntryBody, LogSeq};
use logchannel::file::{Ending, LogFileError, LogHead, LogReader, UNSENT_OUTPUT_BYTES};
use logchannel::session::SessionHeader;
use std::collections::VecDeque;
use std::fmt;
use std::io::BufReader;
use std::path::PathBuf;
use vm::{InstructionCount, Machine, OutputId, OutputOperation, StopReason};

/// The most bytes of outputs that are kept for going on, as by a backup for its going live.
const UNSENT_BYTES_MAX: usize = 64 << 20;

/// How many entries are replayed from one call of the caller's to the next.
const ENTRIES_PER_LOOK: u64 = 256;

/// A machine at the start of a segment, and the rest of the segment.
type RestoredFrom<S> = Restored<BufReader<<S as Storage>::Reader>>;

/// What a log directory has, before it is replayed.
pub struct Survey<S: Storage = HostDirectory> {
    /// What the newest whole segment is about.
    pub session: SessionHeader,
    /// That segment.
    pub segment: PathBuf,
    /// Whose log this is, and what it may lack.
    pub provenance: LogProvenance,
    /// How the guest had come to its end, if it had.
    pub stopped: Option<StopReason>,
    /// Newer segments that could not be used, newest first, and why. What they held is lost, if
    /// they held anything.
    pub skipped: Vec<(PathBuf, RestoreError)>,
    /// Entries to replay.
    pub entries: u64,
    /// Where the guest stands at the last of them.
    pub end_count: InstructionCount,
    restored: RestoredFrom<S>,
}

impl<S: Storage> fmt::Debug for Survey<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("segment", &self.segment).finish_non_exhaustive()
    }
}

/// How far a replay is.
#[derive(Clone, Copy, Debug)]
pub struct ResumeProgress {
    /// Entries replayed.
    pub entries: u64,
    /// Of how many.
    pub entries_all: u64,
    /// Where the guest stands.
    pub count: InstructionCount,
}

/// A VM as its log on disk has it.
#[derive(Debug)]
pub struct Resumed {
    /// What the newest segment is about.
    pub session: SessionHeader,
    /// The machine behind the last whole entry. It may have outputs that were not logged: take them
    /// before anything else.
    pub machine: Machine,
    /// The place of the next entry.
    pub next_seq: LogSeq,
    /// The outputs that may not have left, oldest first: all since the segment's snapshot, as no
    /// log says which have left.
    pub unsent: VecDeque<(OutputId, OutputOperation)>,
    /// How many older ones were dropped because there were more than 64 MiB.
    pub unsent_dropped: u64,
    /// The output behind all that the log tells of.
    pub next_output: OutputId,
    /// The segment that was replayed.
    pub segment: PathBuf,
    /// Entries replayed.
    pub entries_replayed: u64,
    /// How the segment ends.
    pub ending: Ending,
}

impl<S: Storage> LogDirectory<S> {
    /// Looks what there is to resume: the newest segment whose snapshot is whole, up to its last
    /// whole entry.
    ///
    /// # Errors
    /// [`LogDirectoryError::Stopped`] if logging had failed; [`LogDirectoryError::NoSegment`];
    /// [`LogDirectoryError::Log`] if the segment is damaged otherwise than at its end;
    /// [`LogDirectoryError::Io`].
    pub fn survey(&self) -> Result<Survey<S>, LogDirectoryError> {
        if let Some(reason) = read_note(&self.storage, STOPPED)? {
            // On a full disk there was room for the file, but not for what is in it.
            let reason =
                if reason.is_empty() { "why couldn't be written: the disk may have been full".into() } else { reason };
            return Err(LogDirectoryError::Stopped { path: self.path().into(), reason });
        }
        let mut skipped = Vec::new();
        for name in segment_names(&self.storage)?.into_iter().rev() {
            match self.open_segment(&name)? {
                Ok(restored) => return self.look_through(&name, restored, skipped),
                Err(error) => skipped.push((self.storage.path_of(&name), error)),
            }
        }
        Err(LogDirectoryError::NoSegment { path: self.path().into(), skipped })
    }

    /// Whether there is a segment from which a restart is possible, as far as its beginning tells.
    #[must_use]
    pub fn has_whole_segment(&self) -> bool {
        let is_whole =
            |name: &String| self.storage.read(name).is_ok_and(|file| LogReader::open(BufReader::new(file)).is_ok());
        segment_names(&self.storage).is_ok_and(|names| names.iter().any(is_whole))
    }

    /// The machine at a segment's start. The inner error means that it has no whole one.
    fn open_segment(&self, name: &str) -> Result<Result<RestoredFrom<S>, RestoreError>, LogDirectoryError> {
        let path = self.storage.path_of(name);
        let file = self.storage.read(name).map_err(failed("reading", &path))?;
        match LogHead::read(BufReader::new(file)).map_err(RestoreError::Log).and_then(restore) {
            Ok(restored) if restored.log.header().vm != self.vm => Err(LogDirectoryError::OtherVm {
                path: self.path().into(),
                found: restored.log.header().vm.to_string(),
                wanted: self.vm.clone(),
            }),
            // A disk that doesn't read now may do so later: nothing is given up for that.
            Err(RestoreError::Log(source @ LogFileError::Io { .. })) => Err(LogDirectoryError::Log { path, source }),
            restored => Ok(restored),
        }
    }

    /// Reads a segment's entries without replaying them.
    fn look_through(
        &self,
        name: &str,
        restored: RestoredFrom<S>,
        skipped: Vec<(PathBuf, RestoreError)>,
    ) -> Result<Survey<S>, LogDirectoryError> {
        let segment = self.storage.path_of(name);
        let unreadable = |source| LogDirectoryError::Log { path: segment.clone(), source };
        let file = self.storage.read(name).map_err(failed("reading", &segment))?;
        let mut log = LogReader::open(BufReader::new(file)).map_err(unreadable)?;
        let (first, mut generation) = (log.next_seq(), log.header().generation);
        let (mut stopped, mut end_count) = (None, restored.machine.instruction_count());
        while let Some(entry) = log.next_entry().map_err(unreadable)? {
            end_count = entry.count;
            match entry.body {
                EntryBody::Generation(owner) => generation = owner,
                EntryBody::Stopped(reason) => stopped = Some(reason),
                EntryBody::Event(_)
                | EntryBody::Output { .. }
                | EntryBody::Progress
                | EntryBody::Digest(_)
                | EntryBody::PartDigest { .. } => {}
            }
        }
        Ok(Survey {
            session: log.header().clone(),
            provenance: LogProvenance {
                generation,
                nodes: read_nodes(&self.storage)?,
                newest_is_unreadable: !skipped.is_empty(),
                writer: read_writer(&self.storage)?,
                boot: self.storage.boot(),
            },
            stopped,
            skipped,
            entries: log.next_seq().0 - first.0,
            end_count,
            restored,
            segment,
        })
    }
}

impl<S: Storage> Survey<S> {
    /// Where the guest stands before the replay.
    #[must_use]
    pub fn begin_count(&self) -> InstructionCount {
        self.restored.machine.instruction_count()
    }

    /// Replays the segment, and calls `progress` now and then.
    ///
    /// # Errors
    /// [`LogDirectoryError::Diverged`]; [`LogDirectoryError::Log`].
    pub fn replay(self, mut progress: impl FnMut(ResumeProgress)) -> Result<Resumed, LogDirectoryError> {
        let Self { segment, entries: entries_all, restored, .. } = self;
        let Restored { machine, unsent: earlier, mut log } = restored;
        let mut next_output = machine.next_output_id();
        let mut replayer = Replayer::new(machine, log.next_seq());
        let mut unsent = Unsent::default();
        earlier.into_iter().for_each(|output| unsent.push(output.id, output.operation));
        let unreadable = |source| LogDirectoryError::Log { path: segment.clone(), source };
        let first = log.next_seq();
        while let Some(entry) = log.next_entry().map_err(unreadable)? {
            if mutated(Mutation::ResumeBeforeLastEntry) && log.next_seq().0 == first.0 + entries_all {
                break;
            }
            match replayer.consume(&entry) {
                Ok(Consumed::Nothing | Consumed::Stopped(_)) => {}
                Ok(Consumed::Output(id, operation)) => {
                    next_output = id.next();
                    unsent.push(id, operation);
                }
                Err(divergence) => {
                    return Err(LogDirectoryError::Diverged { path: segment, divergence: Box::new(divergence) });
                }
            }
            let entries = replayer.consumed().0 - first.0;
            if entries.is_multiple_of(ENTRIES_PER_LOOK) || matches!(entry.body, EntryBody::Digest(_)) {
                progress(ResumeProgress { entries, entries_all, count: entry.count });
            }
        }
        Ok(Resumed {
            session: log.header().clone(),
            next_seq: replayer.consumed(),
            entries_replayed: replayer.consumed().0 - first.0,
            machine: replayer.into_machine(),
            unsent: unsent.outputs,
            unsent_dropped: unsent.dropped,
            next_output,
            segment,
            ending: log.ending().cloned().unwrap_or(Ending::Finished),
        })
    }
}

/// The newest outputs, as many as are kept.
#[derive(Default)]
struct Unsent {
    outputs: VecDeque<(OutputId, OutputOperation)>,
    bytes: usize,
    dropped: u64,
}

impl Unsent {
    fn push(&mut self, id: OutputId, operation: OutputOperation) {
        self.bytes += cost(&operation);
        self.outputs.push_back((id, operation));
        while self.bytes > UNSENT_BYTES_MAX
            && let Some((_, oldest)) = self.outputs.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.dropped += 1;
        }
    }
}

fn cost(operation: &OutputOperation) -> usize {
    UNSENT_OUTPUT_BYTES + operation.bytes().len()
}
