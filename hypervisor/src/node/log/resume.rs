//! Resuming from a log on disk: the survey of its directory, and its replay.

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

/// The most bytes of outputs that are retained to be sent after a restart, as by a backup that goes
/// live.
const UNSENT_BYTES_MAX: usize = 64 << 20;

/// The entries between two reports of progress.
const ENTRIES_PER_REPORT: u64 = 256;

/// A machine at the start of a segment, and the rest of the segment.
type RestoredFrom<S> = Restored<BufReader<<S as Storage>::Reader>>;

/// What a log directory holds, before it is replayed.
pub struct Survey<S: Storage = HostDirectory> {
    /// The session of the newest whole segment.
    pub session: SessionHeader,
    /// That segment.
    pub segment: PathBuf,
    /// Whose log this is, and what it may lack.
    pub provenance: LogProvenance,
    /// How the guest ended, if it did.
    pub stopped: Option<StopReason>,
    /// Newer segments that can't be used, newest first, and why. What they held is lost.
    pub skipped: Vec<(PathBuf, RestoreError)>,
    /// The entries to replay.
    pub entries: u64,
    /// The guest's instruction count at the last entry.
    pub end_count: InstructionCount,
    restored: RestoredFrom<S>,
}

impl<S: Storage> fmt::Debug for Survey<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("segment", &self.segment).finish_non_exhaustive()
    }
}

/// The progress of a replay.
#[derive(Clone, Copy, Debug)]
pub struct ResumeProgress {
    /// Entries replayed.
    pub entries: u64,
    /// Entries in the segment.
    pub entries_all: u64,
    /// The guest's instruction count.
    pub count: InstructionCount,
}

/// A VM as its log on disk has it.
#[derive(Debug)]
pub struct Resumed {
    /// The session of the newest segment.
    pub session: SessionHeader,
    /// The machine after the last whole entry. It may have outputs that weren't logged: take them
    /// before anything else.
    pub machine: Machine,
    /// The position of the next entry.
    pub next_seq: LogSeq,
    /// The outputs that may not have left, oldest first: all since the segment's snapshot, because
    /// no log records which have left.
    pub unsent: VecDeque<(OutputId, OutputOperation)>,
    /// The number of older outputs that were dropped because there were more than 64 MiB.
    pub unsent_dropped: u64,
    /// One past the last output in the log.
    pub next_output: OutputId,
    /// The replayed segment.
    pub segment: PathBuf,
    /// Entries replayed.
    pub entries_replayed: u64,
    /// How the segment ends.
    pub ending: Ending,
}

impl<S: Storage> LogDirectory<S> {
    /// Finds the newest segment whose snapshot is whole, and reads it up to its last whole entry.
    ///
    /// # Errors
    /// [`LogDirectoryError::Stopped`] if logging had failed; [`LogDirectoryError::NoSegment`];
    /// [`LogDirectoryError::Log`] if the segment is damaged otherwise than at its end;
    /// [`LogDirectoryError::Io`].
    pub fn survey(&self) -> Result<Survey<S>, LogDirectoryError> {
        if let Some(reason) = read_note(&self.storage, STOPPED)? {
            // A full disk may have had room for the file, but not for its content.
            let reason =
                if reason.is_empty() { "why couldn't be written: the disk may have been full".into() } else { reason };
            return Err(LogDirectoryError::Stopped { path: self.path().into(), reason });
        }
        let mut skipped = Vec::new();
        for name in segment_names(&self.storage)?.into_iter().rev() {
            match self.open_segment(&name)? {
                Ok(restored) => return self.scan(&name, restored, skipped),
                Err(error) => skipped.push((self.storage.path_of(&name), error)),
            }
        }
        Err(LogDirectoryError::NoSegment { path: self.path().into(), skipped })
    }

    /// `true` if there is a segment whose snapshot seems to be whole.
    #[must_use]
    pub fn has_whole_segment(&self) -> bool {
        let is_whole =
            |name: &String| self.storage.read(name).is_ok_and(|file| LogReader::open(BufReader::new(file)).is_ok());
        segment_names(&self.storage).is_ok_and(|names| names.iter().any(is_whole))
    }

    /// The machine at a segment's start. The inner error means that the segment has no whole
    /// snapshot.
    fn open_segment(&self, name: &str) -> Result<Result<RestoredFrom<S>, RestoreError>, LogDirectoryError> {
        let path = self.storage.path_of(name);
        let file = self.storage.read(name).map_err(failed("reading", &path))?;
        match LogHead::read(BufReader::new(file)).map_err(RestoreError::Log).and_then(restore) {
            Ok(restored) if restored.log.header().vm != self.vm => Err(LogDirectoryError::OtherVm {
                path: self.path().into(),
                found: restored.log.header().vm.to_string(),
                wanted: self.vm.clone(),
            }),
            // An error of the disk may be temporary: no older segment is used because of it.
            Err(RestoreError::Log(source @ LogFileError::Io { .. })) => Err(LogDirectoryError::Log { path, source }),
            restored => Ok(restored),
        }
    }

    /// Reads a segment's entries without replaying them.
    fn scan(
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
    /// The guest's instruction count before the replay.
    #[must_use]
    pub fn begin_count(&self) -> InstructionCount {
        self.restored.machine.instruction_count()
    }

    /// Replays the segment, and calls `progress` periodically.
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
            if entries.is_multiple_of(ENTRIES_PER_REPORT) || matches!(entry.body, EntryBody::Digest(_)) {
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

/// The newest outputs, up to [`UNSENT_BYTES_MAX`].
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
