//! Reading a log, whatever has become of it.

use super::{END, ENTRIES_BODY_BYTES_MAX, MAGIC, PREAMBLE_BYTES};
use crate::codec::{CodecError, EntryDecoder, Varint, decode_value};
use crate::entry::{LogEntry, LogSeq};
use crate::frame::{FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameError, FrameKind, parse_frame};
use crate::message::{MessageError, decode_image_chunk, decode_session, kind, split_entries};
use crate::session::{FORMAT_VERSION, IMAGE_CHUNK_BYTES, ImageAssembler, ImageError, SessionHeader};
use crate::stream::{ChannelError, receive_entries};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};

/// A damaged frame is followed by a whole one within this many bytes, or the rest of the file is damaged too.
const SCAN_BYTES: usize = 2 * (FRAME_HEADER_BYTES + ENTRIES_BODY_BYTES_MAX);

/// Why a log can't be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file can't be read.
    #[error("reading the log failed at byte {offset}: {source}")]
    Io {
        /// How far it had been read.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The file doesn't begin like a log.
    #[error("not a log: it does not begin with FTLOG")]
    NotALog,
    /// The log was written by another version.
    #[error("the log has format version {found}, this build reads {FORMAT_VERSION}: use the build that recorded it")]
    Version {
        /// As it says.
        found: u32,
    },
    /// The file ends before its first entry could come.
    #[error("the log ends at byte {offset}, inside its {part}: there is nothing to replay")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// What it should have had.
        part: &'static str,
    },
    /// A frame before the first entry is damaged.
    #[error("the log's {part} is damaged: {source}")]
    DamagedHead {
        /// What is damaged.
        part: &'static str,
        /// How.
        source: FrameError,
    },
    /// The session header can't be understood.
    #[error("the log's session header is unreadable: {0}")]
    Header(#[from] MessageError),
    /// The image is not the one that the header names.
    #[error("the log's image is not the one its header names: {0}")]
    Image(#[from] ImageError),
    /// A frame where it doesn't belong.
    #[error("the frame at byte {offset} has kind {}, which does not belong in the log's {part}", .kind.0)]
    UnexpectedFrame {
        /// Where it begins.
        offset: u64,
        /// What it is.
        kind: FrameKind,
        /// What was expected.
        part: &'static str,
    },
    /// A damaged frame with whole ones behind it. It wasn't the writer's end that did this, but the storage.
    #[error(
        "the log is corrupt at byte {offset}, after entry {before}: whole frames follow from byte {whole_offset}; \
         restore it from a copy"
    )]
    Corrupt {
        /// Where the damaged frame begins.
        offset: u64,
        /// All entries before this place are whole.
        before: LogSeq,
        /// Where the next whole frame begins.
        whole_offset: u64,
    },
    /// A whole frame whose content is wrong: whoever wrote it was faulty.
    #[error("the frame at byte {offset} is wrong: {source}")]
    BadFrame {
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        source: CodecError,
    },
    /// A whole frame whose entries are wrong: whoever wrote it was faulty.
    #[error("the entries at byte {offset} are wrong: {source}")]
    BadEntries {
        /// Where their frame begins.
        offset: u64,
        /// What is wrong.
        source: ChannelError,
    },
    /// The end mark counts other entries than there are.
    #[error("the log's end mark counts {counted} entries, but there are {found}")]
    WrongEnd {
        /// As the end mark says.
        counted: LogSeq,
        /// As were found.
        found: LogSeq,
    },
    /// Something follows the end.
    #[error("the log goes on after its end mark, at byte {offset}")]
    TrailingBytes {
        /// Where.
        offset: u64,
    },
}

/// How a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its end mark: these are all entries.
    Finished,
    /// Without: its writer was killed, or is still writing. There may have been more entries.
    Torn {
        /// Where its last whole frame ends.
        offset: u64,
        /// What follows there and is no whole frame.
        bytes_dropped: u64,
        /// How that is known.
        reason: TornReason,
    },
}

/// How it is known that a log is torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TornReason {
    /// It ends behind a whole frame that isn't the end mark.
    NoEndMark,
    /// It ends inside a frame.
    CutInFrame,
    /// Its last frame is damaged, and no whole one follows.
    Damaged(FrameError),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("complete"),
            Self::Torn { offset, bytes_dropped, reason } => {
                write!(f, "torn at byte {offset}, {bytes_dropped} bytes dropped: {reason}")
            }
        }
    }
}

impl fmt::Display for TornReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEndMark => f.write_str("there is no end mark"),
            Self::CutInFrame => f.write_str("the file ends inside a frame"),
            Self::Damaged(error) => error.fmt(f),
        }
    }
}

/// Reads a log.
#[derive(Debug)]
pub struct LogReader<R: Read> {
    frames: FrameSource<R>,
    header: SessionHeader,
    image: Vec<u8>,
    decoder: EntryDecoder,
    /// The entries of the last frame read that are not yet given out.
    entries: VecDeque<LogEntry>,
    /// All entries before this have been read, given out or not.
    read: LogSeq,
    frame_offset: u64,
    ending: Option<Ending>,
}

impl<R: Read> LogReader<R> {
    /// Reads what comes before the first entry, and checks the image against its digest.
    ///
    /// # Errors
    /// [`LogFileError`] if there is no whole header and image of this build's version: then there is nothing to replay.
    pub fn open(mut input: R) -> Result<Self, LogFileError> {
        read_preamble(&mut input)?;
        let decoder = FrameDecoder::with_body_limit(IMAGE_CHUNK_BYTES).starting_at(PREAMBLE_BYTES as u64);
        let mut frames = FrameSource { input, decoder, at_end: false };
        let header = decode_session(frames.head_frame("session header", kind::SESSION)?)?;
        let mut assembler = ImageAssembler::new(&header);
        while !assembler.is_complete() {
            let offset = frames.decoder.offset();
            let chunk = decode_image_chunk(frames.head_frame("image", kind::IMAGE_CHUNK)?)
                .map_err(|source| LogFileError::BadFrame { offset, source })?;
            assembler.push(chunk)?;
        }
        let image = assembler.finish()?;
        frames.decoder.limit_body(ENTRIES_BODY_BYTES_MAX);
        let frame_offset = frames.decoder.offset();
        Ok(Self {
            frames,
            header,
            image,
            decoder: EntryDecoder::new(),
            entries: VecDeque::new(),
            read: LogSeq(0),
            frame_offset,
            ending: None,
        })
    }

    /// What the log is about.
    #[must_use]
    pub const fn header(&self) -> &SessionHeader {
        &self.header
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// The next entry, or `None` behind the last whole one; [`LogReader::ending`] then says whether that was all.
    ///
    /// # Errors
    /// [`LogFileError`] if the log can't be read further. All entries given out before were whole.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, LogFileError> {
        while self.entries.is_empty() && self.ending.is_none() {
            self.read_entries()?;
        }
        Ok(self.entries.pop_front())
    }

    /// The place of the entry that [`LogReader::next_entry`] gives next.
    #[must_use]
    pub fn next_seq(&self) -> LogSeq {
        LogSeq(self.read.0 - self.entries.len() as u64)
    }

    /// Where in the file the frame of the entry last given out begins, in bytes.
    #[must_use]
    pub const fn frame_offset(&self) -> u64 {
        self.frame_offset
    }

    /// How the log ends; `None` until [`LogReader::next_entry`] has come there.
    #[must_use]
    pub const fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Reads one frame of entries, or finds the end.
    fn read_entries(&mut self) -> Result<(), LogFileError> {
        let offset = self.frames.decoder.offset();
        let frame = match self.frames.next_frame()? {
            Ok(Some(frame)) => frame,
            Ok(None) => return self.end_torn(TornReason::CutInFrame),
            Err(damage) => return self.end_torn(TornReason::Damaged(damage)),
        };
        match frame.kind {
            kind::ENTRIES => {
                let (first, bytes) =
                    split_entries(frame.body).map_err(|source| LogFileError::BadFrame { offset, source })?;
                receive_entries(&mut self.decoder, &mut self.read, first, bytes, &mut self.entries)
                    .map_err(|source| LogFileError::BadEntries { offset, source })?;
                self.frame_offset = offset;
                Ok(())
            }
            END => {
                let counted = decode_end(frame.body).map_err(|source| LogFileError::BadFrame { offset, source })?;
                self.end_finished(counted)
            }
            kind => Err(LogFileError::UnexpectedFrame { offset, kind, part: "entries" }),
        }
    }

    fn end_finished(&mut self, counted: LogSeq) -> Result<(), LogFileError> {
        if counted != self.read {
            return Err(LogFileError::WrongEnd { counted, found: self.read });
        }
        self.frames.fill(1)?;
        if !self.frames.decoder.unread().is_empty() {
            return Err(LogFileError::TrailingBytes { offset: self.frames.decoder.offset() });
        }
        self.ending = Some(Ending::Finished);
        Ok(())
    }

    /// Ends the log where no whole frame stands, if none follows.
    fn end_torn(&mut self, reason: TornReason) -> Result<(), LogFileError> {
        let offset = self.frames.decoder.offset();
        self.frames.fill(SCAN_BYTES)?;
        let rest = self.frames.decoder.unread();
        if let Some(position) = find_whole_frame(rest, self.read) {
            let whole_offset = offset + position as u64;
            return Err(LogFileError::Corrupt { offset, before: self.read, whole_offset });
        }
        let reason = if rest.is_empty() { TornReason::NoEndMark } else { reason };
        let bytes_dropped = rest.len() as u64 + self.frames.skip_rest()?;
        self.ending = Some(Ending::Torn { offset, bytes_dropped, reason });
        Ok(())
    }
}

/// Where in `bytes`, which begin with a damaged frame, the next frame of this log begins, if one does.
///
/// What a guest was sent can look like a frame of its own log. Then a torn log is taken for a corrupt one, which changes
/// the message and no entry.
fn find_whole_frame(bytes: &[u8], read: LogSeq) -> Option<usize> {
    (1..bytes.len()).find(|&position| {
        let candidate = &bytes[position..];
        // Most positions are ruled out by the kind, before a checksum is computed.
        let kind = candidate.get(FRAME_HEADER_BYTES - 1).copied().map(FrameKind);
        if kind != Some(kind::ENTRIES) && kind != Some(END) {
            return false;
        }
        let Ok(Some(frame)) = parse_frame(candidate, ENTRIES_BODY_BYTES_MAX) else {
            return false;
        };
        let place = match frame.kind {
            END => decode_end(frame.body),
            _ => split_entries(frame.body).map(|(first, _)| first),
        };
        place.is_ok_and(|place| place >= read)
    })
}

fn decode_end(body: &[u8]) -> Result<LogSeq, CodecError> {
    decode_value::<Varint>(body).map(|counted| LogSeq(counted.0))
}

fn read_preamble(input: &mut impl Read) -> Result<(), LogFileError> {
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
        FORMAT_VERSION => Ok(()),
        found => Err(LogFileError::Version { found }),
    }
}

#[derive(Debug)]
struct FrameSource<R: Read> {
    input: R,
    decoder: FrameDecoder,
    at_end: bool,
}

impl<R: Read> FrameSource<R> {
    /// The next frame; `Ok(None)` if the input ends before one is whole. The outer error is the input's.
    fn next_frame(&mut self) -> Result<Result<Option<Frame<'_>>, FrameError>, LogFileError> {
        while self.decoder.missing() > 0 && !self.at_end {
            self.read_some()?;
        }
        Ok(self.decoder.next_frame())
    }

    /// The body of the next frame, which must be whole and of `kind`.
    fn head_frame(&mut self, part: &'static str, kind: FrameKind) -> Result<&[u8], LogFileError> {
        let offset = self.decoder.offset();
        let end = |frames: &Self| frames.decoder.offset() + frames.decoder.unread().len() as u64;
        while self.decoder.missing() > 0 {
            if self.at_end {
                return Err(LogFileError::Truncated { offset: end(self), part });
            }
            self.read_some()?;
        }
        match self.decoder.next_frame() {
            Ok(Some(frame)) if frame.kind == kind => Ok(frame.body),
            Ok(Some(frame)) => Err(LogFileError::UnexpectedFrame { offset, kind: frame.kind, part }),
            Ok(None) => unreachable!("nothing is missing of the frame"),
            Err(source) => Err(LogFileError::DamagedHead { part, source }),
        }
    }

    /// Reads until `bytes` are unread or the input ends.
    fn fill(&mut self, bytes: usize) -> Result<(), LogFileError> {
        while self.decoder.unread().len() < bytes && !self.at_end {
            self.read_some()?;
        }
        Ok(())
    }

    /// Reads to the end of the input, and says how many bytes that were.
    fn skip_rest(&mut self) -> Result<u64, LogFileError> {
        let offset = self.decoder.offset();
        io::copy(&mut self.input, &mut io::sink()).map_err(|source| LogFileError::Io { offset, source })
    }

    fn read_some(&mut self) -> Result<(), LogFileError> {
        let offset = self.decoder.offset() + self.decoder.unread().len() as u64;
        match self.input.read(self.decoder.space()) {
            Ok(0) => self.at_end = true,
            Ok(bytes) => self.decoder.filled(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(LogFileError::Io { offset, source }),
        }
        Ok(())
    }
}
