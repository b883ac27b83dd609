//! How a backup joins: it receives the session, the guest's memory, the snapshot and the log from
//! there on, asks its own arbiter about the primary, and accepts it.

use super::log::ReceivedLog;
use super::mode::{Following, Mode, Pair, Stage};
use super::{BackupAction, BackupRole};
use crate::claim::{Claim, ClaimKind};
use crate::mutation::{Mutation, mutated};
use crate::role::{DiskLogState, LatestAnswer};
use alloc::boxed::Box;
use alloc::format;
use logchannel::entry::Generation;
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader};
use logchannel::snapshot::{Snapshot, UnsentOutput};
use vm::OutputId;

/// The greatest position in the log, and the greatest output id, at which a VM goes on here. No
/// real VM counts to half of what 64 bits hold, and from here on there are enough numbers for any
/// VM.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// A backup that has a session and hasn't accepted its primary yet.
#[derive(Clone, Debug, Hash)]
pub(super) struct Joining {
    pair: Pair,
    check: OwnerCheck,
    disk_wait: DiskWait,
    pub(super) progress: Progress,
}

/// How far the joining backup's machine is restored.
#[derive(Clone, Debug, Hash)]
pub(super) enum Progress {
    /// Receives the guest's memory.
    Receiving,
    /// Has the whole snapshot, and receives the log while the driver puts the machine together.
    Restoring(Box<ReceivedLog>),
    /// The machine stands.
    Restored(Box<ReceivedLog>),
}

/// The check that this side's arbiter knows the primary as the VM's owner. With two arbiters, or a
/// directory that isn't the shared one, both sides could go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum OwnerCheck {
    /// The driver is asking.
    Asked,
    /// The arbiter couldn't be asked, which doesn't count as a check; the role asks again at this
    /// time.
    AskAt(u64),
    /// The arbiter knows the primary as the owner.
    Passed,
}

/// A joining backup's wait for its own disk.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct DiskWait {
    /// Bytes that the disk had taken when it last made progress.
    written_bytes: u64,
    /// When the disk last made progress, or when the wait began.
    moved_ns: u64,
    /// When the driver last reported the wait.
    last_ns: u64,
    /// When the primary was last told `Storing`; heartbeats in between don't tell it.
    told_ns: u64,
}

impl Joining {
    /// The log, once there is any.
    pub(super) fn log(&self) -> Option<&ReceivedLog> {
        match &self.progress {
            Progress::Receiving => None,
            Progress::Restoring(log) | Progress::Restored(log) => Some(log),
        }
    }

    /// As [`Joining::log`], mutable.
    pub(super) fn log_mut(&mut self) -> Option<&mut ReceivedLog> {
        match &mut self.progress {
            Progress::Receiving => None,
            Progress::Restoring(log) | Progress::Restored(log) => Some(log),
        }
    }

    /// As [`Joining::log`], for the mode that follows.
    pub(super) fn into_log(self) -> Option<Box<ReceivedLog>> {
        match self.progress {
            Progress::Receiving => None,
            Progress::Restoring(log) | Progress::Restored(log) => Some(log),
        }
    }

    fn is_owner(&self, latest: Option<&(Generation, Claim)>) -> bool {
        latest.is_some_and(|(flag, claim)| {
            flag.0.checked_add(1) == Some(self.pair.generation.0)
                && claim.kind == ClaimKind::Owner
                && (claim.node == self.pair.owner || mutated(Mutation::OwnerNodeNotCompared))
        })
    }
}

impl BackupRole {
    pub(super) fn begin(&mut self, session: SessionHeader, owner: NodeId) {
        if session.vm != self.expectation.vm {
            return self
                .refuse(format!("this backup is for VM {}, the primary runs {}", self.expectation.vm, session.vm));
        }
        if let Some((name, digest)) = &self.expectation.image
            && *digest != session.image_digest
        {
            let reason = format!(
                "this backup was started with image {name} ({digest}), the primary runs {} ({})",
                session.image_name, session.image_digest
            );
            return self.refuse(reason);
        }
        if let Err(other) = session.behaviour.check() {
            return self.refuse(format!("{other}; run both sides from one build"));
        }
        if session.generation.0 == u64::MAX {
            return self.refuse("the VM has used up its generations".into());
        }
        let Mode::Listening(listening) = &mut self.mode else { return };
        listening.stage = Stage::Joining(Joining {
            pair: Pair { generation: session.generation, owner },
            check: OwnerCheck::Asked,
            disk_wait: DiskWait::default(),
            progress: Progress::Receiving,
        });
        self.actions.push_back(BackupAction::Begin(session));
        self.actions.push_back(BackupAction::CheckOwner);
    }

    /// The answer to [`BackupAction::CheckOwner`]: the role refuses the primary unless generation,
    /// node and kind of the latest claim are the primary's. An accepted primary may tell this side
    /// at the next moment that it protects the VM, and this side may claim it then.
    pub fn handle_owner(&mut self, now_ns: u64, answer: LatestAnswer) {
        let retry_ns = now_ns.saturating_add(self.timing.claim_retry_ns);
        let Some(joining) = self.joining_mut().filter(|joining| joining.check == OwnerCheck::Asked) else { return };
        match answer {
            LatestAnswer::Unreachable if !mutated(Mutation::UnreachableCountsAsChecked) => {
                joining.check = OwnerCheck::AskAt(retry_ns);
            }
            LatestAnswer::Failed(reason) => self.refuse(format!("whether it owns the VM can't be checked: {reason}")),
            LatestAnswer::Known(latest) if !joining.is_owner(latest.as_ref()) => {
                let Pair { generation, owner } = joining.pair;
                let known = latest.map_or_else(
                    || "nobody".into(),
                    |(flag, claim)| match claim.kind {
                        ClaimKind::Owner => format!("node {} as generation {}", claim.node, flag.0.saturating_add(1)),
                        ClaimKind::Ended => format!("nobody since node {} ended it in order", claim.node),
                    },
                );
                self.refuse(format!(
                    "the primary is node {owner} and runs generation {generation}, but this side's arbiter knows {known} as the \
                     VM's owner; do both sides have the same --arbiter?"
                ));
            }
            LatestAnswer::Known(_) | LatestAnswer::Unreachable => {
                joining.check = OwnerCheck::Passed;
                self.accept(now_ns);
            }
        }
    }

    /// Asks for the owner again, if the last answer was none and it is time to.
    pub(super) fn check_again_if_due(&mut self, now_ns: u64) {
        if let Some(joining) = self.joining_mut()
            && let OwnerCheck::AskAt(at_ns) = joining.check
            && now_ns >= at_ns
        {
            joining.check = OwnerCheck::Asked;
            self.actions.push_back(BackupAction::CheckOwner);
        }
    }

    /// Accepts the primary once the machine is restored, the owner is checked and a restart from
    /// this side's log is possible. From then on this side may be told that it protects the VM, may
    /// go live, and may die.
    fn accept(&mut self, now_ns: u64) {
        let has_log = !self.disk_log.is_promised() || mutated(Mutation::AcceptOnPromise);
        let Mode::Listening(listening) = &mut self.mode else { return };
        listening.stage =
            match core::mem::replace(&mut listening.stage, Stage::Connecting) {
                Stage::Joining(Joining {
                    pair, check: OwnerCheck::Passed, progress: Progress::Restored(log), ..
                }) if has_log => Stage::Following(Following { pair, log, is_told: mutated(Mutation::ClaimUntold) }),
                stage @ (Stage::Connecting | Stage::Waiting | Stage::Joining(_) | Stage::Following(_)) => {
                    listening.stage = stage;
                    return;
                }
            };
        self.actions.push_back(BackupAction::Joined);
        self.say(now_ns, &Message::Accepted);
    }

    /// Handles a message that comes before the log: pages, unsent outputs, the rest of the machine.
    pub(super) fn receive_memory(&mut self, now_ns: u64, message: Message) {
        if let Message::Pages(pages) = message {
            self.actions.push_back(BackupAction::Pages(pages));
        } else if let Message::UnsentOutput(output) = message {
            self.receive_unsent(output);
        } else if let Message::Snapshot(snapshot) = message {
            self.restore(now_ns, snapshot);
        } else {
            self.refuse_message(&message);
        }
    }

    fn receive_unsent(&mut self, UnsentOutput { id, operation }: UnsentOutput) {
        let next = self.unsent.next();
        if id < next {
            return self.refuse(format!("unsent output {} comes after output {}", id.0, next.0));
        }
        if id.0 > NUMBER_MAX {
            return self.refuse(format!("an unsent output is number {}, which no VM has", id.0));
        }
        self.handle_output(id, operation);
    }

    fn restore(&mut self, now_ns: u64, snapshot: Snapshot) {
        if snapshot.seq.0 > NUMBER_MAX {
            return self.refuse(format!("the snapshot is at entry {} of the log, which no log has", snapshot.seq));
        }
        let Some(joining) = self.joining_mut() else { return };
        joining.progress = Progress::Restoring(Box::new(ReceivedLog::new(now_ns, snapshot.seq)));
        self.actions.push_back(BackupAction::Restore(snapshot));
    }

    /// The driver has restored the machine of [`BackupAction::Restore`]; its next output will be
    /// `next_output`.
    pub fn handle_restored(&mut self, now_ns: u64, next_output: OutputId) {
        let Some(Joining { progress: Progress::Restoring(_), .. }) = self.joining_mut() else { return };
        let next = self.unsent.next();
        if next_output < next {
            return self.refuse(format!(
                "the snapshot's machine makes output {} next, and unsent outputs below {} have come already",
                next_output.0, next.0
            ));
        }
        if next_output.0 > NUMBER_MAX {
            return self.refuse(format!("the snapshot's machine makes output {} next, which no VM has", next_output.0));
        }
        self.unsent.set_next(next_output);
        if let Some(joining) = self.joining_mut() {
            joining.progress = match core::mem::replace(&mut joining.progress, Progress::Receiving) {
                Progress::Restoring(log) => Progress::Restored(log),
                progress @ (Progress::Receiving | Progress::Restored(_)) => progress,
            };
        }
        self.accept(now_ns);
    }

    /// This side's log on disk has reached this state. Two threads may report it, so an earlier
    /// state may come after a later one.
    pub fn handle_disk_log(&mut self, now_ns: u64, disk_log: DiskLogState) {
        self.disk_log = self.disk_log.max(disk_log);
        self.accept(now_ns);
    }

    /// `true` if only the log on disk is missing for this side to accept the primary: the driver
    /// then calls [`BackupRole::handle_disk_wait`] at each tick.
    #[must_use]
    pub fn waits_for_disk(&self) -> bool {
        let Mode::Listening(listening) = &self.mode else { return false };
        let is_restored = matches!(&listening.stage, Stage::Joining(Joining { progress: Progress::Restored(_), .. }));
        is_restored && self.disk_log.is_promised()
    }

    /// This side waits for its disk, which has taken `written_bytes` so far. The primary is told,
    /// so that it doesn't give this side up for being stuck; a disk that itself makes no progress
    /// ends the joining.
    pub fn handle_disk_wait(&mut self, now_ns: u64, written_bytes: u64) {
        let timing = self.timing;
        let Some(joining) = self.joining_mut() else { return };
        let wait = &mut joining.disk_wait;
        if written_bytes != wait.written_bytes || now_ns.saturating_sub(wait.last_ns) > timing.heartbeat_ns {
            (wait.written_bytes, wait.moved_ns) = (written_bytes, now_ns);
        }
        wait.last_ns = now_ns;
        let stuck_ns = now_ns.saturating_sub(wait.moved_ns);
        if stuck_ns >= timing.disk_timeout_ns() {
            self.refuse(format!(
                "the disk of this backup's log has not got on for {} ms; choose another directory with --log",
                stuck_ns / 1_000_000
            ));
        } else if now_ns.saturating_sub(wait.told_ns) >= timing.heartbeat_ns {
            wait.told_ns = now_ns;
            self.say(now_ns, &Message::Storing);
        }
    }

    /// The driver couldn't restore the machine of [`BackupAction::Restore`].
    pub fn handle_restore_failure(&mut self, reason: &str) {
        if self.joining_mut().is_some() {
            self.refuse(format!("the guest can't be restored here: {reason}"));
        }
    }

    fn joining_mut(&mut self) -> Option<&mut Joining> {
        match &mut self.mode {
            Mode::Listening(listening) => match &mut listening.stage {
                Stage::Joining(joining) => Some(joining),
                Stage::Connecting | Stage::Waiting | Stage::Following(_) => None,
            },
            Mode::Claiming(_) | Mode::Draining(..) | Mode::Done(_) => None,
        }
    }
}
