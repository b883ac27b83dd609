//! Pending connections: those to the primary's port that have not said yet what they want, joining
//! backups, and spares.

use super::side::PrimarySide;
use crate::node::channel::{Arrived, ChannelReader, lock, say};
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
pub(in crate::node) const PATIENCE_NS: u64 = 2_000_000_000;

/// How often a spare is checked, for messages and for a free place, in nanoseconds.
const RETRY_NS: u64 = 5_000_000;

/// How often new memory is sent to a joining backup, in nanoseconds.
const SEND_NS: u64 = 200_000;

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
    stage: Stage,
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
        Self { reader, connection, address, stage: Stage::Silent { until_ns: now_ns + PATIENCE_NS } }
    }
}

/// How far a pending connection has got.
#[derive(Debug)]
enum Stage {
    /// It has sent nothing yet, which it may until then.
    Silent { until_ns: u64 },
    /// It asks to join this VM. `said` are the messages after its `Join`.
    Asks { vm: VmId, said: Vec<Message> },
    /// It is a spare: it waits for the current backup's place.
    Waits { vm: VmId, said: Vec<Message>, heard_ns: u64, spoke_ns: u64 },
    /// It is the backup, and this step sends it the guest's memory.
    Joins,
}

/// What the step does with a pending connection.
enum Fate {
    /// Goes on with it.
    Stays(Stage, Next),
    /// Closes it without a report.
    Leaves,
    /// Tells the peer that it is refused, and why, and reports it.
    Refused(String),
    /// Closes it and reports why; the peer isn't told.
    Lost(String),
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
        let stage = std::mem::replace(&mut pending.stage, Stage::Joins);
        let fate = match stage {
            Stage::Silent { until_ns } => self.hear_wish(pending, until_ns),
            Stage::Asks { vm, said } => self.admit_backup(pending, vm, said),
            Stage::Waits { vm, said, heard_ns, spoke_ns } => {
                let fate = self.keep_waiting(pending, vm, said, (heard_ns, spoke_ns));
                if !matches!(fate, Fate::Stays(Stage::Waits { .. }, _)) {
                    self.spares.fetch_sub(1, Ordering::AcqRel);
                }
                fate
            }
            Stage::Joins => return self.send_memory(),
        };
        let reason = match fate {
            Fate::Stays(stage, next) => {
                pending.stage = stage;
                return next;
            }
            Fate::Leaves => return Next::Done,
            Fate::Refused(reason) => {
                refuse(&*pending.connection, &reason);
                reason
            }
            Fate::Lost(reason) => reason,
        };
        if let Some(LeftOut(left_out)) = self.admit(PendingLine::Refused) {
            self.host.report(&NodeReport::BackupRefused { address: pending.address.clone(), reason, left_out });
        }
        Next::Done
    }

    fn hear_wish(&self, pending: &mut PendingConnection<H>, until_ns: u64) -> Fate {
        let Some(reader) = &mut pending.reader else { return Fate::Leaves };
        let mut said = match reader.wait() {
            Arrived::Messages(messages) if messages.is_empty() && self.host.now_ns() >= until_ns => {
                return Fate::Lost("it says nothing".into());
            }
            Arrived::Messages(messages) if messages.is_empty() => {
                return Fate::Stays(Stage::Silent { until_ns }, Next::Arrival { until_ns });
            }
            Arrived::Messages(messages) => messages.into_iter(),
            Arrived::Last { reason, .. } => return Fate::Lost(reason),
        };
        match said.next() {
            Some(Message::Join { vm, .. }) => Fate::Stays(Stage::Asks { vm, said: said.collect() }, Next::Now),
            Some(Message::AskOwner { vm }) => self.answer_owner(pending, &vm),
            _ => Fate::Lost("it doesn't ask to join".into()),
        }
    }

    /// Admits a pending connection as the backup, or makes it a spare while there is another
    /// backup.
    fn admit_backup(&self, pending: &mut PendingConnection<H>, vm: VmId, said: Vec<Message>) -> Fate {
        let Some(reader) = &mut pending.reader else { return Fate::Leaves };
        // A connection that has closed meanwhile must not take the place of one that is open.
        if let Arrived::Last { reason, .. } = reader.take() {
            return Fate::Lost(reason);
        }
        // The admitted connection must be the channel's before the role sends anything to it, so no
        // other may be admitted in between.
        let _one_at_a_time = lock(&self.taking);
        let refusal = lock(&self.role).can_take_backup(&vm).err();
        match refusal {
            None => self.take_backup(pending, &vm, said),
            Some(reason) if !lock(&self.role).may_take_backup_later(&vm) => Fate::Refused(reason),
            Some(_) => self.begin_to_wait(pending, vm, said),
        }
    }

    fn take_backup(&self, pending: &mut PendingConnection<H>, vm: &VmId, said: Vec<Message>) -> Fate {
        self.channel.connect(pending.connection.clone());
        self.host.report(&NodeReport::BackupConnected { address: pending.address.clone() });
        self.sending_memory.store(true, Ordering::SeqCst);
        let mut taken = Ok(());
        self.drive(|role, now_ns| {
            taken = role.handle_join(now_ns, vm);
            if taken.is_ok() {
                said.into_iter().for_each(|message| role.handle_message(now_ns, message));
            }
        });
        if let Err(reason) = taken {
            self.sending_memory.store(false, Ordering::SeqCst);
            refuse(&*pending.connection, &reason);
            self.channel.cut();
            return Fate::Lost(reason);
        }
        // Messages are read from here on: the role must know its backup before it gets them.
        *lock(&self.channel.reader) = pending.reader.take();
        self.host.wake(StepKind::Vcpu);
        Fate::Stays(Stage::Joins, Next::Now)
    }

    /// Tells a node that is about to claim the VM who owns it.
    fn answer_owner(&self, pending: &PendingConnection<H>, vm: &VmId) -> Fate {
        let own = &self.identity.vm;
        if vm != own {
            refuse(&*pending.connection, &format!("this is a side of VM {own}, not of {vm}"));
            return Fate::Leaves;
        }
        let generation = lock(&self.role).generation();
        match say(&*pending.connection, &Message::Owner { node: self.identity.node, generation }) {
            Ok(()) => Fate::Leaves,
            Err(error) => Fate::Lost(error.to_string()),
        }
    }

    /// Makes a backup a spare. Only heartbeats go in both directions until it is admitted.
    fn begin_to_wait(&self, pending: &PendingConnection<H>, vm: VmId, said: Vec<Message>) -> Fate {
        if !take_slot(&self.spares, SPARES_MAX) {
            return Fate::Refused("enough backups wait here already".into());
        }
        if let Err(error) = say(&*pending.connection, &Message::Wait) {
            self.spares.fetch_sub(1, Ordering::AcqRel);
            return Fate::Lost(error.to_string());
        }
        if let Some(LeftOut(left_out)) = self.admit(PendingLine::Waits) {
            self.host.report(&NodeReport::SpareWaits { address: pending.address.clone(), left_out });
        }
        let now_ns = self.host.now_ns();
        let stage = Stage::Waits { vm, said, heard_ns: now_ns, spoke_ns: now_ns };
        Fate::Stays(stage, Next::Wait { until_ns: now_ns + RETRY_NS })
    }

    fn keep_waiting(
        &self,
        pending: &mut PendingConnection<H>,
        vm: VmId,
        said: Vec<Message>,
        (mut heard_ns, mut spoke_ns): (u64, u64),
    ) -> Fate {
        let Some(reader) = &mut pending.reader else { return Fate::Leaves };
        if self.is_over() || lock(&self.role).can_take_backup(&vm).is_ok() {
            return Fate::Stays(Stage::Asks { vm, said }, Next::Now);
        }
        let timing = *lock(&self.role).timing();
        let now_ns = self.host.now_ns();
        match reader.take() {
            Arrived::Messages(messages) if messages.is_empty() => {}
            Arrived::Messages(_) => heard_ns = now_ns,
            Arrived::Last { reason, .. } => return Fate::Lost(reason),
        }
        if now_ns.saturating_sub(heard_ns) >= timing.failure_timeout_ns {
            return Fate::Refused("it was silent for too long".into());
        }
        if now_ns.saturating_sub(spoke_ns) >= timing.heartbeat_ns {
            if let Err(error) = say(&*pending.connection, &Message::Heartbeat) {
                return Fate::Lost(error.to_string());
            }
            spoke_ns = now_ns;
        }
        Fate::Stays(Stage::Waits { vm, said, heard_ns, spoke_ns }, Next::Wait { until_ns: now_ns + RETRY_NS })
    }

    /// Sends the guest's memory while the vCPU thread copies it, and the log entries after it.
    fn send_memory(&self) -> Next {
        self.write_outgoing();
        if self.copying.load(Ordering::Acquire) && !self.is_over() {
            return Next::Wait { until_ns: self.host.now_ns() + SEND_NS };
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
    let _ = say(connection, &Message::Refused { reason: reason.into() });
}
