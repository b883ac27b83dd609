//! The protocol on the connection of a VM port, message by message.
//!
//! All numbers are little-endian. Every message is
//!
//! | bytes | field |
//! |---|---|
//! | 4 | length of the rest, 1 to [`MESSAGE_BYTES_MAX`] |
//! | 1 | kind |
//! | length - 1 | body |
//!
//! | kind | from | body |
//! |---|---|---|
//! | 1 Attach | VM | magic `FTLAN` (5), version (2), generation (8), node (16), MAC (6), next output (8), output end (8), last packet (8), generation of the guest's boot (8), VM name (the rest, 1 to 64) |
//! | 2 Output | VM | output id (8), Ethernet frame (the rest) |
//! | 3 Heartbeat | VM | nothing |
//! | 16 Attached | LAN | number of the first packet that will follow (8), the output that the LAN expects next (8) |
//! | 17 Refused | LAN | reason (the rest, UTF-8, at most [`REASON_BYTES_MAX`]); the LAN then closes |
//! | 18 Fenced | LAN | generation that took the VM over (8); the LAN then closes |
//! | 19 Packet | LAN | packet number (8), Ethernet frame (the rest) |
//! | 20 Carried | LAN | next output (8): every one with a smaller id has been carried |
//! | 21 Heartbeat | LAN | nothing |
//!
//! Attach is the first message and comes once; Attached or Refused answers it. This module checks
//! lengths, kinds, magic, version and the VM's name; the port of the VM checks what the numbers
//! mean.
//!
//! Version 1: without Carried, and Attached told no output. Version 2: without Heartbeat. Version
//! 3: this table.

use super::attachment::Attachment;
use super::cutter::PREFIX_BYTES;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VM_ID_BYTES_MAX, VmId};
use vm::{OutputId, PACKET_BYTES_MAX, PACKET_BYTES_MIN};

/// The version of the protocol that this build speaks.
pub const WIRE_VERSION: u16 = 3;
/// The longest reason of a refusal, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// The longest message, in bytes, without its length: a kind, a number and a packet.
pub const MESSAGE_BYTES_MAX: usize = 1 + 8 + PACKET_BYTES_MAX;

const _: () = assert!(REASON_BYTES_MAX < MESSAGE_BYTES_MAX, "a refusal fits");
const _: () = assert!(128 + VM_ID_BYTES_MAX <= MESSAGE_BYTES_MAX, "an Attach fits");

const MAGIC: [u8; 5] = *b"FTLAN";
const ATTACH: u8 = 1;
const OUTPUT: u8 = 2;
const VM_HEARTBEAT: u8 = 3;
const ATTACHED: u8 = 16;
const REFUSED: u8 = 17;
const FENCED: u8 = 18;
const PACKET: u8 = 19;
const CARRIED: u8 = 20;
const LAN_HEARTBEAT: u8 = 21;

/// Bytes that are not the protocol; the connection they came on is closed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// The length prefix is out of range.
    #[error("message of {length} bytes where 1 to {max} are allowed; is the peer an ft-lan port at all?")]
    Length {
        /// The length that was sent.
        length: usize,
        /// The limit on this connection.
        max: usize,
    },
    /// No such message in this direction.
    #[error("message of unknown or unexpected kind {0}")]
    Kind(u8),
    /// The body is too short or too long for its kind.
    #[error("message of kind {kind} has a body of {bytes} bytes, which is not its length")]
    Body {
        /// Kind of the message.
        kind: u8,
        /// Length of its body.
        bytes: usize,
    },
    /// The first message doesn't start with the magic.
    #[error("the peer does not speak the protocol of ft-lan")]
    Magic,
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {0} of the LAN protocol, this side version {WIRE_VERSION}; use one build for both"
    )]
    Version(u16),
    /// A field has a value that it can't have.
    #[error("{0} is not valid")]
    Field(&'static str),
    /// An Ethernet frame that is too short or too long.
    #[error("Ethernet frame of {0} bytes where {PACKET_BYTES_MIN} to {PACKET_BYTES_MAX} are allowed")]
    Packet(usize),
    /// Packet numbers must rise.
    #[error("frame number {number} after {last}")]
    Order {
        /// The packet's number.
        number: u64,
        /// The number of the packet before it.
        last: u64,
    },
}

/// A message of a VM's host to the LAN.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// The VM attaches.
    Attach(Attachment),
    /// The guest sent a packet.
    Output {
        /// The output's id.
        id: OutputId,
        /// The packet.
        packet: &'a [u8],
    },
    /// The VM's host is alive: see [`pulse`](super::pulse).
    Heartbeat,
}

/// A message of the LAN to a VM's host.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// The port is open.
    Attached {
        /// Number of the first packet that will follow.
        first_packet: u64,
        /// The LAN drops outputs with smaller ids, as it has carried them.
        next_output: OutputId,
    },
    /// The attachment is refused.
    Refused {
        /// Why, for people.
        reason: &'a str,
    },
    /// A newer owner has taken the port.
    Fenced {
        /// The owner's generation.
        by: Generation,
    },
    /// A packet for the guest.
    Packet {
        /// Its number; the first of a VM is 1.
        number: u64,
        /// The packet.
        packet: &'a [u8],
    },
    /// The LAN has carried outputs: the host need not send them again.
    Carried {
        /// The first one that has not been carried.
        next_output: OutputId,
    },
    /// The LAN is alive: see [`pulse`](super::pulse).
    Heartbeat,
}

impl<'a> ClientMessage<'a> {
    /// Appends the whole message.
    ///
    /// # Panics
    /// If a packet is longer than the LAN carries.
    pub fn append(&self, out: &mut Vec<u8>) {
        match self {
            Self::Attach(attachment) => append(out, ATTACH, |out| {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&WIRE_VERSION.to_le_bytes());
                out.extend_from_slice(&attachment.generation.0.to_le_bytes());
                out.extend_from_slice(&attachment.node.0.to_le_bytes());
                out.extend_from_slice(&attachment.mac);
                out.extend_from_slice(&attachment.next_output.0.to_le_bytes());
                out.extend_from_slice(&attachment.output_end.0.to_le_bytes());
                out.extend_from_slice(&attachment.last_packet.to_le_bytes());
                out.extend_from_slice(&attachment.booted.0.to_le_bytes());
                out.extend_from_slice(attachment.vm.to_string().as_bytes());
            }),
            Self::Output { id, packet } => append(out, OUTPUT, |out| {
                out.extend_from_slice(&id.0.to_le_bytes());
                out.extend_from_slice(packet);
            }),
            Self::Heartbeat => append(out, VM_HEARTBEAT, |_| ()),
        }
    }

    /// Reads a message without its length.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut body = Body::new(message)?;
        match body.kind {
            ATTACH => {
                if body.array()? != MAGIC {
                    return Err(WireError::Magic);
                }
                let version = u16::from_le_bytes(body.array()?);
                if version != WIRE_VERSION {
                    return Err(WireError::Version(version));
                }
                Ok(Self::Attach(Attachment {
                    generation: Generation(body.u64()?),
                    node: NodeId(u128::from_le_bytes(body.array()?)),
                    mac: body.array()?,
                    next_output: OutputId(body.u64()?),
                    output_end: OutputId(body.u64()?),
                    last_packet: body.u64()?,
                    booted: Generation(body.u64()?),
                    vm: body.vm()?,
                }))
            }
            OUTPUT => Ok(Self::Output { id: OutputId(body.u64()?), packet: body.packet()? }),
            VM_HEARTBEAT => body.end().map(|()| Self::Heartbeat),
            kind => Err(WireError::Kind(kind)),
        }
    }
}

impl<'a> ServerMessage<'a> {
    /// Appends the whole message.
    ///
    /// # Panics
    /// If a packet is longer than the LAN carries.
    pub fn append(&self, out: &mut Vec<u8>) {
        match self {
            Self::Attached { first_packet, next_output } => append(out, ATTACHED, |out| {
                out.extend_from_slice(&first_packet.to_le_bytes());
                out.extend_from_slice(&next_output.0.to_le_bytes());
            }),
            Self::Carried { next_output } => {
                append(out, CARRIED, |out| out.extend_from_slice(&next_output.0.to_le_bytes()));
            }
            Self::Refused { reason } => append(out, REFUSED, |out| {
                out.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)]);
            }),
            Self::Fenced { by } => append(out, FENCED, |out| out.extend_from_slice(&by.0.to_le_bytes())),
            Self::Packet { number, packet } => append(out, PACKET, |out| {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(packet);
            }),
            Self::Heartbeat => append(out, LAN_HEARTBEAT, |_| ()),
        }
    }

    /// Reads a message without its length.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut body = Body::new(message)?;
        let decoded = match body.kind {
            ATTACHED => Self::Attached { first_packet: body.u64()?, next_output: OutputId(body.u64()?) },
            CARRIED => Self::Carried { next_output: OutputId(body.u64()?) },
            FENCED => Self::Fenced { by: Generation(body.u64()?) },
            LAN_HEARTBEAT => Self::Heartbeat,
            PACKET => return Ok(Self::Packet { number: body.u64()?, packet: body.packet()? }),
            REFUSED => return Ok(Self::Refused { reason: body.reason()? }),
            kind => return Err(WireError::Kind(kind)),
        };
        body.end()?;
        Ok(decoded)
    }
}

/// Whether an Ethernet frame of `bytes` may travel on this LAN.
pub(super) fn is_packet_length(bytes: usize) -> bool {
    (PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes)
}

fn append(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.push(kind);
    body(out);
    let length = out.len() - start - PREFIX_BYTES;
    assert!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes was put on the wire");
    let length = u32::try_from(length).expect("asserted to be short");
    out[start..start + PREFIX_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// The rest of a message that is being read.
struct Body<'a> {
    kind: u8,
    bytes: usize,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn new(message: &'a [u8]) -> Result<Self, WireError> {
        let (&kind, rest) = message.split_first().ok_or(WireError::Length { length: 0, max: MESSAGE_BYTES_MAX })?;
        Ok(Self { kind, bytes: rest.len(), rest })
    }

    fn wrong_length(&self) -> WireError {
        WireError::Body { kind: self.kind, bytes: self.bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(*array)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn packet(&self) -> Result<&'a [u8], WireError> {
        if is_packet_length(self.rest.len()) { Ok(self.rest) } else { Err(WireError::Packet(self.rest.len())) }
    }

    fn reason(&self) -> Result<&'a str, WireError> {
        if self.rest.len() > REASON_BYTES_MAX {
            return Err(self.wrong_length());
        }
        std::str::from_utf8(self.rest).map_err(|_| WireError::Field("the reason of the refusal"))
    }

    fn vm(&self) -> Result<VmId, WireError> {
        const INVALID: WireError = WireError::Field("the VM's name");
        if self.rest.len() > VM_ID_BYTES_MAX {
            return Err(INVALID);
        }
        std::str::from_utf8(self.rest).ok().and_then(|name| name.parse().ok()).ok_or(INVALID)
    }

    fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.wrong_length()) }
    }
}

#[cfg(test)]
mod tests;
