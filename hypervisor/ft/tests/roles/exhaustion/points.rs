//! The points in a run at which a side can die.

use logchannel::message::Message;
use std::collections::VecDeque;

/// The side that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Backup,
}

/// What remains of a side that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its process died: everything that it sent arrives, then its connections close.
    Process,
    /// Its host died while sending: half of what is in flight arrives, cut in the middle of a
    /// packet, and then nothing.
    Torn,
    /// Its host and its network died: nothing in flight arrives.
    Host,
}

/// An elementary operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// An entry is appended to the log.
    Append,
    /// Appended entries are flushed to frames.
    Flush,
    /// Bytes of the primary are sent on the channel.
    Send,
    /// Entries arrive at the backup.
    Receive,
    AckSent,
    AckReceived,
    /// A released output is taken from the gate.
    Release,
    /// A released output is written to the console or sent to the LAN.
    WriteReleased,
    /// The LAN carries a packet.
    Carry,
    /// The LAN's report of what it has carried arrives at the primary.
    Carried,
    ClaimAsked,
    ClaimRecorded,
    ClaimAnswered,
    /// An entry is replayed.
    Consume,
    JoinSent,
    JoinReceived,
    /// A piece of memory is copied.
    SnapshotPiece,
    SnapshotComplete,
    PagesReceived,
    UnsentOutputReceived,
    SnapshotReceived,
    Restore,
    AcceptedSent,
    AcceptedReceived,
    /// The backup is told that it may claim.
    Told,
    /// The backup is told which outputs have left.
    ReleasedReceived,
    /// Another message is sent.
    WordSent,
    WordReceived,
    GoLive,
    Attach,
}

impl Kind {
    pub(super) const ALL: [Self; 30] = [
        Self::Append,
        Self::Flush,
        Self::Send,
        Self::Receive,
        Self::AckSent,
        Self::AckReceived,
        Self::Release,
        Self::WriteReleased,
        Self::Carry,
        Self::Carried,
        Self::ClaimAsked,
        Self::ClaimRecorded,
        Self::ClaimAnswered,
        Self::Consume,
        Self::JoinSent,
        Self::JoinReceived,
        Self::SnapshotPiece,
        Self::SnapshotComplete,
        Self::PagesReceived,
        Self::UnsentOutputReceived,
        Self::SnapshotReceived,
        Self::Restore,
        Self::AcceptedSent,
        Self::AcceptedReceived,
        Self::Told,
        Self::ReleasedReceived,
        Self::WordSent,
        Self::WordReceived,
        Self::GoLive,
        Self::Attach,
    ];

    /// The operation of receiving `message`.
    pub(super) const fn of_hearing(message: &Message) -> Self {
        match message {
            Message::Join { .. } => Self::JoinReceived,
            Message::Pages(_) => Self::PagesReceived,
            Message::UnsentOutput(_) => Self::UnsentOutputReceived,
            Message::Snapshot(_) => Self::SnapshotReceived,
            Message::Accepted => Self::AcceptedReceived,
            Message::Protected { .. } => Self::Told,
            Message::Entries(_) => Self::Receive,
            Message::Ack { .. } => Self::AckReceived,
            Message::Released(_) => Self::ReleasedReceived,
            Message::Wait
            | Message::NoPrimary
            | Message::Session { .. }
            | Message::AskOwner { .. }
            | Message::Owner { .. }
            | Message::Refused { .. }
            | Message::Consumed { .. }
            | Message::Storing
            | Message::Heartbeat
            | Message::Clock { .. }
            | Message::Goodbye { .. } => Self::WordReceived,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    After,
}

/// A point in a run, and the sides that live there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) kind: Kind,
    pub(super) moment: Moment,
    pub(super) has_primary: bool,
    pub(super) has_backup: bool,
}

impl Point {
    pub(super) const fn has(&self, side: Side) -> bool {
        match side {
            Side::Primary => self.has_primary,
            Side::Backup => self.has_backup,
        }
    }
}

/// A death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    /// The number of the point.
    pub(super) at: usize,
    pub(super) victim: Side,
    pub(super) fate: Fate,
}

/// The acting side has died, and does nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Died;

/// The points of a run so far, and the deaths to come.
#[derive(Debug, Default)]
pub(super) struct Points {
    pub(super) passed: Vec<Point>,
    crashes: VecDeque<Crash>,
    /// The deaths in the current turn, which the cluster handles after it.
    pub(super) dying: Vec<Crash>,
    /// Whether there is a primary, and a backup.
    pub(super) alive: (bool, bool),
}

impl Points {
    /// `crashes` are in the order in which they happen.
    pub(super) fn new(crashes: &[Crash]) -> Self {
        Self { crashes: crashes.iter().copied().collect(), ..Self::default() }
    }

    /// `true` if no death is left.
    pub(super) fn are_calm(&self) -> bool {
        self.crashes.is_empty() && self.dying.is_empty()
    }

    /// `actor`, or the environment if `None`, is at a point.
    pub(super) fn pass(&mut self, actor: Option<Side>, kind: Kind, moment: Moment) -> Result<(), Died> {
        let number = self.passed.len();
        let (has_primary, has_backup) = self.alive;
        self.passed.push(Point { kind, moment, has_primary, has_backup });
        let Some(crash) = self.crashes.pop_front_if(|crash| crash.at == number) else { return Ok(()) };
        self.dying.push(crash);
        if actor == Some(crash.victim) { Err(Died) } else { Ok(()) }
    }

    pub(super) fn before(&mut self, actor: Option<Side>, kind: Kind) -> Result<(), Died> {
        self.pass(actor, kind, Moment::Before)
    }

    pub(super) fn after(&mut self, actor: Option<Side>, kind: Kind) -> Result<(), Died> {
        self.pass(actor, kind, Moment::After)
    }
}
