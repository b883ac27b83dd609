//! A host's disk, which has the directory for one log: a process's death loses what it hadn't
//! written, and a loss of power what wasn't synced.

use crate::random::Random;
use hypervisor::node::log::{Storage, StorageFile};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Cursor, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file: what the page cache has, and how much of it is on disk.
#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: usize,
}

/// A change of names since the directory was last synced.
#[derive(Clone, Debug)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, file) => _ = names.insert(name.clone(), *file),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => _ = names.remove(name),
        }
    }
}

/// What a disk does to its next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskFault {
    /// It has no room.
    Full,
    /// A sync fails.
    SyncFails,
}

#[derive(Debug)]
struct Disk {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<NameChange>,
    next_file: u64,
    is_locked: bool,
    /// How often the host has been started.
    boot: u64,
    /// The process dies within the call after so many.
    dies_after_calls: Option<u32>,
    /// It has died: nothing that it still does has an effect.
    is_dead: bool,
    fault: Option<DiskFault>,
    /// A file got its name since this was last asked.
    has_named: bool,
    /// A call has failed.
    has_failed: bool,
    random: Random,
}

impl Disk {
    /// Whether a call has an effect, or how it fails.
    fn call(&mut self) -> bool {
        match &mut self.dies_after_calls {
            Some(0) => self.is_dead = true,
            Some(left) => *left -= 1,
            None => {}
        }
        !self.is_dead
    }

    fn fail(&mut self, kind: ErrorKind) -> io::Error {
        self.has_failed = true;
        kind.into()
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

/// A host's disk.
#[derive(Clone)]
pub(super) struct SimDisk {
    path: Arc<PathBuf>,
    disk: Arc<Mutex<Disk>>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimDisk").field(&self.path).finish()
    }
}

impl SimDisk {
    /// The empty disk of a host.
    pub(super) fn new(host: usize, random: Random) -> Self {
        let disk = Disk {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            next_file: 0,
            is_locked: false,
            boot: 1,
            dies_after_calls: None,
            is_dead: false,
            fault: None,
            has_named: false,
            has_failed: false,
            random,
        };
        Self { path: Arc::new(format!("host-{host}").into()), disk: Arc::new(Mutex::new(disk)) }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that uses it dies within the call after `calls` more.
    pub(super) fn die_after(&self, calls: u32) {
        self.disk().dies_after_calls = Some(calls);
    }

    /// Whether the process that uses it has died within a call.
    pub(super) fn is_dead(&self) -> bool {
        self.disk().is_dead
    }

    /// The process that used it is gone, and the next one may come.
    pub(super) fn process_ends(&self) {
        let mut disk = self.disk();
        (disk.dies_after_calls, disk.is_dead) = (None, false);
    }

    /// From now on everything works.
    pub(super) fn heal(&self) {
        let mut disk = self.disk();
        (disk.dies_after_calls, disk.fault) = (None, None);
    }

    pub(super) fn set_fault(&self, fault: Option<DiskFault>) {
        self.disk().fault = fault;
    }

    /// Whether a file, such as a segment of a log, got its name since this was last asked.
    pub(super) fn take_named(&self) -> bool {
        std::mem::take(&mut self.disk().has_named)
    }

    /// Whether a call has ever failed: no promise holds any more.
    pub(super) fn has_failed(&self) -> bool {
        self.disk().has_failed
    }

    /// The host loses its power: what wasn't synced is lost or torn. `true` if something was.
    pub(super) fn lose_power(&self) -> bool {
        let mut disk = self.disk();
        let disk = &mut *disk;
        disk.boot += 1;
        let changes = disk.random.index(disk.changes.len() + 1);
        let mut has_lost = changes < disk.changes.len();
        disk.names = disk.durable_names.clone();
        for change in disk.changes.drain(..).take(changes) {
            change.apply(&mut disk.names);
        }
        disk.durable_names = disk.names.clone();
        for content in disk.files.values_mut() {
            let unsynced = content.bytes.len() - content.durable;
            let left = content.durable + if disk.random.one_in(3) { 0 } else { disk.random.index(unsynced + 1) };
            has_lost |= left < content.bytes.len();
            content.bytes.truncate(left);
            // The length is there, and the last blocks aren't.
            if left > content.durable && disk.random.one_in(3) {
                let from = content.durable + disk.random.index(left - content.durable);
                content.bytes[from..].fill(0);
            }
            content.durable = content.bytes.len();
        }
        has_lost
    }
}

impl Storage for SimDisk {
    type File = SimFile;
    type Reader = Cursor<Vec<u8>>;
    type Lock = SimLock;

    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Cursor<Vec<u8>>> {
        let disk = self.disk();
        let file = disk.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Cursor::new(disk.files[file].bytes.clone()))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut disk = self.disk();
        let file = disk.next_file;
        disk.next_file += 1;
        disk.files.insert(file, Content::default());
        if disk.call() {
            disk.change(NameChange::Create(name.into(), file));
        }
        Ok(SimFile { disk: self.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.call() {
            return Ok(());
        }
        if !disk.names.contains_key(from) {
            return Err(ErrorKind::NotFound.into());
        }
        disk.change(NameChange::Rename(from.into(), to.into()));
        disk.has_named = true;
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.call() {
            return Ok(());
        }
        if !disk.names.contains_key(name) {
            return Err(ErrorKind::NotFound.into());
        }
        disk.change(NameChange::Remove(name.into()));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.call() {
            return Ok(());
        }
        if disk.fault == Some(DiskFault::SyncFails) {
            return Err(disk.fail(ErrorKind::Other));
        }
        disk.durable_names = disk.names.clone();
        disk.changes.clear();
        // Nobody will ever find the others.
        let Disk { files, names, .. } = &mut *disk;
        files.retain(|file, _| names.values().any(|named| named == file));
        Ok(())
    }

    fn lock(&self, name: &str, make: bool) -> io::Result<Option<SimLock>> {
        let is_there = self.disk().names.contains_key(name);
        if !is_there && !make {
            return Err(ErrorKind::NotFound.into());
        }
        if !is_there {
            self.create(name)?;
        }
        let was_locked = std::mem::replace(&mut self.disk().is_locked, true);
        Ok((!was_locked).then(|| SimLock(self.clone())))
    }

    fn boot(&self) -> String {
        format!("boot-{}", self.disk().boot)
    }
}

/// The lock on a directory.
#[derive(Debug)]
pub(super) struct SimLock(SimDisk);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.disk().is_locked = false;
    }
}

/// A file that is being written.
#[derive(Clone, Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    file: u64,
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.disk.disk();
        if !disk.call() {
            return Ok(bytes.len());
        }
        if disk.fault == Some(DiskFault::Full) {
            return Err(disk.fail(ErrorKind::StorageFull));
        }
        if let Some(content) = disk.files.get_mut(&self.file) {
            content.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StorageFile for SimFile {
    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.disk();
        if !disk.call() {
            return Ok(());
        }
        if disk.fault == Some(DiskFault::SyncFails) {
            return Err(disk.fail(ErrorKind::Other));
        }
        if let Some(content) = disk.files.get_mut(&self.file) {
            content.durable = content.bytes.len();
        }
        Ok(())
    }
}
