//! The storage of a log directory: a directory of the host, or a simulated one.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A directory of files, and what a loss of power may do to it.
///
/// What a process has written survives the process. It survives a loss of power only if the file
/// was synced ([`StorageFile::sync`]); a new name, a rename or a removal only if the directory was
/// ([`Storage::sync_directory`]). Otherwise the disk may have all of it, some of it, or nothing.
pub trait Storage: Clone + fmt::Debug + Send + Sync + 'static {
    /// A file that is being written.
    type File: StorageFile;
    /// A file that is being read.
    type Reader: Read + fmt::Debug;
    /// Locks the directory for this process while the value lives.
    type Lock: fmt::Debug + Send + Sync + 'static;

    /// The directory's path, for messages.
    fn path(&self) -> &Path;

    /// The names of the regular files, in any order.
    ///
    /// # Errors
    /// If the host refuses.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `NotFound` if there is none; others if it isn't a regular file, or the host refuses.
    fn read(&self, name: &str) -> io::Result<Self::Reader>;

    /// Creates an empty file for writing; an existing one of this name is truncated.
    ///
    /// # Errors
    /// If the host refuses.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Renames a file, and replaces an existing one of the new name.
    ///
    /// # Errors
    /// If the host refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` if there is none; others if the host refuses.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes created, renamed and removed names durable.
    ///
    /// # Errors
    /// If the disk fails; what it has is unknown then.
    fn sync_directory(&self) -> io::Result<()>;

    /// Locks the directory for this process by the file `name`, which is created if `make`. `None`
    /// if another process has locked it.
    ///
    /// # Errors
    /// `NotFound` if there is no such file and none is to be created; others if the host refuses.
    fn lock(&self, name: &str, make: bool) -> io::Result<Option<Self::Lock>>;

    /// The host's current boot: a restart of the host loses what was only in its memory. Empty if
    /// the host doesn't name its boots.
    fn boot(&self) -> String;

    /// A file's path, for messages.
    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// A file to append to. Clones append to the same file.
pub trait StorageFile: Write + Clone + fmt::Debug + Send + Sync + 'static {
    /// Makes durable what was written.
    ///
    /// # Errors
    /// If the disk fails; what it has is unknown then.
    fn sync(&self) -> io::Result<()>;
}

/// Writes a small file and makes its content durable.
pub(super) fn write_synced(storage: &impl Storage, name: &str, text: &str) -> io::Result<()> {
    let mut file = storage.create(name)?;
    file.write_all(text.as_bytes())?;
    file.sync()
}

/// Replaces a small file. Readers find the old text or the new one, and after a loss of power too
/// if the content `is_synced`.
pub(super) fn replace(storage: &impl Storage, name: &str, text: &str, is_synced: bool) -> io::Result<()> {
    let new = format!("{name}.new");
    if is_synced {
        write_synced(storage, &new, text)?;
    } else {
        storage.create(&new)?.write_all(text.as_bytes())?;
    }
    storage.rename(&new, name)
}

/// Replaces a small file durably: after a crash it has the old text or the new one.
pub(super) fn replace_durably(storage: &impl Storage, name: &str, text: &str) -> io::Result<()> {
    replace(storage, name, text, true)?;
    storage.sync_directory()
}

/// Removes a file if it exists.
pub(super) fn remove_if_there(storage: &impl Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
