//! A VM port for a caller that waits: connecting, the answer, and what comes next.

use super::attachment::Attachment;
pub use super::port::{FromLan, LanError};
use super::port::{PortEvent, PortReader, PortSender, PortTiming, open};
use super::session::AttachAnswer;
use crate::os::clock;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vm::OutputId;

/// From one look whether the LAN takes more to the next.
const ROOM_LOOK: Duration = Duration::from_millis(1);

/// Connects to the LAN at `address`, whose answers a reader then waits for, for a heartbeat's
/// interval at most. `timeout` bounds connecting.
///
/// # Errors
/// Of the connection.
pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_micros(PortTiming::default().heartbeat_us)))?;
    Ok(stream)
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

/// Attaches to the LAN at `address`, and waits for the answer. `timeout` bounds connecting and the
/// whole answer, each.
///
/// # Errors
/// [`LanError`]
pub fn attach(address: SocketAddr, attachment: &Attachment, timeout: Duration) -> Result<Attached, LanError> {
    let stream = Arc::new(connect(address, timeout)?);
    let answer_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let timing = PortTiming { answer_ns, ..PortTiming::default() };
    let (mut reader, sender) = open(stream, attachment, &timing, clock::now_ns())?;
    loop {
        if let PortEvent::Attached(AttachAnswer { next_output, .. }) = reader.receive(clock::now_ns())? {
            return Ok(Attached { sender: PacketSender(sender), receiver: PacketReceiver(reader), next_output });
        }
    }
}

/// Sends the guest's packets.
#[derive(Debug)]
pub struct PacketSender(PortSender<TcpStream>);

impl PacketSender {
    /// Sends one packet.
    ///
    /// # Errors
    /// As [`PortSender::send`].
    pub fn send(&mut self, id: OutputId, packet: &[u8]) -> io::Result<()> {
        self.send_batch(&[(id, packet)])
    }

    /// Sends several packets, and waits until the LAN has taken them.
    ///
    /// # Errors
    /// As [`PortSender::send`].
    pub fn send_batch(&mut self, packets: &[(OutputId, &[u8])]) -> io::Result<()> {
        self.0.send(clock::now_ns(), packets)?;
        while !self.0.has_room() {
            thread::sleep(ROOM_LOOK);
            self.0.flush(clock::now_ns())?;
        }
        Ok(())
    }

    /// Tells the LAN that this side is alive.
    ///
    /// # Errors
    /// As [`PortSender::send`].
    pub fn send_heartbeat(&mut self) -> io::Result<()> {
        self.0.send_heartbeat(clock::now_ns())
    }

    /// Closes the port in both directions; a blocked [`PacketReceiver::receive`] returns.
    pub fn shutdown(&self) {
        self.0.cut();
    }
}

/// Receives the packets for the guest, and the reports of how many of its outputs were carried.
#[derive(Debug)]
pub struct PacketReceiver(PortReader<TcpStream>);

impl PacketReceiver {
    /// The caller was kept from receiving: what the LAN has sent meanwhile is not missed.
    ///
    /// # Errors
    /// As [`PacketReceiver::receive`].
    pub fn excuse(&mut self) -> Result<(), LanError> {
        self.0.excuse(clock::now_ns()).map(|_| ())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// [`LanError`]; the port is closed after that.
    pub fn receive(&mut self) -> Result<FromLan, LanError> {
        loop {
            if let PortEvent::FromLan(received) = self.0.receive(clock::now_ns())? {
                return Ok(received);
            }
        }
    }
}
