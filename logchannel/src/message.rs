//! The messages between primary and backup on the logging channel, one per frame.

use crate::codec::{self, CodecError, VARINT_BYTES_MAX, Varint, check_length};
use crate::entry::{Generation, LogSeq};
use crate::frame::{BODY_BYTES_MAX, Frame, FrameKind, append_frame, append_frame_with};
use crate::session::{FORMAT_VERSION, NodeId, SessionHeader, VmId, cut};
use crate::snapshot::{PAGES_MAX, Pages, Snapshot, UnsentOutput};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use vm::{InstructionCount, OutputId, OutputOperation, PAGE_BYTES};

/// The longest reason in a message, in bytes; longer ones are cut when they are sent.
pub const REASON_BYTES_MAX: usize = 1024;

/// The most bytes of encoded entries in one batch: decoded, they take more memory, which must be
/// bounded too.
pub const BATCH_BYTES_MAX: usize = 16 << 10;

const _: () = assert!(VARINT_BYTES_MAX + BATCH_BYTES_MAX <= BODY_BYTES_MAX, "a batch fits a frame");
const _: () = assert!(VARINT_BYTES_MAX + PAGES_MAX * PAGE_BYTES <= BODY_BYTES_MAX, "pages fit a frame");
const _: () = assert!(REASON_BYTES_MAX <= BODY_BYTES_MAX, "a reason fits a frame");

/// Frame kinds of the channel and of the log file, which also has an end mark.
pub(crate) mod kind {
    use super::FrameKind;

    pub(crate) const SESSION: FrameKind = FrameKind(1);
    pub(crate) const ENTRIES: FrameKind = FrameKind(3);
    pub(crate) const ACCEPTED: FrameKind = FrameKind(4);
    pub(crate) const REFUSED: FrameKind = FrameKind(5);
    pub(crate) const ACK: FrameKind = FrameKind(6);
    pub(crate) const CONSUMED: FrameKind = FrameKind(7);
    pub(crate) const PROTECTED: FrameKind = FrameKind(8);
    pub(crate) const RELEASED: FrameKind = FrameKind(9);
    pub(crate) const HEARTBEAT: FrameKind = FrameKind(10);
    pub(crate) const GOODBYE: FrameKind = FrameKind(11);
    pub(crate) const JOIN: FrameKind = FrameKind(13);
    pub(crate) const PAGES: FrameKind = FrameKind(14);
    pub(crate) const UNSENT_OUTPUT: FrameKind = FrameKind(15);
    pub(crate) const SNAPSHOT: FrameKind = FrameKind(16);
    pub(crate) const ASK_OWNER: FrameKind = FrameKind(17);
    pub(crate) const OWNER: FrameKind = FrameKind(18);
    pub(crate) const CLOCK: FrameKind = FrameKind(19);
    pub(crate) const STORING: FrameKind = FrameKind(20);
    pub(crate) const WAIT: FrameKind = FrameKind(21);
    pub(crate) const NO_PRIMARY: FrameKind = FrameKind(22);
}

/// Entries of a log that follow each other, encoded against those before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryBatch {
    /// The position of the first entry.
    pub first_seq: LogSeq,
    /// Their encoding; at most [`BATCH_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// Which outputs have left the primary's host, as cursors: packets and console output leave
/// independently of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// All packets with a smaller id have left.
    pub packets: OutputId,
    /// All console output with a smaller id has left.
    pub console: OutputId,
}

impl Left {
    /// All outputs with an id smaller than `next`.
    #[must_use]
    pub const fn all_below(next: OutputId) -> Self {
        Self { packets: next, console: next }
    }

    /// `true` if this output has left.
    #[must_use]
    pub fn has(&self, id: OutputId, operation: &OutputOperation) -> bool {
        id < match operation {
            OutputOperation::Packet(_) => self.packets,
            OutputOperation::Console(_) => self.console,
        }
    }
}

/// A message on the logging channel. "p" comes from the primary, "b" from the backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// b: asks to be the backup of this VM. Its first message.
    Join {
        /// The VM.
        vm: VmId,
        /// The backup.
        node: NodeId,
    },
    /// p: there is a backup already. The joiner may stay, sending only heartbeats, until that one
    /// is gone.
    Wait,
    /// b, to a node that asks to join: this is no primary (yet). Its only message.
    NoPrimary,
    /// p: the session that the log belongs to. Its first message, but for [`Message::Wait`].
    Session {
        /// The VM, and the generation under which its owner runs it.
        header: SessionHeader,
        /// The primary: the holder of the flag before that generation, which the backup compares
        /// with its own arbiter.
        owner: NodeId,
    },
    /// To the port of a primary, by a node that is about to claim the VM: is its owner alive? The
    /// only message.
    AskOwner {
        /// The VM.
        vm: VmId,
    },
    /// p: the answer to [`Message::AskOwner`]; a node that doesn't own that VM refuses.
    Owner {
        /// The primary.
        node: NodeId,
        /// The generation under which it owns the VM.
        generation: Generation,
    },
    /// p: pages of the guest's RAM.
    Pages(Pages),
    /// p: an output from before the snapshot.
    UnsentOutput(UnsentOutput),
    /// p: the snapshot is complete with this; entries follow.
    Snapshot(Snapshot),
    /// b: the machine is restored from the snapshot.
    Accepted,
    /// Either: the sender can't form a pair with this peer. The last message.
    Refused {
        /// Why, for a person; at most [`REASON_BYTES_MAX`].
        reason: String,
    },
    /// p: the next entries.
    Entries(EntryBatch),
    /// b: all entries with `seq < received` are in the backup's log buffer.
    Ack {
        /// The cursor.
        received: LogSeq,
    },
    /// b: all entries with `seq < consumed` have been replayed.
    Consumed {
        /// The cursor.
        consumed: LogSeq,
        /// The instruction count of the backup's machine.
        count: InstructionCount,
    },
    /// p: outputs are held for this backup from now on, so it may claim `generation`.
    Protected {
        /// The generation of the pair.
        generation: Generation,
    },
    /// p: these outputs have left, so that the backup needn't send them when it goes live.
    Released(Left),
    /// b: a heartbeat of a joining backup that waits for its own disk before it can accept.
    Storing,
    /// Either: a heartbeat.
    Heartbeat,
    /// p: a heartbeat with the guest's clock. A backup that goes live goes on from it.
    Clock {
        /// The clock's reading, in ticks of [`vm::TIMEBASE_HZ`].
        ticks: u64,
        /// `true` if the clock runs, `false` if it stands.
        runs: bool,
    },
    /// Either: leaving in order. The last message.
    Goodbye {
        /// Why, for a person; at most [`REASON_BYTES_MAX`].
        reason: String,
    },
}

/// A frame that is no message of the logging channel: the peer is faulty, or of another kind or
/// version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No message has this kind.
    #[error("frame kind {} is no message of the logging channel: is this the right port?", .0.0)]
    UnknownKind(FrameKind),
    /// The peer speaks another version.
    #[error("the log has format version {found}, this build reads {FORMAT_VERSION}: run both sides from one build")]
    Version {
        /// The peer's version.
        found: u32,
    },
    /// The body isn't one of its kind.
    #[error("bad {kind} message: {source}")]
    Body {
        /// The message's name.
        kind: &'static str,
        /// What is wrong with the body.
        source: CodecError,
    },
}

impl Message {
    /// Appends the message to `out`, as a whole frame. Reasons beyond [`REASON_BYTES_MAX`] are cut.
    ///
    /// # Panics
    /// If pages, a state or a batch are beyond their limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Session { header, owner } => append_frame_with(kind::SESSION, out, |out| {
                out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
                out.extend_from_slice(&owner.0.to_le_bytes());
                codec::encode_session(header, out);
            }),
            Self::AskOwner { vm } => append_frame_with(kind::ASK_OWNER, out, |out| {
                out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
                out.extend_from_slice(vm.as_str().as_bytes());
            }),
            Self::Owner { node, generation } => append_frame_with(kind::OWNER, out, |out| {
                out.extend_from_slice(&node.0.to_le_bytes());
                codec::encode_value(&Varint(generation.0), out);
            }),
            Self::Join { vm, node } => append_join(vm, *node, out),
            Self::Pages(pages) => append_pages(pages.first, &pages.bytes, out),
            Self::UnsentOutput(unsent) => append_unsent(unsent.id, &unsent.operation, out),
            Self::Snapshot(snapshot) => append_snapshot(snapshot, out),
            Self::Wait => append_frame(kind::WAIT, &[], out),
            Self::NoPrimary => append_frame(kind::NO_PRIMARY, &[], out),
            Self::Accepted => append_frame(kind::ACCEPTED, &[], out),
            Self::Refused { reason } => append_reason(kind::REFUSED, reason, out),
            Self::Entries(batch) => append_entries(batch.first_seq, &batch.bytes, out),
            Self::Ack { received } => append_value(kind::ACK, &Varint(received.0), out),
            Self::Consumed { consumed, count } => {
                append_value(kind::CONSUMED, &(Varint(consumed.0), Varint(count.0)), out);
            }
            Self::Protected { generation } => append_value(kind::PROTECTED, &Varint(generation.0), out),
            Self::Released(Left { packets, console }) => {
                append_value(kind::RELEASED, &(Varint(packets.0), Varint(console.0)), out);
            }
            Self::Storing => append_frame(kind::STORING, &[], out),
            Self::Heartbeat => append_frame(kind::HEARTBEAT, &[], out),
            Self::Clock { ticks, runs } => append_value(kind::CLOCK, &(Varint(*ticks), *runs), out),
            Self::Goodbye { reason } => append_reason(kind::GOODBYE, reason, out),
        }
    }

    /// The message in `frame`.
    ///
    /// # Errors
    /// [`MessageError`] if it isn't one.
    pub fn decode(frame: Frame<'_>) -> Result<Self, MessageError> {
        let body = frame.body;
        let (name, decoded) = match frame.kind {
            kind::SESSION => return decode_channel_session(body),
            kind::JOIN => return decode_join(body),
            kind::ASK_OWNER => {
                return split_version("owner question", body).and_then(|name| {
                    let bad = |source| MessageError::Body { kind: "owner question", source };
                    decode_vm(name).map(|vm| Self::AskOwner { vm }).map_err(bad)
                });
            }
            kind::OWNER => ("owner", decode_owner(body)),
            kind::PAGES => ("pages", codec::decode_pages(body).map(Self::Pages)),
            kind::UNSENT_OUTPUT => ("unsent output", codec::decode_unsent(body).map(Self::UnsentOutput)),
            kind::SNAPSHOT => ("snapshot", codec::decode_snapshot(body).map(Self::Snapshot)),
            kind::WAIT => ("wait", codec::decode_value::<()>(body).map(|()| Self::Wait)),
            kind::NO_PRIMARY => ("no primary", codec::decode_value::<()>(body).map(|()| Self::NoPrimary)),
            kind::ACCEPTED => ("accepted", codec::decode_value::<()>(body).map(|()| Self::Accepted)),
            kind::REFUSED => ("refused", decode_reason(body).map(|reason| Self::Refused { reason })),
            kind::ENTRIES => (
                "entries",
                split_entries(body)
                    .map(|(first_seq, bytes)| Self::Entries(EntryBatch { first_seq, bytes: bytes.to_vec() })),
            ),
            kind::ACK => ("ack", decode_cursor(body).map(|cursor| Self::Ack { received: LogSeq(cursor) })),
            kind::CONSUMED => (
                "consumed",
                codec::decode_value::<(Varint, Varint)>(body).map(|(consumed, count)| Self::Consumed {
                    consumed: LogSeq(consumed.0),
                    count: InstructionCount(count.0),
                }),
            ),
            kind::PROTECTED => (
                "protected",
                decode_cursor(body).map(|generation| Self::Protected { generation: Generation(generation) }),
            ),
            kind::RELEASED => (
                "released",
                codec::decode_value::<(Varint, Varint)>(body).map(|(packets, console)| {
                    Self::Released(Left { packets: OutputId(packets.0), console: OutputId(console.0) })
                }),
            ),
            kind::STORING => ("storing", codec::decode_value::<()>(body).map(|()| Self::Storing)),
            kind::HEARTBEAT => ("heartbeat", codec::decode_value::<()>(body).map(|()| Self::Heartbeat)),
            kind::CLOCK => (
                "clock",
                codec::decode_value::<(Varint, bool)>(body).map(|(ticks, runs)| Self::Clock { ticks: ticks.0, runs }),
            ),
            kind::GOODBYE => ("goodbye", decode_reason(body).map(|reason| Self::Goodbye { reason })),
            unknown => return Err(MessageError::UnknownKind(unknown)),
        };
        decoded.map_err(|source| MessageError::Body { kind: name, source })
    }
}

/// The session on a channel: between the version and the header stands the owner.
fn decode_channel_session(body: &[u8]) -> Result<Message, MessageError> {
    let bad = |source| MessageError::Body { kind: "session", source };
    let (owner, header) = split_version("session", body)?.split_first_chunk().ok_or(bad(CodecError::Truncated))?;
    let header = codec::decode_session(header, FORMAT_VERSION).map_err(bad)?;
    Ok(Message::Session { header, owner: NodeId(u128::from_le_bytes(*owner)) })
}

fn decode_owner(body: &[u8]) -> Result<Message, CodecError> {
    let (node, generation) = body.split_first_chunk().ok_or(CodecError::Truncated)?;
    let generation = Generation(decode_cursor(generation)?);
    Ok(Message::Owner { node: NodeId(u128::from_le_bytes(*node)), generation })
}

/// The rest of a body after this build's version.
fn split_version<'a>(kind: &'static str, body: &'a [u8]) -> Result<&'a [u8], MessageError> {
    let (version, rest) =
        body.split_first_chunk::<4>().ok_or(MessageError::Body { kind, source: CodecError::Truncated })?;
    match u32::from_le_bytes(*version) {
        FORMAT_VERSION => Ok(rest),
        found => Err(MessageError::Version { found }),
    }
}

fn append_join(vm: &VmId, node: NodeId, out: &mut Vec<u8>) {
    append_frame_with(kind::JOIN, out, |out| {
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&node.0.to_le_bytes());
        out.extend_from_slice(vm.as_str().as_bytes());
    });
}

fn decode_join(body: &[u8]) -> Result<Message, MessageError> {
    let bad = |source| MessageError::Body { kind: "join", source };
    let (node, name) = split_version("join", body)?.split_first_chunk().ok_or(bad(CodecError::Truncated))?;
    let vm = decode_vm(name).map_err(bad)?;
    Ok(Message::Join { vm, node: NodeId(u128::from_le_bytes(*node)) })
}

fn decode_vm(name: &[u8]) -> Result<VmId, CodecError> {
    let invalid = |reason| CodecError::Invalid { what: "VM name", reason };
    let name = core::str::from_utf8(name).map_err(|error| invalid(error.to_string()))?;
    VmId::new(name).map_err(|error| invalid(error.to_string()))
}

/// Appends a frame of pages: 1 to [`crate::snapshot::PAGES_MAX`] whole ones.
pub(crate) fn append_pages(first: u64, bytes: &[u8], out: &mut Vec<u8>) {
    append_frame_with(kind::PAGES, out, |out| codec::encode_pages(first, bytes, out));
}

/// Appends the frame of an output from before a snapshot.
pub(crate) fn append_unsent(id: OutputId, operation: &OutputOperation, out: &mut Vec<u8>) {
    append_frame_with(kind::UNSENT_OUTPUT, out, |out| codec::encode_unsent(id, operation, out));
}

/// Appends the frame that ends a snapshot.
pub(crate) fn append_snapshot(snapshot: &Snapshot, out: &mut Vec<u8>) {
    append_frame_with(kind::SNAPSHOT, out, |out| codec::encode_snapshot(snapshot, out));
}

/// Appends a frame of encoded entries.
pub(crate) fn append_entries(first_seq: LogSeq, bytes: &[u8], out: &mut Vec<u8>) {
    assert!(bytes.len() <= BATCH_BYTES_MAX, "a batch of {} bytes", bytes.len());
    append_frame_with(kind::ENTRIES, out, |out| {
        codec::encode_value(&Varint(first_seq.0), out);
        out.extend_from_slice(bytes);
    });
}

/// The position of the first entry, and the encoded entries.
pub(crate) fn split_entries(mut body: &[u8]) -> Result<(LogSeq, &[u8]), CodecError> {
    let first_seq: Varint = codec::decode_front(&mut body)?;
    check_length("entry batch", body.len(), BATCH_BYTES_MAX)?;
    Ok((LogSeq(first_seq.0), body))
}

fn append_value<T: bincode::Encode>(kind: FrameKind, value: &T, out: &mut Vec<u8>) {
    append_frame_with(kind, out, |out| codec::encode_value(value, out));
}

fn append_reason(kind: FrameKind, reason: &str, out: &mut Vec<u8>) {
    append_frame(kind, cut(reason, REASON_BYTES_MAX).as_bytes(), out);
}

fn decode_reason(body: &[u8]) -> Result<String, CodecError> {
    check_length("reason", body.len(), REASON_BYTES_MAX)?;
    let text = core::str::from_utf8(body)
        .map_err(|error| CodecError::Invalid { what: "reason", reason: error.to_string() })?;
    Ok(text.to_owned())
}

fn decode_cursor(body: &[u8]) -> Result<u64, CodecError> {
    codec::decode_value::<Varint>(body).map(|cursor| cursor.0)
}
