//! The hypervisor's end of a VM port, with blocking calls: one thread sends, another receives.

use super::attachment::Attachment;
use super::pulse::INTERVAL_US;
pub use super::session::FromLan;
use super::session::{AttachAnswer, PortSession};
use super::wire::{ClientMessage, WireError, is_packet_length};
use crate::os::clock;
use logchannel::entry::Generation;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;
use vm::OutputId;

/// How long a LAN may take no bytes before the port is given up. Much shorter than the failure
/// timeout, because the thread that sends packets also sends acknowledgements and heartbeats.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

/// Why a port couldn't be opened, or was closed.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// The LAN refuses this attachment; asking again won't help.
    #[error("the LAN refuses the port: {reason}")]
    Refused {
        /// The LAN's reason.
        reason: String,
    },
    /// A newer generation owns the VM: this process must send nothing more.
    #[error("fenced by the LAN: generation {by} owns the VM now")]
    Fenced {
        /// The owner's generation.
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
    /// The LAN sent something that isn't the protocol.
    #[error("from the LAN: {0}")]
    Protocol(#[from] WireError),
}

/// An open port.
#[derive(Debug)]
pub struct Attached {
    /// Sends the guest's packets.
    pub sender: PacketSender,
    /// Receives the packets for the guest.
    pub receiver: PacketReceiver,
    /// The LAN has carried all outputs with smaller ids, and drops them if they come again.
    pub next_output: OutputId,
}

/// Attaches to the LAN at `address`. `timeout` bounds connecting and the whole answer, each.
///
/// # Errors
/// [`LanError`]; of these, only `Closed`, `Silent` and `Io` are worth asking again at once.
pub fn attach(address: SocketAddr, attachment: &Attachment, timeout: Duration) -> Result<Attached, LanError> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut request = Vec::new();
    ClientMessage::Attach(attachment.clone()).append(&mut request);
    (&stream).write_all(&request)?;

    let session = PortSession::new(attachment, clock::now_us(), INTERVAL_US);
    let mut receiver = PacketReceiver { stream: stream.try_clone()?, session };
    let AttachAnswer { first_packet, next_output } = receiver.answer(timeout)?;
    stream.set_read_timeout(Some(Duration::from_micros(INTERVAL_US)))?;
    if first_packet > attachment.last_packet.saturating_add(1) {
        tracing::warn!(
            first_packet,
            last_packet = attachment.last_packet,
            "the LAN no longer keeps all missing frames"
        );
    }
    Ok(Attached { sender: PacketSender { stream, buffer: Vec::new() }, receiver, next_output })
}

/// Sends the guest's packets.
#[derive(Debug)]
pub struct PacketSender {
    stream: TcpStream,
    /// Messages of the current call; kept to reuse its memory.
    buffer: Vec<u8>,
}

impl PacketSender {
    /// Sends one packet, in one system call.
    ///
    /// # Errors
    /// If the connection fails: [`PacketReceiver::receive`] then says why. `InvalidInput` if the
    /// packet is no Ethernet frame; the connection is unhurt then.
    pub fn send(&mut self, id: OutputId, packet: &[u8]) -> io::Result<()> {
        self.send_batch(&[(id, packet)])
    }

    /// Sends several packets, in one system call.
    ///
    /// # Errors
    /// As [`PacketSender::send`]; nothing is sent if one of the packets is invalid.
    pub fn send_batch(&mut self, packets: &[(OutputId, &[u8])]) -> io::Result<()> {
        self.buffer.clear();
        for &(id, packet) in packets {
            if !is_packet_length(packet.len()) {
                return Err(io::Error::new(ErrorKind::InvalidInput, WireError::Packet(packet.len())));
            }
            ClientMessage::Output { id, packet }.append(&mut self.buffer);
        }
        (&self.stream).write_all(&self.buffer)
    }

    /// Tells the LAN that this side is alive.
    ///
    /// # Errors
    /// As [`PacketSender::send`].
    pub fn send_heartbeat(&mut self) -> io::Result<()> {
        self.buffer.clear();
        ClientMessage::Heartbeat.append(&mut self.buffer);
        (&self.stream).write_all(&self.buffer)
    }

    /// Closes the port in both directions; a blocked [`PacketReceiver::receive`] returns.
    pub fn shutdown(&self) {
        // Fails only if the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Receives the packets for the guest, and the reports of how many of its outputs were carried.
#[derive(Debug)]
pub struct PacketReceiver {
    stream: TcpStream,
    session: PortSession,
}

impl PacketReceiver {
    /// The caller was kept from receiving: the LAN doesn't count as silent for that time.
    pub const fn excuse(&mut self) {
        self.session.excuse();
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// [`LanError`]; the port is closed after that.
    pub fn receive(&mut self) -> Result<FromLan, LanError> {
        loop {
            if let Some(received) = self.session.received()? {
                return Ok(received);
            }
            if self.session.look(clock::now_us())? {
                return Ok(FromLan::HeartbeatDue);
            }
            match self.fill() {
                // A read timeout only ends the interval.
                Err(LanError::Io(error)) if is_timeout(&error) => {}
                filled => filled?,
            }
        }
    }

    /// Waits for the answer to Attach.
    fn answer(&mut self, timeout: Duration) -> Result<AttachAnswer, LanError> {
        let begin_us = clock::now_us();
        loop {
            if let Some(answer) = self.session.answer()? {
                return Ok(answer);
            }
            // Checked after each read, because single bytes now and then are no answer.
            if u128::from(clock::now_us() - begin_us) >= timeout.as_micros() {
                return Err(LanError::NoAnswer);
            }
            match self.fill() {
                Err(LanError::Io(error)) if is_timeout(&error) => return Err(LanError::NoAnswer),
                filled => filled?,
            }
        }
    }

    /// Reads the bytes that have arrived, or waits for some.
    fn fill(&mut self) -> Result<(), LanError> {
        match (&self.stream).read(self.session.space()) {
            Ok(0) => return Err(LanError::Closed),
            Ok(bytes) => self.session.filled(bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// `true` if a read ended by its timeout.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
