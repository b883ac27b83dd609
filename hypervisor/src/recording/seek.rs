//! Seeking: from the snapshot that is nearest before the target.

use super::index::{Index, IndexError, SnapshotRecord};
use super::{Entries, Monitor, Recording, RecordingError, Replay, Target};
use std::sync::{Mutex, PoisonError};
use vm::InstructionCount;

/// Finds machines at moments of a recording.
#[derive(Debug)]
pub struct Seeker<'a> {
    recording: &'a Recording,
    /// The index of each part that has one.
    indices: Vec<Option<Index>>,
    /// What is wrong with indices.
    complaints: Mutex<Vec<String>>,
}

impl<'a> Seeker<'a> {
    /// Opens the indices of a recording. One that can't be used is left out.
    #[must_use]
    pub fn new(recording: &'a Recording) -> Self {
        let mut complaints = Vec::new();
        let mut open = |part| match Index::open(part) {
            Ok(index) => {
                complaints.extend(index.damage().map(ToString::to_string));
                Some(index)
            }
            Err(IndexError::Missing) => None,
            Err(error) => {
                complaints.push(error.to_string());
                None
            }
        };
        let indices = recording.parts().iter().map(&mut open).collect();
        Self { recording, indices, complaints: Mutex::new(complaints) }
    }

    /// The recording.
    #[must_use]
    pub const fn recording(&self) -> &'a Recording {
        self.recording
    }

    /// The index of part number `part`, if it has one that can be used.
    #[must_use]
    pub fn index(&self, part: usize) -> Option<&Index> {
        self.indices.get(part)?.as_ref()
    }

    /// Takes what was found to be wrong with indices since the last call.
    pub fn take_complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.complaints.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A machine at `target`.
    ///
    /// # Errors
    /// [`RecordingError`] if the recording has no such moment, can't be read, or diverges.
    pub fn seek(&self, target: Target, monitor: &dyn Monitor) -> Result<Replay<'a>, RecordingError> {
        let mut replay = self.nearest(target)?;
        replay.run_to::<RecordingError>(target, monitor, |_, _| Ok(()))?;
        Ok(replay)
    }

    /// A machine at or before `target`, as near as there is one.
    ///
    /// # Errors
    /// As [`Self::seek`].
    pub fn nearest(&self, target: Target) -> Result<Replay<'a>, RecordingError> {
        let parts = self.recording.parts();
        let reaches = |reach: &super::Place| target.is_before(reach);
        let containing = parts.iter().position(|part| part.reach.as_ref().is_none_or(reaches)).unwrap_or(0);
        // A part whose beginning is behind the target leaves it to the end of the part before.
        for number in (0..=containing).rev() {
            let records = self.index(number).map_or(&[][..], Index::records);
            for record in records.iter().rev().filter(|record| record.is_before(target)) {
                match self.replay_from(number, record) {
                    Ok(replay) => return Ok(replay),
                    Err(complaint) => self.complain(complaint),
                }
            }
            let machine = parts[number].restore()?.machine;
            if number == 0 || !is_behind(machine.instruction_count(), target) {
                let entries = Entries::begin(self.recording, number, parts[number].begin())?;
                return Ok(Replay::new(machine, entries));
            }
        }
        unreachable!("the first part is taken whatever the target")
    }

    /// The entries from somewhere before `target` on, as near as there is a snapshot; no machine is
    /// made.
    ///
    /// # Errors
    /// [`RecordingError`] if the log can't be read.
    pub fn entries_before(&self, target: Target) -> Result<Entries<'a>, RecordingError> {
        let parts = self.recording.parts();
        let reaches = |reach: &super::Place| target.is_before(reach);
        let containing = parts.iter().position(|part| part.reach.as_ref().is_none_or(reaches)).unwrap_or(0);
        let records = self.index(containing).map_or(&[][..], Index::records);
        let nearest = records.iter().rev().find(|record| record.is_before(target) && target != Target::End);
        let nearest = nearest.map(|record| Entries::begin(self.recording, containing, record.place));
        match nearest {
            Some(Ok(entries)) => Ok(entries),
            // What is wrong with an index is told when its snapshots are used.
            Some(Err(_)) | None => Entries::begin(self.recording, containing, parts[containing].begin()),
        }
    }

    /// A machine at a snapshot of an index; else what is wrong with it.
    fn replay_from(&self, number: usize, record: &SnapshotRecord) -> Result<Replay<'a>, String> {
        let part = &self.recording.parts()[number];
        let index = self.index(number).expect("the record is one of this index");
        let machine = index.restore(part, record).map_err(|error| error.to_string())?;
        let entries = Entries::begin(self.recording, number, record.place).map_err(|error| error.to_string())?;
        Ok(Replay::new(machine, entries))
    }

    fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(complaint);
    }
}

impl SnapshotRecord {
    /// `true` if the target can be reached from the snapshot.
    #[must_use]
    pub fn is_before(&self, target: Target) -> bool {
        target != Target::Start && !target.is_before(&self.place) && !is_behind(self.count, target)
    }
}

/// `true` if a machine at `count` is past the target.
fn is_behind(count: InstructionCount, target: Target) -> bool {
    match target {
        Target::Count(wanted) => count > wanted,
        Target::Moment(moment) => count > moment.count,
        Target::Start | Target::End | Target::Entry(_) | Target::Ticks(_) | Target::Packet(_) | Target::Output(_) => {
            false
        }
    }
}
