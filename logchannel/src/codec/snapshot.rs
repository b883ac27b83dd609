//! The encoding of a snapshot's pieces.

use super::varint::Bytes;
use super::{CodecError, Varint, check_length, decode_front, decode_value, encode_value};
use crate::entry::LogSeq;
use crate::snapshot::{PAGES_MAX, Pages, Snapshot, UnsentOutput};
use alloc::format;
use alloc::vec::Vec;
use bincode::{BorrowDecode, Encode};
use vm::{CONSOLE_BYTES_MAX, OutputId, OutputOperation, PACKET_BYTES_MAX, PAGE_BYTES, STATE_BYTES_MAX, StateDigest};

/// Tags are the variants' indices: append only, and bump `FORMAT_VERSION`.
#[derive(Encode, BorrowDecode)]
enum WireOutput<'a> {
    Packet(Bytes<'a>),
    Console(Bytes<'a>),
}

/// The greatest tag of [`WireOutput`]; bincode would also read longer forms of the tags.
const TAG_MAX: u8 = 1;

pub(crate) fn encode_pages(first: u64, bytes: &[u8], out: &mut Vec<u8>) {
    assert!(is_whole_pages(bytes.len()), "{} bytes of pages", bytes.len());
    encode_value(&Varint(first), out);
    out.extend_from_slice(bytes);
}

pub(crate) fn decode_pages(mut body: &[u8]) -> Result<Pages, CodecError> {
    let first: Varint = decode_front(&mut body)?;
    check_length("pages", body.len(), PAGES_MAX * PAGE_BYTES)?;
    if !is_whole_pages(body.len()) {
        let reason = format!("{} bytes are no whole pages of {PAGE_BYTES}", body.len());
        return Err(CodecError::Invalid { what: "pages", reason });
    }
    Ok(Pages { first: first.0, bytes: body.to_vec() })
}

const fn is_whole_pages(bytes: usize) -> bool {
    bytes > 0 && bytes <= PAGES_MAX * PAGE_BYTES && bytes.is_multiple_of(PAGE_BYTES)
}

pub(crate) fn encode_unsent(id: OutputId, operation: &OutputOperation, out: &mut Vec<u8>) {
    encode_value(&Varint(id.0), out);
    let wire = match operation {
        OutputOperation::Packet(bytes) => WireOutput::Packet(Bytes(bytes)),
        OutputOperation::Console(bytes) => WireOutput::Console(Bytes(bytes)),
    };
    encode_value(&wire, out);
}

pub(crate) fn decode_unsent(mut body: &[u8]) -> Result<UnsentOutput, CodecError> {
    let id: Varint = decode_front(&mut body)?;
    if body.first().is_some_and(|tag| *tag > TAG_MAX) {
        return Err(CodecError::Malformed("no such kind of output".into()));
    }
    let operation = match decode_front(&mut body)? {
        WireOutput::Packet(Bytes(bytes)) => {
            check_length("Ethernet frame", bytes.len(), PACKET_BYTES_MAX)?;
            OutputOperation::Packet(bytes.to_vec())
        }
        WireOutput::Console(Bytes(bytes)) => {
            check_length("console output", bytes.len(), CONSOLE_BYTES_MAX)?;
            OutputOperation::Console(bytes.to_vec())
        }
    };
    if body.is_empty() {
        Ok(UnsentOutput { id: OutputId(id.0), operation })
    } else {
        Err(CodecError::TrailingBytes(body.len()))
    }
}

pub(crate) fn encode_snapshot(snapshot: &Snapshot, out: &mut Vec<u8>) {
    assert!(snapshot.state.len() <= STATE_BYTES_MAX, "a machine's state of {} bytes", snapshot.state.len());
    encode_value(&Varint(snapshot.seq.0), out);
    encode_value(&snapshot.digest.0.to_le_bytes(), out);
    out.extend_from_slice(&snapshot.state);
}

pub(crate) fn decode_snapshot(mut body: &[u8]) -> Result<Snapshot, CodecError> {
    let seq: Varint = decode_front(&mut body)?;
    let (digest, state) = body.split_first_chunk::<16>().ok_or(CodecError::Truncated)?;
    check_length("machine state", state.len(), STATE_BYTES_MAX)?;
    let digest = StateDigest(u128::from_le_bytes(decode_value(digest)?));
    Ok(Snapshot { seq: LogSeq(seq.0), digest, state: state.to_vec() })
}
