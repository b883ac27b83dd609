//! Making an index: a replay of its log that stores a snapshot now and then.

use super::format::{
    BEGIN, CHANGES_MAX, Change, MAGIC, MAP, PAGES, PAGES_MAX, PREAMBLE_BYTES, SNAPSHOT, SnapshotBody, VERSION,
};
use super::read::log_frame_digest;
use super::{Index, IndexError};
use crate::recording::{Monitor, Part, RecordingError};
use ft::replay::Replayer;
use logchannel::frame::append_frame_with;
use logchannel::session::ImageDigest;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use vm::{InstructionCount, Machine, PAGE_BYTES, PageCopy};

/// How many entries are consumed between two reports to the monitor.
const ENTRIES_PER_REPORT: u32 = 64;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// How an index is to be made.
#[derive(Clone, Copy, Debug)]
pub struct IndexLimits {
    /// Steps of the guest from one snapshot to the next; at least 1.
    pub spacing: u64,
    /// The longest that the index may become, in bytes. When it would become longer, every second
    /// snapshot is left out, and the spacing doubles.
    pub bytes_max: u64,
    /// An index that is there is thrown away.
    pub rebuild: bool,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Indexed {
    /// Snapshots in the index.
    pub snapshots: usize,
    /// Snapshots of these that were there before.
    pub found: usize,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// Steps from one snapshot to the next, at the end.
    pub spacing: u64,
    /// It has no room for further snapshots.
    pub is_full: bool,
}

/// Why an index can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The log can't be replayed to its end; the index has what comes before.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The index that is there can't be used, or the new one can't be written.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Makes the index of `part`, or goes on with the one that is there.
///
/// # Errors
/// [`BuildError`]; what was written before can be used.
pub fn build(part: &Part, limits: IndexLimits, monitor: &dyn Monitor) -> Result<Indexed, BuildError> {
    let path = part.index_path();
    let file = open_locked(path)?;
    let io = IndexError::io(path);
    if limits.rebuild {
        file.set_len(0).map_err(&io)?;
    }
    let is_new = file.metadata().map_err(&io)?.len() == 0;
    let mut builder = if is_new {
        let machine = part.restore()?.machine;
        Builder::begin(part, limits, file, machine)?
    } else {
        Builder::go_on(part, limits, &file)?
    };
    builder.run(monitor)?;
    Ok(Indexed {
        snapshots: builder.counts.len(),
        found: builder.found,
        bytes: builder.writer.offset,
        spacing: builder.spacing,
        is_full: builder.is_full,
    })
}

/// Opens and locks the file of an index, which may be new.
fn open_locked(path: &Path) -> Result<File, IndexError> {
    let io = IndexError::io(path);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(&io)?;
    }
    // The guest's memory will be in it.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(&io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(IndexError::InUse(path.into())),
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    // It may have been replaced between opening and locking.
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let is_there = fs::metadata(path).map(identity).ok() == Some(identity(file.metadata().map_err(&io)?));
    if is_there { Ok(file) } else { Err(IndexError::InUse(path.into())) }
}

/// A replay that stores snapshots.
struct Builder<'a> {
    part: &'a Part,
    log: File,
    writer: Writer,
    machine: Option<Machine>,
    /// Where the machine stands.
    place: crate::recording::Place,
    /// The count of each snapshot.
    counts: Vec<InstructionCount>,
    found: usize,
    spacing: u64,
    bytes_max: u64,
    /// Where the part begins.
    start: InstructionCount,
    is_full: bool,
}

impl<'a> Builder<'a> {
    fn begin(part: &'a Part, limits: IndexLimits, file: File, machine: Machine) -> Result<Self, BuildError> {
        let io = IndexError::io(part.index_path());
        let writer = Writer::create(part, file).map_err(&io)?;
        let log = File::open(part.path()).map_err(&io)?;
        let start = machine.instruction_count();
        Ok(Self {
            part,
            log,
            writer,
            machine: Some(machine),
            place: part.begin(),
            counts: Vec::new(),
            found: 0,
            spacing: limits.spacing.max(1),
            bytes_max: limits.bytes_max,
            start,
            is_full: false,
        })
    }

    /// Goes on with the index that is there, behind its last whole snapshot.
    fn go_on(part: &'a Part, limits: IndexLimits, file: &File) -> Result<Self, BuildError> {
        let index = Index::open(part)?;
        let io = IndexError::io(part.index_path());
        let restored = match index.records().last() {
            Some(last) => (index.restore(part, last)?, last.place),
            None => (part.restore()?.machine, part.begin()),
        };
        let mut builder = Self::begin(part, limits, file.try_clone().map_err(&io)?, restored.0)?;
        builder.place = restored.1;
        builder.counts = index.records().iter().map(|record| record.count).collect();
        builder.found = builder.counts.len();
        builder.writer.take_over(&index, part).map_err(&io)?;
        // Of a thinned index the spacing is wider than was asked for.
        let gaps = builder.counts.windows(2).map(|pair| pair[1].since(pair[0]));
        let widest = gaps.take(builder.found.saturating_sub(2)).min().unwrap_or(0);
        while builder.spacing.saturating_mul(2) <= widest {
            builder.spacing *= 2;
        }
        Ok(builder)
    }

    fn run(&mut self, monitor: &dyn Monitor) -> Result<(), BuildError> {
        let path = self.part.path();
        let mut entries = self.part.entries(self.place)?;
        let mut machine = self.machine.take().expect("the machine is there until the replay");
        machine.begin_copy(PageCopy::Log);
        let (mut reported, mut unreported) = (machine.instruction_count(), 0);
        let mut replayer = Replayer::new(machine, entries.next_seq());
        while let Some((_, entry)) = entries.next().map_err(|source| self.part.failed(source))? {
            replayer.consume(&entry).map_err(|divergence| RecordingError::Diverged {
                path: path.into(),
                divergence: Box::new(divergence),
            })?;
            let count = replayer.machine().instruction_count();
            unreported += 1;
            if unreported >= ENTRIES_PER_REPORT {
                if monitor.advanced(count.since(reported)).is_break() {
                    return Err(RecordingError::Interrupted.into());
                }
                (reported, unreported) = (count, 0);
            }
            let last = self.counts.last().copied().unwrap_or(self.start);
            if count.since(last) >= self.spacing {
                self.place = entries.place();
                self.snapshot(replayer.machine_mut(), entries.frame_offset())?;
            }
        }
        // So that the end is reached at once.
        if replayer.machine().instruction_count() > self.counts.last().copied().unwrap_or(self.start) {
            self.place = entries.place();
            self.snapshot(replayer.machine_mut(), entries.frame_offset())?;
        }
        Ok(())
    }

    /// Stores a snapshot, unless outputs are still to be taken: the entries of those are next.
    fn snapshot(&mut self, machine: &mut Machine, frame_offset: u64) -> Result<(), BuildError> {
        if machine.has_output() || self.is_full {
            return Ok(());
        }
        let io = IndexError::io(self.part.index_path());
        let needed = machine.pages_to_take(PageCopy::Log) as u64 * (PAGE_BYTES as u64 + 16) + (64 << 10);
        while self.writer.offset.saturating_add(needed) > self.bytes_max {
            if self.counts.len() < 2 {
                self.is_full = true;
                return Ok(());
            }
            self.thin()?;
            let last = self.counts.last().copied().unwrap_or(self.start);
            if machine.instruction_count().since(last) < self.spacing {
                // Now it is too early for this one; its pages stay to be taken.
                return Ok(());
            }
        }
        let digest = machine.digest();
        let changes = self.writer.store_pages(machine).map_err(&io)?;
        let body = SnapshotBody {
            count: machine.instruction_count(),
            place: self.place,
            frame_offset,
            frame_digest: log_frame_digest(&self.log, frame_offset).map_err(&io)?,
            digest,
            state: machine.state(),
        };
        self.writer.finish_snapshot(&changes, &body).map_err(&io)?;
        self.counts.push(body.count);
        Ok(())
    }

    /// Leaves every second snapshot out, in a new file that replaces the present one.
    fn thin(&mut self) -> Result<(), BuildError> {
        let path = self.part.index_path();
        let io = IndexError::io(path);
        let index = Index::open(self.part)?;
        let part_path = thinned_path(path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&part_path);
        let file = file.map_err(&io)?;
        if let Err(TryLockError::Error(error)) = file.try_lock() {
            return Err(io(error).into());
        }
        let mut writer = Writer::create(self.part, file).map_err(&io)?;
        let mut counts = Vec::new();
        // The last one stays, because the pages to be taken are those written since.
        let skipped = (index.records().len() + 1) % 2;
        for record in index.records().iter().skip(skipped).step_by(2) {
            let body = index.body(record)?;
            writer.copy_snapshot(&index, self.part, record, &body).map_err(&io)?;
            counts.push(record.count);
        }
        fs::rename(&part_path, path).map_err(&io)?;
        self.found = 0;
        (self.writer, self.counts) = (writer, counts);
        self.spacing = self.spacing.saturating_mul(2);
        Ok(())
    }
}

fn thinned_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Writes the frames of an index.
struct Writer {
    file: BufWriter<File>,
    /// The length of the file.
    offset: u64,
    next_contents: u32,
    /// The contents of each page at the last snapshot.
    map: Vec<u32>,
    /// Contents that are stored, by the first half of their SHA-256: an XXH3 could be made equal by
    /// the guest.
    known: HashMap<[u8; 16], u32>,
    /// Contents that aren't in a frame yet.
    pages: Vec<u8>,
    frame: Vec<u8>,
}

impl Writer {
    /// Begins an index in an empty file, or in one that [`Self::take_over`] goes on with.
    fn create(part: &Part, file: File) -> io::Result<Self> {
        let is_new = file.metadata()?.len() == 0;
        let config = &part.header().config;
        let pages = usize::try_from((config.ram_bytes + config.disk_bytes) / PAGE_BYTES as u64);
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, file),
            offset: 0,
            next_contents: 1,
            map: vec![0; pages.map_err(io::Error::other)?],
            known: HashMap::new(),
            pages: Vec::new(),
            frame: Vec::new(),
        };
        if is_new {
            writer.write(|out| {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&VERSION.to_le_bytes());
                append_frame_with(BEGIN, out, |out| out.extend_from_slice(&part.identity().0));
            })?;
            writer.file.flush()?;
            debug_assert!(writer.offset > PREAMBLE_BYTES as u64);
        }
        Ok(writer)
    }

    /// Goes on behind the last whole snapshot of `index`, which is in the same file.
    fn take_over(&mut self, index: &Index, part: &Part) -> io::Result<()> {
        self.file.get_ref().set_len(index.bytes())?;
        self.file.seek(SeekFrom::Start(index.bytes()))?;
        self.offset = index.bytes();
        if let Some(last) = index.records().last() {
            self.map = index.map(part, last);
        }
        let all = index.all_contents();
        self.next_contents = all.end;
        let known = &mut self.known;
        let read = index.read_contents(all.map(|contents| (contents, contents)), |contents, bytes| {
            known.insert(digest(bytes), contents);
            Ok::<_, io::Error>(())
        });
        read.map_err(|error| error.unwrap_or_else(|error| error))
    }

    /// Stores the pages of `machine` that were written since the last snapshot.
    fn store_pages(&mut self, machine: &mut Machine) -> io::Result<Vec<Change>> {
        let (mut changes, mut next) = (Vec::new(), 0);
        while let Some((page, bytes)) = machine.take_page(PageCopy::Log, next) {
            next = page + 1;
            self.change(page, bytes, &mut changes)?;
        }
        Ok(changes)
    }

    /// Notes that a page has these contents.
    fn change(&mut self, page: u64, bytes: &[u8], changes: &mut Vec<Change>) -> io::Result<()> {
        let contents = self.store(bytes)?;
        let page = u32::try_from(page).map_err(io::Error::other)?;
        let known = &mut self.map[page as usize];
        if *known != contents {
            *known = contents;
            changes.push(Change { page, contents });
        }
        Ok(())
    }

    /// The number of these contents, which are stored if they weren't.
    fn store(&mut self, bytes: &[u8]) -> io::Result<u32> {
        if bytes == ZERO_PAGE {
            return Ok(0);
        }
        let key = digest(bytes);
        if let Some(contents) = self.known.get(&key) {
            return Ok(*contents);
        }
        let contents = self.next_contents;
        self.next_contents =
            contents.checked_add(1).ok_or_else(|| io::Error::other("an index can't have more pages"))?;
        self.known.insert(key, contents);
        self.pages.extend_from_slice(bytes);
        if self.pages.len() >= PAGES_MAX * PAGE_BYTES {
            self.write_pages()?;
        }
        Ok(contents)
    }

    fn write_pages(&mut self) -> io::Result<()> {
        if self.pages.is_empty() {
            return Ok(());
        }
        let pages = std::mem::take(&mut self.pages);
        self.write(|out| append_frame_with(PAGES, out, |out| out.extend_from_slice(&pages)))?;
        self.pages = pages;
        self.pages.clear();
        Ok(())
    }

    /// Completes a snapshot, whose pages are stored.
    fn finish_snapshot(&mut self, changes: &[Change], body: &SnapshotBody) -> io::Result<()> {
        self.write_pages()?;
        for changes in changes.chunks(CHANGES_MAX) {
            self.write(|out| {
                append_frame_with(MAP, out, |out| changes.iter().for_each(|change| change.append(out)));
            })?;
        }
        self.write(|out| append_frame_with(SNAPSHOT, out, |out| body.append(out)))?;
        self.file.flush()
    }

    /// Copies a snapshot of another index of the same log.
    fn copy_snapshot(
        &mut self,
        index: &Index,
        part: &Part,
        record: &super::SnapshotRecord,
        body: &SnapshotBody,
    ) -> io::Result<()> {
        let map = index.map(part, record);
        let mut wanted: Vec<(u32, usize)> = map.iter().enumerate().map(|(page, contents)| (*contents, page)).collect();
        wanted.sort_unstable();
        let mut changes = Vec::new();
        let zeros = wanted.partition_point(|(contents, _)| *contents == 0);
        for (_, page) in &wanted[..zeros] {
            self.change(*page as u64, &ZERO_PAGE, &mut changes)?;
        }
        let read = index.read_contents(wanted[zeros..].iter().copied(), |page, bytes| {
            self.change(page as u64, bytes, &mut changes)
        });
        read.map_err(|error| error.unwrap_or_else(|error| error))?;
        changes.sort_unstable_by_key(|change| change.page);
        self.finish_snapshot(&changes, body)
    }

    fn write(&mut self, append: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.frame.clear();
        append(&mut self.frame);
        self.file.write_all(&self.frame)?;
        self.offset += self.frame.len() as u64;
        Ok(())
    }
}

/// The first half of the SHA-256 of a page.
fn digest(bytes: &[u8]) -> [u8; 16] {
    let ImageDigest(digest) = ImageDigest::of(bytes);
    *digest.first_chunk().expect("32 bytes are more than 16")
}
