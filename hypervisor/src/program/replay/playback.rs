//! A replay of logs that follow each other.

use super::length::Length;
use super::output::{Output, OutputError};
use crate::node::log::restore::Restored;
use crate::node::reports::{NodeReport, Replayed, frames_dropped};
use crate::os::clock;
use crate::program::cli::interrupt;
use crate::program::cli::interrupt::Interrupted;
use crate::program::cli::progress::Progress;
use crate::recording::{Continuation, Stretch};
use ft::divergence::Divergence;
use ft::replay::{Consumed, Replayer};
use ft::trouble::Watch;
use logchannel::entry::{EntryBody, LogEntry};
use logchannel::file::{Ending, LogFileError};
use std::fs::File;
use std::io::BufReader;
use std::time::Duration;
use vm::{Machine, OutputOperation, TIMEBASE_HZ};

/// How many entries are replayed between two looks at the clock.
const ENTRIES_PER_LOOK: u64 = 256;

/// Why a log isn't replayed to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaybackError {
    #[error(transparent)]
    Diverged(#[from] Divergence),
    #[error(transparent)]
    Log(#[from] LogFileError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A replay of logs that follow each other.
#[derive(Debug)]
pub(super) struct Playback<'a> {
    output: &'a mut Output,
    /// The replayer of the last log; `None` before the first.
    replayer: Option<Replayer>,
    entries: u64,
    outputs: u64,
    digests_checked: u64,
    watch: Watch,
    ending: Ending,
    progress: Progress,
    length: Length,
    /// Instructions of all logs before the present one.
    done: u64,
    /// Where the present log began.
    began_at: u64,
}

impl<'a> Playback<'a> {
    /// A replay of logs of this length.
    pub(super) fn new(output: &'a mut Output, length: Length, now_ns: u64) -> Self {
        Self {
            output,
            replayer: None,
            entries: 0,
            outputs: 0,
            digests_checked: 0,
            watch: Watch::replayed(),
            ending: Ending::Finished,
            progress: Progress::new(now_ns, 0),
            length,
            done: 0,
            began_at: 0,
        }
    }

    /// Replays a log to its end, or to where the next one goes on.
    pub(super) fn replay(
        &mut self,
        restored: Restored<BufReader<File>>,
        continuation: Option<Continuation>,
    ) -> Result<(), PlaybackError> {
        let Restored { mut machine, log, .. } = restored;
        match self.replayer.take() {
            Some(before) if before.consumed() == log.next_seq() => self.compare(before, &mut machine)?,
            // This log stands alone: what was replayed before is of an earlier life of the VM, or
            // there is a gap.
            Some(_) | None => (self.entries, self.outputs, self.digests_checked) = (0, 0, 0),
        }
        self.began_at = machine.instruction_count().0;
        let mut replayer = Replayer::new(machine, log.next_seq());
        let mut log = Stretch::new(log, continuation);
        while let Some(entry) = log.next_entry()? {
            self.consume(&mut replayer, &entry)?;
            if matches!(entry.body, EntryBody::Digest(_)) || self.entries.is_multiple_of(ENTRIES_PER_LOOK) {
                interrupt::check()?;
                self.tell_progress(entry.count.0)?;
            }
        }
        self.done += replayer.machine().instruction_count().0 - self.began_at;
        self.digests_checked += replayer.digests_checked();
        self.ending = log.log.ending().cloned().unwrap_or(Ending::Finished);
        self.replayer = Some(replayer);
        Ok(())
    }

    /// Compares the machine at a log's end with the one from which the next log goes on: they must
    /// be equal.
    fn compare(&mut self, mut before: Replayer, machine: &mut Machine) -> Result<(), Divergence> {
        let body = EntryBody::Digest(machine.digest());
        before.consume(&LogEntry { count: machine.instruction_count(), body })?;
        self.digests_checked += 1;
        Ok(())
    }

    fn consume(&mut self, replayer: &mut Replayer, entry: &LogEntry) -> Result<(), PlaybackError> {
        self.entries += 1;
        let consumed = replayer.consume(entry)?;
        if let Some(trouble) = self.watch.check(replayer.machine_mut(), true, clock::now_ns) {
            self.output.tell(&NodeReport::from(trouble))?;
        }
        if let Consumed::Output(_, output) = consumed {
            self.outputs += 1;
            if let OutputOperation::Console(bytes) = output {
                self.output.show(&bytes)?;
            }
        }
        Ok(())
    }

    fn tell_progress(&mut self, instruction_count: u64) -> Result<(), OutputError> {
        let Some(mips) = self.progress.due(clock::now_ns(), instruction_count) else { return Ok(()) };
        let percent = self.length.percent(self.done + instruction_count.saturating_sub(self.began_at));
        self.output.tell(&NodeReport::Replaying { instruction_count, mips, entries: self.entries, percent })
    }

    /// The result; `None` if there was nothing to replay.
    pub(super) fn result(self, took_ns: u64) -> Option<Replayed> {
        let mut machine = self.replayer?.into_machine();
        Some(Replayed {
            entries: self.entries,
            instruction_count: machine.instruction_count().0,
            outputs: self.outputs,
            frames_dropped: frames_dropped(&machine),
            digests_checked: self.digests_checked,
            state_digest: machine.digest().to_string(),
            seconds: Duration::from_nanos(took_ns).as_secs_f64(),
            guest_seconds: Duration::from_nanos(machine.last_ticks().saturating_mul(1_000_000_000 / TIMEBASE_HZ))
                .as_secs_f64(),
            ending: self.ending.to_string(),
        })
    }
}
