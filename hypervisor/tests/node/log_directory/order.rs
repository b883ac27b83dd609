//! The order in which a log asks its storage for things: what a loss of power leaves depends on it.

use super::joining::{Following, running};
use super::vm::{limits, vm_id};
use hypervisor::node::log::{
    DiskLimits, DiskLogSteps, HostDirectory, LogDirectory, LogWait, LogWriterKind, Storage, StorageFile,
};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A request to the storage that changes what a loss of power leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Write(String),
    Sync(String),
    Rename(String),
}

type Requests = Arc<Mutex<Vec<Request>>>;

/// A directory of the host that records what is asked of it.
#[derive(Clone, Debug)]
struct Recorded {
    directory: HostDirectory,
    requests: Requests,
}

#[derive(Clone, Debug)]
struct RecordedFile {
    file: <HostDirectory as Storage>::File,
    name: String,
    requests: Requests,
}

impl Write for RecordedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.requests.lock().unwrap().push(Request::Write(self.name.clone()));
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StorageFile for RecordedFile {
    fn sync(&self) -> io::Result<()> {
        self.requests.lock().unwrap().push(Request::Sync(self.name.clone()));
        self.file.sync()
    }
}

impl Storage for Recorded {
    type File = RecordedFile;
    type Reader = File;
    type Lock = File;

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn read(&self, name: &str) -> io::Result<File> {
        self.directory.read(name)
    }

    fn create(&self, name: &str) -> io::Result<RecordedFile> {
        let file = self.directory.create(name)?;
        Ok(RecordedFile { file, name: name.into(), requests: self.requests.clone() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.requests.lock().unwrap().push(Request::Rename(to.into()));
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.directory.sync_directory()
    }

    fn lock(&self, name: &str, make: bool) -> io::Result<Option<File>> {
        self.directory.lock(name, make)
    }

    fn boot(&self) -> String {
        self.directory.boot()
    }
}

/// The requests from the moment at which a backup with everything received and replayed goes live.
fn requests_of_going_live(wait: LogWait) -> Vec<Request> {
    let directory = TempDir::new().unwrap();
    let requests = Requests::default();
    let storage = Recorded { directory: HostDirectory::at(directory.path()), requests: requests.clone() };
    let log = LogDirectory::lock(storage, &vm_id()).unwrap();
    let mut vm = running();
    let mut steps = None;
    let limits = DiskLimits { wait, ..limits(u64::MAX) };
    let mut following = Following::join_with(&mut vm, log, limits, |made| steps = Some(made));
    // The sync step is never called: nothing but the writer itself makes the entries durable.
    let DiskLogSteps { mut writer, .. } = steps.unwrap();
    writer.step(0);
    vm.run(10);
    following.follow(&vm, 0);
    following.disk.become_kind(LogWriterKind::Owner);
    requests.lock().unwrap().clear();
    writer.step(0);
    let requests = requests.lock().unwrap().clone();
    assert!(matches!(requests.last(), Some(Request::Rename(_))), "the note of the writer: {requests:?}");
    requests
}

/// A note that says "owner" and survives a loss of power promises that everything the backup
/// acknowledged is in the log: `--resume` goes on from it without consent.
#[test]
fn a_durable_log_is_its_owners_only_once_the_entries_received_before_are_on_disk() {
    let requests = requests_of_going_live(LogWait::Durable);
    let segment = |request: &Request| match request {
        Request::Write(name) if name.starts_with("kept") => None,
        Request::Write(name) => Some(name.clone()),
        Request::Sync(_) | Request::Rename(_) => None,
    };
    let written = requests.iter().rposition(|request| segment(request).is_some()).expect("entries are written");
    let synced = Request::Sync(segment(&requests[written]).unwrap());
    let note = requests.len() - 1;
    assert!(requests[written..note].contains(&synced), "{requests:?}");
}

/// Without `durable` the note is worth no more than the entries: neither waits for the disk.
#[test]
fn a_written_log_becomes_its_owners_without_waiting_for_the_disk() {
    let requests = requests_of_going_live(LogWait::Written);
    assert!(!requests.iter().any(|request| matches!(request, Request::Sync(_))), "{requests:?}");
}
