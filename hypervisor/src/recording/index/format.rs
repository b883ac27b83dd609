//! The bytes of an index. Integers of fixed size are little-endian.
//!
//! | frame | kind | body |
//! |---|---|---|
//! | BEGIN | 112 | `[32]` SHA-256 of the log's first bytes |
//! | PAGES | 113 | 1 to 64 pages of 4096 bytes |
//! | MAP | 114 | pairs of `u32` page index, `u32` contents (0: a page of zeros), 1 to 32768 |
//! | SNAPSHOT | 115 | the fields of [`SnapshotBody`] in their order, then the machine's state |
//!
//! Checked by [`read`](super::read): contents before they are named, page indices that go up within
//! a snapshot and are the machine's, counts and positions that go up from snapshot to snapshot.

use crate::recording::Place;
use logchannel::codec::EntryContext;
use logchannel::entry::{Generation, LogSeq};
use logchannel::file::LogCursor;
use logchannel::frame::FrameKind;
use vm::{InstructionCount, STATE_BYTES_MAX, StateDigest};

/// The first bytes of every index.
pub(super) const MAGIC: [u8; 8] = *b"FTINDEX\n";

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// Magic and version.
pub(super) const PREAMBLE_BYTES: usize = MAGIC.len() + 4;

pub(super) const BEGIN: FrameKind = FrameKind(112);
pub(super) const PAGES: FrameKind = FrameKind(113);
pub(super) const MAP: FrameKind = FrameKind(114);
pub(super) const SNAPSHOT: FrameKind = FrameKind(115);

/// The most pages in a frame.
pub(super) const PAGES_MAX: usize = 64;

/// The most changes in a frame, of [`CHANGE_BYTES`] each.
pub(super) const CHANGES_MAX: usize = 32 << 10;

/// The length of a change in a MAP frame.
pub(super) const CHANGE_BYTES: usize = 8;

/// A page that has other contents than at the snapshot before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The page's index in the machine.
    pub(super) page: u32,
    /// The number of its contents; 0 for zeros.
    pub(super) contents: u32,
}

impl Change {
    pub(super) fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.page.to_le_bytes());
        out.extend_from_slice(&self.contents.to_le_bytes());
    }

    /// The changes in a body; `None` if it has none, or a part of one.
    pub(super) fn read_all(body: &[u8]) -> Option<impl Iterator<Item = Self> + '_> {
        let (changes, rest) = body.as_chunks::<CHANGE_BYTES>();
        let is_whole = rest.is_empty() && !changes.is_empty();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        is_whole.then(|| {
            changes.iter().map(move |change| Self { page: number(&change[..4]), contents: number(&change[4..]) })
        })
    }
}

/// A SNAPSHOT frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotBody {
    /// The machine's instruction count.
    pub(super) count: InstructionCount,
    /// Where the log goes on.
    pub(super) place: Place,
    /// The offset of the log's frame before that.
    pub(super) frame_offset: u64,
    /// The first half of its SHA-256.
    pub(super) frame_digest: [u8; 16],
    /// The digest of the machine.
    pub(super) digest: StateDigest,
    /// The rest of its state.
    pub(super) state: Vec<u8>,
}

/// The numbers before the digests.
const NUMBERS: usize = 16;

impl SnapshotBody {
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let Place { cursor, context, generation } = self.place;
        let numbers: [u64; NUMBERS] = [
            self.count.0,
            cursor.offset,
            cursor.frame_first.0,
            cursor.context.count,
            cursor.context.ticks,
            cursor.context.wall_ns,
            cursor.context.packet,
            cursor.context.output,
            cursor.skip,
            context.count,
            context.ticks,
            context.wall_ns,
            context.packet,
            context.output,
            generation.0,
            self.frame_offset,
        ];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&self.frame_digest);
        out.extend_from_slice(&self.digest.0.to_le_bytes());
        out.extend_from_slice(&self.state);
    }

    /// Reads a body; `None` if it is too short or too long.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let (numbers, rest) = body.split_first_chunk::<{ NUMBERS * 8 }>()?;
        let numbers: Vec<u64> = numbers.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let (frame_digest, rest) = rest.split_first_chunk::<16>()?;
        let (digest, state) = rest.split_first_chunk::<16>()?;
        let context = |from: usize| EntryContext {
            count: numbers[from],
            ticks: numbers[from + 1],
            wall_ns: numbers[from + 2],
            packet: numbers[from + 3],
            output: numbers[from + 4],
        };
        let cursor =
            LogCursor { offset: numbers[1], frame_first: LogSeq(numbers[2]), context: context(3), skip: numbers[8] };
        (state.len() <= STATE_BYTES_MAX).then(|| Self {
            count: InstructionCount(numbers[0]),
            place: Place { cursor, context: context(9), generation: Generation(numbers[14]) },
            frame_offset: numbers[15],
            frame_digest: *frame_digest,
            digest: StateDigest(u128::from_le_bytes(*digest)),
            state: state.to_vec(),
        })
    }
}
