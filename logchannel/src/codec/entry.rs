//! Log entries as deltas against the entry before.

use super::varint::{Bytes, Varint};
use super::{CodecError, check_length, decode_front, encode_value, require_encoding_of};
use crate::entry::{EntryBody, Generation, LogEntry};
use alloc::format;
use alloc::vec::Vec;
use bincode::{BorrowDecode, Decode, Encode};
use vm::{
    Event, FirstTrap, HaltReason, InstructionCount, Lack, OutputId, PACKET_BYTES_MAX, PageRange, RANDOM_BYTES_MAX,
    StateDigest, StopReason,
};

/// The most console input that one entry carries, in bytes.
pub const CONSOLE_INPUT_BYTES_MAX: usize = 4096;

/// The longest encoded entry, in bytes: the longest content, and tag, count, number and length at
/// their longest.
pub const ENTRY_BYTES_MAX: usize = CONSOLE_INPUT_BYTES_MAX + 32;

const _: () = assert!(PACKET_BYTES_MAX <= CONSOLE_INPUT_BYTES_MAX, "console input is the longest content");

const _: () = assert!(RANDOM_BYTES_MAX <= CONSOLE_INPUT_BYTES_MAX, "console input is the longest content");

/// The greatest first byte of an entry: the tag of [`WireBody::RandomBytes`].
const TAG_MAX: u8 = 15;

/// Encodes the entries of one log in order, each against the one before.
#[derive(Clone, Debug, Default, Hash)]
pub struct EntryEncoder {
    previous: EntryContext,
}

/// Decodes the entries of one log in order: the mirror of [`EntryEncoder`].
#[derive(Clone, Debug, Default, Hash)]
pub struct EntryDecoder {
    previous: EntryContext,
}

impl EntryEncoder {
    /// An encoder for the first entry of a log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the encoding of `entry` to `out`; at most [`ENTRY_BYTES_MAX`] bytes.
    ///
    /// # Panics
    /// If `entry` is not one that this hypervisor may log: a count or clock that goes back, a
    /// packet number or output id that does not go forward, or a packet, console input or random
    /// bytes beyond their limit. Callers that make entries from the bytes of a network or a person
    /// have checked them before.
    pub fn encode(&mut self, entry: &LogEntry, out: &mut Vec<u8>) {
        let mut next = self.previous;
        let wire = next.entry_to_wire(entry);
        encode_value(&wire, out);
        self.previous = next;
    }
}

impl EntryDecoder {
    /// A decoder for the first entry of a log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder for the entry after those of which `context` was left.
    #[must_use]
    pub const fn at(context: EntryContext) -> Self {
        Self { previous: context }
    }

    /// What the deltas of the next entry refer to.
    #[must_use]
    pub const fn context(&self) -> EntryContext {
        self.previous
    }

    /// Decodes the entry at the front of `input` and moves `input` past it.
    ///
    /// # Errors
    /// [`CodecError`] if `input` doesn't begin with an entry; neither the decoder nor `input` has
    /// moved.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<LogEntry, CodecError> {
        let mut rest = *input;
        let mut next = self.previous;
        let wire: WireEntry<'_> = decode_front(&mut rest)?;
        // Only tags and the reasons of a stop are bincode's own numbers, and a tag is the first
        // byte. All other parts are checked where they are read, so that entries needn't be encoded
        // again for this check.
        let bytes = &input[..input.len() - rest.len()];
        if bytes[0] > TAG_MAX || matches!(wire.body, WireBody::Stopped { .. }) {
            require_encoding_of(&wire, bytes)?;
        }
        let entry = next.entry_from_wire(&wire)?;
        *input = rest;
        self.previous = next;
        Ok(entry)
    }
}

/// The values that the next entry's deltas refer to. They depend only on the entries so far, so
/// both ends agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryContext {
    /// The instruction count of the last entry.
    pub count: u64,
    /// The last clock value that was read.
    pub ticks: u64,
    /// The last time of day, in nanoseconds of UTC since 1970.
    pub wall_ns: u64,
    /// Number of the last packet; the first is at least 1.
    pub packet: u64,
    /// The id of the next output if no id is skipped.
    pub output: u64,
}

/// Tags are the variants' indices: append only, and bump `FORMAT_VERSION`.
#[derive(Encode, BorrowDecode)]
enum WireBody<'a> {
    ClockRead {
        ticks: Varint,
    },
    Entropy {
        bits: [u8; 2],
    },
    TimerInterrupt,
    /// The packet whose number follows that of the last.
    Packet {
        packet: Bytes<'a>,
    },
    /// A packet after `skipped` numbers that this VM didn't get.
    PacketAfterGap {
        skipped: Varint,
        packet: Bytes<'a>,
    },
    ConsoleInput {
        bytes: Bytes<'a>,
    },
    /// The output whose id follows that of the last.
    Output {
        digest: [u8; 8],
    },
    /// An output after `skipped` ids; the first of a log that begins at a snapshot.
    OutputAfterGap {
        skipped: Varint,
        digest: [u8; 8],
    },
    Progress,
    Digest {
        digest: [u8; 16],
    },
    Stopped {
        reason: WireStop,
    },
    Generation {
        generation: Varint,
    },
    PartDigest {
        first: Varint,
        pages: Varint,
        digest: [u8; 16],
    },
    WallClock {
        ns: Varint,
    },
    Alarm,
    RandomBytes {
        bytes: Bytes<'a>,
    },
}

#[derive(Encode, BorrowDecode)]
struct WireEntry<'a> {
    body: WireBody<'a>,
    steps: Varint,
}

#[derive(Encode, Decode)]
enum WireStop {
    PowerOff { code: u32 },
    Reboot,
    DoubleTrap { pc: u64, cause: u64 },
    BadDescriptorRing { queue: u16, descriptor: u16 },
    BadDiskRing { descriptor: u16 },
    DoubleTrapFor { pc: u64, cause: u64, first: WireTrap },
}

#[derive(Clone, Copy, Encode, Decode)]
struct WireTrap {
    cause: u64,
    epc: u64,
    tval: u64,
    instruction: u32,
    lacks: u32,
}

impl EntryContext {
    fn entry_to_wire<'a>(&mut self, entry: &'a LogEntry) -> WireEntry<'a> {
        let steps = forward("instruction count", self.count, entry.count.0);
        self.count = entry.count.0;
        WireEntry { body: self.body_to_wire(&entry.body), steps: Varint(steps) }
    }

    fn body_to_wire<'a>(&mut self, body: &'a EntryBody) -> WireBody<'a> {
        match body {
            EntryBody::Event(event) => self.event_to_wire(event),
            EntryBody::Output { id, digest } => {
                let skipped = forward("output id", self.output, id.0);
                self.output = id.0.checked_add(1).expect("output ids end before the range of u64");
                let digest = digest.to_le_bytes();
                match skipped {
                    0 => WireBody::Output { digest },
                    _ => WireBody::OutputAfterGap { skipped: Varint(skipped), digest },
                }
            }
            EntryBody::Progress => WireBody::Progress,
            EntryBody::Digest(digest) => WireBody::Digest { digest: digest.0.to_le_bytes() },
            EntryBody::PartDigest { pages: PageRange { first, end }, digest } => WireBody::PartDigest {
                first: Varint(*first),
                pages: Varint(forward("page", *first, *end)),
                digest: digest.0.to_le_bytes(),
            },
            EntryBody::Stopped(reason) => WireBody::Stopped { reason: (*reason).into() },
            EntryBody::Generation(generation) => WireBody::Generation { generation: Varint(generation.0) },
        }
    }

    fn event_to_wire<'a>(&mut self, event: &'a Event) -> WireBody<'a> {
        match event {
            Event::ClockRead { ticks } => {
                let delta = forward("clock", self.ticks, *ticks);
                self.ticks = *ticks;
                WireBody::ClockRead { ticks: Varint(delta) }
            }
            Event::Entropy { bits } => WireBody::Entropy { bits: bits.to_le_bytes() },
            Event::TimerInterrupt => WireBody::TimerInterrupt,
            Event::Packet { number, packet } => {
                assert!(packet.len() <= PACKET_BYTES_MAX, "a packet of {} bytes is not for this machine", packet.len());
                assert!(*number > self.packet, "packet {number} after packet {}: numbers go forward", self.packet);
                let skipped = *number - self.packet - 1;
                self.packet = *number;
                let packet = Bytes(packet);
                match skipped {
                    0 => WireBody::Packet { packet },
                    _ => WireBody::PacketAfterGap { skipped: Varint(skipped), packet },
                }
            }
            Event::ConsoleInput { bytes } => {
                assert!(bytes.len() <= CONSOLE_INPUT_BYTES_MAX, "{} bytes of console input in one entry", bytes.len());
                WireBody::ConsoleInput { bytes: Bytes(bytes) }
            }
            Event::WallClock { ns } => {
                let delta = forward("time of day", self.wall_ns, *ns);
                self.wall_ns = *ns;
                WireBody::WallClock { ns: Varint(delta) }
            }
            Event::Alarm => WireBody::Alarm,
            Event::RandomBytes { bytes } => {
                assert!(bytes.len() <= RANDOM_BYTES_MAX, "{} random bytes in one entry", bytes.len());
                WireBody::RandomBytes { bytes: Bytes(bytes) }
            }
        }
    }

    fn entry_from_wire(&mut self, wire: &WireEntry<'_>) -> Result<LogEntry, CodecError> {
        self.count = advance("instruction count", self.count, wire.steps.0)?;
        Ok(LogEntry { count: InstructionCount(self.count), body: self.body_from_wire(&wire.body)? })
    }

    fn body_from_wire(&mut self, wire: &WireBody<'_>) -> Result<EntryBody, CodecError> {
        Ok(match *wire {
            WireBody::ClockRead { ticks } => {
                self.ticks = advance("clock", self.ticks, ticks.0)?;
                EntryBody::Event(Event::ClockRead { ticks: self.ticks })
            }
            WireBody::Entropy { bits } => EntryBody::Event(Event::Entropy { bits: u16::from_le_bytes(bits) }),
            WireBody::TimerInterrupt => EntryBody::Event(Event::TimerInterrupt),
            WireBody::Packet { packet } => self.packet_from_wire(0, packet)?,
            WireBody::PacketAfterGap { skipped, packet } => {
                self.packet_from_wire(require_gap("packet numbers", skipped)?, packet)?
            }
            WireBody::ConsoleInput { bytes } => {
                check_length("console input", bytes.0.len(), CONSOLE_INPUT_BYTES_MAX)?;
                EntryBody::Event(Event::ConsoleInput { bytes: bytes.0.to_vec() })
            }
            WireBody::WallClock { ns } => {
                self.wall_ns = advance("time of day", self.wall_ns, ns.0)?;
                EntryBody::Event(Event::WallClock { ns: self.wall_ns })
            }
            WireBody::Alarm => EntryBody::Event(Event::Alarm),
            WireBody::RandomBytes { bytes } => {
                check_length("random bytes", bytes.0.len(), RANDOM_BYTES_MAX)?;
                EntryBody::Event(Event::RandomBytes { bytes: bytes.0.to_vec() })
            }
            WireBody::Output { digest } => self.output_from_wire(0, digest)?,
            WireBody::OutputAfterGap { skipped, digest } => {
                self.output_from_wire(require_gap("output ids", skipped)?, digest)?
            }
            WireBody::Progress => EntryBody::Progress,
            WireBody::Digest { digest } => EntryBody::Digest(StateDigest(u128::from_le_bytes(digest))),
            WireBody::PartDigest { first, pages, digest } => EntryBody::PartDigest {
                pages: PageRange { first: first.0, end: advance("page", first.0, require_some(pages)?)? },
                digest: StateDigest(u128::from_le_bytes(digest)),
            },
            WireBody::Stopped { ref reason } => EntryBody::Stopped(reason.try_into()?),
            WireBody::Generation { generation } => EntryBody::Generation(Generation(generation.0)),
        })
    }

    fn packet_from_wire(&mut self, skipped: u64, packet: Bytes<'_>) -> Result<EntryBody, CodecError> {
        check_length("Ethernet frame", packet.0.len(), PACKET_BYTES_MAX)?;
        self.packet = advance("packet number", advance("packet number", self.packet, skipped)?, 1)?;
        Ok(EntryBody::Event(Event::Packet { number: self.packet, packet: packet.0.to_vec() }))
    }

    fn output_from_wire(&mut self, skipped: u64, digest: [u8; 8]) -> Result<EntryBody, CodecError> {
        let id = advance("output id", self.output, skipped)?;
        self.output = advance("output id", id, 1)?;
        Ok(EntryBody::Output { id: OutputId(id), digest: u64::from_le_bytes(digest) })
    }
}

impl From<StopReason> for WireStop {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::PowerOff { code } => Self::PowerOff { code },
            StopReason::Reboot => Self::Reboot,
            StopReason::Halt(HaltReason::DoubleTrap { pc, cause, first: None }) => Self::DoubleTrap { pc, cause },
            StopReason::Halt(HaltReason::DoubleTrap { pc, cause, first: Some(first) }) => {
                let FirstTrap { cause: first_cause, epc, tval, instruction, lacks } = first;
                let first = WireTrap { cause: first_cause, epc, tval, instruction, lacks: Lack::code(lacks) };
                Self::DoubleTrapFor { pc, cause, first }
            }
            StopReason::Halt(HaltReason::BadDescriptorRing { queue, descriptor }) => {
                Self::BadDescriptorRing { queue, descriptor }
            }
            StopReason::Halt(HaltReason::BadDiskRing { descriptor }) => Self::BadDiskRing { descriptor },
        }
    }
}

impl TryFrom<&WireStop> for StopReason {
    type Error = CodecError;

    fn try_from(wire: &WireStop) -> Result<Self, CodecError> {
        Ok(match *wire {
            WireStop::PowerOff { code } => Self::PowerOff { code },
            WireStop::Reboot => Self::Reboot,
            WireStop::DoubleTrap { pc, cause } => Self::Halt(HaltReason::DoubleTrap { pc, cause, first: None }),
            WireStop::DoubleTrapFor { pc, cause, first } => {
                let WireTrap { cause: first_cause, epc, tval, instruction, lacks } = first;
                let lacks = Lack::from_code(lacks).ok_or_else(|| CodecError::Invalid {
                    what: "stop reason",
                    reason: format!("the machine can't lack {lacks}"),
                })?;
                let first = Some(FirstTrap { cause: first_cause, epc, tval, instruction, lacks });
                Self::Halt(HaltReason::DoubleTrap { pc, cause, first })
            }
            WireStop::BadDescriptorRing { queue, descriptor } => {
                Self::Halt(HaltReason::BadDescriptorRing { queue, descriptor })
            }
            WireStop::BadDiskRing { descriptor } => Self::Halt(HaltReason::BadDiskRing { descriptor }),
        })
    }
}

/// The delta from `from` to `to`, for an entry that is to be logged.
fn forward(what: &str, from: u64, to: u64) -> u64 {
    to.checked_sub(from).unwrap_or_else(|| panic!("{what} {to} after {from}: it never goes back in a log"))
}

fn advance(what: &'static str, from: u64, by: u64) -> Result<u64, CodecError> {
    from.checked_add(by).ok_or(CodecError::Overflow { what })
}

/// Refuses a digest of no pages, which would check nothing.
fn require_some(pages: Varint) -> Result<u64, CodecError> {
    match pages.0 {
        0 => Err(CodecError::Invalid { what: "pages of a digest", reason: "there are none".into() }),
        pages => Ok(pages),
    }
}

/// Refuses an empty gap, which has a shorter tag of its own: each entry has one encoding.
fn require_gap(what: &'static str, skipped: Varint) -> Result<u64, CodecError> {
    match skipped.0 {
        0 => Err(CodecError::Invalid { what, reason: "a gap of no numbers".into() }),
        skipped => Ok(skipped),
    }
}
