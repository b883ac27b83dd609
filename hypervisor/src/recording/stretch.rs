//! Limits a segment to the part that the next segment doesn't have.

use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{LogFileError, LogReader};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Where the next segment begins, and the generation then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(super) seq: LogSeq,
    pub(super) generation: Generation,
}

/// For each log, where the next one goes on.
pub(crate) fn continuations(logs: &[PathBuf]) -> Vec<Option<Continuation>> {
    let beginning = |path: &PathBuf| {
        let log = LogReader::open(BufReader::new(File::open(path).ok()?)).ok()?;
        Some(Continuation { seq: log.next_seq(), generation: log.header().generation })
    };
    let mut continuations: Vec<_> = logs.iter().skip(1).map(beginning).collect();
    continuations.resize(logs.len(), None);
    continuations
}

/// A log up to where the next one goes on. A backup's segment has more entries, because its log is
/// ahead of the machine of which the next segment's snapshot is made; the next segment has those
/// entries too.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) log: LogReader<BufReader<File>>,
    continuation: Option<Continuation>,
    generation: Generation,
}

impl Stretch {
    /// The entries of `log` before `continuation`.
    pub(crate) fn new(log: LogReader<BufReader<File>>, continuation: Option<Continuation>) -> Self {
        Self { generation: log.header().generation, continuation, log }
    }

    /// The same, for a VM that is in this generation where `log` stands.
    pub(super) const fn resume(
        log: LogReader<BufReader<File>>,
        continuation: Option<Continuation>,
        generation: Generation,
    ) -> Self {
        Self { log, continuation, generation }
    }

    /// The VM's generation after the entries read.
    pub(super) const fn generation(&self) -> Generation {
        self.generation
    }

    /// The next entry, as [`LogReader::next_entry`].
    pub(crate) fn next_entry(&mut self) -> Result<Option<LogEntry>, LogFileError> {
        // In another generation the next log may be of another life of the VM.
        let goes_on = |next: Continuation| next.seq == self.log.next_seq() && next.generation == self.generation;
        if self.continuation.is_some_and(goes_on) {
            return Ok(None);
        }
        let entry = self.log.next_entry()?;
        if let Some(EntryBody::Generation(generation)) = entry.as_ref().map(|entry| &entry.body) {
            self.generation = *generation;
        }
        Ok(entry)
    }
}
