//! Pending connections: those to the primary's port that have not said yet what they want, joining
//! backups, and spares.

use super::side::PrimarySide;
use crate::node::channel::{Arrived, ChannelReader, lock, send_message};
use crate::node::host::{Connection, Host, Next, StepKind};
use crate::node::reports::NodeReport;
use crate::os::rate_limit::LeftOut;
use logchannel::message::Message;
use logchannel::session::VmId;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most spares: backups that wait for the current one's place. Others are refused.
const SPARES_MAX: usize = 8;

/// How long a pending connection may take until its first message, in nanoseconds.
pub(in crate::node) const FIRST_MESSAGE_TIMEOUT_NS: u64 = 2_000_000_000;

/// How often a spare is checked, for messages and for a free place, in nanoseconds.
const SPARE_CHECK_NS: u64 = 5_000_000;

/// How often new memory is sent to a joining backup, in nanoseconds.
const MEMORY_SEND_NS: u64 = 200_000;

/// Log lines whose rate is limited, because pending connections can cause any number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum PendingLine {
    /// A connection was refused.
    Refused,
    /// A spare waits.
    Waits,
    /// The host has no thread for a connection.
    NoThread,
}

/// A connection to the primary's port that isn't the logging channel (yet).
pub struct PendingConnection<H: Host> {
    /// `None` once the logging channel has it.
    reader: Option<ChannelReader<H::Connection>>,
    connection: Arc<H::Connection>,
    /// The peer's address, for messages.
    address: String,
    stage: PendingStage,
}

impl<H: Host> fmt::Debug for PendingConnection<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingConnection")
            .field("address", &self.address)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl<H: Host> PendingConnection<H> {
    /// A connection that was accepted from `address` at `now_ns`.
    pub fn new(connection: Arc<H::Connection>, address: String, now_ns: u64) -> Self {
        let reader = Some(ChannelReader::new(connection.clone()));
        Self {
            reader,
            connection,
            address,
            stage: PendingStage::Silent { until_ns: now_ns + FIRST_MESSAGE_TIMEOUT_NS },
        }
    }
}

/// How far a pending connection has got.
#[derive(Debug)]
enum PendingStage {
    /// It has sent nothing yet, which it may until then.
    Silent { until_ns: u64 },
    /// It asks to join this VM. `messages` are the messages after its `Join`.
    Asking { vm: VmId, messages: Vec<Message> },
    /// It is a spare: it waits for the current backup's place.
    Spare { vm: VmId, messages: Vec<Message>, received_ns: u64, sent_ns: u64 },
    /// It is the backup, and this step sends it the guest's memory.
    Joining,
}

/// What the step does with a pending connection.
enum PendingOutcome {
    /// Goes on with it.
    Continue(PendingStage, Next),
    /// Closes it without a report.
    Close,
    /// Tells the peer that it is refused, and why, and reports it.
    Refuse(String),
    /// Closes it and reports why; the peer isn't told.
    Fail(String),
}

impl<H: Host> PrimarySide<H> {
    /// `Some` if a line of this kind may be logged now, with the number of lines left out before
    /// it.
    pub(in crate::node) fn admit(&self, line: PendingLine) -> Option<LeftOut> {
        lock(&self.pending_lines).admit(line, self.host.now_ns())
    }

    /// Reads what a pending connection asks for. A backup is admitted if the role takes it; then
    /// this step sends it the guest's memory.
    pub fn step_pending(&self, pending: &mut PendingConnection<H>) -> Next {
        let stage = std::mem::replace(&mut pending.stage, PendingStage::Joining);
        let outcome = match stage {
            PendingStage::Silent { until_ns } => self.read_request(pending, until_ns),
            PendingStage::Asking { vm, messages } => self.admit_backup(pending, vm, messages),
            PendingStage::Spare { vm, messages, received_ns, sent_ns } => {
                let outcome = self.check_spare(pending, vm, messages, (received_ns, sent_ns));
                if !matches!(outcome, PendingOutcome::Continue(PendingStage::Spare { .. }, _)) {
                    self.spares.fetch_sub(1, Ordering::AcqRel);
                }
                outcome
            }
            PendingStage::Joining => return self.send_memory(),
        };
        let reason = match outcome {
            PendingOutcome::Continue(stage, next) => {
                pending.stage = stage;
                return next;
            }
            PendingOutcome::Close => return Next::Done,
            PendingOutcome::Refuse(reason) => {
                refuse(&*pending.connection, &reason);
                reason
            }
            PendingOutcome::Fail(reason) => reason,
        };
        if let Some(LeftOut(left_out)) = self.admit(PendingLine::Refused) {
            self.host.report(&NodeReport::BackupRefused { address: pending.address.clone(), reason, left_out });
        }
        Next::Done
    }

    fn read_request(&self, pending: &mut PendingConnection<H>, until_ns: u64) -> PendingOutcome {
        let Some(reader) = &mut pending.reader else { return PendingOutcome::Close };
        let mut messages = match reader.wait() {
            Arrived::Messages(messages) if messages.is_empty() && self.host.now_ns() >= until_ns => {
                return PendingOutcome::Fail("it says nothing".into());
            }
            Arrived::Messages(messages) if messages.is_empty() => {
                return PendingOutcome::Continue(PendingStage::Silent { until_ns }, Next::Arrival { until_ns });
            }
            Arrived::Messages(messages) => messages.into_iter(),
            Arrived::Last { reason, .. } => return PendingOutcome::Fail(reason),
        };
        match messages.next() {
            Some(Message::Join { vm, .. }) => {
                PendingOutcome::Continue(PendingStage::Asking { vm, messages: messages.collect() }, Next::Now)
            }
            Some(Message::AskOwner { vm }) => self.answer_owner(pending, &vm),
            _ => PendingOutcome::Fail("it doesn't ask to join".into()),
        }
    }

    /// Admits a pending connection as the backup, or makes it a spare while there is another
    /// backup.
    fn admit_backup(&self, pending: &mut PendingConnection<H>, vm: VmId, messages: Vec<Message>) -> PendingOutcome {
        let Some(reader) = &mut pending.reader else { return PendingOutcome::Close };
        // A connection that has closed meanwhile must not take the place of one that is open.
        if let Arrived::Last { reason, .. } = reader.take() {
            return PendingOutcome::Fail(reason);
        }
        // The admitted connection must be the channel's before the role sends anything to it, so no
        // other may be admitted in between.
        let _admission = lock(&self.admission);
        let refusal = lock(&self.role).can_take_backup(&vm).err();
        match refusal {
            None => self.accept_backup(pending, &vm, messages),
            Some(reason) if !lock(&self.role).may_take_backup_later(&vm) => PendingOutcome::Refuse(reason),
            Some(_) => self.admit_spare(pending, vm, messages),
        }
    }

    fn accept_backup(&self, pending: &mut PendingConnection<H>, vm: &VmId, messages: Vec<Message>) -> PendingOutcome {
        self.channel.connect(pending.connection.clone());
        self.host.report(&NodeReport::BackupConnected { address: pending.address.clone() });
        self.sending_memory.store(true, Ordering::SeqCst);
        let mut joined = Ok(());
        self.drive(|role, now_ns| {
            joined = role.handle_join(now_ns, vm);
            if joined.is_ok() {
                messages.into_iter().for_each(|message| role.handle_message(now_ns, message));
            }
        });
        if let Err(reason) = joined {
            self.sending_memory.store(false, Ordering::SeqCst);
            refuse(&*pending.connection, &reason);
            self.channel.cut();
            return PendingOutcome::Fail(reason);
        }
        // Messages are read from here on: the role must know its backup before it gets them.
        *lock(&self.channel.reader) = pending.reader.take();
        self.host.wake(StepKind::Vcpu);
        PendingOutcome::Continue(PendingStage::Joining, Next::Now)
    }

    /// Tells a node that is about to claim the VM who owns it.
    fn answer_owner(&self, pending: &PendingConnection<H>, vm: &VmId) -> PendingOutcome {
        let own = &self.identity.vm;
        if vm != own {
            refuse(&*pending.connection, &format!("this is a side of VM {own}, not of {vm}"));
            return PendingOutcome::Close;
        }
        let generation = lock(&self.role).generation();
        match send_message(&*pending.connection, &Message::Owner { node: self.identity.node, generation }) {
            Ok(()) => PendingOutcome::Close,
            Err(error) => PendingOutcome::Fail(error.to_string()),
        }
    }

    /// Makes a backup a spare. Only heartbeats go in both directions until it is admitted.
    fn admit_spare(&self, pending: &PendingConnection<H>, vm: VmId, messages: Vec<Message>) -> PendingOutcome {
        if !take_slot(&self.spares, SPARES_MAX) {
            return PendingOutcome::Refuse("enough backups wait here already".into());
        }
        if let Err(error) = send_message(&*pending.connection, &Message::Wait) {
            self.spares.fetch_sub(1, Ordering::AcqRel);
            return PendingOutcome::Fail(error.to_string());
        }
        if let Some(LeftOut(left_out)) = self.admit(PendingLine::Waits) {
            self.host.report(&NodeReport::SpareWaits { address: pending.address.clone(), left_out });
        }
        let now_ns = self.host.now_ns();
        let stage = PendingStage::Spare { vm, messages, received_ns: now_ns, sent_ns: now_ns };
        PendingOutcome::Continue(stage, Next::Wait { until_ns: now_ns + SPARE_CHECK_NS })
    }

    fn check_spare(
        &self,
        pending: &mut PendingConnection<H>,
        vm: VmId,
        messages: Vec<Message>,
        (mut received_ns, mut sent_ns): (u64, u64),
    ) -> PendingOutcome {
        let Some(reader) = &mut pending.reader else { return PendingOutcome::Close };
        if self.is_over() || lock(&self.role).can_take_backup(&vm).is_ok() {
            return PendingOutcome::Continue(PendingStage::Asking { vm, messages }, Next::Now);
        }
        let timing = *lock(&self.role).timing();
        let now_ns = self.host.now_ns();
        match reader.take() {
            Arrived::Messages(messages) if messages.is_empty() => {}
            Arrived::Messages(_) => received_ns = now_ns,
            Arrived::Last { reason, .. } => return PendingOutcome::Fail(reason),
        }
        if now_ns.saturating_sub(received_ns) >= timing.failure_timeout_ns {
            return PendingOutcome::Refuse("it was silent for too long".into());
        }
        if now_ns.saturating_sub(sent_ns) >= timing.heartbeat_ns {
            if let Err(error) = send_message(&*pending.connection, &Message::Heartbeat) {
                return PendingOutcome::Fail(error.to_string());
            }
            sent_ns = now_ns;
        }
        PendingOutcome::Continue(
            PendingStage::Spare { vm, messages, received_ns, sent_ns },
            Next::Wait { until_ns: now_ns + SPARE_CHECK_NS },
        )
    }

    /// Sends the guest's memory while the vCPU thread copies it, and the log entries after it.
    fn send_memory(&self) -> Next {
        self.write_outgoing();
        if self.copying.load(Ordering::Acquire) && !self.is_over() {
            return Next::Wait { until_ns: self.host.now_ns() + MEMORY_SEND_NS };
        }
        self.sending_memory.store(false, Ordering::SeqCst);
        // What the role has added since `write_outgoing`, and others had left to this step.
        self.send_outgoing();
        Next::Done
    }
}

/// Takes one of `max` slots, if one is free.
fn take_slot(taken: &AtomicUsize, max: usize) -> bool {
    taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < max).then_some(taken + 1)).is_ok()
}

/// Tells a pending connection why it is refused, if it still reads.
pub(in crate::node) fn refuse(connection: &impl Connection, reason: &str) {
    let _ = send_message(connection, &Message::Refused { reason: reason.into() });
}
