//! The interesting things that a run can show: a simulation that never saw one of them proves
//! nothing about it.

use std::collections::BTreeMap;

macro_rules! sightings {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Something that a run should show now and then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Sighting {
            $($(#[$doc])* $name,)*
        }

        impl Sighting {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

sightings! {
    /// A backup went live.
    Failover,
    /// A primary went on alone because its backup was lost.
    BackupLost,
    /// Something was typed at the console of a primary.
    Typed,
    /// Both sides of a pair asked for its flag.
    BothClaimed,
    /// A side asked for a flag and got no answer.
    ArbiterUnreachable,
    /// A side that had won a flag without hearing of it asked again and heard.
    LostReplyAskedAgain,
    /// A primary was told by the arbiter that it is fenced.
    PrimaryFenced,
    /// A backup was told by the arbiter that it is fenced.
    BackupFenced,
    /// The LAN told a primary that it is fenced.
    FencedByLan,
    /// A backup went live while one of another VM joined.
    FailoverWhileOtherJoins,
    /// A pair was protected again after a loss.
    Rejoin,
    /// A joining backup died before the pair was protected.
    BackupKilledInJoin,
    /// A primary died while a backup joined.
    PrimaryKilledInJoin,
    /// A process died between two of the messages that it had to send at the same time.
    KilledBetweenSends,
    /// A process died while its test-and-set was under way.
    KilledWhileClaiming,
    /// A connection ended in the middle of a frame.
    TornFrame,
    /// A connection between two hosts was cut.
    ChannelCut,
    /// A connection to the LAN was cut.
    CableCut,
    /// A connection to the LAN went dead without being closed.
    CableDead,
    /// A primary gave up a connection to the LAN because nothing came over it.
    LanSilent,
    /// The LAN gave up a connection because nothing came over it.
    PortSilent,
    /// Two places could not reach each other for a while.
    Partition,
    /// A process stood still for longer than the failure timeout.
    LongPause,
    /// A primary without backup stood still for so long that it was a pause, and its guest's clock
    /// stood.
    PauseLeftOut,
    /// A primary's guest had to stand, and its clock too.
    ClockStood,
    /// A process that had stood still found that another one owns the VM.
    FencedAfterPause,
    /// A backup that went live kept an output that its predecessor had sent, and the LAN had
    /// carried.
    UnsentOutputAlreadyCarried,
    /// The LAN dropped an output that it had carried already.
    OutputDroppedByLan,
    /// A primary sent an output to the LAN again, because its connection was cut before it was
    /// carried.
    SentAgain,
    /// A backup that went live had outputs to send that its predecessor may have sent.
    UnsentOutputsAtGoLive,
    /// A backup that went live had entries left to replay when it won.
    DrainedAfterWin,
    /// A frame that the old primary had was delivered again to the new one.
    PacketDeliveredAgain,
    /// An output was held for more than a millisecond.
    OutputHeld,
    /// Outputs were discarded by a fenced primary, and put out by its successor.
    HeldOutputsDiscarded,
    /// The guest put out several frames at one go.
    Burst,
    /// A pair failed over a second time in one run.
    SecondFailover,
    /// A backup joined a VM whose first primary was gone.
    JoinedSuccessor,
    /// A backup came that the primary could not take.
    JoinRefused,
    /// A backup came while there was another, and waited for its place.
    SpareWaits,
    /// The arbiter said that an owner owns the VM though the LAN refused it.
    OwnerConfirmed,
    /// An operator stopped a protected primary.
    HandOver,
    /// The guest powered itself off.
    PowerOff,
    /// The guest powered itself off in a generation that began with a failover.
    PowerOffAfterFailover,
    /// All who could have gone on died.
    VmLost,
    /// A state digest was compared by a backup.
    DigestCompared,
    /// A backup that couldn't keep up stopped listening.
    BackupSlow,
    /// A look at the latest claim was not answered.
    LookUnanswered,
    /// An arbiter couldn't say what the latest claim is before its operator had seen to it.
    ArbiterUnwell,
    /// Somebody who looked for a primary was told that there is none.
    NoPrimaryThere,
    /// A backup with another arbiter than its primary's was refused.
    MistakenRefused,
    /// An owner found its claim missing at the arbiter.
    ClaimsLost,
    /// It made it again.
    ClaimsRestored,
    /// A primary stood still, because its backup may have won its flag in what the arbiter had
    /// lost.
    Stranded,
    /// A backup that lost its primary waited, because the arbiter had lost the primary's claim.
    BackupWaitsForClaim,
    /// A log on disk could be resumed.
    LogUsable,
    /// A log on disk failed, and its VM went on without it.
    LogFailed,
    /// A disk did nothing for a while.
    DiskHangs,
    /// A loss of power took something that wasn't synced.
    UnsyncedLost,
    /// A process died within a call to its disk.
    KilledWriting,
    /// A segment could not be read, and the one before was taken.
    SegmentSkipped,
    /// A VM went on from a log on disk after the death of both sides.
    Resumed,
    /// It did a second time in one run.
    ResumedAgain,
    /// An operator accepted that what clients have seen may be missing.
    ResumedWithLoss,
    /// A process was killed while it resumed a VM.
    KilledWhileResuming,
    /// A log was refused because its VM had gone on elsewhere, or because it may lack something.
    LogRefused,
    /// A guest got less time because its backup was behind.
    GuestSlowed,
}

/// How often each thing was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings(BTreeMap<Sighting, u64>);

impl Sightings {
    /// It was seen.
    pub fn saw(&mut self, sighting: Sighting) {
        *self.0.entry(sighting).or_default() += 1;
    }

    /// How often it was seen.
    #[must_use]
    pub fn count(&self, sighting: Sighting) -> u64 {
        self.0.get(&sighting).copied().unwrap_or_default()
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (sighting, count) in &other.0 {
            *self.0.entry(*sighting).or_default() += count;
        }
    }

    /// What was never seen.
    #[must_use]
    pub fn missing(&self) -> Vec<Sighting> {
        Sighting::ALL.iter().copied().filter(|sighting| self.count(*sighting) == 0).collect()
    }
}
