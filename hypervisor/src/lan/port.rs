//! The hypervisor's end of a VM port over a connection, in calls that don't wait.
//!
//! One thread reads, and any thread sends, one at a time. What the connection doesn't take at once
//! is kept and sent later, so that no thread of a VM waits for its LAN.

use super::attachment::Attachment;
use super::pulse::INTERVAL_US;
pub use super::session::FromLan;
use super::session::{AttachAnswer, PortSession};
use super::wire::{ClientMessage, WireError, is_packet_length};
use crate::os::connection::{Connection, is_idle};
use ft::mutation::{Mutation, mutated};
use logchannel::entry::Generation;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use vm::OutputId;

/// How long what may take, on the connection of a VM port.
#[derive(Clone, Copy, Debug)]
pub struct PortTiming {
    /// From one heartbeat to the next, in microseconds.
    pub heartbeat_us: u64,
    /// How long a LAN may take to answer, in nanoseconds: one that is there answers at once, and
    /// one that comes back is attached to by the next try.
    pub answer_ns: u64,
    /// How long a LAN may take no bytes at all before its port is given up, in nanoseconds. What
    /// waits for it is sent again to the next one.
    pub stuck_ns: u64,
}

impl Default for PortTiming {
    fn default() -> Self {
        Self { heartbeat_us: INTERVAL_US, answer_ns: 1_000_000_000, stuck_ns: 200_000_000 }
    }
}

/// Why a port could not be opened, or is no more.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// The LAN refuses this attachment; asking again won't help.
    #[error("the LAN refuses the port: {reason}")]
    Refused {
        /// In the LAN's words.
        reason: String,
    },
    /// A newer generation owns the VM: this process must emit nothing more.
    #[error("fenced by the LAN: generation {by} owns the VM now")]
    Fenced {
        /// The owner.
        by: Generation,
    },
    /// The LAN went away; attach again.
    #[error("the LAN closed the connection")]
    Closed,
    /// Nothing has come from the LAN for so long that the connection must be dead; attach again.
    #[error("the LAN has sent no heartbeat for 1.5 s")]
    Silent,
    /// The LAN has taken the connection, and hasn't answered in time; attach again.
    #[error("the LAN doesn't answer")]
    NoAnswer,
    /// The LAN can't be reached; attach again.
    #[error("connection to the LAN: {0}")]
    Io(#[from] io::Error),
    /// What came is not the protocol.
    #[error("from the LAN: {0}")]
    Protocol(#[from] WireError),
}

impl LanError {
    /// Whether a LAN doesn't want this attachment: trying again soon won't help.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Fenced { .. })
    }
}

/// The result of reading a port once.
#[derive(Debug, PartialEq, Eq)]
pub enum PortEvent {
    /// The LAN has answered: the port is open.
    Attached(AttachAnswer),
    /// Something for the guest, or a heartbeat that is due.
    FromLan(FromLan),
    /// Something that isn't whole yet.
    Part,
    /// Nothing for now.
    Nothing,
}

/// Gives the packets for the guest, and tells how far its own have got.
#[derive(Debug)]
pub struct PortReader<C> {
    connection: Arc<C>,
    session: PortSession,
    /// Until the answer has come: when it must have.
    answer_until_ns: Option<u64>,
}

/// Asks the LAN at the other end of `connection` for the port of `attachment`.
///
/// # Errors
/// Of the connection.
pub fn open<C: Connection>(
    connection: Arc<C>,
    attachment: &Attachment,
    timing: &PortTiming,
    now_ns: u64,
) -> io::Result<(PortReader<C>, PortSender<C>)> {
    let session = PortSession::new(attachment, now_ns / 1000, timing.heartbeat_us);
    let answer_until_ns = Some(now_ns + timing.answer_ns);
    let reader = PortReader { connection: connection.clone(), session, answer_until_ns };
    let mut sender =
        PortSender { connection, bytes: Vec::new(), sent: 0, stuck_ns_max: timing.stuck_ns, stuck_since_ns: None };
    ClientMessage::Attach(attachment.clone()).append(&mut sender.bytes);
    sender.flush(now_ns)?;
    Ok((reader, sender))
}

impl<C: Connection> PortReader<C> {
    /// Closes the port in both directions.
    pub fn cut(&self) {
        self.connection.cut();
    }

    /// When [`PortReader::receive`] has something to say that no arrival announces, in nanoseconds.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        self.answer_until_ns.unwrap_or_else(|| self.session.heartbeat_due_us() * 1000)
    }

    /// Takes what comes next. A host that has a thread for this waits until something comes or is
    /// due, as [`Connection::receive`] does.
    ///
    /// # Errors
    /// [`LanError`]; the port is closed after that.
    pub fn receive(&mut self, now_ns: u64) -> Result<PortEvent, LanError> {
        if let Some(event) = self.next(now_ns)? {
            return Ok(event);
        }
        // Read once: whoever waits here looks at the time again, however little comes.
        match self.connection.receive(self.session.space()) {
            Ok(0) => Err(LanError::Closed),
            Ok(bytes) => {
                self.session.filled(bytes);
                Ok(self.next(now_ns)?.unwrap_or(PortEvent::Part))
            }
            Err(error) if is_idle(&error) => Ok(PortEvent::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// What has come already, or is due.
    fn next(&mut self, now_ns: u64) -> Result<Option<PortEvent>, LanError> {
        if let Some(until_ns) = self.answer_until_ns {
            if let Some(answer) = self.session.answer()? {
                self.answer_until_ns = None;
                return Ok(Some(PortEvent::Attached(answer)));
            }
            // A byte now and then is no answer.
            return if now_ns >= until_ns { Err(LanError::NoAnswer) } else { Ok(None) };
        }
        if let Some(received) = self.session.received()? {
            return Ok(Some(PortEvent::FromLan(received)));
        }
        let is_due = self.session.check_interval(now_ns / 1000)?;
        Ok(is_due.then_some(PortEvent::FromLan(FromLan::HeartbeatDue)))
    }

    /// The caller was kept from receiving, because the guest takes nothing: what the LAN has sent
    /// meanwhile is not missed. `true` if a heartbeat is due.
    ///
    /// # Errors
    /// As [`PortReader::receive`].
    pub fn excuse(&mut self, now_ns: u64) -> Result<bool, LanError> {
        self.session.excuse();
        self.session.check_interval(now_ns / 1000)
    }
}

/// Sends the guest's packets.
#[derive(Debug)]
pub struct PortSender<C> {
    connection: Arc<C>,
    /// What is being sent.
    bytes: Vec<u8>,
    /// How much of it has been.
    sent: usize,
    stuck_ns_max: u64,
    /// Since when the connection has taken nothing.
    stuck_since_ns: Option<u64>,
}

impl<C: Connection> PortSender<C> {
    /// Sends packets, behind what waits. What the connection doesn't take now waits: ask
    /// [`PortSender::has_room`] before the next.
    ///
    /// # Errors
    /// Of the connection, which is of no use then; [`PortReader::receive`] tells so too.
    /// `InvalidInput` for a packet that is no Ethernet packet: nothing is sent, and the connection
    /// is unhurt.
    pub fn send(&mut self, now_ns: u64, packets: &[(OutputId, &[u8])]) -> io::Result<()> {
        if let Some((_, packet)) = packets.iter().find(|(_, packet)| !is_packet_length(packet.len())) {
            return Err(io::Error::new(ErrorKind::InvalidInput, WireError::Packet(packet.len())));
        }
        for &(id, packet) in packets {
            ClientMessage::Output { id, packet }.append(&mut self.bytes);
        }
        self.flush(now_ns)
    }

    /// Tells the LAN that this side is alive. What waits for the connection says as much.
    ///
    /// # Errors
    /// As [`PortSender::send`].
    pub fn send_heartbeat(&mut self, now_ns: u64) -> io::Result<()> {
        if self.has_room() {
            ClientMessage::Heartbeat.append(&mut self.bytes);
        }
        self.flush(now_ns)
    }

    /// Whether nothing waits for the connection: the next packets may be sent.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what waits, as far as the connection takes it.
    ///
    /// # Errors
    /// As [`PortSender::send`]; `TimedOut` if the connection has taken nothing for too long.
    pub fn flush(&mut self, now_ns: u64) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match self.connection.send(&self.bytes[self.sent..]) {
                Ok(sent) => {
                    self.sent += sent;
                    self.stuck_since_ns = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_idle(&error) => {
                    if mutated(Mutation::LanRestForgotten) {
                        break;
                    }
                    let since_ns = *self.stuck_since_ns.get_or_insert(now_ns);
                    let is_stuck = now_ns.saturating_sub(since_ns) >= self.stuck_ns_max;
                    return if is_stuck { Err(ErrorKind::TimedOut.into()) } else { Ok(()) };
                }
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }

    /// Closes the port in both directions: whoever waits in [`PortReader::receive`] returns.
    pub fn cut(&self) {
        self.connection.cut();
    }
}
