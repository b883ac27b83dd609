//! Variable-length numbers, which are mostly small, and byte strings with such a length.
//!
//! bincode's own variable-length integers take three bytes from 251 on. The deltas between log
//! entries are mostly a few hundred to a few million, where seven bits a byte (LEB128) save a third
//! of a clock read.

use bincode::de::read::{BorrowReader, Reader};
use bincode::de::{BorrowDecode, BorrowDecoder, Decode, Decoder};
use bincode::enc::write::Writer;
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use bincode::impl_borrow_decode;

/// A number in seven bits a byte, least significant first; the high bit says that more follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Varint(pub(crate) u64);

/// Bytes of the longest [`Varint`].
pub(crate) const VARINT_BYTES_MAX: usize = 10;

impl Encode for Varint {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let mut bytes = [0; VARINT_BYTES_MAX];
        let mut used = 0;
        let mut rest = self.0;
        loop {
            let low = rest.to_le_bytes()[0] & 0x7f;
            rest >>= 7;
            bytes[used] = if rest == 0 { low } else { low | 0x80 };
            used += 1;
            if rest == 0 {
                return encoder.writer().write(&bytes[..used]);
            }
        }
    }
}

impl<Context> Decode<Context> for Varint {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let mut value = 0_u64;
        for index in 0..VARINT_BYTES_MAX {
            let mut byte = [0; 1];
            decoder.claim_bytes_read(1)?;
            decoder.reader().read(&mut byte)?;
            let bits = u64::from(byte[0] & 0x7f);
            if index == VARINT_BYTES_MAX - 1 && byte[0] > 1 {
                return Err(DecodeError::Other("a number of more than 64 bits"));
            }
            value |= bits << (7 * index);
            if byte[0] & 0x80 == 0 {
                // One encoding per value: a decoded value encodes to the same bytes.
                return if index > 0 && bits == 0 {
                    Err(DecodeError::Other("a number with needless bytes"))
                } else {
                    Ok(Self(value))
                };
            }
        }
        Err(DecodeError::Other("a number of more than 64 bits"))
    }
}
impl_borrow_decode!(Varint);

/// Bytes with their length as a [`Varint`], borrowed from the input so that nothing is allocated
/// before the length is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Encode for Bytes<'_> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        Varint(self.0.len() as u64).encode(encoder)?;
        encoder.writer().write(self.0)
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for Bytes<'de> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let length = <Varint as Decode<Context>>::decode(decoder)?.0;
        let length = usize::try_from(length).map_err(|_| DecodeError::OutsideUsizeRange(length))?;
        decoder.claim_bytes_read(length)?;
        Ok(Self(decoder.borrow_reader().take_bytes(length)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CodecError, decode_front, decode_value, encode_value};
    use alloc::vec::Vec;

    #[test]
    fn sizes_step_every_seven_bits() {
        for (value, size) in
            [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4), (u64::MAX, 10)]
        {
            let mut bytes = Vec::new();
            encode_value(&Varint(value), &mut bytes);
            assert_eq!(bytes.len(), size, "{value}");
            assert_eq!(decode_value::<Varint>(&bytes), Ok(Varint(value)));
        }
    }

    #[test]
    fn needless_and_excess_bytes_are_refused() {
        assert!(matches!(decode_value::<Varint>(&[0x80, 0]), Err(CodecError::Malformed(_))));
        let mut excess = [0xff; 10];
        excess[9] = 2;
        assert!(matches!(decode_value::<Varint>(&excess), Err(CodecError::Malformed(_))));
        assert!(matches!(decode_value::<Varint>(&[0xff; 32]), Err(CodecError::Malformed(_))));
        assert_eq!(decode_value::<Varint>(&[0x80]), Err(CodecError::Truncated));
    }

    #[test]
    fn a_byte_string_longer_than_its_input_is_truncated() {
        assert_eq!(decode_front::<Bytes<'_>>(&mut &[3, 1, 2][..]), Err(CodecError::Truncated));
        assert_eq!(decode_front::<Bytes<'_>>(&mut &[2, 1, 2, 9][..]), Ok(Bytes(&[1, 2])));
    }
}
