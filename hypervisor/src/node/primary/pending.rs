//! Who comes to a primary's port: backups that want to join, and others.

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

/// How many backups may wait for the place of the one that there is; others are sent away.
const SPARES_MAX: usize = 8;

/// How long a pending connection may take to say what it wants, in nanoseconds.
pub(in crate::node) const PATIENCE_NS: u64 = 2_000_000_000;

/// From one look at what should come soon to the next, in nanoseconds.
const RETRY_NS: u64 = 5_000_000;

/// From one look for memory to send to a joining backup to the next, in nanoseconds.
const SEND_NS: u64 = 200_000;

/// A line that pending connections can cause as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum PendingLine {
    /// One was refused.
    Refused,
    /// One waits for the place of the backup that there is.
    Waits,
    /// The host has no thread for one.
    NoThread,
}

/// Somebody who has connected.
pub struct PendingConnection<H: Host> {
    /// Gone once it is the channel's.
    reader: Option<ChannelReader<H::Connection>>,
    connection: Arc<H::Connection>,
    /// Where it came from, for people.
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
    /// Somebody who came from `address` at `now_ns`.
    pub fn new(connection: Arc<H::Connection>, address: String, now_ns: u64) -> Self {
        let reader = Some(ChannelReader::new(connection.clone()));
        Self { reader, connection, address, stage: Stage::Silent { until_ns: now_ns + PATIENCE_NS } }
    }
}

/// How far somebody has got.
#[derive(Debug)]
enum Stage {
    /// It hasn't said what it wants, which it may until then.
    Silent { until_ns: u64 },
    /// It wants to join this VM, and has said more than that.
    Asks { vm: VmId, said: Vec<Message> },
    /// It waits for the place of the backup that there is.
    Waits { vm: VmId, said: Vec<Message>, heard_ns: u64, spoke_ns: u64 },
    /// It is the backup, and gets the guest's memory from here.
    Joins,
}

/// What becomes of a pending connection.
enum Fate {
    /// It stays.
    Stays(Stage, Next),
    /// It leaves, with nothing to be told.
    Leaves,
    /// It is sent away, for this reason.
    Refused(String),
    /// It can't be spoken to, for this reason.
    Lost(String),
}

impl<H: Host> PrimarySide<H> {
    /// Whether a line that pending connections can cause is to be told now.
    pub(in crate::node) fn admit(&self, line: PendingLine) -> Option<LeftOut> {
        lock(&self.pending_lines).admit(line, self.host.now_ns())
    }

    /// Hears what a pending connection wants, takes it as the backup if the role does, and sends it
    /// the guest's memory.
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

    /// Takes a pending connection as the backup, or lets it wait for the place of the one that
    /// there is.
    fn admit_backup(&self, pending: &mut PendingConnection<H>, vm: VmId, said: Vec<Message>) -> Fate {
        let Some(reader) = &mut pending.reader else { return Fate::Leaves };
        // One that has gone meanwhile must not take the place of one that is here.
        if let Arrived::Last { reason, .. } = reader.take() {
            return Fate::Lost(reason);
        }
        // One at a time: the connection of the one that is taken must be the channel's before the
        // role speaks to it.
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
        // What the backup says is heard from here on: not before the role knows that there is one.
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

    /// Keeps a backup that came too late until the place is free: it says nothing but heartbeats,
    /// and so does this side.
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

    /// Sends the guest's memory as the vCPU copies it, and the log behind it, until nothing is left
    /// to be sent.
    fn send_memory(&self) -> Next {
        self.write_outgoing();
        if self.copying.load(Ordering::Acquire) && !self.is_over() {
            return Next::Wait { until_ns: self.host.now_ns() + SEND_NS };
        }
        self.sending_memory.store(false, Ordering::SeqCst);
        // What has come since then, before others could send it.
        self.send_outgoing();
        Next::Done
    }
}

/// Takes one of `max` slots, if one is free.
fn take_slot(taken: &AtomicUsize, max: usize) -> bool {
    taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < max).then_some(taken + 1)).is_ok()
}

/// Tells a pending connection why it can't join, as far as it listens.
pub(in crate::node) fn refuse(connection: &impl Connection, reason: &str) {
    let _ = say(connection, &Message::Refused { reason: reason.into() });
}
