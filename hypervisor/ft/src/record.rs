//! Recording: a guest runs on the host's events, and every one of them is logged before it is
//! applied.

use crate::apply::apply;
use crate::event_source::EventSource;
use crate::mutation::{Mutation, mutated};
use alloc::vec::Vec;
use logchannel::entry::{EntryBody, Generation, LogEntry};
use vm::{Event, Exit, InstructionCount, Machine, OutputId, OutputOperation, PageRange, StopReason};

/// Takes a recorder's entries: a role, or a file.
pub trait LogSink {
    /// Why an entry can't be taken.
    type Error;

    /// Appends an entry. `output` is what the guest sent, if the entry is that of an output
    /// operation.
    ///
    /// # Errors
    /// If the entry could not be taken; the recorder must not go on.
    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Self::Error>;

    /// Sends or writes the entries appended so far, because outputs wait for them.
    ///
    /// # Errors
    /// If that isn't possible; the recorder must not go on.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// The most written pages that one digest covers; the next digest goes on with the others. The
/// guest stands still for a digest: well below a millisecond.
const DIGEST_PAGES_MAX: usize = 1024;

/// When a recorder logs what no event asks for.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Steps from one state digest to the next; at least 1.
    pub digest_steps: u64,
    /// Nanoseconds after which a guest that has run at all gets a state digest, whatever its steps.
    pub digest_ns: u64,
    /// Nanoseconds of running without an entry after which a progress entry tells the backup how
    /// far it may go.
    pub progress_ns: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { digest_steps: 20_000_000, digest_ns: 1_000_000_000, progress_ns: 2_000_000 }
    }
}

/// How a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// The guest has more to do.
    Ran,
    /// The guest sleeps until the source has an event for it, at the latest its timer at
    /// [`Machine::timer_deadline`] or its alarm at [`Machine::alarm_wall_ns`].
    Waiting,
    /// The guest came to its end, and the log says so.
    Stopped(StopReason),
}

/// Runs a guest live.
#[derive(Debug)]
pub struct Recorder<S> {
    machine: Machine,
    source: S,
    intervals: Intervals,
    digested: InstructionCount,
    digested_ns: u64,
    /// The page that the next digest begins at.
    digest_from: u64,
    logged: InstructionCount,
    logged_ns: u64,
    stopped: Option<StopReason>,
}

impl<S: EventSource> Recorder<S> {
    /// A recorder that runs `machine` on from its current state.
    pub fn new(machine: Machine, mut source: S, intervals: Intervals) -> Self {
        let (count, now_ns) = (machine.instruction_count(), source.now_ns());
        Self {
            machine,
            source,
            intervals,
            digested: count,
            digested_ns: now_ns,
            digest_from: 0,
            logged: count,
            logged_ns: now_ns,
            stopped: None,
        }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Gives the machine up.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.machine
    }

    /// The machine, for callers that copy its memory.
    pub const fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The source of events.
    #[must_use]
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The source of events, for callers that start or stop its clock.
    pub const fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }

    /// Passes the source's events to the guest, and runs it for at most `steps`.
    ///
    /// # Errors
    /// As the sink's.
    pub fn run_slice<L: LogSink>(&mut self, sink: &mut L, steps: u64) -> Result<Slice, L::Error> {
        if let Some(reason) = self.stopped {
            return Ok(Slice::Stopped(reason));
        }
        self.give_events(sink)?;
        let limit = self.machine.instruction_count().plus(steps);
        let slice = loop {
            match self.machine.run_about(limit) {
                Exit::LimitReached => break Slice::Ran,
                Exit::WaitForInterrupt => break Slice::Waiting,
                Exit::ClockRead => {
                    let ticks = self.source.ticks();
                    self.log_and_apply(sink, Event::ClockRead { ticks })?;
                }
                Exit::SeedRead => {
                    let bits = self.source.entropy();
                    self.log_and_apply(sink, Event::Entropy { bits })?;
                }
                Exit::WallClockNeeded => {
                    let ns = self.wall_ns();
                    self.log_and_apply(sink, Event::WallClock { ns })?;
                }
                Exit::RandomBytesNeeded => {
                    let bytes = self.random_bytes(self.machine.random_bytes_needed());
                    self.log_and_apply(sink, Event::RandomBytes { bytes })?;
                }
                Exit::Output => self.log_outputs(sink)?,
                Exit::Stopped(reason) => {
                    self.digest(sink)?;
                    self.log(sink, EntryBody::Stopped(reason))?;
                    sink.flush()?;
                    self.stopped = Some(reason);
                    return Ok(Slice::Stopped(reason));
                }
            }
        };
        self.log_what_is_due(sink)?;
        Ok(slice)
    }

    /// Logs that the VM belongs to `generation` from here on.
    ///
    /// # Errors
    /// As the sink's.
    pub fn log_generation<L: LogSink>(&mut self, sink: &mut L, generation: Generation) -> Result<(), L::Error> {
        self.log_outputs(sink)?;
        self.log(sink, EntryBody::Generation(generation))
    }

    /// Logs a digest of the machine's state that covers at most [`DIGEST_PAGES_MAX`] written pages,
    /// so that the guest doesn't stand still for long. The next digest begins at the page where
    /// this one ends.
    fn digest_some<L: LogSink>(&mut self, sink: &mut L) -> Result<(), L::Error> {
        let (pages, digest) = self.machine.digest_some(self.digest_from, DIGEST_PAGES_MAX);
        self.digest_from = pages.end;
        let is_whole = pages == PageRange { first: 0, end: self.machine.pages_end() };
        self.log_digest(
            sink,
            if is_whole { EntryBody::Digest(digest) } else { EntryBody::PartDigest { pages, digest } },
        )
    }

    /// Logs a digest of the machine's state.
    ///
    /// # Errors
    /// As the sink's.
    pub fn digest<L: LogSink>(&mut self, sink: &mut L) -> Result<(), L::Error> {
        let digest = self.machine.digest();
        self.log_digest(sink, EntryBody::Digest(digest))
    }

    fn log_digest<L: LogSink>(&mut self, sink: &mut L, digest: EntryBody) -> Result<(), L::Error> {
        self.log(sink, digest)?;
        self.digested = self.machine.instruction_count();
        self.digested_ns = self.logged_ns;
        Ok(())
    }

    /// Passes the source's events to the guest.
    fn give_events<L: LogSink>(&mut self, sink: &mut L) -> Result<(), L::Error> {
        loop {
            match self.machine.run(self.machine.instruction_count()) {
                // A predecessor died after it had logged only some of a step's outputs: the others
                // come before the event.
                Exit::Output => self.log_outputs(sink)?,
                // The guest has ended, and gets nothing more.
                Exit::Stopped(_) => return Ok(()),
                Exit::LimitReached
                | Exit::WaitForInterrupt
                | Exit::ClockRead
                | Exit::SeedRead
                | Exit::WallClockNeeded
                | Exit::RandomBytesNeeded => {
                    let Some(event) = self.due_alarm().or_else(|| self.source.poll(&self.machine)) else {
                        return Ok(());
                    };
                    self.log_and_apply(sink, event)?;
                }
            }
        }
    }

    /// The time of day for the guest: the host's, or the latest that the guest knows if the host's
    /// is behind that.
    ///
    /// A new owner's host may be behind the host of the owner before, and people set clocks back. A
    /// guest that saw its time of day go back would take later events for earlier ones; so the time
    /// of day stands until the host's has come to it.
    fn wall_ns(&mut self) -> u64 {
        let host_ns = self.source.wall_ns();
        if mutated(Mutation::WallClockOfHost) { host_ns } else { host_ns.max(self.machine.last_wall_ns()) }
    }

    /// The alarm of the guest's real-time clock, if its time has come.
    fn due_alarm(&mut self) -> Option<Event> {
        let due = self.machine.alarm_wall_ns()?;
        (due <= self.source.wall_ns()).then_some(Event::Alarm)
    }

    fn random_bytes(&mut self, count: usize) -> Vec<u8> {
        let halfwords = (0..count.div_ceil(2)).flat_map(|_| self.source.entropy().to_le_bytes());
        halfwords.take(count).collect()
    }

    fn log_what_is_due<L: LogSink>(&mut self, sink: &mut L) -> Result<(), L::Error> {
        let count = self.machine.instruction_count();
        let now_ns = self.source.now_ns();
        let steps = count.since(self.digested);
        let digest_is_late = steps > 0 && now_ns.saturating_sub(self.digested_ns) >= self.intervals.digest_ns;
        if steps >= self.intervals.digest_steps || digest_is_late {
            self.digest_some(sink)?;
        } else if count > self.logged && now_ns.saturating_sub(self.logged_ns) >= self.intervals.progress_ns {
            self.log(sink, EntryBody::Progress)?;
        }
        Ok(())
    }

    fn log_outputs<L: LogSink>(&mut self, sink: &mut L) -> Result<(), L::Error> {
        let count = self.machine.instruction_count();
        while let Some((id, operation)) = self.machine.take_output() {
            let entry = LogEntry { count, body: EntryBody::Output { id, digest: operation.digest() } };
            sink.append(&entry, Some((id, operation)))?;
        }
        self.logged = count;
        self.logged_ns = self.source.now_ns();
        sink.flush()
    }

    fn log_and_apply<L: LogSink>(&mut self, sink: &mut L, event: Event) -> Result<(), L::Error> {
        let entry = LogEntry { count: self.machine.instruction_count(), body: EntryBody::Event(event) };
        sink.append(&entry, None)?;
        self.note_logged(entry.count);
        apply(&mut self.machine, &entry).expect("the source gives only what the machine can take");
        Ok(())
    }

    fn log<L: LogSink>(&mut self, sink: &mut L, body: EntryBody) -> Result<(), L::Error> {
        let entry = LogEntry { count: self.machine.instruction_count(), body };
        sink.append(&entry, None)?;
        self.note_logged(entry.count);
        Ok(())
    }

    fn note_logged(&mut self, count: InstructionCount) {
        self.logged = count;
        self.logged_ns = self.source.now_ns();
    }
}
