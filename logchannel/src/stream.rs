//! The log as an acknowledged stream. Does no I/O and knows no role.
//!
//! The stream is ordered and gapless (a TCP connection), so nothing is ever sent twice on it: a
//! backup that loses its connection has to join again from the start.

use crate::codec::{CodecError, EntryDecoder, EntryEncoder};
use crate::entry::{LogEntry, LogSeq};
use crate::message::{BATCH_BYTES_MAX, EntryBatch, append_entries};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The peer breaks the protocol: it is faulty, and the connection must be given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// An acknowledgement of entries that were never sent.
    #[error("the backup acknowledges all entries before {received}, but only those before {sent} were sent")]
    AckAhead {
        /// The acknowledged position.
        received: LogSeq,
        /// The position up to which entries were sent.
        sent: LogSeq,
    },
    /// An acknowledgement that takes back an earlier one.
    #[error("the backup acknowledges all entries before {received} after it had acknowledged those before {acked}")]
    AckBackwards {
        /// The acknowledged position.
        received: LogSeq,
        /// The earlier acknowledgement.
        acked: LogSeq,
    },
    /// Entries are missing.
    #[error("entries from {expected} up to but not including {found} are missing")]
    Gap {
        /// The expected position.
        expected: LogSeq,
        /// The position that came.
        found: LogSeq,
    },
    /// Entries came twice.
    #[error("entry {found} came again after all before {expected}")]
    Overlap {
        /// The expected position.
        expected: LogSeq,
        /// The position that came.
        found: LogSeq,
    },
    /// A batch without entries.
    #[error("a batch without entries at {at}")]
    EmptyBatch {
        /// The position that it names.
        at: LogSeq,
    },
    /// The log would be longer than sequence numbers reach.
    #[error("the log ends at the end of the range of sequence numbers")]
    SeqOverflow,
    /// An entry can't be read.
    #[error("bad entry {seq}: {source}")]
    BadEntry {
        /// Its position.
        seq: LogSeq,
        /// Why it can't be read.
        source: CodecError,
    },
}

/// The primary's end: encodes entries, packs them into frames, keeps the cursors.
///
/// Invariant, asserted after every move: `acked <= sent <= appended`.
#[derive(Clone, Debug, Hash)]
pub struct LogSender {
    encoder: EntryEncoder,
    /// Batches that aren't sent yet, oldest first; only the last one takes more entries.
    pending: VecDeque<PendingBatch>,
    pending_bytes: usize,
    /// The buffer of a batch that was sent, for reuse.
    spare: Vec<u8>,
    /// One encoded entry, until it is known to which batch it goes.
    scratch: Vec<u8>,
    appended: LogSeq,
    sent: LogSeq,
    acked: LogSeq,
}

#[derive(Clone, Debug, Hash)]
struct PendingBatch {
    first: LogSeq,
    /// One past the last entry.
    end: LogSeq,
    bytes: Vec<u8>,
}

impl LogSender {
    /// A stream whose first entry is `first`.
    #[must_use]
    pub fn new(first: LogSeq) -> Self {
        Self {
            encoder: EntryEncoder::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            spare: Vec::new(),
            scratch: Vec::new(),
            appended: first,
            sent: first,
            acked: first,
        }
    }

    /// Appends `entry` to the stream, and returns its position.
    ///
    /// # Panics
    /// As [`EntryEncoder::encode`] does.
    pub fn append(&mut self, entry: &LogEntry) -> LogSeq {
        self.scratch.clear();
        self.encoder.encode(entry, &mut self.scratch);
        let seq = self.appended;
        self.appended = LogSeq(seq.0.checked_add(1).expect("a log ends before the range of its sequence numbers"));
        match self.pending.back_mut() {
            Some(last) if last.bytes.len() + self.scratch.len() <= BATCH_BYTES_MAX => {
                last.bytes.extend_from_slice(&self.scratch);
                last.end = self.appended;
            }
            _ => {
                let mut bytes = core::mem::take(&mut self.spare);
                bytes.extend_from_slice(&self.scratch);
                self.pending.push_back(PendingBatch { first: seq, end: self.appended, bytes });
            }
        }
        self.pending_bytes += self.scratch.len();
        seq
    }

    /// Bytes of entries that wait to be sent.
    #[must_use]
    pub const fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Appends one whole frame of entries to `out` and takes them as sent; `false` if none wait.
    pub fn take_frame(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(mut batch) = self.pending.pop_front() else {
            return false;
        };
        append_entries(batch.first, &batch.bytes, out);
        self.pending_bytes -= batch.bytes.len();
        self.sent = batch.end;
        batch.bytes.clear();
        self.spare = batch.bytes;
        self.check();
        true
    }

    /// The backup has acknowledged all entries before `received`: they are in its log buffer.
    ///
    /// # Errors
    /// [`ChannelError::AckAhead`] or [`ChannelError::AckBackwards`]: the backup is faulty; the
    /// cursors are unchanged.
    ///
    /// Source: Scales et al. 2010, §2.2 "Output Rule".
    pub fn acknowledge(&mut self, received: LogSeq) -> Result<(), ChannelError> {
        if received > self.sent {
            return Err(ChannelError::AckAhead { received, sent: self.sent });
        }
        if received < self.acked {
            return Err(ChannelError::AckBackwards { received, acked: self.acked });
        }
        self.acked = received;
        self.check();
        Ok(())
    }

    /// All entries before this have been appended.
    #[must_use]
    pub const fn appended(&self) -> LogSeq {
        self.appended
    }

    /// All entries before this have been given out in frames.
    #[must_use]
    pub const fn sent(&self) -> LogSeq {
        self.sent
    }

    /// All entries before this are in the backup's log buffer.
    #[must_use]
    pub const fn acked(&self) -> LogSeq {
        self.acked
    }

    fn check(&self) {
        assert!(
            self.acked <= self.sent && self.sent <= self.appended,
            "cursors out of order: acked {} sent {} appended {}",
            self.acked,
            self.sent,
            self.appended
        );
    }
}

/// The backup's end: checks that batches follow each other, and decodes them.
#[derive(Clone, Debug, Hash)]
pub struct LogReceiver {
    decoder: EntryDecoder,
    received: LogSeq,
}

impl LogReceiver {
    /// A stream whose first entry is `first`.
    #[must_use]
    pub fn new(first: LogSeq) -> Self {
        Self { decoder: EntryDecoder::new(), received: first }
    }

    /// Appends the entries of `batch` to `out`, and returns the position to acknowledge.
    ///
    /// # Errors
    /// [`ChannelError`] if the batch isn't the next one or isn't entries throughout; nothing has
    /// changed then, neither here nor in `out`.
    pub fn receive(&mut self, batch: &EntryBatch, out: &mut VecDeque<LogEntry>) -> Result<LogSeq, ChannelError> {
        receive_entries(&mut self.decoder, &mut self.received, batch.first_seq, &batch.bytes, out)?;
        Ok(self.received)
    }

    /// All entries before this have been received.
    #[must_use]
    pub const fn received(&self) -> LogSeq {
        self.received
    }
}

/// Decodes a batch that must begin at `expected`, and moves `expected` past it: all or nothing.
pub(crate) fn receive_entries(
    decoder: &mut EntryDecoder,
    expected: &mut LogSeq,
    first: LogSeq,
    mut bytes: &[u8],
    out: &mut VecDeque<LogEntry>,
) -> Result<(), ChannelError> {
    if first > *expected {
        return Err(ChannelError::Gap { expected: *expected, found: first });
    }
    if first < *expected {
        return Err(ChannelError::Overlap { expected: *expected, found: first });
    }
    if bytes.is_empty() {
        return Err(ChannelError::EmptyBatch { at: first });
    }
    let before = out.len();
    let mut ahead = decoder.clone();
    let mut seq = first;
    while !bytes.is_empty() {
        let decoded = match seq.0.checked_add(1) {
            Some(next) => ahead
                .decode(&mut bytes)
                .map(|entry| (entry, next))
                .map_err(|source| ChannelError::BadEntry { seq, source }),
            None => Err(ChannelError::SeqOverflow),
        };
        match decoded {
            Ok((entry, next)) => {
                out.push_back(entry);
                seq = LogSeq(next);
            }
            Err(error) => {
                out.truncate(before);
                return Err(error);
            }
        }
    }
    *decoder = ahead;
    *expected = seq;
    Ok(())
}
