//! One log of a recording.

use super::RecordingError;
use super::stretch::{Continuation, Stretch};
use crate::node::log::restore::{Restored, restore};
use logchannel::codec::EntryContext;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{Ending, LogCursor, LogFileError, LogHead, LogReader};
use logchannel::session::{ImageDigest, SessionHeader};
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use vm::Event;

/// Bytes that are read of a log at once.
const BUFFER_BYTES: usize = 64 << 10;

/// The log's first bytes, which tell it from others: magic, version, and a session header with the
/// seed of the guest's random numbers.
const IDENTITY_BYTES: usize = 4096;

/// A place between two entries of a part, from which it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The next entry.
    pub cursor: LogCursor,
    /// The numbers of the entries before.
    pub context: EntryContext,
    /// The VM's generation after the entries before.
    pub generation: Generation,
}

/// One log: a file, or a segment of a log directory.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    index_path: PathBuf,
    header: SessionHeader,
    version: u32,
    begin: LogCursor,
    identity: ImageDigest,
    /// Where the next part goes on.
    continuation: Option<Continuation>,
    /// Where this part ends; `None` for the last, which may grow.
    pub(super) reach: Option<Place>,
}

impl Part {
    /// Opens the log at `path`, whose index is at `index_path` if it has one.
    pub(super) fn open(path: &Path, index_path: PathBuf) -> Result<Self, RecordingError> {
        let input = open(path)?;
        let failed = |source| RecordingError::Log { path: path.into(), source };
        let head = LogHead::read(input).map_err(failed)?;
        let (header, version) = (head.header().clone(), head.version());
        let log = head.into_entries().map_err(failed)?;
        let begin = log.cursor();
        let identity = identity(path, begin.offset)?;
        Ok(Self { path: path.into(), index_path, header, version, begin, identity, continuation: None, reach: None })
    }

    /// Where the log is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its index is, or would be.
    #[must_use]
    pub fn index_path(&self) -> &Path {
        &self.index_path
    }

    /// Its session header.
    #[must_use]
    pub const fn header(&self) -> &SessionHeader {
        &self.header
    }

    /// The version of its format.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// What tells it from other logs.
    #[must_use]
    pub const fn identity(&self) -> ImageDigest {
        self.identity
    }

    /// The place before its first entry.
    #[must_use]
    pub fn begin(&self) -> Place {
        Place { cursor: self.begin, context: EntryContext::default(), generation: self.header.generation }
    }

    /// The machine from which the log goes on.
    ///
    /// # Errors
    /// [`RecordingError`] if none can be made of it.
    pub fn restore(&self) -> Result<Restored<BufReader<File>>, RecordingError> {
        let head = LogHead::read(open(&self.path)?).map_err(|source| self.failed(source))?;
        restore(head).map_err(|source| RecordingError::Restore { path: self.path.clone(), source: Box::new(source) })
    }

    /// Its entries from `place` on, up to where the next part goes on.
    ///
    /// # Errors
    /// [`RecordingError`] if it can't be read there.
    pub(super) fn entries(&self, place: Place) -> Result<PartEntries, RecordingError> {
        let mut input = open(&self.path)?;
        let sought = input.seek(SeekFrom::Start(place.cursor.offset));
        sought.map_err(|source| RecordingError::Io { path: self.path.clone(), source })?;
        let log = LogReader::resume(input, self.header.clone(), place.cursor).map_err(|source| self.failed(source))?;
        let stretch = Stretch::resume(log, self.continuation, place.generation);
        Ok(PartEntries { stretch, context: place.context })
    }

    /// An error of the log, with its name.
    pub(super) fn failed(&self, source: LogFileError) -> RecordingError {
        RecordingError::Log { path: self.path.clone(), source }
    }
}

/// The entries of a part, up to where the next one goes on.
#[derive(Debug)]
pub(super) struct PartEntries {
    stretch: Stretch,
    /// The numbers of the entries read.
    context: EntryContext,
}

impl PartEntries {
    /// The next entry and its position, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(LogSeq, LogEntry)>, LogFileError> {
        let seq = self.next_seq();
        let Some(entry) = self.stretch.next_entry()? else { return Ok(None) };
        self.note(&entry);
        Ok(Some((seq, entry)))
    }

    /// Notes an entry's numbers.
    fn note(&mut self, entry: &LogEntry) {
        self.context.count = entry.count.0;
        match &entry.body {
            EntryBody::Event(Event::ClockRead { ticks }) => self.context.ticks = *ticks,
            EntryBody::Event(Event::WallClock { ns }) => self.context.wall_ns = *ns,
            EntryBody::Event(Event::Packet { number, .. }) => self.context.packet = *number,
            EntryBody::Output { id, .. } => self.context.output = id.next().0,
            EntryBody::Event(
                Event::Entropy { .. }
                | Event::TimerInterrupt
                | Event::ConsoleInput { .. }
                | Event::Alarm
                | Event::RandomBytes { .. },
            )
            | EntryBody::Progress
            | EntryBody::Digest(_)
            | EntryBody::PartDigest { .. }
            | EntryBody::Stopped(_)
            | EntryBody::Generation(_) => {}
        }
    }

    /// Where it goes on.
    pub(super) fn place(&self) -> Place {
        Place { cursor: self.stretch.log.cursor(), context: self.context, generation: self.stretch.generation() }
    }

    /// The position of the next entry.
    pub(super) fn next_seq(&self) -> LogSeq {
        self.stretch.log.next_seq()
    }

    pub(super) const fn ending(&self) -> Option<&Ending> {
        self.stretch.log.ending()
    }

    /// The offset of the frame that had the last entry.
    pub(super) const fn frame_offset(&self) -> u64 {
        self.stretch.log.frame_offset()
    }
}

/// Finds out which of the logs in a directory follow each other. Those from before a gap, or of an
/// earlier life of the VM, are skipped.
pub(super) fn link(parts: Vec<Part>, skipped: &mut Vec<String>) -> Result<Vec<Part>, RecordingError> {
    let mut linked: Vec<Part> = Vec::new();
    for part in parts {
        if let Some(before) = linked.last_mut() {
            let next = Continuation { seq: part.begin.seq(), generation: part.header.generation };
            before.continuation = Some(next);
            let reach = reach(before)?;
            before.reach = Some(reach);
            if reach.cursor.seq() != next.seq {
                skipped.extend(linked.drain(..).map(|before| {
                    let after = part.path.display();
                    format!(
                        "{}: {after} doesn't go on where it ends; name the file to look into it",
                        before.path.display()
                    )
                }));
            }
        }
        linked.push(part);
    }
    Ok(linked)
}

/// Where a part ends that has a continuation. A part that can't be read to its end ends where it
/// can't.
fn reach(part: &Part) -> Result<Place, RecordingError> {
    let mut entries = part.entries(part.begin())?;
    // An error ends it too: the next part doesn't go on there.
    while let Ok(Some(_)) = entries.next() {}
    Ok(entries.place())
}

/// Opens a log that can be read from any place.
fn open(path: &Path) -> Result<BufReader<File>, RecordingError> {
    let failed = |source| RecordingError::Io { path: path.into(), source };
    // Opening a pipe would wait for its writer.
    let is_file = std::fs::metadata(path).map_err(failed)?.is_file();
    if !is_file {
        return Err(RecordingError::NoFile(path.into()));
    }
    Ok(BufReader::with_capacity(BUFFER_BYTES, File::open(path).map_err(failed)?))
}

/// The digest of the log's first bytes before its entries.
fn identity(path: &Path, entries_at: u64) -> Result<ImageDigest, RecordingError> {
    use std::os::unix::fs::FileExt;
    let failed = |source| RecordingError::Io { path: path.into(), source };
    let length = usize::try_from(entries_at).map_or(IDENTITY_BYTES, |at| at.min(IDENTITY_BYTES));
    let mut bytes = vec![0; length];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0)).map_err(failed)?;
    Ok(ImageDigest::of(&bytes))
}
