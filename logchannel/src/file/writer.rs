//! Writing a log.

use super::{END, FLUSH_BYTES, MAGIC};
use crate::codec::{ENTRY_BYTES_MAX, EntryEncoder, Varint, encode_value};
use crate::entry::{LogEntry, LogSeq};
use crate::frame::append_frame_with;
use crate::message::{BATCH_BYTES_MAX, append_entries, append_image_chunk, append_session};
use crate::session::{FORMAT_VERSION, ImageDigest, SessionHeader, image_chunks};
use std::io::{self, Write};

const _: () = assert!(FLUSH_BYTES + ENTRY_BYTES_MAX <= BATCH_BYTES_MAX, "a batch takes the entry that fills it");

/// Writes a log.
///
/// Entries are gathered into frames: call [`LogWriter::flush`] where they must be in the file, and
/// [`LogWriter::finish`] at the end. A writer that is dropped leaves what it has gathered unwritten, and a torn log.
#[derive(Debug)]
pub struct LogWriter<W: Write> {
    output: W,
    encoder: EntryEncoder,
    /// Encoded entries that are not yet in a frame, from `pending_first` on.
    pending: Vec<u8>,
    pending_first: LogSeq,
    next: LogSeq,
    /// The frame being written; kept for its memory.
    frame: Vec<u8>,
    /// A failed write may have left half a frame behind, and nothing written after that could be read.
    failed: bool,
}

impl<W: Write> LogWriter<W> {
    /// Begins a log: writes what comes before the first entry.
    ///
    /// # Errors
    /// If `output` fails.
    ///
    /// # Panics
    /// If `header` names another image.
    pub fn create(output: W, header: &SessionHeader, image: &[u8]) -> io::Result<Self> {
        assert_eq!(header.image_bytes, image.len() as u64, "the header is of another image");
        assert_eq!(header.image_digest, ImageDigest::of(image), "the header is of another image");
        let mut writer = Self {
            output,
            encoder: EntryEncoder::new(),
            pending: Vec::new(),
            pending_first: LogSeq(0),
            next: LogSeq(0),
            frame: Vec::new(),
            failed: false,
        };
        writer.frame.extend_from_slice(&MAGIC);
        writer.frame.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        append_session(header, &mut writer.frame);
        writer.write_frame()?;
        for chunk in image_chunks(image) {
            append_image_chunk(chunk, &mut writer.frame);
            writer.write_frame()?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// Appends `entry`, and says its place.
    ///
    /// # Errors
    /// If the output fails, now or earlier: the log is torn and takes no more.
    ///
    /// # Panics
    /// As [`EntryEncoder::encode`] does.
    pub fn append(&mut self, entry: &LogEntry) -> io::Result<LogSeq> {
        let seq = self.next;
        self.encoder.encode(entry, &mut self.pending);
        self.next = LogSeq(seq.0.checked_add(1).expect("a log ends before the range of its sequence numbers"));
        if self.pending.len() >= FLUSH_BYTES {
            self.write_pending()?;
        }
        Ok(seq)
    }

    /// Writes all entries appended so far, and flushes the output. Making a file durable (`sync_data`) is the caller's.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_pending()?;
        self.output.flush()
    }

    /// Writes all entries and the mark that these are all, and gives the output back.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn finish(mut self) -> io::Result<W> {
        self.write_pending()?;
        append_frame_with(END, &mut self.frame, |out| encode_value(&Varint(self.next.0), out));
        self.write_frame()?;
        self.output.flush()?;
        Ok(self.output)
    }

    /// The place of the entry that is appended next.
    #[must_use]
    pub const fn next_seq(&self) -> LogSeq {
        self.next
    }

    /// Where the log goes.
    #[must_use]
    pub const fn get_ref(&self) -> &W {
        &self.output
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        append_entries(self.pending_first, &self.pending, &mut self.frame);
        self.pending.clear();
        self.pending_first = self.next;
        self.write_frame()
    }

    fn write_frame(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to this log has failed; it ends there"));
        }
        let written = self.output.write_all(&self.frame);
        self.failed = written.is_err();
        self.frame.clear();
        written
    }
}
