//! Who comes to a primary's port: backups that want to join, and others.

use super::channel::{Arrived, ChannelReader, lock};
use super::clock;
use super::live::{Shared, spawn};
use super::reports::NodeReport;
use logchannel::message::Message;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How many visitors are listened to at once; others are sent away.
const VISITORS_MAX: usize = 32;

/// How long a visitor may take to say what it wants, in nanoseconds.
const PATIENCE_NS: u64 = 2_000_000_000;

/// How long nobody is let in if the host refuses: without a free descriptor it refuses at once, even if nobody comes.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// From one look at what should come soon to the next.
const RETRY: Duration = Duration::from_millis(5);

/// From one look for memory to send to a joining backup to the next.
const SEND: Duration = Duration::from_micros(200);

/// Listens for backups for as long as the process lives. A visitor that says nothing keeps nobody else out.
pub(super) fn start(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let shared = shared.clone();
    let visitors = Arc::new(AtomicUsize::new(0));
    spawn("channel", move || {
        loop {
            let (stream, address) = match listener.accept() {
                Ok(connection) => connection,
                // The visitor has gone again, or a signal came.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
                Err(error) => {
                    tracing::warn!("no backup can connect: {error}");
                    thread::sleep(ACCEPT_RETRY);
                    continue;
                }
            };
            if visitors.fetch_add(1, Ordering::AcqRel) >= VISITORS_MAX {
                visitors.fetch_sub(1, Ordering::AcqRel);
                refuse(&stream, "too many others are asking to join: try again");
                continue;
            }
            let (shared, counted) = (shared.clone(), visitors.clone());
            let spawned = spawn("visitor", move || {
                let asked = shared.hear_visitor(stream, address);
                counted.fetch_sub(1, Ordering::AcqRel);
                if let Err(reason) = asked {
                    shared.node.reporter.tell(&NodeReport::BackupRefused { address: address.to_string(), reason });
                } else {
                    shared.send_memory();
                }
            });
            if let Err(error) = spawned {
                visitors.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!("no thread for a visitor: {error}");
            }
        }
    })?;
    Ok(())
}

impl Shared {
    /// Hears what a visitor wants, and takes it as the backup if the role does.
    fn hear_visitor(&self, stream: TcpStream, address: SocketAddr) -> Result<(), String> {
        let io = |error: io::Error| error.to_string();
        stream.set_read_timeout(Some(Duration::from_nanos(PATIENCE_NS))).map_err(io)?;
        let visitor = stream.try_clone().map_err(io)?;
        let mut reader = ChannelReader::new(Arc::new(stream));
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
        let Some(Message::Join { vm, .. }) = said.next() else { return Err("it doesn't ask to join".into()) };
        visitor.set_read_timeout(None).map_err(io)?;
        while lock(&self.role).is_claiming() && clock::now_ns() < patient_until_ns {
            thread::sleep(RETRY);
        }
        // One at a time: the connection of the one that is taken must be the channel's before the role speaks to it.
        let _one_at_a_time = lock(&self.taking);
        if let Err(reason) = lock(&self.role).can_take_backup(&vm) {
            refuse(&visitor, &reason);
            return Err(reason);
        }
        self.channel.connect(reader.stream()).map_err(io)?;
        self.node.reporter.tell(&NodeReport::BackupConnected { address: address.to_string() });
        let mut taken = Ok(());
        self.drive(|role, now_ns| {
            taken = role.backup_joins(now_ns, &vm);
            if taken.is_ok() {
                said.for_each(|message| role.backup_said(now_ns, message));
            }
        });
        if let Err(reason) = &taken {
            refuse(&visitor, reason);
            self.channel.cut();
            return taken;
        }
        // What the backup says is heard from here on: not before the role knows that there is one.
        *lock(&self.channel.reader) = Some(reader);
        self.inbox.wake();
        Ok(())
    }

    /// Sends the guest's memory as the vCPU thread copies it.
    fn send_memory(&self) {
        while self.copying.load(Ordering::Acquire) && !self.over.load(Ordering::Acquire) {
            self.send_outgoing();
            thread::sleep(SEND);
        }
        self.send_outgoing();
    }
}

/// Tells a visitor why it can't join, as far as it listens.
fn refuse(mut stream: &TcpStream, reason: &str) {
    let mut bytes = Vec::new();
    Message::Refused { reason: reason.into() }.encode(&mut bytes);
    let _ = stream.write_all(&bytes);
}
