//! Writing a log.

use super::{END, FLUSH_BYTES, IMAGE_CHUNK, MAGIC};
use crate::codec::{ENTRY_BYTES_MAX, EntryEncoder, Varint, encode_session, encode_value};
use crate::entry::{LogEntry, LogSeq};
use crate::frame::{append_frame, append_frame_with};
use crate::message::{BATCH_BYTES_MAX, append_entries, append_pages, append_snapshot, append_unsent, kind};
use crate::session::{FORMAT_VERSION, IMAGE_CHUNK_BYTES, ImageDigest, SessionHeader, image_chunks};
use crate::snapshot::Snapshot;
use alloc::vec::Vec;
use std::io::{self, Write};
use vm::{OutputId, OutputOperation};

const _: () = assert!(FLUSH_BYTES + ENTRY_BYTES_MAX <= BATCH_BYTES_MAX, "a batch takes the entry that fills it");

/// Writes a log.
///
/// Entries are gathered into frames: call [`LogWriter::flush`] when they must be in the file, and
/// [`LogWriter::finish`] at the end. Dropping the writer loses the gathered entries, and leaves the
/// log without an end mark.
#[derive(Debug)]
pub struct LogWriter<W: Write> {
    frames: FrameSink<W>,
    encoder: EntryEncoder,
    /// Encoded entries that are not yet in a frame, from `pending_first` on.
    pending: Vec<u8>,
    pending_first: LogSeq,
    next: LogSeq,
}

impl<W: Write> LogWriter<W> {
    /// Begins a log at the reset of a machine: writes session header and image.
    ///
    /// # Errors
    /// If `output` fails.
    ///
    /// # Panics
    /// If `header` names another image.
    pub fn create(output: W, header: &SessionHeader, image: &[u8]) -> io::Result<Self> {
        assert_eq!(header.image_bytes, image.len() as u64, "the header is of another image");
        assert_eq!(header.image_digest, ImageDigest::of(image), "the header is of another image");
        let mut frames = FrameSink::create(output, header)?;
        for chunk in image_chunks(image) {
            frames.write(|out| append_image_chunk(chunk, out))?;
        }
        Self::begin(frames, LogSeq(0))
    }

    /// A writer of the entries from `first` on, after the log's beginning.
    fn begin(mut frames: FrameSink<W>, first: LogSeq) -> io::Result<Self> {
        frames.output.flush()?;
        Ok(Self { frames, encoder: EntryEncoder::new(), pending: Vec::new(), pending_first: first, next: first })
    }

    /// Appends `entry`, and returns its position.
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

    /// Writes all entries appended so far, and flushes the output. Making a file durable
    /// (`sync_data`) is the caller's.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_pending()?;
        self.frames.output.flush()
    }

    /// Writes all entries and the end mark, and returns the output.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn finish(mut self) -> io::Result<W> {
        self.write_pending()?;
        let end = Varint(self.next.0);
        self.frames.write(|out| append_frame_with(END, out, |out| encode_value(&end, out)))?;
        self.frames.output.flush()?;
        Ok(self.frames.output)
    }

    /// The position of the entry that is appended next.
    #[must_use]
    pub const fn next_seq(&self) -> LogSeq {
        self.next
    }

    /// How many bytes have been written.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.frames.bytes
    }

    /// The output.
    #[must_use]
    pub const fn get_ref(&self) -> &W {
        &self.frames.output
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.frames.write(|out| append_entries(self.pending_first, &self.pending, out));
        self.pending.clear();
        self.pending_first = self.next;
        written
    }
}

/// Writes the snapshot that a log begins with: pages, then the unsent outputs, then the rest.
#[derive(Debug)]
pub struct SnapshotWriter<W: Write> {
    frames: FrameSink<W>,
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins a log at a machine that has run before.
    ///
    /// # Errors
    /// If `output` fails.
    pub fn create(output: W, header: &SessionHeader) -> io::Result<Self> {
        Ok(Self { frames: FrameSink::create(output, header)? })
    }

    /// Appends pages of RAM from page index `first` on. A page may come again; the last counts.
    ///
    /// # Errors
    /// If the output fails, now or earlier: the log is useless then.
    ///
    /// # Panics
    /// If `bytes` aren't 1 to [`crate::snapshot::PAGES_MAX`] whole pages.
    pub fn pages(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        self.frames.write(|out| append_pages(first, bytes, out))
    }

    /// Appends an output from before the snapshot that may not have left; behind the last pages, in
    /// the order of the ids, at most [`super::UNSENT_BYTES_MAX`] in all.
    ///
    /// # Errors
    /// As [`SnapshotWriter::pages`].
    pub fn unsent(&mut self, id: OutputId, operation: &OutputOperation) -> io::Result<()> {
        self.frames.write(|out| append_unsent(id, operation, out))
    }

    /// Completes the snapshot; its entries follow, from [`Snapshot::seq`] on.
    ///
    /// # Errors
    /// As [`SnapshotWriter::pages`].
    ///
    /// # Panics
    /// If the state is longer than [`vm::STATE_BYTES_MAX`].
    pub fn finish(mut self, snapshot: &Snapshot) -> io::Result<LogWriter<W>> {
        self.frames.write(|out| append_snapshot(snapshot, out))?;
        LogWriter::begin(self.frames, snapshot.seq)
    }
}

/// Writes frames one by one.
#[derive(Debug)]
struct FrameSink<W: Write> {
    output: W,
    /// The frame being written; kept to reuse its memory.
    frame: Vec<u8>,
    bytes: u64,
    /// A failed write may have left half a frame behind, and nothing written after that could be
    /// read.
    failed: bool,
}

impl<W: Write> FrameSink<W> {
    /// Begins a file: magic, version and session header.
    fn create(output: W, header: &SessionHeader) -> io::Result<Self> {
        let mut frames = Self { output, frame: Vec::new(), bytes: 0, failed: false };
        frames.write(|out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
            append_session(header, out);
        })?;
        Ok(frames)
    }

    /// Writes the bytes that `append` appends.
    fn write(&mut self, append: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to this log has failed; it ends there"));
        }
        self.frame.clear();
        append(&mut self.frame);
        let written = self.output.write_all(&self.frame);
        self.failed = written.is_err();
        self.bytes += self.frame.len() as u64;
        written
    }
}

/// Appends a session frame: the version by itself, so that every version can read it, then the
/// header.
fn append_session(header: &SessionHeader, out: &mut Vec<u8>) {
    append_frame_with(kind::SESSION, out, |out| {
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        encode_session(header, out);
    });
}

/// Appends an image frame.
fn append_image_chunk(bytes: &[u8], out: &mut Vec<u8>) {
    assert!(!bytes.is_empty() && bytes.len() <= IMAGE_CHUNK_BYTES, "an image piece of {} bytes", bytes.len());
    append_frame(IMAGE_CHUNK, bytes, out);
}
