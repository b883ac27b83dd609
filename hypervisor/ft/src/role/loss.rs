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

/// How one side lost the other. `Display` has the words for the operator of the side that stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LossReason {
    /// The connection has ended, for this reason.
    Disconnected(String),
    /// Nothing was heard of it for so many milliseconds.
    Silent {
        /// Of whom.
        side: LostSide,
        /// How long.
        for_ms: u64,
    },
    /// A backup was heard, and got nowhere for so many milliseconds: it put no machine together, or
    /// acknowledged nothing.
    Stuck {
        /// How long.
        for_ms: u64,
    },
    /// A backup acknowledged the log, and replayed nothing of it for so many milliseconds in which
    /// the guest waited for it.
    ReplaysNothing {
        /// How long.
        for_ms: u64,
    },
    /// A primary doesn't read what it is told.
    ReadsNothing,
    /// A backup refused the session, for this reason.
    RefusedSession(String),
    /// It said goodbye, for this reason.
    Goodbye {
        /// Who.
        side: LostSide,
        /// In its own words.
        reason: String,
    },
    /// A backup sent a message that has no place there: this one.
    BrokeProtocol(&'static str),
    /// It sent entries or acknowledgements that can't be right, for this reason.
    BadLog(String),
    /// Who was asked is no primary.
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
            // A primary that leaves says itself who stopped it.
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
