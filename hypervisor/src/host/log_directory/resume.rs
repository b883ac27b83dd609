//! Going on from a log on disk.

use super::{LogDirectory, LogDirectoryError, STOPPED, failed, read_node, read_note, segments};
use crate::replay::{Consumed, Replayer};
use crate::restore::{RestoreError, Restored, restore};
use logchannel::entry::{EntryBody, Generation, LogSeq};
use logchannel::file::{Ending, LogFileError, LogHead, TAIL_OUTPUT_BYTES};
use logchannel::session::{NodeId, SessionHeader};
use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use vm::{Machine, OutputId, OutputOperation, StopReason};

/// The most bytes of outputs that are kept for going on, as by a backup for its going live.
const RESUMED_TAIL_BYTES_MAX: usize = 64 << 20;

/// A VM as its log on disk has it.
#[derive(Debug)]
pub struct Resumed {
    /// What the newest segment is about.
    pub session: SessionHeader,
    /// The machine behind the last whole entry. It may have outputs that were not logged: take them before anything else.
    pub machine: Machine,
    /// The place of the next entry.
    pub next_seq: LogSeq,
    /// The outputs that may not have left, oldest first: all since the segment's snapshot, as no log says which have left.
    pub tail: VecDeque<(OutputId, OutputOperation)>,
    /// How many older ones were dropped because the tail had 64 MiB.
    pub tail_dropped: u64,
    /// The output behind all that the log tells of.
    pub next_output: OutputId,
    /// As which generation the VM last ran in this log. If the arbiter knows a later one, somebody else has run it since;
    /// only a claim by [`Resumed::node`] itself, which died before it could log it, is none of somebody else.
    pub generation: Generation,
    /// The incarnation that wrote the newest segment, if that is known.
    pub node: Option<NodeId>,
    /// How the guest had come to its end, if it had.
    pub stopped: Option<StopReason>,
    /// The segment that was replayed.
    pub segment: PathBuf,
    /// Newer segments that could not be used, newest first, and why. What they held is lost, if they held anything.
    pub skipped: Vec<(PathBuf, RestoreError)>,
    /// Entries replayed.
    pub entries_replayed: u64,
    /// How the segment ends.
    pub ending: Ending,
}

impl LogDirectory {
    /// Replays the newest segment whose snapshot is whole to its last whole entry.
    ///
    /// # Errors
    /// [`LogDirectoryError::Stopped`] if logging had failed; [`LogDirectoryError::NoSegment`];
    /// [`LogDirectoryError::Log`] if the segment is damaged otherwise than at its end;
    /// [`LogDirectoryError::Diverged`]; [`LogDirectoryError::Io`].
    pub fn resume(&self) -> Result<Resumed, LogDirectoryError> {
        if let Some(reason) = read_note(&self.path.join(STOPPED))? {
            // On a full disk there was room for the file, but not for what is in it.
            let reason =
                if reason.is_empty() { "why couldn't be written: the disk may have been full".into() } else { reason };
            return Err(LogDirectoryError::Stopped { path: self.path.clone(), reason });
        }
        let mut skipped = Vec::new();
        for segment in segments(&self.path)?.into_iter().rev() {
            match self.open_segment(&segment)? {
                Ok(restored) => return self.replay(segment, restored, skipped),
                Err(error) => skipped.push((segment, error)),
            }
        }
        Err(LogDirectoryError::NoSegment { path: self.path.clone(), skipped })
    }

    /// The machine at a segment's start. The inner error means that it has no whole one.
    fn open_segment(&self, path: &Path) -> Result<Result<Restored<BufReader<File>>, RestoreError>, LogDirectoryError> {
        let file = File::open(path).map_err(failed("reading", path))?;
        match LogHead::read(BufReader::new(file)).map_err(RestoreError::Log).and_then(restore) {
            Ok(restored) if restored.log.header().vm != self.vm => Err(LogDirectoryError::OtherVm {
                path: self.path.clone(),
                found: restored.log.header().vm.to_string(),
                wanted: self.vm.clone(),
            }),
            // A disk that doesn't read now may do so later: nothing is given up for that.
            Err(RestoreError::Log(source @ LogFileError::Io { .. })) => {
                Err(LogDirectoryError::Log { path: path.into(), source })
            }
            restored => Ok(restored),
        }
    }

    fn replay(
        &self,
        segment: PathBuf,
        restored: Restored<BufReader<File>>,
        skipped: Vec<(PathBuf, RestoreError)>,
    ) -> Result<Resumed, LogDirectoryError> {
        let Restored { machine, tail: earlier, mut log } = restored;
        let mut next_output = machine.next_output_id();
        let mut replayer = Replayer::new(machine, log.next_seq());
        let mut tail = Tail::default();
        earlier.into_iter().for_each(|output| tail.push(output.id, output.operation));
        let mut generation = log.header().generation;
        let mut stopped = None;
        let unreadable = |source| LogDirectoryError::Log { path: segment.clone(), source };
        let first = log.next_seq();
        while let Some(entry) = log.next_entry().map_err(unreadable)? {
            match replayer.consume(&entry) {
                Ok(Consumed::Nothing) => {}
                Ok(Consumed::Output(id, operation)) => {
                    next_output = OutputId(id.0 + 1);
                    tail.push(id, operation);
                }
                Ok(Consumed::Stopped(reason)) => stopped = Some(reason),
                Err(divergence) => return Err(LogDirectoryError::Diverged { path: segment, divergence }),
            }
            if let EntryBody::Generation(owner) = entry.body {
                generation = owner;
            }
        }
        Ok(Resumed {
            session: log.header().clone(),
            next_seq: replayer.consumed(),
            entries_replayed: replayer.consumed().0 - first.0,
            machine: replayer.into_machine(),
            tail: tail.outputs,
            tail_dropped: tail.dropped,
            next_output,
            generation,
            node: read_node(&self.path)?,
            stopped,
            segment,
            skipped,
            ending: log.ending().cloned().unwrap_or(Ending::Finished),
        })
    }
}

/// The newest outputs, as many as are kept.
#[derive(Default)]
struct Tail {
    outputs: VecDeque<(OutputId, OutputOperation)>,
    bytes: usize,
    dropped: u64,
}

impl Tail {
    fn push(&mut self, id: OutputId, operation: OutputOperation) {
        self.bytes += cost(&operation);
        self.outputs.push_back((id, operation));
        while self.bytes > RESUMED_TAIL_BYTES_MAX
            && let Some((_, oldest)) = self.outputs.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.dropped += 1;
        }
    }
}

fn cost(operation: &OutputOperation) -> usize {
    TAIL_OUTPUT_BYTES + operation.bytes().len()
}
