//! The modes of a backup.

use super::joining::Joining;
use super::log::ReceivedLog;
use crate::role::Claiming;
use alloc::boxed::Box;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use vm::StopReason;

/// What a backup does. Each mode owns the state that means something only in it.
#[derive(Clone, Debug, Hash)]
pub(super) enum Mode {
    /// Has a primary, and handles its messages.
    Listening(Listening),
    /// Has lost the primary and asks for the pair's flag, while the rest of the log is consumed.
    Claiming(TakeOver),
    /// Knows how it goes on, and consumes the rest of the log first.
    Draining(AfterReplay, Box<ReceivedLog>),
    /// Runs the guest, or is over.
    Done(Option<Box<ReceivedLog>>),
}

/// A primary at the other end of the channel.
#[derive(Clone, Debug, Hash)]
pub(super) struct Listening {
    pub(super) heard_ns: u64,
    pub(super) spoke_ns: u64,
    pub(super) stage: Stage,
}

#[derive(Clone, Debug, Hash)]
pub(super) enum Stage {
    /// Has asked to join, and waits for the session header.
    Connecting,
    /// The primary has a backup already; this side waits until it is gone.
    Waiting,
    /// Receives the guest, and hasn't accepted the primary yet.
    Joining(Joining),
    /// Replays.
    Following(Following),
}

/// The pair that this side belongs to, as the session header says.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Pair {
    /// The primary's generation, and so that of the flag that both sides may claim.
    pub(super) generation: Generation,
    /// The primary.
    pub(super) owner: NodeId,
}

/// A backup that has accepted its primary.
#[derive(Clone, Debug, Hash)]
pub(super) struct Following {
    pub(super) pair: Pair,
    pub(super) log: Box<ReceivedLog>,
    /// The primary has said that it holds its outputs for this backup.
    pub(super) is_told: bool,
}

/// A backup that has lost its primary and asks for the pair's flag.
#[derive(Clone, Debug, Hash)]
pub(super) struct TakeOver {
    pub(super) claiming: Claiming,
    pub(super) log: Box<ReceivedLog>,
    pub(super) has_told_claims_lost: bool,
}

/// How a backup goes on when it has consumed the log.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum AfterReplay {
    /// The flag is won.
    GoLive(Generation),
    /// The primary has set the end mark of a guest that ended by itself.
    End(StopReason),
}

impl Mode {
    /// The received log, if this side has a snapshot.
    pub(super) fn log(&self) -> Option<&ReceivedLog> {
        match self {
            Self::Listening(listening) => match &listening.stage {
                Stage::Connecting | Stage::Waiting => None,
                Stage::Joining(joining) => joining.log(),
                Stage::Following(following) => Some(&following.log),
            },
            Self::Claiming(take_over) => Some(&take_over.log),
            Self::Draining(_, log) => Some(log),
            Self::Done(log) => log.as_deref(),
        }
    }

    /// As [`Mode::log`], mutable.
    pub(super) fn log_mut(&mut self) -> Option<&mut ReceivedLog> {
        match self {
            Self::Listening(listening) => match &mut listening.stage {
                Stage::Connecting | Stage::Waiting => None,
                Stage::Joining(joining) => joining.log_mut(),
                Stage::Following(following) => Some(&mut following.log),
            },
            Self::Claiming(take_over) => Some(&mut take_over.log),
            Self::Draining(_, log) => Some(log),
            Self::Done(log) => log.as_deref_mut(),
        }
    }

    /// As [`Mode::log`], for the mode that follows.
    pub(super) fn into_log(self) -> Option<Box<ReceivedLog>> {
        match self {
            Self::Listening(Listening { stage, .. }) => match stage {
                Stage::Connecting | Stage::Waiting => None,
                Stage::Joining(joining) => joining.into_log(),
                Stage::Following(following) => Some(following.log),
            },
            Self::Claiming(take_over) => Some(take_over.log),
            Self::Draining(_, log) => Some(log),
            Self::Done(log) => log,
        }
    }
}
