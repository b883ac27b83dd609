//! How one side of a pair loses the other.

use alloc::string::String;
use core::fmt;
use logchannel::session::NodeId;

/// Which of the two is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostSide {
    /// The backup loses its primary.
    Primary,
    /// The primary loses its backup.
    Backup,
}

/// How one side lost the other. `Display` explains it to the operator of the side that stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LossReason {
    /// The connection has ended, for this reason.
    Disconnected(String),
    /// The other side was silent for too long.
    Silent {
        /// The side that was silent.
        side: LostSide,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// The backup was heard, and made no progress for too long: it neither restored the machine nor
    /// acknowledged anything.
    Stuck {
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// The backup acknowledged the log, and replayed nothing of it for too long while the guest
    /// waited for it.
    ReplaysNothing {
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// The primary doesn't read what this side sends.
    ReadsNothing,
    /// The backup refused the session, for this reason.
    RefusedSession(String),
    /// The other side left on purpose.
    Goodbye {
        /// The side that left.
        side: LostSide,
        /// Its reason, as it gave it.
        reason: String,
    },
    /// The backup sent a message that isn't allowed in its state; the text names it.
    BrokeProtocol(&'static str),
    /// The other side sent entries or acknowledgements that can't be right, for this reason.
    BadLog(String),
    /// The peer that was asked is no primary.
    NoPrimary,
    /// The operator stopped the primary while the backup was joining.
    PrimaryStopped,
    /// The VM ends before the backup has joined.
    VmEnds,
    /// This other node owns the VM.
    Fenced(NodeId),
}

impl fmt::Display for LostSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A primary that leaves names the cause in its goodbye.
            Self::Disconnected(reason) | Self::BadLog(reason) | Self::Goodbye { side: LostSide::Primary, reason } => {
                f.write_str(reason)
            }
            Self::Goodbye { side: LostSide::Backup, reason } => write!(f, "the backup left: {reason}"),
            Self::Silent { side, for_ms } => write!(f, "the {side} was silent for {for_ms} ms"),
            Self::Stuck { for_ms } => write!(f, "the backup has not got on for {for_ms} ms"),
            Self::ReplaysNothing { for_ms } => write!(f, "the backup has replayed nothing for {for_ms} ms"),
            Self::ReadsNothing => f.write_str("the primary doesn't read what it is told"),
            Self::RefusedSession(reason) => write!(f, "the backup refused the session: {reason}"),
            Self::BrokeProtocol(message) => write!(f, "the backup broke the protocol with {message}"),
            Self::NoPrimary => f.write_str("it is no primary"),
            Self::PrimaryStopped => f.write_str("the operator stopped the primary"),
            Self::VmEnds => f.write_str("the VM ends before the backup has joined"),
            Self::Fenced(node) => write!(f, "node {node} owns the VM"),
        }
    }
}
