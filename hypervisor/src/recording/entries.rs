//! The entries of a recording, over all of its parts.

use super::part::PartEntries;
use super::{Part, Place, Recording, RecordingError};
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::file::Ending;

/// Reads a recording's entries one by one.
#[derive(Debug)]
pub struct Entries<'a> {
    recording: &'a Recording,
    part: usize,
    entries: PartEntries,
}

impl<'a> Entries<'a> {
    /// The entries from `place` in part number `part` on.
    pub(super) fn begin(recording: &'a Recording, part: usize, place: Place) -> Result<Self, RecordingError> {
        Ok(Self { recording, part, entries: recording.parts[part].entries(place)? })
    }

    /// The next entry, with its position; `None` after the last whole one.
    ///
    /// # Errors
    /// [`RecordingError`] if the log can't be read further.
    pub fn next_entry(&mut self) -> Result<Option<(LogSeq, LogEntry)>, RecordingError> {
        loop {
            let next = self.entries.next().map_err(|source| self.part().failed(source))?;
            if next.is_some() {
                return Ok(next);
            }
            let Some(next) = self.recording.parts.get(self.part + 1) else { return Ok(None) };
            let before = self.place();
            self.part += 1;
            // The numbers go on; only what they are encoded against begins afresh.
            self.entries = next.entries(Place { cursor: next.begin().cursor, ..before })?;
        }
    }

    /// The recording.
    #[must_use]
    pub const fn recording(&self) -> &'a Recording {
        self.recording
    }

    /// The part that the last entry was of.
    #[must_use]
    pub fn part(&self) -> &'a Part {
        &self.recording.parts[self.part]
    }

    /// The number of that part.
    #[must_use]
    pub const fn part_number(&self) -> usize {
        self.part
    }

    /// Where it goes on, in its part.
    #[must_use]
    pub fn place(&self) -> Place {
        self.entries.place()
    }

    /// The position of the next entry.
    #[must_use]
    pub fn next_seq(&self) -> LogSeq {
        self.entries.next_seq()
    }

    /// The offset of the frame of the last entry, in its part.
    #[must_use]
    pub const fn frame_offset(&self) -> u64 {
        self.entries.frame_offset()
    }

    /// How the last part ends; `None` before its end has been seen.
    #[must_use]
    pub const fn ending(&self) -> Option<&Ending> {
        self.entries.ending()
    }
}
