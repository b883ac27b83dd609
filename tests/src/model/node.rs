//! The nodes: the production roles, and what a driver keeps around them.

use super::guest::Guest;
use ft::role::{BackupRole, ClaimRequest, PrimaryRole, Timing};
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::session::SessionHeader;
use std::cell::RefCell;
use std::collections::VecDeque;
use vm::{Machine, MachineConfig, OutputId};

/// What a host runs.
#[derive(Clone, Debug, Hash)]
pub(super) enum Node {
    /// Nothing yet: a restart from a log on disk may begin here.
    Vacant,
    /// A backup that looks for a primary.
    Spare,
    /// A backup with a primary.
    Backup(Box<Backup>),
    /// Whoever runs the guest.
    Owner(Box<Owner>),
    /// Nothing any more.
    Gone(End),
}

/// Why nothing runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    Crashed,
    PrimaryFenced,
    BackupFenced,
    GuestOver,
    Retired,
    Diverged,
}

/// A backup and its driver.
#[derive(Clone, Debug, Hash)]
pub(super) struct Backup {
    pub(super) role: BackupRole,
    pub(super) session: Option<SessionHeader>,
    /// As it came in the snapshot, and `false` until it is put together.
    pub(super) guest: Option<(Guest, bool)>,
    /// Received, and not replayed.
    pub(super) work: VecDeque<VecDeque<LogEntry>>,
    pub(super) asking: Option<ClaimRequest>,
    /// It asks for the latest claim.
    pub(super) is_checking: bool,
}

/// A primary and its driver.
#[derive(Clone, Debug, Hash)]
pub(super) struct Owner {
    pub(super) role: PrimaryRole,
    pub(super) guest: Guest,
    /// The guest's end is in the log of this owner.
    pub(super) has_logged_end: bool,
    /// The vCPU has logged an output, and flushes before it runs on; other threads may come
    /// between.
    pub(super) must_flush: bool,
    pub(super) asking: Option<ClaimRequest>,
    /// It asks for the latest claim.
    pub(super) is_checking: bool,
    /// It asks for a flag that the arbiter has lost.
    pub(super) refilling: Option<ClaimRequest>,
    /// Whose connection it listens to.
    pub(super) backup: Option<usize>,
    pub(super) end: Option<End>,
    /// The rest is for the properties only. Which entry is that of which output, of those made
    /// here.
    pub(super) entries: Vec<(OutputId, LogSeq)>,
    /// All entries before this may be known to the world: this node was alone by a won claim when
    /// it made them or since, or a backup had them that is gone.
    pub(super) free: LogSeq,
    /// Alone by a won claim.
    pub(super) is_alone: bool,
    /// The arbiter told it that another node has won.
    pub(super) has_lost: bool,
}

impl Owner {
    /// An owner by a won claim whose log goes on at `first`.
    pub(super) fn alone(role: PrimaryRole, guest: Guest, first: LogSeq) -> Self {
        Self {
            role,
            guest,
            has_logged_end: false,
            must_flush: false,
            asking: None,
            is_checking: false,
            refilling: None,
            backup: None,
            end: None,
            entries: Vec::new(),
            free: first,
            is_alone: true,
            has_lost: false,
        }
    }

    /// Whether the vCPU thread may go on with the guest.
    pub(super) fn may_run(&self) -> bool {
        self.role.may_run() && !self.must_flush && !self.has_logged_end && !self.guest.sleeps()
    }

    /// The guest does its next step; the result is the entry of it.
    pub(super) fn run_guest(&mut self, entropy: u8) -> LogEntry {
        self.has_logged_end = self.guest.is_over();
        let (entry, output) = self.guest.step(entropy);
        self.must_flush = output.is_some() || self.has_logged_end;
        self.entries.extend(output.iter().map(|(id, _)| (*id, self.role.appended())));
        self.role.handle_entry(NOW_NS, &entry, output);
        self.note_if_alone();
        entry
    }

    /// What is in the log of a node alone by a won claim needs no acknowledgement.
    pub(super) fn note_if_alone(&mut self) {
        if self.is_alone {
            self.free = self.role.appended();
        }
    }

    /// Copies the guest for a backup, as bytes of the channel.
    pub(super) fn copy(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        MACHINE.with_borrow_mut(|machine| {
            while self.role.is_copying() {
                self.role.copy_snapshot(NOW_NS, machine);
                self.role.poll_outgoing(&mut bytes);
            }
        });
        bytes
    }

    /// Whether the entry of output `id` is one of those before `received`, or needs no backup.
    pub(super) fn may_be_known(&self, id: OutputId, received: LogSeq) -> bool {
        let entry = self.entries.iter().find(|(of, _)| *of == id).map(|(_, seq)| *seq);
        entry.is_none_or(|seq| seq < self.free || seq < received)
    }
}

impl Node {
    /// The test-and-set under way.
    pub(super) const fn asking(&self) -> Option<ClaimRequest> {
        match self {
            Self::Backup(backup) => backup.asking,
            Self::Owner(owner) => owner.asking,
            Self::Vacant | Self::Spare | Self::Gone(_) => None,
        }
    }

    /// It asks for the latest claim.
    pub(super) const fn is_checking(&self) -> bool {
        match self {
            Self::Backup(backup) => backup.is_checking,
            Self::Owner(owner) => owner.is_checking,
            Self::Vacant | Self::Spare | Self::Gone(_) => false,
        }
    }

    /// The owner of the VM as far as it knows, if it may still put something out.
    pub(super) const fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Owner(owner) => Some(owner),
            Self::Vacant | Self::Spare | Self::Backup(_) | Self::Gone(_) => None,
        }
    }

    pub(super) const fn backup(&self) -> Option<&Backup> {
        match self {
            Self::Backup(backup) => Some(backup),
            Self::Vacant | Self::Spare | Self::Owner(_) | Self::Gone(_) => None,
        }
    }
}

/// Time stands still: that it has passed is an action of its own.
pub(super) const NOW_NS: u64 = 0;

/// Nothing happens by itself, and an unanswered claim is asked again at once.
pub(super) const TIMING: Timing = Timing {
    heartbeat_ns: u64::MAX,
    failure_timeout_ns: u64::MAX,
    claim_retry_ns: 0,
    lag_bound_ns: u64::MAX / 4,
    claim_check_ns: u64::MAX,
};

/// The timing of owners that check their claims.
pub(super) const CHECKING_CLAIMS: Timing = Timing { claim_check_ns: 0, ..TIMING };

/// A small machine.
pub(super) fn config() -> MachineConfig {
    MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() }
}

thread_local! {
    /// What [`PrimaryRole::copy_snapshot`] copies. The guest of the model travels in the place of
    /// its state.
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fn machine() -> Machine {
    let guest = hypervisor::program::guest::Guest::load("hello").expect("a built-in guest");
    Machine::new(&config(), &guest.image).expect("a built-in guest fits in the smallest machine")
}
