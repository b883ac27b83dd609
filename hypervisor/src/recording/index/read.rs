//! Reading an index.

use super::IndexError;
use super::format::{
    BEGIN, CHANGE_BYTES, CHANGES_MAX, Change, MAGIC, MAP, PAGES, PAGES_MAX, PREAMBLE_BYTES, SNAPSHOT, SnapshotBody,
    VERSION,
};
use crate::recording::{Part, Place};
use logchannel::frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameDecoder, FrameKind};
use logchannel::session::{ImageDigest, SessionHeader};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm::{InstructionCount, Machine, PAGE_BYTES, Restoration, StateDigest};

/// The most changes in an index: half a gigabyte of memory for its reader.
const CHANGES_TOTAL_MAX: usize = 64 << 20;

/// A snapshot in an index.
#[derive(Clone, Debug)]
pub struct SnapshotRecord {
    /// The machine's instruction count.
    pub count: InstructionCount,
    /// Where the log goes on.
    pub place: Place,
    digest: StateDigest,
    frame_offset: u64,
    frame_digest: [u8; 16],
    /// Where its frame is in the index.
    offset: u64,
    /// Its changes and those of all snapshots before are `..changes_end`.
    changes_end: usize,
}

/// Contents of pages that follow each other in the file.
#[derive(Clone, Copy, Debug)]
struct Stored {
    /// The number of the first.
    first: u32,
    /// Where it is in the file.
    offset: u64,
}

/// An index that was opened: what can be used of it.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    file: File,
    records: Vec<SnapshotRecord>,
    changes: Vec<Change>,
    stored: Vec<Stored>,
    /// The number of the next contents.
    next_contents: u32,
    /// Where the last whole snapshot ends.
    end: u64,
    damage: Option<IndexError>,
}

/// What the end of an index looks like.
enum Stop {
    /// The file ends inside a frame, or behind pages without their snapshot.
    Torn,
    /// A frame is wrong.
    Wrong(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
        if is_end { Self::Torn } else { Self::Wrong(error.to_string()) }
    }
}

impl Index {
    /// Opens the index of `part`.
    ///
    /// # Errors
    /// [`IndexError`] if there is none that can be used. One whose end is damaged is used up to
    /// there, see [`Self::damage`].
    pub fn open(part: &Part) -> Result<Self, IndexError> {
        let path = part.index_path();
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(IndexError::Missing),
            Err(error) => return Err(IndexError::io(path)(error)),
        };
        if !file.metadata().map_err(IndexError::io(path))?.is_file() {
            return Err(IndexError::NotOurs { path: path.into(), why: "it is no regular file".into() });
        }
        let mut index = Self {
            path: path.into(),
            file,
            records: Vec::new(),
            changes: Vec::new(),
            stored: Vec::new(),
            next_contents: 1,
            end: 0,
            damage: None,
        };
        let offset = index.read_preamble()?;
        index.read_begin(offset, part)?;
        index.read_snapshots(part);
        Ok(index)
    }

    /// Its snapshots, in the order of their counts.
    #[must_use]
    pub fn records(&self) -> &[SnapshotRecord] {
        &self.records
    }

    /// What is wrong behind the last snapshot, unless the file just ends.
    #[must_use]
    pub const fn damage(&self) -> Option<&IndexError> {
        self.damage.as_ref()
    }

    /// How long its good part is, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_preamble(&self) -> Result<u64, IndexError> {
        let not_ours = |why: String| IndexError::NotOurs { path: self.path.clone(), why };
        let mut preamble = [0; PREAMBLE_BYTES];
        match self.file.read_exact_at(&mut preamble, 0) {
            Ok(()) => {}
            // Its writer has only begun.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(not_ours("it is shorter than the beginning of one".into()));
            }
            Err(error) => return Err(IndexError::io(&self.path)(error)),
        }
        let (magic, version) = preamble.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(not_ours("it does not begin with FTINDEX".into()));
        }
        if version != VERSION.to_le_bytes() {
            let version = version.iter().rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
            return Err(not_ours(format!("its format has version {version}, this build has version {VERSION}")));
        }
        Ok(PREAMBLE_BYTES as u64)
    }

    fn read_begin(&mut self, offset: u64, part: &Part) -> Result<(), IndexError> {
        let not_ours = |why: &str| IndexError::NotOurs { path: self.path.clone(), why: why.into() };
        let (kind, body) = match self.frame(offset) {
            Ok(frame) => frame,
            Err(Stop::Torn) => return Err(not_ours("it is shorter than the beginning of one")),
            Err(Stop::Wrong(why)) => return Err(not_ours(&why)),
        };
        if kind != BEGIN || body.len() != part.identity().0.len() {
            return Err(not_ours("its first frame is no beginning"));
        }
        if body != part.identity().0 {
            return Err(IndexError::Foreign { path: self.path.clone(), log: part.path().into() });
        }
        self.end = offset + frame_bytes(body.len());
        Ok(())
    }

    /// Reads snapshots as far as they are whole.
    fn read_snapshots(&mut self, part: &Part) {
        loop {
            let (changes, stored, contents) = (self.changes.len(), self.stored.len(), self.next_contents);
            let stop = match self.read_snapshot(part) {
                Ok(()) => continue,
                Err(stop) => stop,
            };
            self.changes.truncate(changes);
            self.stored.truncate(stored);
            self.next_contents = contents;
            if let Stop::Wrong(why) = stop {
                let (path, good) = (self.path.clone(), self.records.len());
                self.damage = Some(IndexError::Damaged { path, offset: self.end, why, good });
            }
            return;
        }
    }

    fn read_snapshot(&mut self, part: &Part) -> Result<(), Stop> {
        let mut offset = self.end;
        let pages = machine_pages(part.header());
        let first_change = self.changes.len();
        let wrong = |why: &str| Err(Stop::Wrong(why.into()));
        loop {
            let (length, kind) = self.frame_header(offset)?;
            let next = offset + frame_bytes(length);
            if kind == PAGES {
                self.note_pages(offset, length)?;
                offset = next;
                continue;
            }
            let (kind, body) = self.frame(offset)?;
            if kind == MAP {
                let Some(changes) = Change::read_all(&body) else { return wrong("changes that are not whole") };
                for change in changes {
                    let last = self.changes[first_change..].last();
                    if last.is_some_and(|last| last.page >= change.page) || u64::from(change.page) >= pages {
                        return wrong("pages out of order, or that the machine doesn't have");
                    }
                    if change.contents >= self.next_contents || self.changes.len() >= CHANGES_TOTAL_MAX {
                        return wrong("contents that aren't there");
                    }
                    self.changes.push(change);
                }
                offset = next;
                continue;
            }
            let body = if kind == SNAPSHOT { SnapshotBody::read(&body) } else { None };
            let Some(body) = body else { return wrong("a frame that is none of an index") };
            let before = self.records.last();
            let goes_on =
                |last: &SnapshotRecord| last.count <= body.count && last.place.cursor.seq() < body.place.cursor.seq();
            if !before.is_none_or(goes_on) || body.place.cursor.offset < part.begin().cursor.offset {
                return wrong("snapshots out of order");
            }
            self.records.push(SnapshotRecord {
                count: body.count,
                place: body.place,
                digest: body.digest,
                frame_offset: body.frame_offset,
                frame_digest: body.frame_digest,
                offset,
                changes_end: self.changes.len(),
            });
            self.end = next;
            return Ok(());
        }
    }

    /// Notes where contents of pages are.
    fn note_pages(&mut self, offset: u64, length: usize) -> Result<(), Stop> {
        let count = length / PAGE_BYTES;
        if !length.is_multiple_of(PAGE_BYTES) || count == 0 || count > PAGES_MAX {
            return Err(Stop::Wrong("pages that are not whole".into()));
        }
        let end = offset + frame_bytes(length);
        if self.file.metadata()?.len() < end {
            return Err(Stop::Torn);
        }
        self.stored.push(Stored { first: self.next_contents, offset: offset + FRAME_HEADER_BYTES as u64 });
        let next = u32::try_from(count).ok().and_then(|count| self.next_contents.checked_add(count));
        self.next_contents = next.ok_or_else(|| Stop::Wrong("more pages than can be numbered".into()))?;
        Ok(())
    }

    /// The length of the body and the kind of the frame at `offset`; nothing is checked but the
    /// length.
    fn frame_header(&self, offset: u64) -> Result<(usize, FrameKind), Stop> {
        let mut header = [0; FRAME_HEADER_BYTES];
        let read = self.file.read_at(&mut header, offset)?;
        if read < FRAME_HEADER_BYTES {
            return Err(Stop::Torn);
        }
        let length = header[..4].iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
        if length > FRAME_BYTES_MAX - FRAME_HEADER_BYTES {
            return Err(Stop::Wrong(format!("a frame that claims {length} bytes")));
        }
        Ok((length, FrameKind(header[FRAME_HEADER_BYTES - 1])))
    }

    /// The frame at `offset`, whole.
    fn frame(&self, offset: u64) -> Result<(FrameKind, Vec<u8>), Stop> {
        let (length, kind) = self.frame_header(offset)?;
        let most = (CHANGES_MAX * CHANGE_BYTES).max(vm::STATE_BYTES_MAX + PAGE_BYTES);
        if length > most {
            return Err(Stop::Wrong(format!("a frame of kind {} that claims {length} bytes", kind.0)));
        }
        let mut bytes = vec![0; FRAME_HEADER_BYTES + length];
        self.file.read_exact_at(&mut bytes, offset)?;
        let mut decoder = FrameDecoder::new().starting_at(offset);
        decoder.push(&bytes);
        match decoder.next_frame() {
            Ok(Some(frame)) => Ok((frame.kind, frame.body.to_vec())),
            Ok(None) => Err(Stop::Torn),
            Err(error) => Err(Stop::Wrong(error.to_string())),
        }
    }

    /// The number of the contents of each page at a snapshot.
    pub(super) fn map(&self, part: &Part, record: &SnapshotRecord) -> Vec<u32> {
        let pages = usize::try_from(machine_pages(part.header())).expect("a machine's pages are in memory");
        let mut map = vec![0; pages];
        for change in &self.changes[..record.changes_end] {
            map[change.page as usize] = change.contents;
        }
        map
    }

    /// The machine of a snapshot.
    ///
    /// # Errors
    /// [`IndexError::WrongSnapshot`] if it isn't of this log, or a byte of it is wrong.
    pub fn restore(&self, part: &Part, record: &SnapshotRecord) -> Result<Machine, IndexError> {
        let wrong = |why: String| IndexError::WrongSnapshot { path: self.path.clone(), count: record.count.0, why };
        let log = File::open(part.path()).map_err(|error| wrong(error.to_string()))?;
        let found = log_frame_digest(&log, record.frame_offset);
        if !found.as_ref().is_ok_and(|found| *found == record.frame_digest) {
            return Err(wrong(format!("the log's frame at byte {} is another one", record.frame_offset)));
        }
        let mut restoration = Restoration::new(&part.header().config).map_err(|error| wrong(error.to_string()))?;
        let map = self.map(part, record);
        let mut used: Vec<(u32, usize)> = map
            .iter()
            .enumerate()
            .filter(|(_, contents)| **contents != 0)
            .map(|(page, contents)| (*contents, page))
            .collect();
        used.sort_unstable();
        self.read_contents(used.iter().map(|(contents, page)| (*contents, *page)), |page, bytes| {
            restoration.put_pages(page as u64, bytes).map_err(|error| wrong(error.to_string()))
        })
        .map_err(|error| error.unwrap_or_else(|error| wrong(error.to_string())))?;
        let body = self.body(record)?;
        let mut machine = restoration.finish(&body.state).map_err(|error| wrong(error.to_string()))?;
        let found = machine.digest();
        if found != record.digest || machine.instruction_count() != record.count {
            return Err(wrong(format!("its machine has digest {found}, not {}", record.digest)));
        }
        Ok(machine)
    }

    /// The frame of a snapshot.
    pub(super) fn body(&self, record: &SnapshotRecord) -> Result<SnapshotBody, IndexError> {
        let body = match self.frame(record.offset) {
            Ok((_, body)) => SnapshotBody::read(&body),
            Err(_) => None,
        };
        let why = || "the file has changed since it was opened".into();
        body.ok_or_else(|| IndexError::WrongSnapshot { path: self.path.clone(), count: record.count.0, why: why() })
    }

    /// Passes contents, which are in the order of their numbers, to `take`, each with what it was
    /// asked for.
    pub(super) fn read_contents<T: Copy, E>(
        &self,
        wanted: impl Iterator<Item = (u32, T)>,
        mut take: impl FnMut(T, &[u8]) -> Result<(), E>,
    ) -> Result<(), Result<E, io::Error>> {
        let mut buffer = Vec::new();
        // The frame that is in the buffer, as an index of `stored`.
        let mut buffered = None;
        for (contents, purpose) in wanted {
            let frame = self.stored.partition_point(|stored| stored.first <= contents) - 1;
            if buffered != Some(frame) {
                let Range { start, end } = self.contents_of(frame);
                buffer.resize((end - start) as usize * PAGE_BYTES, 0);
                self.file.read_exact_at(&mut buffer, self.stored[frame].offset).map_err(Err)?;
                buffered = Some(frame);
            }
            let at = (contents - self.stored[frame].first) as usize * PAGE_BYTES;
            take(purpose, &buffer[at..at + PAGE_BYTES]).map_err(Ok)?;
        }
        Ok(())
    }

    /// The numbers of the contents in a frame.
    fn contents_of(&self, frame: usize) -> Range<u32> {
        let end = self.stored.get(frame + 1).map_or(self.next_contents, |next| next.first);
        self.stored[frame].first..end
    }

    /// The numbers of all contents.
    pub(super) const fn all_contents(&self) -> Range<u32> {
        1..self.next_contents
    }
}

/// The length of a frame whose body has `length` bytes.
const fn frame_bytes(length: usize) -> u64 {
    (FRAME_HEADER_BYTES + length) as u64
}

/// The number of pages of a session's machine, its disk's included.
fn machine_pages(header: &SessionHeader) -> u64 {
    header.config.ram_bytes.saturating_add(header.config.disk_bytes) / PAGE_BYTES as u64
}

/// The first half of the SHA-256 of the log's frame at `offset`.
pub(super) fn log_frame_digest(log: &File, offset: u64) -> io::Result<[u8; 16]> {
    let mut length = [0; 4];
    log.read_exact_at(&mut length, offset)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX - FRAME_HEADER_BYTES {
        return Err(io::Error::other("no frame is so long"));
    }
    let mut frame = vec![0; FRAME_HEADER_BYTES + length];
    log.read_exact_at(&mut frame, offset)?;
    let ImageDigest(digest) = ImageDigest::of(&frame);
    Ok(*digest.first_chunk().expect("32 bytes are more than 16"))
}
