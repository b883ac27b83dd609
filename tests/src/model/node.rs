//! The nodes: the production roles, and what their drivers remember.

use super::guest::Guest;
use ft::role::{BackupRole, ClaimRequest, PrimaryRole, Timing};
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::session::SessionHeader;
use std::cell::RefCell;
use std::collections::VecDeque;
use vm::{Machine, MachineConfig, OutputId};

/// What a node runs.
#[derive(Clone, Debug, Hash)]
pub(super) enum Node {
    /// Nothing yet; a restart from a log on disk may begin here.
    Vacant,
    /// A backup that searches for a primary.
    Spare,
    /// A backup with a primary.
    Backup(Box<Backup>),
    /// An owner, which runs the guest.
    Owner(Box<Owner>),
    /// Nothing any more.
    Gone(End),
}

/// Why a node runs nothing any more.
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
    /// The guest of the snapshot, and whether it is restored.
    pub(super) guest: Option<(Guest, bool)>,
    /// Entries received and not replayed.
    pub(super) work: VecDeque<VecDeque<LogEntry>>,
    pub(super) asking: Option<ClaimRequest>,
    /// It is asking for the latest claim.
    pub(super) is_checking: bool,
}

/// A primary and its driver.
#[derive(Clone, Debug, Hash)]
pub(super) struct Owner {
    pub(super) role: PrimaryRole,
    pub(super) guest: Guest,
    /// The guest's end is in this owner's log.
    pub(super) has_logged_end: bool,
    /// The vCPU thread has logged an output, and must flush before it runs on; other threads may
    /// run in between.
    pub(super) must_flush: bool,
    pub(super) asking: Option<ClaimRequest>,
    /// It is asking for the latest claim.
    pub(super) is_checking: bool,
    /// It is asking for a flag that the arbiter has lost.
    pub(super) refilling: Option<ClaimRequest>,
    /// The backup whose connection it reads.
    pub(super) backup: Option<usize>,
    pub(super) end: Option<End>,
    /// From here on for the properties only: the position of each output's entry, for outputs
    /// produced here.
    pub(super) entries: Vec<(OutputId, LogSeq)>,
    /// One past the last entry whose effects may be known outside: this node was alone by a won
    /// claim when it logged it or since, or a backup that is gone had it.
    pub(super) free: LogSeq,
    /// It is alone by a won claim.
    pub(super) is_alone: bool,
    /// The arbiter has told it that another node has won.
    pub(super) has_lost: bool,
}

impl Owner {
    /// An owner by a won claim whose log continues at `first`.
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

    /// `true` if the vCPU thread may run the guest.
    pub(super) fn may_run(&self) -> bool {
        self.role.may_run() && !self.must_flush && !self.has_logged_end && !self.guest.sleeps()
    }

    /// The guest takes its next step; returns the entry.
    pub(super) fn run_guest(&mut self, entropy: u8) -> LogEntry {
        self.has_logged_end = self.guest.is_over();
        let (entry, output) = self.guest.step(entropy);
        self.must_flush = output.is_some() || self.has_logged_end;
        self.entries.extend(output.iter().map(|(id, _)| (*id, self.role.appended())));
        self.role.handle_entry(NOW_NS, &entry, output);
        self.note_if_alone();
        entry
    }

    /// Entries in the log of a node that is alone by a won claim need no acknowledgement.
    pub(super) fn note_if_alone(&mut self) {
        if self.is_alone {
            self.free = self.role.appended();
        }
    }

    /// Copies the guest for a joining backup; returns the bytes for the channel.
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

    /// `true` if the entry of output `id` is before `received`, or needs no backup.
    pub(super) fn may_be_known(&self, id: OutputId, received: LogSeq) -> bool {
        let entry = self.entries.iter().find(|(of, _)| *of == id).map(|(_, seq)| *seq);
        entry.is_none_or(|seq| seq < self.free || seq < received)
    }
}

impl Node {
    /// The test-and-set in progress.
    pub(super) const fn asking(&self) -> Option<ClaimRequest> {
        match self {
            Self::Backup(backup) => backup.asking,
            Self::Owner(owner) => owner.asking,
            Self::Vacant | Self::Spare | Self::Gone(_) => None,
        }
    }

    /// `true` if it is asking for the latest claim.
    pub(super) const fn is_checking(&self) -> bool {
        match self {
            Self::Backup(backup) => backup.is_checking,
            Self::Owner(owner) => owner.is_checking,
            Self::Vacant | Self::Spare | Self::Gone(_) => false,
        }
    }

    /// The node as owner of the VM, if it may still send outputs.
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

/// The constant time: a tick is an action of its own.
pub(super) const NOW_NS: u64 = 0;

/// Without timers; an unanswered claim is asked again at once.
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
    /// The machine that [`PrimaryRole::copy_snapshot`] copies; the model's guest replaces its
    /// state.
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fn machine() -> Machine {
    let guest = hypervisor::program::guest::Guest::load("hello").expect("a built-in guest");
    Machine::new(&config(), &guest.image).expect("a built-in guest fits in the smallest machine")
}
