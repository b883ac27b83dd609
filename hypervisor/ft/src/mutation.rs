//! Deliberate bugs, which the simulator, the model and the tests of the roles must find.
//!
//! Each mutation removes one rule of the protocol at the place that keeps it. Only the tests' own
//! build has the feature `mutations`; without it `mutated` is the constant `false`. A checker that
//! nothing can fail proves nothing: mutations show that these checkers can fail.

/// A rule of the protocol that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The primary releases outputs at once, acknowledged or not.
    SkipOutputRule,
    /// The primary treats entries that it has sent as acknowledged.
    ReleaseOnSend,
    /// The backup acknowledges an entry before it has received it.
    AckBeforeReceive,
    /// The backup goes live without asking the arbiter.
    BackupSkipsTestAndSet,
    /// The primary goes on alone without asking the arbiter.
    PrimarySkipsTestAndSet,
    /// The backup claims though nobody has told it that outputs are held for it.
    ClaimUntold,
    /// The backup goes live before it has consumed the last entry.
    GoLiveBeforeLastEntry,
    /// A fenced primary releases the outputs that it held.
    ReleaseWhenFenced,
    /// The primary tells the backup that the pair is protected before it holds outputs.
    TellBeforeHolding,
    /// The primary tells the backup that one more output has left than has.
    TellReleasedTooEarly,
    /// Console output counts as left when it is queued for its writer, which dies with the process.
    ConsoleLeftWhenTaken,
    /// A backup that goes live doesn't send what its predecessor may not have sent.
    ForgetUnsent,
    /// The guest's clock runs on over a time in which the host didn't run the guest.
    ClockRunsInPause,
    /// The guest's clock stands at the last logged value during a failover.
    ClockOfLastEntry,
    /// The guest gets the host's time of day, though it knows a later one.
    WallClockOfHost,
    /// A snapshot comes without the outputs that may not have left.
    ForgetUnsentInSnapshot,
    /// Pages written while the memory was copied aren't copied again.
    SkipLastPages,
    /// A guest that writes memory faster than it is copied isn't slowed.
    CopyWithoutSlowing,
    /// A guest that is stopped until its backup has replayed more waits for a backup that replays
    /// nothing any more.
    WaitForReplay,
    /// The log goes on one entry too late after a snapshot.
    SnapshotTooEarly,
    /// A primary lets outputs out though its log on disk is only promised.
    ReleaseOnPromise,
    /// A primary lets outputs out whose entries its log on disk doesn't have.
    ReleaseBeforeDisk,
    /// A backup is accepted though its log on disk is only promised.
    AcceptOnPromise,
    /// A restart from the log of a backup that won the VM's flag, and died before it was the owner
    /// in its log, needs no consent.
    TrustLogOfWinner,
    /// An interrupted `--resume` leaves an end mark.
    EndResumedOnPromise,
    /// A log counts as written while its entries wait in the process.
    WrittenBeforeFlush,
    /// A log counts as durable without having been synced.
    DurableBeforeSync,
    /// A segment's name isn't made durable.
    SegmentNameNotSynced,
    /// A segment begins at its snapshot, without the entries that were received before it was made.
    SegmentWithoutReceivedEntries,
    /// A segment gets its name before its snapshot is synced, though outputs wait for the disk.
    SegmentNamedBeforeSync,
    /// A log's writer isn't named in its directory.
    WriterNotNamed,
    /// A node that resumes a VM is named in the directory only after its claim.
    ClaimBeforeName,
    /// A log of an older owner is taken for the last owner's.
    OlderLogTaken,
    /// What a log may lack isn't asked.
    LossesNotAsked,
    /// A resumed VM doesn't send again what may not have left.
    ResumeWithoutUnsent,
    /// The last whole entry of a log isn't replayed.
    ResumeBeforeLastEntry,
    /// The LAN gives a new owner again the last packet that its predecessor had logged.
    RedeliverLoggedPacket,
    /// The LAN carries an output again.
    CarryTwice,
    /// The LAN serves the port of an older generation.
    ServeOlderGeneration,
    /// The LAN keeps a port whose connection has fallen silent.
    TrustSilentPort,
    /// A claim that wasn't answered counts as won.
    UnansweredClaimIsWon,
    /// The late answer to a question that was given up is taken for that to the next.
    LateReplyCounts,
    /// A backup for which there was no place doesn't look for one again.
    SpareGivesUp,
    /// What a backup doesn't take at once is never sent.
    ChannelRestForgotten,
    /// A packet for which the guest has no room is dropped.
    PacketForgotten,
    /// What a lost connection to the LAN had on it isn't sent again.
    NothingSentAgain,
    /// A `--resume` doesn't look again when a dead owner's claim has arrived meanwhile.
    ResumeLooksOnce,
    /// A backup may say that it has consumed what it hasn't received.
    ConsumedUnbounded,
    /// What a LAN doesn't take at once is never sent.
    LanRestForgotten,
    /// A primary whose LAN is lost never attaches again.
    NeverAttachAgain,
    /// A backup accepts a primary whose generation its arbiter knows, but as another node's.
    OwnerNodeNotCompared,
    /// A backup that can't reach its arbiter counts that as a passed check of the owner.
    UnreachableCountsAsChecked,
    /// The arbiter grants a flag whatever node holds the one before.
    PredecessorNotCompared,
    /// A primary whose claims were lost claims the flag that its backup may have won before.
    ClaimInDoubt,
    /// A primary that finds no claim at the arbiter takes itself for fenced.
    FencedByAbsence,
    /// An owner refills the flags before its own under its own name, so that a backup of an older
    /// pair may follow it.
    RefillUnderOwnName,
}

impl Mutation {
    /// The mutations of rules about logs on disk that the simulator reaches too rarely: the model
    /// must catch them.
    pub const OF_DISK_LOGS: [Self; 4] =
        [Self::ReleaseOnPromise, Self::ReleaseBeforeDisk, Self::AcceptOnPromise, Self::EndResumedOnPromise];

    /// The mutation of the rule about copies of memory, for which the simulator's guest writes too
    /// few pages: `tests/tests/simulation/mutations.rs` must catch it.
    pub const OF_COPIES: [Self; 1] = [Self::CopyWithoutSlowing];

    /// The mutation of the rule about a backup that lives and replays nothing, which the simulator
    /// doesn't have: `tests/tests/simulation/mutations.rs` must catch it.
    pub const OF_REPLAY: [Self; 1] = [Self::WaitForReplay];

    /// The mutation of the rule about console output, which no process of the simulator dies with:
    /// `tests/tests/simulation/mutations.rs` must catch it.
    pub const OF_CONSOLE: [Self; 1] = [Self::ConsoleLeftWhenTaken];

    /// The mutation of the rule about the time of day, which the simulator's guest doesn't read:
    /// `tests/tests/simulation/mutations.rs` must catch it.
    pub const OF_TIME_OF_DAY: [Self; 1] = [Self::WallClockOfHost];

    /// The mutations of rules that no process of the simulator comes to:
    /// `tests/tests/simulation/mutations.rs` must catch them.
    pub const OF_DRIVERS: [Self; 2] = [Self::ResumeLooksOnce, Self::ConsumedUnbounded];

    /// The mutations of rules that matter only in orders of events which the simulator reaches too
    /// rarely: the model must catch them.
    pub const OF_RARE_ORDERS: [Self; 4] =
        [Self::TrustLogOfWinner, Self::PredecessorNotCompared, Self::ClaimInDoubt, Self::RefillUnderOwnName];

    /// The mutations that the simulator must catch.
    pub const ALL: [Self; 42] = [
        Self::SkipOutputRule,
        Self::ReleaseOnSend,
        Self::AckBeforeReceive,
        Self::BackupSkipsTestAndSet,
        Self::PrimarySkipsTestAndSet,
        Self::ClaimUntold,
        Self::GoLiveBeforeLastEntry,
        Self::ReleaseWhenFenced,
        Self::TellBeforeHolding,
        Self::TellReleasedTooEarly,
        Self::ForgetUnsent,
        Self::ClockRunsInPause,
        Self::ClockOfLastEntry,
        Self::ForgetUnsentInSnapshot,
        Self::SkipLastPages,
        Self::SnapshotTooEarly,
        Self::RedeliverLoggedPacket,
        Self::CarryTwice,
        Self::ServeOlderGeneration,
        Self::TrustSilentPort,
        Self::ChannelRestForgotten,
        Self::PacketForgotten,
        Self::NothingSentAgain,
        Self::UnansweredClaimIsWon,
        Self::LateReplyCounts,
        Self::SpareGivesUp,
        Self::LanRestForgotten,
        Self::NeverAttachAgain,
        Self::OwnerNodeNotCompared,
        Self::UnreachableCountsAsChecked,
        Self::FencedByAbsence,
        Self::WrittenBeforeFlush,
        Self::DurableBeforeSync,
        Self::SegmentNameNotSynced,
        Self::SegmentWithoutReceivedEntries,
        Self::SegmentNamedBeforeSync,
        Self::WriterNotNamed,
        Self::ClaimBeforeName,
        Self::OlderLogTaken,
        Self::LossesNotAsked,
        Self::ResumeWithoutUnsent,
        Self::ResumeBeforeLastEntry,
    ];
}

#[cfg(feature = "mutations")]
std::thread_local! {
    static ACTIVE: core::cell::Cell<Option<Mutation>> = const { core::cell::Cell::new(None) };
}

/// Removes a rule, or none, for the calling thread.
#[cfg(feature = "mutations")]
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

/// `true` if the rule is removed for the calling thread.
#[cfg(feature = "mutations")]
pub fn mutated(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// `false`: this build has no mutations.
#[cfg(not(feature = "mutations"))]
#[must_use]
pub const fn mutated(_: Mutation) -> bool {
    false
}
