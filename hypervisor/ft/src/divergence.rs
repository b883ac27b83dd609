//! Divergences: the replaying machine did something else than its log says.

use alloc::string::String;
use core::fmt;
use logchannel::entry::{EntryBody, LogSeq};
use vm::{Exit, InstructionCount, StateDigest};

/// The replaying machine and the log disagree. The machine's state can't be trusted, so its side
/// halts and never goes live.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("divergence at instruction {count}, entry {seq}: {cause}")]
pub struct Divergence {
    /// The machine's instruction count when the divergence was found.
    pub count: InstructionCount,
    /// The entry that the machine doesn't agree with.
    pub seq: LogSeq,
    /// What is wrong.
    pub cause: DivergenceCause,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DivergenceCause {
    /// The machine stopped running for a reason that the log has no entry for.
    #[error("expected {expected} at instruction {at}, {found}")]
    Exit {
        /// The name of the entry that the log has next.
        expected: &'static str,
        /// That entry's instruction count.
        at: InstructionCount,
        /// The exit that the machine reported instead.
        found: Found,
    },
    /// The digest of the machine's state differs from the recorded one.
    #[error("state digest is {found}, the log says {expected}")]
    Digest {
        /// The digest in the log.
        expected: StateDigest,
        /// The replaying machine's digest.
        found: StateDigest,
    },
    /// The guest sent another output than the recorded one.
    #[error("output {id} differs from the one that was recorded")]
    Output {
        /// The output's id.
        id: u64,
    },
    /// The machine is in a state in which the event can't have happened; the text says why.
    #[error("event refused: {0}")]
    Refused(String),
    /// The guest stopped for another reason than the recorded one.
    #[error("expected `{expected}`, found `{found}`")]
    Stop {
        /// The recorded reason.
        expected: vm::StopReason,
        /// The reason in the replay.
        found: vm::StopReason,
    },
    /// The entry's count is below the machine's.
    #[error("the entry is for instruction {at}, which the machine has passed")]
    Past {
        /// The entry's count.
        at: InstructionCount,
    },
}

/// A machine's exit; `Display` describes it for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found(pub Exit);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Exit::LimitReached => f.write_str("machine ran past it"),
            Exit::ClockRead => f.write_str("machine read the clock"),
            Exit::SeedRead => f.write_str("machine read the entropy source"),
            Exit::WallClockNeeded => f.write_str("machine read or set the real-time clock"),
            Exit::RandomBytesNeeded => f.write_str("machine asked for random bytes"),
            Exit::WaitForInterrupt => f.write_str("machine went to sleep"),
            Exit::Output => f.write_str("machine produced output"),
            Exit::Stopped(reason) => write!(f, "machine stopped: {reason}"),
        }
    }
}

/// The name of an entry's kind, for errors.
#[must_use]
pub fn entry_name(body: &EntryBody) -> &'static str {
    match body {
        EntryBody::Event(vm::Event::ClockRead { .. }) => "ClockRead",
        EntryBody::Event(vm::Event::Entropy { .. }) => "Entropy",
        EntryBody::Event(vm::Event::TimerInterrupt) => "TimerInterrupt",
        EntryBody::Event(vm::Event::Packet { .. }) => "Packet",
        EntryBody::Event(vm::Event::ConsoleInput { .. }) => "ConsoleInput",
        EntryBody::Event(vm::Event::WallClock { .. }) => "WallClock",
        EntryBody::Event(vm::Event::Alarm) => "Alarm",
        EntryBody::Event(vm::Event::RandomBytes { .. }) => "RandomBytes",
        EntryBody::Output { .. } => "Output",
        EntryBody::Progress => "Progress",
        EntryBody::Digest(_) => "Digest",
        EntryBody::PartDigest { .. } => "PartDigest",
        EntryBody::Stopped(_) => "Stopped",
        EntryBody::Generation(_) => "Generation",
    }
}
