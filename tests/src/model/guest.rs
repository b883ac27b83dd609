//! A guest of a few steps instead of a machine. Its outputs depend on all its inputs.

use logchannel::entry::{EntryBody, LogEntry};
use vm::{Event, InstructionCount, OutputId, OutputOperation, StopReason};

/// Reads entropy and sends everything that it has read, a given number of times; then it powers
/// off, or sleeps for ever.
///
/// Owners give it different entropy, so that an output shows the history to which it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Guest {
    rounds: u8,
    powers_off: bool,
    read: Vec<u8>,
    sent: u8,
}

const POWER_OFF: StopReason = StopReason::PowerOff { code: 0 };

impl Guest {
    pub(super) const fn new(rounds: u8, powers_off: bool) -> Self {
        Self { rounds, powers_off, read: Vec::new(), sent: 0 }
    }

    /// The guest of a snapshot.
    pub(super) fn restore(state: &[u8]) -> Option<Self> {
        let [rounds, powers_off, sent, read @ ..] = state else { return None };
        Some(Self { rounds: *rounds, powers_off: *powers_off != 0, read: read.to_vec(), sent: *sent })
    }

    /// Its state in a snapshot.
    pub(super) fn save(&self) -> Vec<u8> {
        [&[self.rounds, self.powers_off.into(), self.sent], self.read.as_slice()].concat()
    }

    /// `true` if it has powered off, or does so in its next step.
    pub(super) const fn is_over(&self) -> bool {
        self.sent == self.rounds
    }

    /// `true` if it sleeps for ever.
    pub(super) const fn sleeps(&self) -> bool {
        self.is_over() && !self.powers_off
    }

    pub(super) fn count(&self) -> InstructionCount {
        InstructionCount(self.read.len() as u64 + u64::from(self.sent))
    }

    /// The id of its next output.
    pub(super) fn next_output(&self) -> OutputId {
        OutputId(self.sent.into())
    }

    /// Its output `index`, if it has produced that many.
    pub(super) fn output(&self, index: usize) -> Option<&[u8]> {
        self.read.get(..=index).filter(|_| index < self.sent.into())
    }

    /// Takes its next step, with `entropy` if it reads some.
    pub(super) fn step(&mut self, entropy: u8) -> (LogEntry, Option<(OutputId, OutputOperation)>) {
        let body = if self.is_over() {
            EntryBody::Stopped(POWER_OFF)
        } else if self.read.len() == usize::from(self.sent) {
            EntryBody::Event(Event::Entropy { bits: entropy.into() })
        } else {
            let (id, operation) = self.pending_output();
            EntryBody::Output { id, digest: operation.digest() }
        };
        let entry = LogEntry { count: self.count(), body };
        let output = self.replay(&entry).unwrap_or_else(|reason| panic!("replay of what was recorded: {reason}"));
        (entry, output)
    }

    /// Replays an entry, and returns its output.
    ///
    /// # Errors
    /// How it diverges.
    pub(super) fn replay(&mut self, entry: &LogEntry) -> Result<Option<(OutputId, OutputOperation)>, String> {
        let diverges = || format!("{entry:?} after {self:?}");
        if entry.count != self.count() {
            return Err(diverges());
        }
        match entry.body {
            EntryBody::Event(Event::Entropy { bits }) if self.read.len() == usize::from(self.sent) => {
                self.read.push(u8::try_from(bits).map_err(|_| diverges())?);
                Ok(None)
            }
            EntryBody::Output { id, digest } if self.read.len() > usize::from(self.sent) => {
                let output = self.pending_output();
                if (output.0, output.1.digest()) != (id, digest) {
                    return Err(diverges());
                }
                self.sent += 1;
                Ok(Some(output))
            }
            EntryBody::Stopped(POWER_OFF) if self.is_over() => Ok(None),
            EntryBody::Event(_)
            | EntryBody::Output { .. }
            | EntryBody::Progress
            | EntryBody::Digest(_)
            | EntryBody::PartDigest { .. }
            | EntryBody::Stopped(_)
            | EntryBody::Generation(_) => Err(diverges()),
        }
    }

    fn pending_output(&self) -> (OutputId, OutputOperation) {
        (self.next_output(), OutputOperation::Packet(self.read.clone()))
    }
}
