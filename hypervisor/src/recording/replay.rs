//! A machine in a recording, and the entries that it has still to consume.

use super::{Entries, Moment, Monitor, Place, RecordingError, Target};
use ft::divergence::Divergence;
use ft::replay::{Consumed, Replayer};
use logchannel::entry::{LogEntry, LogSeq};
use vm::{InstructionCount, Machine};

/// How many entries are consumed between two reports to the monitor.
const ENTRIES_PER_REPORT: u32 = 64;

/// An entry that was consumed.
#[derive(Debug)]
pub struct Step {
    /// Its position.
    pub seq: LogSeq,
    /// The entry.
    pub entry: LogEntry,
    /// What the machine did.
    pub consumed: Consumed,
}

/// A machine that stands somewhere in a recording.
#[derive(Debug)]
pub struct Replay<'a> {
    replayer: Replayer,
    entries: Entries<'a>,
    /// The next entry, if it has been looked at.
    next: Option<(LogSeq, LogEntry)>,
}

impl<'a> Replay<'a> {
    /// A machine that stands where `entries` go on.
    pub(super) fn new(machine: Machine, entries: Entries<'a>) -> Self {
        Self { replayer: Replayer::new(machine, entries.next_seq()), entries, next: None }
    }

    /// The machine.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        self.replayer.machine()
    }

    /// The machine, for digests, probes and copies of its memory.
    pub const fn machine_mut(&mut self) -> &mut Machine {
        self.replayer.machine_mut()
    }

    /// Gives the machine up.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.replayer.into_machine()
    }

    /// Where it stands.
    #[must_use]
    pub fn moment(&self) -> Moment {
        let seq = self.next.as_ref().map_or_else(|| self.entries.next_seq(), |(seq, _)| *seq);
        Moment { count: self.machine().instruction_count(), seq }
    }

    /// The numbers of the entries read so far, and the VM's generation.
    #[must_use]
    pub fn place(&self) -> Place {
        self.entries.place()
    }

    /// The next entry, which isn't consumed; `None` at the end.
    ///
    /// # Errors
    /// [`RecordingError`] if the log can't be read further.
    pub fn peek(&mut self) -> Result<Option<&(LogSeq, LogEntry)>, RecordingError> {
        if self.next.is_none() {
            self.next = self.entries.next_entry()?;
        }
        Ok(self.next.as_ref())
    }

    /// Consumes the next entry; `None` at the end.
    ///
    /// # Errors
    /// [`RecordingError`] if the log can't be read further, or the machine does something else.
    pub fn step(&mut self) -> Result<Option<Step>, RecordingError> {
        self.peek()?;
        let Some((seq, entry)) = self.next.take() else { return Ok(None) };
        let consumed = self.replayer.consume(&entry).map_err(|divergence| self.diverged(divergence))?;
        Ok(Some(Step { seq, entry, consumed }))
    }

    /// Goes on to `target`, and passes each entry that was consumed to `each`.
    ///
    /// # Errors
    /// [`RecordingError`]: as [`Self::step`]; [`RecordingError::Outside`] if the recording ends
    /// before, or the target is behind already.
    pub fn run_to<E: From<RecordingError>>(
        &mut self,
        target: Target,
        monitor: &dyn Monitor,
        mut each: impl FnMut(&Step, &mut Machine) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut reported, mut entries) = (self.machine().instruction_count(), 0_u32);
        let is_there = loop {
            match self.peek()? {
                None => {
                    break match target {
                        // Whether the machine gets there is seen below.
                        Target::Start | Target::End | Target::Count(_) => true,
                        Target::Moment(moment) => moment.seq == self.moment().seq,
                        Target::Entry(_) | Target::Ticks(_) | Target::Packet(_) | Target::Output(_) => false,
                    };
                }
                Some((seq, entry)) if target.stops_before(*seq, entry) => {
                    if let Some(found) = target.skipped_by(entry) {
                        return Err(RecordingError::Skipped { target, found, at: entry.count }.into());
                    }
                    break target.is_named_by(*seq);
                }
                Some(_) => {}
            }
            if let Some(step) = self.step()? {
                each(&step, self.replayer.machine_mut())?;
            }
            entries = entries.wrapping_add(1);
            if entries.is_multiple_of(ENTRIES_PER_REPORT) {
                self.report(monitor, &mut reported)?;
            }
        };
        self.report(monitor, &mut reported)?;
        let count = match target {
            Target::Count(count) | Target::Moment(Moment { count, .. }) => Some(count),
            // The machine stands before the entry, and at its count.
            Target::Entry(_) | Target::Ticks(_) | Target::Packet(_) | Target::Output(_) => {
                self.peek()?.map(|(_, entry)| entry.count)
            }
            Target::Start | Target::End => None,
        };
        let is_reached = match count {
            Some(count) => self.run_on(count)?,
            None => true,
        };
        if is_there && is_reached { Ok(()) } else { Err(self.outside(target)?.into()) }
    }

    /// Runs the machine to `count`, which is before the next entry; `false` if that isn't possible.
    fn run_on(&mut self, count: InstructionCount) -> Result<bool, RecordingError> {
        let is_behind = count < self.machine().instruction_count();
        let last = self.peek()?.map(|(_, entry)| entry.count);
        // What comes after the last entry isn't known.
        if is_behind || last.is_none_or(|last| count > last) {
            return Ok(self.machine().instruction_count() == count);
        }
        self.replayer.run_before(count).map_err(|divergence| self.diverged(divergence))?;
        Ok(true)
    }

    fn report(&self, monitor: &dyn Monitor, reported: &mut InstructionCount) -> Result<(), RecordingError> {
        let count = self.machine().instruction_count();
        let steps = count.0.saturating_sub(reported.0);
        *reported = count;
        if monitor.advanced(steps).is_break() { Err(RecordingError::Interrupted) } else { Ok(()) }
    }

    fn diverged(&self, divergence: Divergence) -> RecordingError {
        RecordingError::Diverged { path: self.entries.part().path().into(), divergence: Box::new(divergence) }
    }

    /// The error for a target that this recording doesn't have.
    fn outside(&mut self, target: Target) -> Result<RecordingError, RecordingError> {
        let recording = self.entries.recording();
        let mut entries = recording.entries()?;
        let first = entries.next_seq();
        let begins = match entries.next_entry()? {
            // The first entry of a guest that was recorded from its reset on.
            _ if first == LogSeq(0) => InstructionCount(0),
            Some((_, entry)) => entry.count,
            None => self.machine().instruction_count(),
        };
        while entries.next_entry()?.is_some() {}
        let ends = InstructionCount(entries.place().context.count.max(begins.0));
        Ok(RecordingError::Outside { target, begins, ends, first, last: entries.next_seq() })
    }
}
