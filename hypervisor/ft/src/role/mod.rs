//! The two roles of a fault-tolerant pair, as state machines without I/O.
//!
//! Time, messages and the arbiter's answers come in as arguments; frames of the log, released
//! outputs and requests come out by polling. Processes drive the roles with sockets and clocks, a
//! simulator without either.
//!
//! ```text
//! primary                                              backup
//!   AwaitingBackup, or Alone ◄────── join ────────────  Connecting
//!        │           session, pages ... ───────────►    Receiving
//!        │ (the guest runs on, outputs leave)            │
//!        │           snapshot, entries ────────────►    Restoring
//!        │           ◄────────────── accepted            ▼
//!        ▼ (holds outputs from here)                    Following, not told
//!     Protected      protected(g) ────────────►          │
//!        │           entries ─────────────────►         Following, told g
//!        │           ◄─────────────────── acks           │
//!        │ backup lost                                   │ primary lost
//!        ▼                                               ▼
//!     Claiming g ──lost──► Fenced                       Claiming g ──lost──► Fenced
//!        │ won                                           │ won, last entry consumed
//!        ▼                                               ▼
//!     Alone g+1                                         Alone g+1
//! ```
//!
//! # The contract
//! A *driver* runs a role: a process with threads, the simulator, the model. Both roles have three
//! families of methods:
//!
//! - `handle_*` are the inputs: messages, time, answers, what the guest or the replay did. They
//!   never wait and never fail because of a peer: whatever a message says, the role refuses it or
//!   gives the peer up.
//! - `poll_*` are the outputs. They have nothing new before the next input.
//! - All others are questions, which change nothing. Only `take_*`, at the change from backup to
//!   primary, take something away.
//!
//! After each input the driver does the following:
//!
//! 1. It takes all actions (`poll_action`). If [`PrimaryAction::CloseChannel`] is among them, it
//!    cuts the connection at once: no other backup may join before that, because the bytes of one
//!    backup's log must never follow those of another's.
//! 2. It sends the bytes for the other side ([`PrimaryRole::poll_outgoing`],
//!    [`BackupRole::poll_outgoing`]), also those that are there after the end: a goodbye or a
//!    refusal is the last thing that a role says.
//! 3. It does the actions, in their order. What takes time (the arbiter, the disk, putting a
//!    machine together) may be done elsewhere and later; its answer is an input.
//! 4. Primary: it lets all released outputs out ([`PrimaryRole::poll_released`]), at the latest
//!    before it ends because of [`PrimaryAction::End`].
//!
//! The role doesn't depend on the order of the last three. A process lets outputs out last, because
//! a slow network must keep neither the backup nor the arbiter waiting.
//!
//! The first step belongs to the input: no other comes between. The others may take along what
//! inputs of other threads have added.
//!
//! Inputs come one at a time: threads share a role by a lock. Times (`now_ns`) are those of one
//! monotonic clock; an input that has waited for the lock takes its time after it has got it.
//! `handle_tick` comes at least every few milliseconds, because all timeouts depend on it. Messages
//! come in the order in which they were sent, and `handle_disconnect` after the last.
//!
//! Each claim and check that a role asks for is answered once; if the arbiter can't be asked,
//! that is the answer, and the role asks again when it is time to.
//!
//! The roles assert the order of their cursors where they change, in release builds too: a bug of
//! ours must not cost the Output Rule. Numbers that a peer says are checked before they get so far.
//!
//! A backup accepts only when its own arbiter knows the primary, by its node, as the owner of the
//! pair's generation. An owner checks its claim periodically, and makes it again if the
//! arbiter has lost it ([`PrimaryAction::CheckClaim`]).

mod backup;
mod disk_log;
mod loss;
mod primary;

pub use backup::{BackupAction, BackupEnd, BackupMoments, BackupRole, Expectation};
pub use disk_log::DiskLogState;
pub use loss::{LossReason, LostSide};
pub use primary::{FULL_SHARE, Inheritance, PrimaryAction, PrimaryEnd, PrimaryRole, SnapshotCopy, stand_in};

use crate::claim::{Claim, ClaimKind, Verdict};
use crate::guest_clock::PAUSE_NS;
use alloc::string::String;
use logchannel::entry::Generation;
use logchannel::message::Message;
use logchannel::session::NodeId;

/// A role's intervals and timeouts.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Timing {
    /// The interval of heartbeats, in nanoseconds; other messages take the place of a heartbeat.
    pub heartbeat_ns: u64,
    /// Silence after which the other side counts as lost, in nanoseconds. Too short costs a
    /// needless failover, never correctness.
    pub failure_timeout_ns: u64,
    /// The time from an unanswered test-and-set to the next try, in nanoseconds.
    pub claim_retry_ns: u64,
    /// How far the backup's replay may lag before the primary slows the guest, in nanoseconds.
    pub lag_bound_ns: u64,
    /// The interval at which the owner checks its claim at the arbiter, in nanoseconds; `u64::MAX`
    /// for never.
    pub claim_check_ns: u64,
}

// One heartbeat that is late causes no failover.
const _: () = assert!(Timing::DEFAULT.heartbeat_ns * 5 <= Timing::DEFAULT.failure_timeout_ns);

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Timing {
    /// The timing of a side without options; also the defaults of its options.
    pub const DEFAULT: Self = Self {
        heartbeat_ns: 50_000_000,
        failure_timeout_ns: 1_000_000_000,
        claim_retry_ns: 100_000_000,
        lag_bound_ns: 100_000_000,
        claim_check_ns: 5_000_000_000,
    };

    /// How long a backup that is heard may make no progress, in nanoseconds: restoring the machine,
    /// or with its log buffer full.
    const fn progress_timeout_ns(&self) -> u64 {
        self.failure_timeout_ns.saturating_mul(20)
    }

    /// How long the disk of a joining backup's log may take nothing, in nanoseconds. One flush of a
    /// slow disk's cache takes longer than a working network ever does.
    const fn disk_timeout_ns(&self) -> u64 {
        self.progress_timeout_ns().saturating_mul(3)
    }
}

/// A test-and-set that a role asks its driver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimRequest {
    /// The node to claim for: the own node, but for flags that an owner refills before its own.
    pub node: NodeId,
    /// The generation whose flag is claimed.
    pub generation: Generation,
    /// Whether to own the VM or to end it.
    pub kind: ClaimKind,
    /// The node that holds the flag before, as far as the claimer knows; `None` only for the first
    /// flag.
    pub predecessor: Option<NodeId>,
}

/// The result of a test-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// The arbiter has decided.
    Decided(Verdict),
    /// The arbiter couldn't be asked: neither side may go on until it can.
    Unreachable,
}

/// The result of asking for the latest claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LatestAnswer {
    /// The latest generation that is claimed, and its claim, if any is.
    Known(Option<(Generation, Claim)>),
    /// The arbiter could not be asked, which says nothing about any claim.
    Unreachable,
    /// The arbiter can't answer until an operator has repaired it, for this reason.
    Failed(String),
}

/// A test-and-set in progress, which is asked again until it is answered.
///
/// It is asked again with the same kind: the arbiter may have recorded the first request though its
/// answer was lost.
#[derive(Clone, Copy, Debug, Hash)]
struct Claiming {
    request: ClaimRequest,
    /// When to ask (again); `None` while the driver is asking.
    ask_at_ns: Option<u64>,
    /// The first tick since the test-and-set was asked for: from then on the wait is measured.
    since_ns: Option<u64>,
}

impl Claiming {
    /// A test-and-set that the driver is asked to do now.
    const fn asked(request: ClaimRequest) -> Self {
        Self { request, ask_at_ns: None, since_ns: None }
    }

    /// A test-and-set that is planned, and not asked for yet.
    const fn put_off(request: ClaimRequest) -> Self {
        Self { request, ask_at_ns: Some(0), since_ns: None }
    }

    /// `true` while the driver is asking the arbiter.
    const fn is_asked(&self) -> bool {
        self.ask_at_ns.is_none()
    }

    /// The request, if it is time to ask again.
    fn poll(&mut self, now_ns: u64) -> Option<ClaimRequest> {
        if self.ask_at_ns.is_none_or(|at| now_ns < at) {
            return None;
        }
        self.ask_at_ns = None;
        Some(self.request)
    }

    /// Time has passed.
    fn pass_time(&mut self, now_ns: u64) {
        self.since_ns.get_or_insert(now_ns);
    }

    /// `true` if the answer takes so long that the VM counts as paused while it waits. Every
    /// failover has a short wait, which doesn't.
    fn is_pause(&self, now_ns: u64) -> bool {
        self.since_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) > PAUSE_NS)
    }

    const fn retry(&mut self, now_ns: u64, timing: &Timing) {
        self.ask_at_ns = Some(now_ns + timing.claim_retry_ns);
    }
}

/// A message's name, for errors about messages that come at the wrong time.
const fn message_name(message: &Message) -> &'static str {
    match message {
        Message::Session { .. } => "a session header",
        Message::AskOwner { .. } => "a question for the owner",
        Message::Owner { .. } => "an answer about the owner",
        Message::Join { .. } => "a wish to join",
        Message::Wait => "a word to wait",
        Message::NoPrimary => "the word that it is no primary",
        Message::Pages(_) => "pages of memory",
        Message::UnsentOutput(_) => "an output from before the snapshot",
        Message::Snapshot(_) => "a snapshot",
        Message::Accepted => "an acceptance",
        Message::Refused { .. } => "a refusal",
        Message::Entries(_) => "log entries",
        Message::Ack { .. } => "an acknowledgement",
        Message::Consumed { .. } => "a report of what is consumed",
        Message::Protected { .. } => "word that the pair is protected",
        Message::Released(_) => "a report of what is released",
        Message::Storing => "word that its disk is waited for",
        Message::Heartbeat => "a heartbeat",
        Message::Clock { .. } => "the guest's clock",
        Message::Goodbye { .. } => "a goodbye",
    }
}
