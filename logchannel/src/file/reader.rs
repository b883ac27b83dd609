//! Reading a log, whole or damaged.

use super::frames::FrameSource;
use super::{END, ENTRIES_BODY_BYTES_MAX, Ending, LogFileError, LogHead, TornReason};
use crate::codec::{CodecError, EntryContext, EntryDecoder, Varint, decode_value};
use crate::entry::{LogEntry, LogSeq};
use crate::frame::{FRAME_HEADER_BYTES, FrameDecoder, FrameKind, parse_frame};
use crate::message::{kind, split_entries};
use crate::session::SessionHeader;
use crate::stream::receive_entries;
use alloc::collections::VecDeque;
use std::io::Read;

/// A damaged frame is followed by a whole one within this many bytes, or the rest of the file is
/// damaged too.
const SCAN_BYTES: usize = 2 * (FRAME_HEADER_BYTES + ENTRIES_BODY_BYTES_MAX);

/// A position between two entries of a log from which it can be read without what comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The offset in the file of the frame that has the next entry.
    pub offset: u64,
    /// The position of that frame's first entry.
    pub frame_first: LogSeq,
    /// What the deltas of that frame's first entry refer to.
    pub context: EntryContext,
    /// How many entries of that frame come before the cursor.
    pub skip: u64,
}

impl LogCursor {
    /// The position of the next entry.
    #[must_use]
    pub const fn seq(&self) -> LogSeq {
        LogSeq(self.frame_first.0.saturating_add(self.skip))
    }
}

/// Reads a log.
#[derive(Debug)]
pub struct LogReader<R: Read> {
    frames: FrameSource<R>,
    header: SessionHeader,
    decoder: EntryDecoder,
    /// Entries of the last frame that haven't been returned yet.
    entries: VecDeque<LogEntry>,
    /// All entries before this have been read, returned or not.
    read: LogSeq,
    frame_offset: u64,
    /// Where the frame of `entries` begins.
    frame: LogCursor,
    ending: Option<Ending>,
}

impl<R: Read> LogReader<R> {
    /// A reader of the entries alone: what they start from is checked and passed over. [`LogHead`]
    /// gives it.
    ///
    /// # Errors
    /// [`LogFileError`] if it isn't whole, or not of a version that this build reads: then there is
    /// nothing to replay.
    pub fn open(input: R) -> Result<Self, LogFileError> {
        let (_, log) = LogHead::read(input)?.into_log()?;
        Ok(log)
    }

    /// A reader that stands at its first entry, `first`.
    pub(super) fn begin(mut frames: FrameSource<R>, header: SessionHeader, first: LogSeq) -> Self {
        frames.decoder.limit_body(ENTRIES_BODY_BYTES_MAX);
        let frame = LogCursor {
            offset: frames.decoder.offset(),
            frame_first: first,
            context: EntryContext::default(),
            skip: 0,
        };
        Self::at(frames, header, frame)
    }

    /// A reader that stands at the frame of `frame`.
    fn at(frames: FrameSource<R>, header: SessionHeader, frame: LogCursor) -> Self {
        Self {
            frame_offset: frame.offset,
            read: frame.frame_first,
            frames,
            header,
            decoder: EntryDecoder::at(frame.context),
            entries: VecDeque::new(),
            frame,
            ending: None,
        }
    }

    /// A reader that goes on at `cursor`, which a reader of the same log has given. `input` begins
    /// at [`LogCursor::offset`], and `header` is the log's.
    ///
    /// # Errors
    /// [`LogFileError`] if the log can't be read there; [`LogFileError::WrongCursor`] if no such
    /// entry is there. Of a cursor of another log neither is sure to be noticed: what is read then
    /// is checked by the replay.
    pub fn resume(input: R, header: SessionHeader, cursor: LogCursor) -> Result<Self, LogFileError> {
        let decoder = FrameDecoder::with_body_limit(ENTRIES_BODY_BYTES_MAX).starting_at(cursor.offset);
        let frame = LogCursor { skip: 0, ..cursor };
        let mut log = Self::at(FrameSource::new(input, decoder), header, frame);
        if cursor.skip > 0 {
            log.read_entries()?;
            let skip = usize::try_from(cursor.skip).ok().filter(|skip| *skip <= log.entries.len());
            let skip = skip.ok_or(LogFileError::WrongCursor { offset: cursor.offset, seq: cursor.seq() })?;
            log.entries.drain(..skip);
        }
        Ok(log)
    }

    /// Where [`LogReader::next_entry`] goes on.
    #[must_use]
    pub fn cursor(&self) -> LogCursor {
        if self.entries.is_empty() {
            let (offset, context) = (self.frames.decoder.offset(), self.decoder.context());
            return LogCursor { offset, frame_first: self.read, context, skip: 0 };
        }
        LogCursor { skip: self.next_seq().0 - self.frame.frame_first.0, ..self.frame }
    }

    /// The session header of the log.
    #[must_use]
    pub const fn header(&self) -> &SessionHeader {
        &self.header
    }

    /// The next entry, or `None` after the last whole one; [`LogReader::ending`] then says whether
    /// those are all.
    ///
    /// # Errors
    /// [`LogFileError`] if the log can't be read further. All entries given out before were whole.
    pub fn next_entry(&mut self) -> Result<Option<LogEntry>, LogFileError> {
        while self.entries.is_empty() && self.ending.is_none() {
            self.read_entries()?;
        }
        Ok(self.entries.pop_front())
    }

    /// The position of the entry that [`LogReader::next_entry`] returns next.
    #[must_use]
    pub fn next_seq(&self) -> LogSeq {
        LogSeq(self.read.0 - self.entries.len() as u64)
    }

    /// The offset in the file of the frame of the last returned entry.
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
        self.frame = LogCursor { offset, frame_first: self.read, context: self.decoder.context(), skip: 0 };
        let frame = match self.frames.next_frame()? {
            Ok(Some(frame)) => frame,
            Ok(None) => return self.end_without_mark(TornReason::CutInFrame),
            Err(damage) => return self.end_without_mark(TornReason::Damaged(damage)),
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

    /// Ends the log without its end mark, at an offset where no whole frame begins, if none
    /// follows.
    fn end_without_mark(&mut self, reason: TornReason) -> Result<(), LogFileError> {
        let offset = self.frames.decoder.offset();
        self.frames.fill(SCAN_BYTES)?;
        let rest = self.frames.decoder.unread();
        if let Some(position) = find_whole_frame(rest, self.read) {
            let whole_offset = offset + position as u64;
            return Err(LogFileError::Corrupt { offset, before: self.read, whole_offset });
        }
        let bytes_dropped = rest.len() as u64 + self.frames.skip_rest()?;
        self.ending = Some(match bytes_dropped {
            0 => Ending::Unfinished { offset },
            bytes_dropped => Ending::Torn { offset, bytes_dropped, reason },
        });
        Ok(())
    }
}

/// The offset in `bytes`, which begin with a damaged frame, of the next frame of this log, if there
/// is one.
///
/// Bytes that a guest was sent can look like a frame of its own log. Then a torn log is taken for a
/// corrupt one, which changes the message and no entry.
fn find_whole_frame(bytes: &[u8], read: LogSeq) -> Option<usize> {
    (1..bytes.len()).find(|&position| {
        let candidate = &bytes[position..];
        // Most offsets are ruled out by the kind, before a checksum is computed.
        let kind = candidate.get(FRAME_HEADER_BYTES - 1).copied().map(FrameKind);
        if kind != Some(kind::ENTRIES) && kind != Some(END) {
            return false;
        }
        let Ok(Some(frame)) = parse_frame(candidate, ENTRIES_BODY_BYTES_MAX) else {
            return false;
        };
        let position = match frame.kind {
            END => decode_end(frame.body),
            _ => split_entries(frame.body).map(|(first, _)| first),
        };
        position.is_ok_and(|position| position >= read)
    })
}

fn decode_end(body: &[u8]) -> Result<LogSeq, CodecError> {
    decode_value::<Varint>(body).map(|counted| LogSeq(counted.0))
}
