//! A log directory in this host's file system.

use super::storage::{Storage, StorageFile};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where Linux names the host's current boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The longest name of a boot, in bytes.
const BOOT_BYTES_MAX: u64 = 256;

/// A directory of this host.
#[derive(Clone, Debug)]
pub struct HostDirectory(Arc<PathBuf>);

impl HostDirectory {
    /// The directory at `path`, which may not exist.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(Arc::new(path.into()))
    }

    /// Creates the directory and its parents, if they don't exist.
    pub(super) fn make(&self) -> io::Result<()> {
        // For the user alone, because the guest's memory will be in it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&*self.0)
    }
}

impl Storage for HostDirectory {
    type File = HostFile;
    type Reader = File;
    type Lock = File;

    fn path(&self) -> &Path {
        &self.0
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&*self.0)? {
            let entry = entry?;
            // Reading a pipe would never end. A name that isn't text is none of this log's.
            if entry.path().is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<File> {
        let path = self.path_of(name);
        if path.exists() && !path.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        File::open(path)
    }

    fn create(&self, name: &str) -> io::Result<HostFile> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(self.path_of(name))?;
        Ok(HostFile(Arc::new(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path_of(from), self.path_of(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path_of(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&*self.0)?.sync_all()
    }

    fn lock(&self, name: &str, make: bool) -> io::Result<Option<File>> {
        let file =
            File::options().read(true).write(true).create(make).truncate(false).mode(0o600).open(self.path_of(name))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn boot(&self) -> String {
        let mut boot = String::new();
        let read = File::open(BOOT_ID).and_then(|file| file.take(BOOT_BYTES_MAX).read_to_string(&mut boot));
        if read.is_ok() { boot.trim().to_owned() } else { String::new() }
    }
}

/// A file of this host that is being written.
#[derive(Clone, Debug)]
pub struct HostFile(Arc<File>);

impl Write for HostFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

impl StorageFile for HostFile {
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
