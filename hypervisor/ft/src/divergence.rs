//! A replay that doesn't do what its log says.

use alloc::string::String;
use core::fmt;
use logchannel::entry::{EntryBody, LogSeq};
use vm::{Exit, InstructionCount, StateDigest};

/// The replaying machine and the log disagree. The machine's state can't be trusted: whoever finds
/// this halts and never goes live.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("divergence at instruction {count}, entry {seq}: {cause}")]
pub struct Divergence {
    /// Where the machine stands.
    pub count: InstructionCount,
    /// The entry that it can't follow.
    pub seq: LogSeq,
    /// What is wrong.
    pub cause: DivergenceCause,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DivergenceCause {
    /// The machine stopped for something that the log doesn't tell of.
    #[error("expected {expected} at instruction {at}, {found}")]
    Exit {
        /// What the entry says.
        expected: &'static str,
        /// Where the entry says it happened.
        at: InstructionCount,
        /// What the machine did.
        found: Found,
    },
    /// The machine's state is another.
    #[error("state digest is {found}, the log says {expected}")]
    Digest {
        /// Recorded.
        expected: StateDigest,
        /// Replayed.
        found: StateDigest,
    },
    /// The machine sent something else.
    #[error("output {id} differs from the one that was recorded")]
    Output {
        /// Which.
        id: u64,
    },
    /// The machine can't take the event.
    #[error("event refused: {0}")]
    Refused(String),
    /// The guest ended in another way.
    #[error("expected `{expected}`, found `{found}`")]
    Stop {
        /// Recorded.
        expected: vm::StopReason,
        /// Replayed.
        found: vm::StopReason,
    },
    /// The entry lies in the machine's past.
    #[error("the entry is for instruction {at}, which the machine has passed")]
    Past {
        /// The entry's count.
        at: InstructionCount,
    },
}

/// Why the machine stopped running, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found(pub Exit);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Exit::LimitReached => f.write_str("machine ran past it"),
            Exit::ClockRead => f.write_str("machine read the clock"),
            Exit::SeedRead => f.write_str("machine read the entropy source"),
            Exit::WaitForInterrupt => f.write_str("machine went to sleep"),
            Exit::Output => f.write_str("machine produced output"),
            Exit::Stopped(reason) => write!(f, "machine stopped: {reason}"),
        }
    }
}

/// What an entry is, in one word.
#[must_use]
pub fn entry_name(body: &EntryBody) -> &'static str {
    match body {
        EntryBody::Event(vm::Event::ClockRead { .. }) => "ClockRead",
        EntryBody::Event(vm::Event::Entropy { .. }) => "Entropy",
        EntryBody::Event(vm::Event::TimerInterrupt) => "TimerInterrupt",
        EntryBody::Event(vm::Event::Packet { .. }) => "Packet",
        EntryBody::Event(vm::Event::ConsoleInput { .. }) => "ConsoleInput",
        EntryBody::Output { .. } => "Output",
        EntryBody::Progress => "Progress",
        EntryBody::Digest(_) => "Digest",
        EntryBody::PartDigest { .. } => "PartDigest",
        EntryBody::Stopped(_) => "Stopped",
        EntryBody::Generation(_) => "Generation",
    }
}
