//! Frames: they separate the messages in a stream of bytes, and show damage.
//!
//! ```text
//!   [body length u32 LE] [CRC-32 of length, kind and body, u32 LE] [kind u8] [body]
//! ```
//! A frame says nothing about versions, so that every version can read the frame in which another
//! one introduces itself.

use alloc::vec::Vec;
use core::ops::Range;
use crc32fast::Hasher;

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 9;

/// The longest frame, header included, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// The longest body, in bytes.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEADER_BYTES;

/// The least room that [`FrameDecoder::space`] offers, in bytes.
const SPACE_BYTES_MIN: usize = 16 << 10;

/// The kind of a frame's body. 0 is never used, so that a run of zeros is no frame.
///
/// Kinds below 64 belong to this crate (see [`crate::message`] and [`crate::file`]); other
/// protocols over the same framing take theirs from 64 up, so that a peer at the wrong port is
/// noticed at its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameKind(pub u8);

/// A whole frame whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: FrameKind,
    /// The content.
    pub body: &'a [u8],
}

/// The bytes are no frames, so nothing after them can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length beyond the limit.
    #[error("the frame at byte {offset} claims {bytes} bytes; at most {max} are allowed here")]
    TooLong {
        /// Where the frame begins in the stream.
        offset: u64,
        /// The length of the body it claims.
        bytes: u32,
        /// The limit.
        max: usize,
    },
    /// Damaged, or not a frame.
    #[error("the frame at byte {offset} is damaged: checksum {found:#010x}, its bytes have {computed:#010x}")]
    Checksum {
        /// Where the frame begins in the stream.
        offset: u64,
        /// The checksum in the frame.
        found: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
}

/// Appends a frame to `out`.
///
/// # Panics
/// If `body` is longer than [`BODY_BYTES_MAX`].
pub fn append_frame(kind: FrameKind, body: &[u8], out: &mut Vec<u8>) {
    append_frame_with(kind, out, |out| out.extend_from_slice(body));
}

/// Appends a frame to `out` whose body is what `write_body` appends.
///
/// # Panics
/// If that is more than [`BODY_BYTES_MAX`].
pub fn append_frame_with(kind: FrameKind, out: &mut Vec<u8>, write_body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    write_body(out);
    let header = &mut out[start..];
    let bytes = header.len() - FRAME_HEADER_BYTES;
    assert!(bytes <= BODY_BYTES_MAX, "a frame body of {bytes} bytes");
    let length = u32::try_from(bytes).expect("checked against the limit").to_le_bytes();
    header[8] = kind.0;
    let checksum = checksum(length, &header[8..]);
    header[..4].copy_from_slice(&length);
    header[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Finds the frames in a stream of bytes that arrives in pieces. Does no I/O itself.
///
/// Memory grows with the bytes that have arrived, and not with the length that a header claims. It
/// is bounded by the longest frame allowed, as long as the caller takes all frames before it adds
/// more bytes.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// The bytes in `buffer` that have arrived and aren't taken yet.
    unread: Range<usize>,
    /// Where `unread` begins in the stream.
    offset: u64,
    body_bytes_max: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_body_limit(BODY_BYTES_MAX)
    }

    /// A decoder that refuses bodies longer than `body_bytes_max`, for protocols whose messages are
    /// short.
    #[must_use]
    pub const fn with_body_limit(body_bytes_max: usize) -> Self {
        assert!(body_bytes_max <= BODY_BYTES_MAX, "the limit is above the format's");
        Self { buffer: Vec::new(), unread: 0..0, offset: 0, body_bytes_max }
    }

    /// The decoder of a stream of which `offset` bytes have already been read elsewhere.
    #[must_use]
    pub const fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Changes the limit for the frames that follow.
    pub const fn limit_body(&mut self, body_bytes_max: usize) {
        assert!(body_bytes_max <= BODY_BYTES_MAX, "the limit is above the format's");
        self.body_bytes_max = body_bytes_max;
    }

    /// Where the next frame begins in the stream.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes that have arrived and aren't taken yet.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    /// How many more bytes [`FrameDecoder::next_frame`] needs at least before it can return
    /// something; 0 if it can now.
    #[must_use]
    pub fn missing(&self) -> usize {
        let unread = self.unread();
        match unread.first_chunk::<4>().map(|length| usize::try_from(u32::from_le_bytes(*length))) {
            None => FRAME_HEADER_BYTES - unread.len(),
            Some(Ok(body)) if body <= self.body_bytes_max => (FRAME_HEADER_BYTES + body).saturating_sub(unread.len()),
            // A length beyond the limit is an error that needs no more bytes.
            Some(_) => 0,
        }
    }

    /// Space for the next bytes; call [`FrameDecoder::filled`] after writing to it.
    #[must_use]
    pub fn space(&mut self) -> &mut [u8] {
        if self.unread.is_empty() {
            self.unread = 0..0;
        }
        if self.buffer.len() - self.unread.end < SPACE_BYTES_MIN {
            // Only the beginning of a frame is left here, and it moves once: afterwards the buffer
            // grows behind it.
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.buffer.len() - self.unread.end < SPACE_BYTES_MIN {
                self.buffer.resize((self.buffer.len() * 2).max(self.unread.end + SPACE_BYTES_MIN), 0);
            }
        }
        &mut self.buffer[self.unread.end..]
    }

    /// The caller has written `bytes` to the front of [`FrameDecoder::space`].
    ///
    /// # Panics
    /// If there was no room for so many.
    pub fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.unread.end, "{bytes} bytes filled into less room");
        self.unread.end += bytes;
    }

    /// Adds bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let (now, later) = bytes.split_at(bytes.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            self.filled(now.len());
            bytes = later;
        }
    }

    /// The next frame, or `None` if it hasn't arrived whole.
    ///
    /// # Errors
    /// [`FrameError`] at bytes that are no frame. The decoder stays there: every further call gives
    /// the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let start = self.unread.start;
        let length = match parse_frame(self.unread(), self.body_bytes_max) {
            Ok(Some(frame)) => FRAME_HEADER_BYTES + frame.body.len(),
            Ok(None) => return Ok(None),
            Err(damage) => return Err(damage.at(self.offset)),
        };
        self.unread.start += length;
        self.offset += length as u64;
        let bytes = &self.buffer[start..start + length];
        Ok(Some(Frame { kind: FrameKind(bytes[8]), body: &bytes[FRAME_HEADER_BYTES..] }))
    }
}

/// What is wrong with a frame whose offset the caller adds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    TooLong { bytes: u32, max: usize },
    Checksum { found: u32, computed: u32 },
}

impl Damage {
    const fn at(self, offset: u64) -> FrameError {
        match self {
            Self::TooLong { bytes, max } => FrameError::TooLong { offset, bytes, max },
            Self::Checksum { found, computed } => FrameError::Checksum { offset, found, computed },
        }
    }
}

/// The frame at the front of `bytes`, or `None` if `bytes` ends inside it.
pub(crate) fn parse_frame(bytes: &[u8], body_bytes_max: usize) -> Result<Option<Frame<'_>>, Damage> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let claimed = u32::from_le_bytes(*length);
    let body_bytes = match usize::try_from(claimed) {
        Ok(body_bytes) if body_bytes <= body_bytes_max => body_bytes,
        _ => return Err(Damage::TooLong { bytes: claimed, max: body_bytes_max }),
    };
    let Some((found, rest)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let Some(checked) = rest.get(..=body_bytes) else {
        return Ok(None);
    };
    let found = u32::from_le_bytes(*found);
    let computed = checksum(*length, checked);
    if found != computed {
        return Err(Damage::Checksum { found, computed });
    }
    Ok(Some(Frame { kind: FrameKind(checked[0]), body: &checked[1..] }))
}

fn checksum(length: [u8; 4], kind_and_body: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&length);
    hasher.update(kind_and_body);
    hasher.finalize()
}
