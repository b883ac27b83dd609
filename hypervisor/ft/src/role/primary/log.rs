//! The log as the primary has it.

use logchannel::entry::{LogEntry, LogSeq};
use logchannel::stream::LogSender;

/// The log as this side has it.
#[derive(Clone, Debug, Hash)]
pub(super) enum Log {
    /// Nobody reads it: entries are only counted. The next one is this.
    Unread(LogSeq),
    /// A backup reads it.
    Streamed(LogSender),
}

impl Log {
    pub(super) fn append(&mut self, entry: &LogEntry) -> LogSeq {
        match self {
            Self::Unread(next) => {
                let seq = *next;
                *next = LogSeq(seq.0 + 1);
                seq
            }
            Self::Streamed(sender) => sender.append(entry),
        }
    }

    pub(super) const fn appended(&self) -> LogSeq {
        match self {
            Self::Unread(next) => *next,
            Self::Streamed(sender) => sender.appended(),
        }
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        match self {
            Self::Unread(_) => false,
            Self::Streamed(sender) => sender.acked() == sender.appended(),
        }
    }
}
