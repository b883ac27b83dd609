//! What travels on the connection of a VM port, and the cutting of byte streams into messages.
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
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VM_ID_BYTES_MAX, VmId};
use std::ops::Range;
use vm::{OutputId, PACKET_BYTES_MAX};

/// The version of the protocol that this build speaks.
pub const WIRE_VERSION: u16 = 3;
/// The shortest Ethernet frame: destination, source, type.
pub const PACKET_BYTES_MIN: usize = 14;
/// The longest reason of a refusal, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// The longest message, in bytes, without its length: a kind, a number and a packet.
pub const MESSAGE_BYTES_MAX: usize = 1 + 8 + PACKET_BYTES_MAX;

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
/// Bytes of a length prefix, here and in QEMU's framing.
const PREFIX_BYTES: usize = 4;
/// How much a [`Cutter`] reads at once; at least twice the longest message, so that moving a torn
/// one stays cheap.
const READ_BYTES: usize = 64 << 10;

/// Bytes that are not the protocol; the connection they came on is closed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// The length prefix is out of range.
    #[error("message of {length} bytes where 1 to {max} are allowed; is the peer an ft-lan port at all?")]
    Length {
        /// As it was sent.
        length: usize,
        /// The limit on this connection.
        max: usize,
    },
    /// No such message in this direction.
    #[error("message of unknown or unexpected kind {0}")]
    Kind(u8),
    /// The body ended early, or has bytes too many.
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
        /// The number.
        number: u64,
        /// The one before.
        last: u64,
    },
}

/// What a VM says.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// It plugs in.
    Attach(Attachment),
    /// The guest sent a packet.
    Output {
        /// Its number among the guest's outputs.
        id: OutputId,
        /// The packet.
        packet: &'a [u8],
    },
    /// The VM's host is alive: see [`pulse`](super::pulse).
    Heartbeat,
}

/// What the LAN says.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// The port is open.
    Attached {
        /// Number of the first packet that will follow.
        first_packet: u64,
        /// The LAN drops outputs with smaller ids, as it has carried them.
        next_output: OutputId,
    },
    /// The port can't be had.
    Refused {
        /// In words for a person.
        reason: &'a str,
    },
    /// The port was taken over.
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
    /// Outputs have gone where they belong, and need not be sent again.
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

/// How a stream tells the length of its messages.
#[derive(Clone, Copy, Debug)]
pub enum Prefix {
    /// This protocol: 4 bytes little-endian.
    LittleEndian,
    /// QEMU's stream netdev: 4 bytes big-endian.
    BigEndian,
}

/// Cuts a byte stream into messages; reads many at once and allocates nothing after its start.
#[derive(Debug)]
pub struct Cutter {
    buffer: Box<[u8]>,
    /// Bytes `start..end` of the buffer are read and not cut yet.
    start: usize,
    end: usize,
    prefix: Prefix,
    bytes_max: usize,
}

impl Cutter {
    /// A cutter of messages of 1 to `bytes_max` bytes.
    #[must_use]
    pub fn new(prefix: Prefix, bytes_max: usize) -> Self {
        let capacity = READ_BYTES.max(2 * (PREFIX_BYTES + bytes_max));
        Self { buffer: vec![0; capacity].into_boxed_slice(), start: 0, end: 0, prefix, bytes_max }
    }

    /// Where to read the next bytes into; never empty once [`Cutter::next_message`] has returned
    /// `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < PREFIX_BYTES + self.bytes_max {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Tells that `bytes` were read into [`Cutter::space`].
    ///
    /// # Panics
    /// If that is more than there was space for.
    pub fn filled(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(self.end <= self.buffer.len(), "more bytes read than there was space");
    }

    /// The next whole message without its length, if there is one.
    ///
    /// # Errors
    /// [`WireError::Length`]; the stream can't be read on after that.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, WireError> {
        Ok(self.next_range()?.map(|range| &self.buffer[range]))
    }

    fn next_range(&mut self) -> Result<Option<Range<usize>>, WireError> {
        let Some((prefix, rest)) = self.buffer[self.start..self.end].split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = match self.prefix {
            Prefix::LittleEndian => u32::from_le_bytes(*prefix),
            Prefix::BigEndian => u32::from_be_bytes(*prefix),
        } as usize;
        if length == 0 || length > self.bytes_max {
            return Err(WireError::Length { length, max: self.bytes_max });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = self.start + PREFIX_BYTES;
        self.start = body + length;
        Ok(Some(body..self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: enough to make garbage, and the same garbage for the same seed.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next() % bound as u64).unwrap()
        }

        fn bytes(&mut self, length: usize) -> Vec<u8> {
            (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
        }
    }

    fn attachment() -> Attachment {
        Attachment {
            vm: "some-vm.1".parse().unwrap(),
            node: NodeId(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
            generation: Generation(9),
            mac: [2, 1, 2, 3, 4, 5],
            next_output: OutputId(77),
            output_end: OutputId(99),
            last_packet: 1 << 40,
            booted: Generation(8),
        }
    }

    fn cut(bytes: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
        let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
        let mut messages = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = cutter.space();
            let taken = space.len().min(rest.len());
            space[..taken].copy_from_slice(&rest[..taken]);
            cutter.filled(taken);
            rest = &rest[taken..];
            while let Some(message) = cutter.next_message()? {
                messages.push(message.to_vec());
            }
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let packet = [7; PACKET_BYTES_MAX];
        let mut out = Vec::new();
        let attach = ClientMessage::Attach(attachment());
        let output = ClientMessage::Output { id: OutputId(u64::MAX), packet: &packet };
        attach.append(&mut out);
        output.append(&mut out);
        let messages = cut(&out).unwrap();
        assert_eq!(ClientMessage::decode(&messages[0]).unwrap(), attach);
        assert_eq!(ClientMessage::decode(&messages[1]).unwrap(), output);
        out.clear();
        ClientMessage::Heartbeat.append(&mut out);
        assert_eq!(ClientMessage::decode(&out[4..]).unwrap(), ClientMessage::Heartbeat);
        out.push(0);
        assert_eq!(ClientMessage::decode(&out[4..]), Err(WireError::Body { kind: VM_HEARTBEAT, bytes: 1 }));

        for sent in [
            ServerMessage::Heartbeat,
            ServerMessage::Attached { first_packet: 12, next_output: OutputId(13) },
            ServerMessage::Carried { next_output: OutputId(u64::MAX) },
            ServerMessage::Refused { reason: "because" },
            ServerMessage::Fenced { by: Generation(3) },
            ServerMessage::Packet { number: 5, packet: &packet[..PACKET_BYTES_MIN] },
        ] {
            out.clear();
            sent.append(&mut out);
            assert_eq!(ServerMessage::decode(&cut(&out).unwrap()[0]).unwrap(), sent);
        }
    }

    #[test]
    fn an_attach_is_these_bytes() {
        let mut out = Vec::new();
        ClientMessage::Attach(attachment()).append(&mut out);
        let expected = [
            &[79, 0, 0, 0, 1][..],
            b"FTLAN\x03\x00",
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01],
            &[2, 1, 2, 3, 4, 5],
            &[77, 0, 0, 0, 0, 0, 0, 0],
            &[99, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 1, 0, 0],
            &[8, 0, 0, 0, 0, 0, 0, 0],
            b"some-vm.1",
        ]
        .concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn a_stream_is_cut_the_same_however_it_is_read() {
        let mut random = Random(0x5eed_1a2b);
        let mut stream = Vec::new();
        let sent: Vec<_> = (0..200).map(|_| 14 + random.below(1501)).collect();
        for &length in &sent {
            ServerMessage::Packet { number: 1, packet: &vec![0xa5; length] }.append(&mut stream);
        }
        let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
        let (mut rest, mut received) = (&stream[..], Vec::new());
        while !rest.is_empty() {
            let wanted = 1 + random.below(3000);
            let space = cutter.space();
            let taken = wanted.min(space.len()).min(rest.len());
            space[..taken].copy_from_slice(&rest[..taken]);
            cutter.filled(taken);
            rest = &rest[taken..];
            while let Some(message) = cutter.next_message().unwrap() {
                received.push(message.len() - 9);
            }
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn lengths_out_of_range_are_refused_before_they_are_believed() {
        for length in [0, MESSAGE_BYTES_MAX + 1, u32::MAX as usize] {
            let prefix = u32::try_from(length).unwrap().to_le_bytes();
            assert_eq!(cut(&prefix), Err(WireError::Length { length, max: MESSAGE_BYTES_MAX }));
        }
    }

    #[test]
    fn every_truncation_of_an_attach_is_an_error() {
        let mut out = Vec::new();
        ClientMessage::Attach(attachment()).append(&mut out);
        let message = &out[4..];
        let name = message.len() - "some-vm.1".len();
        for length in 0..=name {
            assert!(ClientMessage::decode(&message[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn other_protocols_and_versions_are_named() {
        let mut out = Vec::new();
        ClientMessage::Attach(attachment()).append(&mut out);
        let mut other_version = out[4..].to_vec();
        other_version[6] = 1;
        assert_eq!(ClientMessage::decode(&other_version), Err(WireError::Version(1)));
        let mut other_magic = out[4..].to_vec();
        other_magic[1] = b'X';
        assert_eq!(ClientMessage::decode(&other_magic), Err(WireError::Magic));
    }

    #[test]
    fn names_and_packets_are_checked() {
        let mut out = Vec::new();
        ClientMessage::Attach(attachment()).append(&mut out);
        let mut message = out[4..].to_vec();
        *message.last_mut().unwrap() = b'/';
        assert_eq!(ClientMessage::decode(&message), Err(WireError::Field("the VM's name")));
        for length in [0, PACKET_BYTES_MIN - 1, PACKET_BYTES_MAX + 1] {
            let message = [vec![OUTPUT], vec![0; 8 + length]].concat();
            assert_eq!(ClientMessage::decode(&message), Err(WireError::Packet(length)));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "ü".repeat(REASON_BYTES_MAX);
        let mut out = Vec::new();
        ServerMessage::Refused { reason: &reason }.append(&mut out);
        let expected = "ü".repeat(REASON_BYTES_MAX / 2);
        assert_eq!(ServerMessage::decode(&out[4..]).unwrap(), ServerMessage::Refused { reason: &expected });
    }

    #[test]
    fn garbage_is_never_more_than_an_error() {
        let seed = 0x0dd_ba11;
        println!("seed {seed:#x}");
        let mut random = Random(seed);
        for round in 0..20_000 {
            let length = random.below(100);
            let mut message = random.bytes(length);
            if let Some(kind) = message.first_mut() {
                *kind = [ATTACH, OUTPUT, ATTACHED, REFUSED, FENCED, PACKET, CARRIED, 255][round % 8];
            }
            let _ = ClientMessage::decode(&message);
            let _ = ServerMessage::decode(&message);
            let _ = cut(&message);
        }
    }
}
