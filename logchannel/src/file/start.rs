//! The beginning of a log, before its first entry: a session header, and an image or a snapshot.

use super::frames::FrameSource;
use super::{IMAGE_CHUNK, LogFileError, LogReader, MAGIC, PREAMBLE_BYTES, UNSENT_BYTES_MAX, UNSENT_OUTPUT_BYTES};
use crate::codec::{self, CodecError, VARINT_BYTES_MAX, check_length};
use crate::entry::LogSeq;
use crate::frame::{FrameDecoder, FrameKind};
use crate::message::kind;
use crate::session::{FORMAT_VERSION, IMAGE_CHUNK_BYTES, ImageAssembler, SessionHeader};
use crate::snapshot::{PAGES_MAX, Pages, Snapshot, UnsentOutput};
use alloc::format;
use alloc::vec::Vec;
use std::io::Read;
use vm::{PAGE_BYTES, STATE_BYTES_MAX};

/// The longest body before the first entry, in bytes.
const START_BODY_BYTES_MAX: usize = VARINT_BYTES_MAX + PAGES_MAX * PAGE_BYTES;

const _: () = assert!(IMAGE_CHUNK_BYTES <= START_BODY_BYTES_MAX, "an image piece fits");
const _: () = assert!(VARINT_BYTES_MAX + 16 + STATE_BYTES_MAX <= START_BODY_BYTES_MAX, "a snapshot's end fits");

/// The first version whose logs may begin with a snapshot.
const FIRST_VERSION_WITH_SNAPSHOTS: u32 = 2;

/// The machine that a log starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// The reset of a machine with this image. The first entry is 0.
    Image(Vec<u8>),
    /// A machine that had run before, without the pages that [`LogHead::next_pages`] returned. The
    /// first entry is [`Snapshot::seq`].
    Snapshot {
        /// The rest of the machine.
        snapshot: Snapshot,
        /// Outputs from before that may not have left, oldest first; at most [`UNSENT_BYTES_MAX`].
        unsent: Vec<UnsentOutput>,
    },
}

impl LogStart {
    /// The position of the log's first entry.
    #[must_use]
    pub const fn first_seq(&self) -> LogSeq {
        match self {
            Self::Image(_) => LogSeq(0),
            Self::Snapshot { snapshot, .. } => snapshot.seq,
        }
    }
}

/// A log that is read up to its session header: a snapshot's pages come next, if it begins with a
/// snapshot.
///
/// They are returned piece by piece, because together they may be as large as a machine's RAM.
#[derive(Debug)]
pub struct LogHead<R: Read> {
    frames: FrameSource<R>,
    header: SessionHeader,
    version: u32,
    /// Pages have come, so the rest of a snapshot must.
    has_pages: bool,
}

impl<R: Read> LogHead<R> {
    /// Reads the session header.
    ///
    /// # Errors
    /// [`LogFileError`] if there is none of a version that this build reads.
    pub fn read(mut input: R) -> Result<Self, LogFileError> {
        let version = read_preamble(&mut input)?;
        let decoder = FrameDecoder::with_body_limit(START_BODY_BYTES_MAX).starting_at(PREAMBLE_BYTES as u64);
        let mut frames = FrameSource::new(input, decoder);
        let header = decode_header(frames.head_frame_of("session header", kind::SESSION)?, version)
            .map_err(LogFileError::Header)?;
        Ok(Self { frames, header, version, has_pages: false })
    }

    /// The session header of the log.
    #[must_use]
    pub const fn header(&self) -> &SessionHeader {
        &self.header
    }

    /// The log's format version.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The next pages of the snapshot, or `None` after the last and in a log that begins with an
    /// image. A page may come again; the last counts. Whether pages lie in RAM isn't checked here.
    ///
    /// # Errors
    /// [`LogFileError`] if the log can't be read further: then there is nothing to replay.
    pub fn next_pages(&mut self) -> Result<Option<Pages>, LogFileError> {
        if !self.next_is(&[kind::PAGES])? {
            return Ok(None);
        }
        self.has_pages = true;
        let offset = self.frames.decoder.offset();
        let pages = codec::decode_pages(self.frames.head_frame_of("snapshot", kind::PAGES)?);
        pages.map(Some).map_err(|source| LogFileError::BadFrame { offset, source })
    }

    /// Reads the rest of the beginning, skipping pages that are left. Returns the machine that the
    /// log starts from, and the reader of its entries.
    ///
    /// # Errors
    /// [`LogFileError`] if it isn't whole or not of one kind: then there is nothing to replay.
    pub fn into_log(mut self) -> Result<(LogStart, LogReader<R>), LogFileError> {
        while self.next_pages()?.is_some() {}
        let start = if self.has_pages || self.next_is(&[kind::UNSENT_OUTPUT, kind::SNAPSHOT])? {
            let unsent = self.read_unsent()?;
            LogStart::Snapshot { snapshot: self.read_snapshot()?, unsent }
        } else {
            LogStart::Image(self.read_image()?)
        };
        let log = LogReader::begin(self.frames, self.header, start.first_seq());
        Ok((start, log))
    }

    /// The reader of the entries, for callers that don't need the rest: the beginning is skipped,
    /// and an image isn't compared with its digest.
    ///
    /// # Errors
    /// [`LogFileError`] if what comes before isn't whole.
    pub fn into_entries(mut self) -> Result<LogReader<R>, LogFileError> {
        if self.has_pages || !self.next_is(&[IMAGE_CHUNK])? {
            return Ok(self.into_log()?.1);
        }
        let mut image_bytes = 0;
        while image_bytes < self.header.image_bytes {
            image_bytes += self.frames.head_frame_of("image", IMAGE_CHUNK)?.len() as u64;
        }
        Ok(LogReader::begin(self.frames, self.header, LogSeq(0)))
    }

    /// Whether the next frame claims to be one of these parts of a snapshot.
    fn next_is(&mut self, kinds: &[FrameKind]) -> Result<bool, LogFileError> {
        Ok(self.version >= FIRST_VERSION_WITH_SNAPSHOTS
            && self.frames.peek_kind()?.is_some_and(|kind| kinds.contains(&kind)))
    }

    fn read_unsent(&mut self) -> Result<Vec<UnsentOutput>, LogFileError> {
        let mut unsent: Vec<UnsentOutput> = Vec::new();
        let mut bytes = 0;
        while self.next_is(&[kind::UNSENT_OUTPUT])? {
            let offset = self.frames.decoder.offset();
            let bad = |source| LogFileError::BadFrame { offset, source };
            let output =
                codec::decode_unsent(self.frames.head_frame_of("snapshot", kind::UNSENT_OUTPUT)?).map_err(bad)?;
            if let Some(last) = unsent.last()
                && output.id <= last.id
            {
                let reason = format!("output {} after output {}", output.id.0, last.id.0);
                return Err(bad(CodecError::Invalid { what: "unsent outputs", reason }));
            }
            bytes += UNSENT_OUTPUT_BYTES + output.operation.bytes().len();
            check_length("unsent outputs", bytes, UNSENT_BYTES_MAX).map_err(bad)?;
            unsent.push(output);
        }
        Ok(unsent)
    }

    fn read_snapshot(&mut self) -> Result<Snapshot, LogFileError> {
        let offset = self.frames.decoder.offset();
        codec::decode_snapshot(self.frames.head_frame_of("snapshot", kind::SNAPSHOT)?)
            .map_err(|source| LogFileError::BadFrame { offset, source })
    }

    fn read_image(&mut self) -> Result<Vec<u8>, LogFileError> {
        let mut assembler = ImageAssembler::new(&self.header);
        while !assembler.is_complete() {
            let offset = self.frames.decoder.offset();
            let chunk = decode_image_chunk(self.frames.head_frame_of("image", IMAGE_CHUNK)?)
                .map_err(|source| LogFileError::BadFrame { offset, source })?;
            assembler.push(chunk)?;
        }
        Ok(assembler.finish()?)
    }
}

/// Decodes a session frame: the version again, and the session header.
fn decode_header(body: &[u8], version: u32) -> Result<SessionHeader, CodecError> {
    let (own_version, header) = body.split_first_chunk().ok_or(CodecError::Truncated)?;
    let own_version = u32::from_le_bytes(*own_version);
    if own_version != version {
        let reason = format!("the log begins with version {version}, its session says {own_version}");
        return Err(CodecError::Invalid { what: "format version", reason });
    }
    codec::decode_session(header, version)
}

/// The log's version.
fn read_preamble(input: &mut impl Read) -> Result<u32, LogFileError> {
    let mut preamble = Vec::with_capacity(PREAMBLE_BYTES);
    input
        .by_ref()
        .take(PREAMBLE_BYTES as u64)
        .read_to_end(&mut preamble)
        .map_err(|source| LogFileError::Io { offset: 0, source })?;
    let magic = &preamble[..preamble.len().min(MAGIC.len())];
    if magic.is_empty() || !MAGIC.starts_with(magic) {
        return Err(LogFileError::NotALog);
    }
    let Some(version) = preamble.get(MAGIC.len()..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Err(LogFileError::Truncated { offset: preamble.len() as u64, part: "format version" });
    };
    match u32::from_le_bytes(*version) {
        version @ 1..=FORMAT_VERSION => Ok(version),
        found => Err(LogFileError::Version { found }),
    }
}

fn decode_image_chunk(body: &[u8]) -> Result<&[u8], CodecError> {
    if body.is_empty() {
        return Err(CodecError::Truncated);
    }
    check_length("image piece", body.len(), IMAGE_CHUNK_BYTES)?;
    Ok(body)
}
