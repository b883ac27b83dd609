//! What all drivers of the roles in these tests share: the order of the roles' contract, and the
//! actions that take no time.

use crate::world::Arbiter;
use ft::role::{BackupAction, BackupRole, PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::snapshot::Snapshot;
use std::collections::VecDeque;
use vm::{Machine, OutputId, Restoration};

/// A primary's actions after an input. A channel is closed first.
pub(crate) fn actions_of(role: &mut PrimaryRole, close: impl FnOnce()) -> Vec<PrimaryAction> {
    let actions: Vec<_> = std::iter::from_fn(|| role.poll_action()).collect();
    if actions.iter().any(|action| matches!(action, PrimaryAction::CloseChannel { .. })) {
        close();
    }
    actions
}

/// The Output Rule, checked from outside a primary.
#[derive(Debug)]
pub(crate) struct OutputRule {
    /// The end of the log when the pair was protected: outputs of later entries may leave only when
    /// the backup has their entries.
    protected_from: LogSeq,
}

impl OutputRule {
    /// The rule for a primary without a backup.
    pub(crate) const fn new() -> Self {
        Self { protected_from: LogSeq(u64::MAX) }
    }

    /// Stops checking, because the test plays the backup and doesn't track what that has received.
    pub(crate) const fn suspend(&mut self) {
        *self = Self::new();
    }

    pub(crate) fn note(&mut self, role: &PrimaryRole, action: &PrimaryAction) {
        match action {
            PrimaryAction::Protected(_) => self.protected_from = role.appended(),
            PrimaryAction::Owner(_)
            | PrimaryAction::End(PrimaryEnd::GuestStopped(_) | PrimaryEnd::Retired | PrimaryEnd::Left) => {
                self.suspend();
            }
            PrimaryAction::CloseChannel { .. }
            | PrimaryAction::CheckClaim
            | PrimaryAction::Claim(_)
            | PrimaryAction::Refill(_)
            | PrimaryAction::ClaimsLost { .. }
            | PrimaryAction::ClaimsRestored(_)
            | PrimaryAction::Confirmed(_)
            | PrimaryAction::Stranded(_)
            | PrimaryAction::HandOver
            | PrimaryAction::End(PrimaryEnd::Fenced { .. } | PrimaryEnd::Stranded | PrimaryEnd::Interrupted) => {}
        }
    }

    /// Output `id` of entry `seq` leaves, and the backup has received all entries before
    /// `received`.
    pub(crate) fn check(&self, id: OutputId, seq: LogSeq, received: LogSeq) {
        assert!(seq < self.protected_from || seq < received, "{id:?} leaves, and its entry isn't received");
    }
}

/// A backup's machine, and the work for it.
#[derive(Debug, Default)]
pub(crate) struct BackupHost {
    restoration: Option<Restoration>,
    restoring: Option<Snapshot>,
    /// Entries to be replayed.
    pub(crate) to_replay: VecDeque<LogEntry>,
}

impl BackupHost {
    /// Does the actions that take no time and concern only this side; returns the others.
    pub(crate) fn act(
        &mut self,
        role: &mut BackupRole,
        now_ns: u64,
        arbiter: &Arbiter,
        action: BackupAction,
    ) -> Option<BackupAction> {
        match action {
            BackupAction::Waits | BackupAction::Joined => {}
            BackupAction::Begin(session) => match Restoration::new(&session.config) {
                Ok(restoration) => self.restoration = Some(restoration),
                Err(error) => role.handle_restore_failure(&error.to_string()),
            },
            BackupAction::Pages(pages) => {
                let put = self.restoration.as_mut().map(|machine| machine.put_pages(pages.first, &pages.bytes));
                if let Some(Err(error)) = put {
                    role.handle_restore_failure(&error.to_string());
                }
            }
            BackupAction::Restore(snapshot) => self.restoring = Some(snapshot),
            // Answered at once; the model has late answers.
            BackupAction::CheckOwner => role.handle_owner(now_ns, arbiter.latest()),
            BackupAction::Consume(entries) => self.to_replay.extend(entries),
            other @ (BackupAction::Protected(_)
            | BackupAction::Lost { .. }
            | BackupAction::Claim(_)
            | BackupAction::ClaimsLost(_)
            | BackupAction::GoLive(_)
            | BackupAction::End(_)) => return Some(other),
        }
        None
    }

    /// Restores the machine, once all of the snapshot has arrived. Returns its position, and the
    /// machine or why there is none.
    pub(crate) fn restore(&mut self) -> Option<(LogSeq, Result<Machine, String>)> {
        let Snapshot { seq, digest, state } = self.restoring.take()?;
        let machine = self.restoration.take()?.finish(&state).map_err(|error| error.to_string());
        let machine =
            machine.and_then(
                |mut machine| {
                    if machine.digest() == digest { Ok(machine) } else { Err("another digest".into()) }
                },
            );
        Some((seq, machine))
    }

    /// `true` if a snapshot waits to be restored.
    pub(crate) const fn is_restoring(&self) -> bool {
        self.restoring.is_some()
    }
}
