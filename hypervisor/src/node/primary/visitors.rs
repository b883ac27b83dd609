//! Who comes to a primary's port: backups that want to join, and others.

use super::{Shared, spawn};
use crate::node::channel::{Arrived, ChannelReader, lock, say};
use crate::node::reports::NodeReport;
use crate::os::accept::AcceptTrouble;
use crate::os::clock;
use crate::os::rate_limit::LeftOut;
use logchannel::message::Message;
use logchannel::session::VmId;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How many visitors are listened to at once; others are sent away.
const VISITORS_MAX: usize = 32;

/// How many backups may wait for the place of the one that there is; others are sent away.
const SPARES_MAX: usize = 8;

/// How long a visitor may take to say what it wants, in nanoseconds.
const PATIENCE_NS: u64 = 2_000_000_000;

/// From one look at what should come soon to the next.
const RETRY: Duration = Duration::from_millis(5);

/// From one look for memory to send to a joining backup to the next.
const SEND: Duration = Duration::from_micros(200);

/// A line that visitors can cause as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum VisitorLine {
    /// One was refused.
    Refused,
    /// One waits for the place of the backup that there is.
    Waits,
    /// The host has no thread for one.
    NoThread,
}

/// Listens for backups for as long as the process lives. A visitor that says nothing keeps nobody else out.
pub(in crate::node) fn start(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let listening = shared.clone();
    let visitors = Arc::new(AtomicUsize::new(0));
    spawn("channel", move || {
        let mut trouble = AcceptTrouble::default();
        loop {
            let (stream, address) = match listener.accept() {
                Ok(connection) => connection,
                Err(error) => {
                    thread::sleep(trouble.failed("the primary can't accept connections", &error));
                    continue;
                }
            };
            if visitors.fetch_add(1, Ordering::AcqRel) >= VISITORS_MAX {
                visitors.fetch_sub(1, Ordering::AcqRel);
                refuse(&stream, "too many others are asking to join: try again");
                continue;
            }
            let (shared, counted) = (listening.clone(), visitors.clone());
            let spawned = spawn("visitor", move || {
                let asked = shared.hear_visitor(stream, address);
                counted.fetch_sub(1, Ordering::AcqRel);
                match asked {
                    Ok(()) => shared.send_memory(),
                    Err(reason) => shared.tell_refused(address, reason),
                }
            });
            if let Err(error) = spawned {
                visitors.fetch_sub(1, Ordering::AcqRel);
                if let Some(left_out) = listening.admit(VisitorLine::NoThread) {
                    tracing::warn!("no thread for a visitor: {error}{left_out}");
                }
            }
        }
    })?;
    Ok(())
}

impl Shared {
    /// Whether a line that visitors can cause is to be told now.
    fn admit(&self, line: VisitorLine) -> Option<LeftOut> {
        lock(&self.visitor_lines).admit(line, clock::now_ns())
    }

    fn tell_refused(&self, address: SocketAddr, reason: String) {
        if let Some(LeftOut(left_out)) = self.admit(VisitorLine::Refused) {
            let address = address.to_string();
            self.node.reporter.tell(&NodeReport::BackupRefused { address, reason, left_out });
        }
    }

    /// Hears what a visitor wants, and takes it as the backup if the role does.
    fn hear_visitor(&self, stream: TcpStream, address: SocketAddr) -> Result<(), String> {
        let io = |error: io::Error| error.to_string();
        stream.set_read_timeout(Some(Duration::from_nanos(PATIENCE_NS))).map_err(io)?;
        // One descriptor for each visitor: all of them together are fewer than a process must have.
        let visitor = Arc::new(stream);
        let mut reader = ChannelReader::new(visitor.clone());
        let patient_until_ns = clock::now_ns() + PATIENCE_NS;
        let mut said = loop {
            match reader.wait() {
                Arrived::Messages(messages) if messages.is_empty() && clock::now_ns() >= patient_until_ns => {
                    return Err("it says nothing".into());
                }
                Arrived::Messages(messages) if messages.is_empty() => {}
                Arrived::Messages(messages) => break messages.into_iter(),
                Arrived::Last { reason, .. } => return Err(reason),
            }
        };
        let vm = match said.next() {
            Some(Message::Join { vm, .. }) => vm,
            Some(Message::AskOwner { vm }) => return self.answer_owner(&visitor, &vm),
            _ => return Err("it doesn't ask to join".into()),
        };
        visitor.set_read_timeout(None).map_err(io)?;
        visitor.set_nodelay(true).map_err(io)?;
        // One at a time: the connection of the one that is taken must be the channel's before the role speaks to it.
        let _one_at_a_time = loop {
            // One that has gone meanwhile must not take the place of one that is here.
            match reader.take() {
                Arrived::Messages(_) => {}
                Arrived::Last { reason, .. } => return Err(reason),
            }
            let one_at_a_time = lock(&self.taking);
            let Err(reason) = lock(&self.role).can_take_backup(&vm) else { break one_at_a_time };
            if !lock(&self.role).may_take_backup_later(&vm) {
                refuse(&visitor, &reason);
                return Err(reason);
            }
            drop(one_at_a_time);
            if let Err(reason) = self.wait_for_place(&mut reader, &visitor, address, &vm) {
                refuse(&visitor, &reason);
                return Err(reason);
            }
        };
        self.channel.connect(reader.connection());
        self.node.reporter.tell(&NodeReport::BackupConnected { address: address.to_string() });
        self.sending_memory.store(true, Ordering::SeqCst);
        let mut taken = Ok(());
        self.drive(|role, now_ns| {
            taken = role.handle_join(now_ns, &vm);
            if taken.is_ok() {
                said.for_each(|message| role.handle_message(now_ns, message));
            }
        });
        if let Err(reason) = &taken {
            self.sending_memory.store(false, Ordering::SeqCst);
            refuse(&visitor, reason);
            self.channel.cut();
            return taken;
        }
        // What the backup says is heard from here on: not before the role knows that there is one.
        *lock(&self.channel.reader) = Some(reader);
        self.inbox.wake();
        Ok(())
    }

    /// Tells a node that is about to claim the VM who owns it.
    fn answer_owner(&self, visitor: &TcpStream, vm: &VmId) -> Result<(), String> {
        if *vm != self.node.vm {
            refuse(visitor, &format!("this is a side of VM {}, not of {vm}", self.node.vm));
            return Ok(());
        }
        let generation = lock(&self.role).generation();
        say(visitor, &Message::Owner { node: self.node.id, generation }).map_err(|error| error.to_string())
    }

    /// Keeps a backup that came too late until the place is free: it says nothing but heartbeats, and so does this side.
    fn wait_for_place(
        &self,
        reader: &mut ChannelReader<TcpStream>,
        visitor: &TcpStream,
        address: SocketAddr,
        vm: &VmId,
    ) -> Result<(), String> {
        let counted = Counted::one_of(&self.spares, SPARES_MAX).ok_or("enough backups wait here already")?;
        let timing = *lock(&self.role).timing();
        say(visitor, &Message::Wait).map_err(|error| error.to_string())?;
        if let Some(LeftOut(left_out)) = self.admit(VisitorLine::Waits) {
            self.node.reporter.tell(&NodeReport::SpareWaits { address: address.to_string(), left_out });
        }
        let (mut heard_ns, mut spoke_ns) = (clock::now_ns(), clock::now_ns());
        while !self.over.load(Ordering::Acquire) && lock(&self.role).can_take_backup(vm).is_err() {
            thread::sleep(RETRY);
            let now_ns = clock::now_ns();
            match reader.take() {
                Arrived::Messages(messages) if messages.is_empty() => {}
                Arrived::Messages(_) => heard_ns = now_ns,
                Arrived::Last { reason, .. } => return Err(reason),
            }
            if now_ns.saturating_sub(heard_ns) >= timing.failure_timeout_ns {
                return Err("it was silent for too long".into());
            }
            if now_ns.saturating_sub(spoke_ns) >= timing.heartbeat_ns {
                say(visitor, &Message::Heartbeat).map_err(|error| error.to_string())?;
                spoke_ns = now_ns;
            }
        }
        drop(counted);
        Ok(())
    }

    /// Sends the guest's memory as the vCPU thread copies it, and the log behind it, until nothing is left to be sent.
    fn send_memory(&self) {
        while self.copying.load(Ordering::Acquire) && !self.over.load(Ordering::Acquire) {
            self.write_outgoing();
            thread::sleep(SEND);
        }
        self.write_outgoing();
        self.sending_memory.store(false, Ordering::SeqCst);
        // What has come since then, before others could send it.
        self.send_outgoing();
    }
}

/// A seat, given back when it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    /// One of `max` seats, if one is free.
    fn one_of(taken: &'a AtomicUsize, max: usize) -> Option<Self> {
        let counted = Self(taken);
        let before = taken.fetch_add(1, Ordering::AcqRel);
        (before < max).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells a visitor why it can't join, as far as it listens.
fn refuse(stream: &TcpStream, reason: &str) {
    let _ = say(stream, &Message::Refused { reason: reason.into() });
}
