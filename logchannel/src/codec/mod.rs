//! The encoding of values as bytes: the only module that knows bincode.
//!
//! Everything is bounded: a decoder reads from a slice that the framing has already limited,
//! refuses a length before it allocates for it, and accepts only one encoding per value.

mod entry;
mod session;
mod snapshot;
mod varint;

pub use entry::{CONSOLE_INPUT_BYTES_MAX, ENTRY_BYTES_MAX, EntryContext, EntryDecoder, EntryEncoder};
pub(crate) use session::{decode_session, encode_session};
pub(crate) use snapshot::{decode_pages, decode_snapshot, decode_unsent, encode_pages, encode_snapshot, encode_unsent};
pub(crate) use varint::VARINT_BYTES_MAX;
pub(crate) use varint::Varint;

use crate::frame::BODY_BYTES_MAX;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use bincode::config::{Configuration, Limit, LittleEndian, Varint as BincodeVarint};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};

/// The bytes can't be decoded: the peer or the file is faulty, or of another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end inside a value.
    #[error("the bytes end inside a value")]
    Truncated,
    /// The bytes are no value's encoding; the text says why.
    #[error("not an encoded value: {0}")]
    Malformed(String),
    /// This many bytes follow the value.
    #[error("{0} bytes too many after the value")]
    TrailingBytes(usize),
    /// A part is longer than it may be.
    #[error("{what} of {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// The part's name.
        what: &'static str,
        /// Its length, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// A running number would leave its range.
    #[error("{what} would pass the end of its range")]
    Overflow {
        /// The number's name.
        what: &'static str,
    },
    /// A part has a value that it can't have.
    #[error("bad {what}: {reason}")]
    Invalid {
        /// The part's name.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<DecodeError> for CodecError {
    fn from(error: DecodeError) -> Self {
        if matches!(error, DecodeError::UnexpectedEnd { .. }) {
            Self::Truncated
        } else {
            Self::Malformed(error.to_string())
        }
    }
}

/// The byte limit is the frame's: no value is longer than the frame that it came in.
const CONFIG: Configuration<LittleEndian, BincodeVarint, Limit<BODY_BYTES_MAX>> =
    bincode::config::standard().with_limit::<BODY_BYTES_MAX>();

/// Appends the encoding of `value` to `out`.
///
/// # Panics
/// If `T` has an encoder of its own that fails; derived encoders don't.
pub fn encode_value<T: bincode::Encode>(value: &T, out: &mut Vec<u8>) {
    bincode::encode_into_writer(value, Append(out), CONFIG).expect("encoding into memory does not fail");
}

/// Decodes one value from all of `bytes`.
///
/// Allocates at most [`BODY_BYTES_MAX`]; limits of single parts are the caller's to check.
///
/// # Errors
/// [`CodecError`] if `bytes` is anything but one whole value, encoded as [`encode_value`] does.
pub fn decode_value<T: bincode::Decode<()> + bincode::Encode>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG)?;
    match bytes.len() - used {
        0 => require_encoding_of(&value, bytes).map(|()| value),
        extra => Err(CodecError::TrailingBytes(extra)),
    }
}

/// Refuses `bytes` that mean `value` but aren't its encoding: bincode also reads the longer forms
/// of short numbers.
pub(crate) fn require_encoding_of<T: bincode::Encode>(value: &T, bytes: &[u8]) -> Result<(), CodecError> {
    let mut encoding = Vec::with_capacity(bytes.len());
    encode_value(value, &mut encoding);
    if encoding == bytes { Ok(()) } else { Err(CodecError::Malformed("a number with needless bytes".into())) }
}

/// Decodes one value from the front of `input`, without copying what the value borrows, and moves
/// `input` past it.
pub(crate) fn decode_front<'a, T: bincode::BorrowDecode<'a, ()>>(input: &mut &'a [u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::borrow_decode_from_slice(input, CONFIG)?;
    *input = &input[used..];
    Ok(value)
}

/// Checks a length against its limit.
pub(crate) const fn check_length(what: &'static str, bytes: usize, max: usize) -> Result<(), CodecError> {
    if bytes > max { Err(CodecError::TooLong { what, bytes, max }) } else { Ok(()) }
}

struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_all_of_its_bytes() {
        let mut bytes = Vec::new();
        encode_value(&(7_u64, String::from("seven")), &mut bytes);
        assert_eq!(decode_value::<(u64, String)>(&bytes), Ok((7, "seven".into())));
        bytes.push(0);
        assert_eq!(decode_value::<(u64, String)>(&bytes), Err(CodecError::TrailingBytes(1)));
        assert_eq!(decode_value::<(u64, String)>(&bytes[..4]), Err(CodecError::Truncated));
    }

    #[test]
    fn a_length_beyond_the_frame_limit_is_refused_before_allocation() {
        let mut bytes = Vec::new();
        encode_value(&(u64::MAX / 2), &mut bytes);
        assert!(matches!(decode_value::<Vec<u8>>(&bytes), Err(CodecError::Malformed(_))));
    }
}
