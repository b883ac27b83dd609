//! Replaying: a machine does again what a log says, entry by entry, and every difference is a
//! divergence.

use crate::apply::apply;
use crate::divergence::{Divergence, DivergenceCause, Found, entry_name};
use alloc::format;
use alloc::string::ToString;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use vm::{Event, Exit, InstructionCount, Machine, OutputId, OutputOperation, StateDigest, StopReason};

/// The result of consuming an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consumed {
    /// Nothing that leaves the machine.
    Nothing,
    /// What the guest sent, the same as when it was recorded.
    Output(OutputId, OutputOperation),
    /// The guest came to its end here, as recorded.
    Stopped(StopReason),
}

/// Replays a log on a machine that starts where the log starts.
///
/// It never runs past the count of the entry it consumes, so it is never ahead of what it knows to
/// be complete. Source: Scales et al. 2010, §2.1.
#[derive(Debug)]
pub struct Replayer {
    machine: Machine,
    next: LogSeq,
    digests_checked: u64,
}

impl Replayer {
    /// A replayer whose first entry will be `next`.
    #[must_use]
    pub const fn new(machine: Machine, next: LogSeq) -> Self {
        Self { machine, next, digests_checked: 0 }
    }

    /// The machine, standing behind the last entry consumed.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, for fault injection.
    pub const fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Gives the machine up, so that it can go live.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.machine
    }

    /// The sequence number of the next entry: how many have been consumed.
    #[must_use]
    pub const fn consumed(&self) -> LogSeq {
        self.next
    }

    /// How many state digests have been compared, and were equal.
    #[must_use]
    pub const fn digests_checked(&self) -> u64 {
        self.digests_checked
    }

    /// Runs the machine to the count of `entry`, and applies or checks the entry.
    ///
    /// # Errors
    /// [`Divergence`] if the machine does anything else than the log says.
    pub fn consume(&mut self, entry: &LogEntry) -> Result<Consumed, Divergence> {
        if entry.count < self.machine.instruction_count() {
            return Err(self.divergence(DivergenceCause::Past { at: entry.count }));
        }
        let consumed = match &entry.body {
            EntryBody::Event(Event::ClockRead { .. }) => self.answer(entry, Exit::ClockRead)?,
            EntryBody::Event(Event::Entropy { .. }) => self.answer(entry, Exit::SeedRead)?,
            EntryBody::Event(Event::WallClock { .. }) => self.answer(entry, Exit::WallClockNeeded)?,
            EntryBody::Event(Event::RandomBytes { .. }) => self.answer(entry, Exit::RandomBytesNeeded)?,
            EntryBody::Event(
                Event::TimerInterrupt | Event::Alarm | Event::Packet { .. } | Event::ConsoleInput { .. },
            )
            | EntryBody::Progress
            | EntryBody::Generation(_) => {
                self.run_to(entry)?;
                self.apply(entry)?
            }
            EntryBody::Output { id, digest } => self.check_output(entry, *id, *digest)?,
            EntryBody::Digest(expected) => {
                self.run_to(entry)?;
                let found = self.machine.digest();
                self.check_digest(*expected, found)?
            }
            EntryBody::PartDigest { pages, digest: expected } => {
                self.run_to(entry)?;
                let Some(found) = self.machine.digest_of(*pages) else {
                    return Err(
                        self.divergence(DivergenceCause::Refused(format!("the machine has no pages {pages:?}")))
                    );
                };
                self.check_digest(*expected, found)?
            }
            EntryBody::Stopped(expected) => self.check_stop(entry, *expected)?,
        };
        self.next = self.next.next();
        Ok(consumed)
    }

    /// Runs the machine to `count`, which is not beyond the count of the next entry. That entry may
    /// be consumed next.
    ///
    /// # Errors
    /// [`Divergence`] if the machine needs an event before.
    pub fn run_before(&mut self, count: InstructionCount) -> Result<(), Divergence> {
        let exit = self.machine.run(count);
        // What the step before has sent may still be to be taken, by the entry of its output.
        if exit == Exit::LimitReached || self.machine.instruction_count() == count {
            return Ok(());
        }
        Err(self.divergence(DivergenceCause::Exit { expected: "no event", at: count, found: Found(exit) }))
    }

    fn check_digest(&mut self, expected: StateDigest, found: StateDigest) -> Result<Consumed, Divergence> {
        if found != expected {
            return Err(self.divergence(DivergenceCause::Digest { expected, found }));
        }
        self.digests_checked += 1;
        Ok(Consumed::Nothing)
    }

    /// Runs to the entry's count; anything that stops the machine before is a divergence.
    fn run_to(&mut self, entry: &LogEntry) -> Result<(), Divergence> {
        match self.machine.run(entry.count) {
            Exit::LimitReached => Ok(()),
            // The count stands still in WFI, and a guest that has stopped stays where it is.
            Exit::WaitForInterrupt | Exit::Stopped(_) if self.machine.instruction_count() == entry.count => Ok(()),
            exit @ (Exit::ClockRead
            | Exit::SeedRead
            | Exit::WallClockNeeded
            | Exit::RandomBytesNeeded
            | Exit::WaitForInterrupt
            | Exit::Output
            | Exit::Stopped(_)) => Err(self.unexpected(entry, exit)),
        }
    }

    /// Runs until the machine stands where it needs the entry's value.
    fn answer(&mut self, entry: &LogEntry, needs: Exit) -> Result<Consumed, Divergence> {
        let exit = self.machine.run(entry.count.plus(1));
        if exit != needs || self.machine.instruction_count() != entry.count {
            return Err(self.unexpected(entry, exit));
        }
        self.apply(entry)
    }

    fn apply(&mut self, entry: &LogEntry) -> Result<Consumed, Divergence> {
        match apply(&mut self.machine, entry) {
            Ok(()) => Ok(Consumed::Nothing),
            Err(error) => Err(self.divergence(DivergenceCause::Refused(error.to_string()))),
        }
    }

    fn check_output(&mut self, entry: &LogEntry, id: OutputId, digest: u64) -> Result<Consumed, Divergence> {
        let exit = self.machine.run(entry.count);
        let output = if self.machine.instruction_count() == entry.count { self.machine.take_output() } else { None };
        match output {
            Some((found, operation)) if found == id && operation.digest() == digest => {
                Ok(Consumed::Output(found, operation))
            }
            Some(_) => Err(self.divergence(DivergenceCause::Output { id: id.0 })),
            None => Err(self.unexpected(entry, exit)),
        }
    }

    fn check_stop(&mut self, entry: &LogEntry, expected: StopReason) -> Result<Consumed, Divergence> {
        match self.machine.run(entry.count) {
            Exit::Stopped(found) if found == expected && self.machine.instruction_count() == entry.count => {
                Ok(Consumed::Stopped(found))
            }
            Exit::Stopped(found) => Err(self.divergence(DivergenceCause::Stop { expected, found })),
            exit @ (Exit::LimitReached
            | Exit::ClockRead
            | Exit::SeedRead
            | Exit::WallClockNeeded
            | Exit::RandomBytesNeeded
            | Exit::WaitForInterrupt
            | Exit::Output) => Err(self.unexpected(entry, exit)),
        }
    }

    fn unexpected(&self, entry: &LogEntry, exit: Exit) -> Divergence {
        self.divergence(DivergenceCause::Exit {
            expected: entry_name(&entry.body),
            at: entry.count,
            found: Found(exit),
        })
    }

    const fn divergence(&self, cause: DivergenceCause) -> Divergence {
        Divergence { count: self.machine_count(), seq: self.next, cause }
    }

    const fn machine_count(&self) -> InstructionCount {
        self.machine.instruction_count()
    }
}
