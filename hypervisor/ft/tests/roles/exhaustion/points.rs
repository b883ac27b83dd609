//! The points in a run at which a side can die.

use logchannel::message::Message;
use std::collections::VecDeque;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Backup,
}

/// What is left of a side that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its process: all that it has sent arrives, then its connections are closed.
    Process,
    /// Its host, in the middle of sending: half of what is under way arrives, in the middle of a
    /// packet, and then silence.
    Torn,
    /// Its host and its network: nothing that is under way arrives any more, and silence.
    Host,
}

/// An elementary operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// An entry is appended to the log.
    Append,
    /// What is appended becomes packets.
    Flush,
    /// Bytes of the primary get into the channel.
    Send,
    /// Entries arrive at the backup.
    Receive,
    AckSent,
    AckReceived,
    /// An output that may leave is taken.
    Release,
    /// It is written to the console or handed to the LAN.
    WriteReleased,
    /// The LAN carries it.
    Carry,
    /// The primary hears that the LAN has.
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
    /// The backup hears that it may claim.
    Told,
    /// The backup hears which outputs have left.
    ReleasedReceived,
    /// Other words of one side to the other.
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

    /// Hearing a message.
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

/// A point in a run, and which sides live there.
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

/// The acting side is dead, and does nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Died;

/// The points of a run so far, and the deaths to come.
#[derive(Debug, Default)]
pub(super) struct Points {
    pub(super) passed: Vec<Point>,
    crashes: VecDeque<Crash>,
    /// Those of the turn being taken: the cluster buries them when it is over.
    pub(super) dying: Vec<Crash>,
    /// Whether there is a primary and a backup.
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

    /// `actor`, or somebody around both sides, gets to a point of what it is doing.
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
