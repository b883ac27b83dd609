//! The splitting of byte streams into messages.

use super::wire::{MESSAGE_BYTES_MAX, WireError};
use std::ops::Range;

/// Bytes of a length prefix, here and in QEMU's framing.
pub(super) const PREFIX_BYTES: usize = 4;
/// How much a [`Cutter`] reads at once; at least twice the longest message, so that moving a torn
/// one stays cheap.
const READ_BYTES: usize = 64 << 10;

const _: () = assert!(READ_BYTES >= 2 * (PREFIX_BYTES + MESSAGE_BYTES_MAX), "moving a torn message stays cheap");

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
