//! The hypervisor's end of a VM port without its socket: it decodes the LAN's messages, and says
//! when a heartbeat is due.

use super::attachment::Attachment;
use super::cutter::{Cutter, Prefix};
use super::port::LanError;
use super::pulse::Pulse;
use super::wire::{MESSAGE_BYTES_MAX, ServerMessage, WireError};
use vm::OutputId;

/// A message of the LAN, or a heartbeat that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLan {
    /// A packet for the guest.
    Packet {
        /// Its number, greater than that of the one before.
        number: u64,
        /// The packet.
        packet: Vec<u8>,
    },
    /// All outputs with smaller ids have been carried; they need not be sent again.
    Carried {
        /// The first output that hasn't been carried.
        next_output: OutputId,
    },
    /// No message: a heartbeat to the LAN is due, see
    /// [`PortSender::send_heartbeat`](super::port::PortSender::send_heartbeat).
    HeartbeatDue,
}

/// The LAN's answer to Attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachAnswer {
    /// The number of the first packet that the LAN will send.
    pub first_packet: u64,
    /// All outputs with smaller ids have been carried.
    pub next_output: OutputId,
}

/// One connection to a LAN.
#[derive(Debug)]
pub struct PortSession {
    cutter: Cutter,
    /// Number of the last packet.
    last: u64,
    pulse: Pulse,
    interval_us: u64,
    /// When the next heartbeat to the LAN is due; also the end of an interval for the LAN's.
    heartbeat_due_us: u64,
}

impl PortSession {
    /// A connection over which `attachment` was sent at `now_us`, with heartbeats every
    /// `interval_us`.
    #[must_use]
    pub fn new(attachment: &Attachment, now_us: u64, interval_us: u64) -> Self {
        Self {
            cutter: Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX),
            last: attachment.last_packet,
            pulse: Pulse::default(),
            interval_us,
            heartbeat_due_us: now_us + interval_us,
        }
    }

    /// When [`PortSession::check_interval`] must be called next, in microseconds.
    #[must_use]
    pub const fn heartbeat_due_us(&self) -> u64 {
        self.heartbeat_due_us
    }

    /// The space for bytes from the LAN; call [`PortSession::filled`] after writing to it.
    pub fn space(&mut self) -> &mut [u8] {
        self.cutter.space()
    }

    /// This many bytes were written to [`PortSession::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.cutter.filled(bytes);
        self.pulse.hear();
    }

    /// This side was kept from receiving: the LAN doesn't count as silent for that time.
    pub const fn excuse(&mut self) {
        self.pulse.hear();
    }

    /// Ends an interval if it is over. Returns `true` if a heartbeat is due now.
    ///
    /// # Errors
    /// [`LanError::Silent`] if nothing has come from the LAN for too long.
    pub fn check_interval(&mut self, now_us: u64) -> Result<bool, LanError> {
        if now_us < self.heartbeat_due_us {
            return Ok(false);
        }
        self.heartbeat_due_us = now_us + self.interval_us;
        if self.pulse.is_silent() { Err(LanError::Silent) } else { Ok(true) }
    }

    /// The answer to Attach, once it has arrived. It is the first message.
    ///
    /// # Errors
    /// [`LanError`]: the connection is to be closed.
    pub fn answer(&mut self) -> Result<Option<AttachAnswer>, LanError> {
        let last = self.last;
        let Some(message) = self.cutter.next_message()? else { return Ok(None) };
        match ServerMessage::decode(message)? {
            ServerMessage::Attached { first_packet, next_output } if first_packet > last => {
                Ok(Some(AttachAnswer { first_packet, next_output }))
            }
            ServerMessage::Attached { first_packet, .. } => Err(WireError::Order { number: first_packet, last }.into()),
            ServerMessage::Refused { reason } => Err(LanError::Refused { reason: reason.to_owned() }),
            ServerMessage::Fenced { by } => Err(LanError::Fenced { by }),
            ServerMessage::Packet { .. } | ServerMessage::Carried { .. } | ServerMessage::Heartbeat => {
                Err(WireError::Field("a message before the answer to Attach").into())
            }
        }
    }

    /// The next message after the answer, once it has arrived.
    ///
    /// # Errors
    /// [`LanError`]: the connection is to be closed.
    pub fn received(&mut self) -> Result<Option<FromLan>, LanError> {
        let last = self.last;
        while let Some(message) = self.cutter.next_message()? {
            return match ServerMessage::decode(message)? {
                ServerMessage::Packet { number, packet } if number > last => {
                    self.last = number;
                    Ok(Some(FromLan::Packet { number, packet: packet.to_vec() }))
                }
                ServerMessage::Carried { next_output } => Ok(Some(FromLan::Carried { next_output })),
                // A heartbeat only shows that the LAN is alive.
                ServerMessage::Heartbeat => continue,
                ServerMessage::Packet { number, .. } => Err(WireError::Order { number, last }.into()),
                ServerMessage::Fenced { by } => Err(LanError::Fenced { by }),
                ServerMessage::Refused { reason } => Err(LanError::Refused { reason: reason.to_owned() }),
                ServerMessage::Attached { .. } => Err(WireError::Field("a second answer to Attach").into()),
            };
        }
        Ok(None)
    }
}
