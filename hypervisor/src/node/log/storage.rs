//! What a log directory is kept in: a directory of a host's disk, or a simulated one.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A directory of files, and what a power loss may do to it.
///
/// What a process has written survives the process. It survives a loss of power only when the file
/// was synced ([`StorageFile::sync`]); a new name, a rename and a removal only when the directory
/// was ([`Storage::sync_directory`]). Without that the disk may have all of it, some of it or
/// nothing.
pub trait Storage: Clone + fmt::Debug + Send + Sync + 'static {
    /// A file that is being written.
    type File: StorageFile;
    /// A file that is being read.
    type Reader: Read + fmt::Debug;
    /// The directory is this process's as long as this lives.
    type Lock: fmt::Debug + Send + Sync + 'static;

    /// Where it is, for people.
    fn path(&self) -> &Path;

    /// The names of the regular files in it, in no order.
    ///
    /// # Errors
    /// If the host refuses.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file to read it.
    ///
    /// # Errors
    /// `NotFound` if there is none; others if it is no regular file, or the host refuses.
    fn read(&self, name: &str) -> io::Result<Self::Reader>;

    /// Makes an empty file to write it; what had this name loses its content.
    ///
    /// # Errors
    /// If the host refuses.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name. The file that had it is gone.
    ///
    /// # Errors
    /// If the host refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` if there is none; others if the host refuses.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// If the disk fails: nothing is known then of what it has.
    fn sync_directory(&self) -> io::Result<()>;

    /// Takes the directory for this process by the lock on the file `name`, which is made if `make`
    /// says so. `None` if another process has it.
    ///
    /// # Errors
    /// `NotFound` if there is no such file and none is to be made; others if the host refuses.
    fn lock(&self, name: &str, make: bool) -> io::Result<Option<Self::Lock>>;

    /// What tells one run of the host from the next: what was only in its memory is lost between
    /// them. Empty if the host doesn't tell.
    fn boot(&self) -> String;

    /// Where a file is, for people.
    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// A file that is being written at its end. Clones write the same file.
pub trait StorageFile: Write + Clone + fmt::Debug + Send + Sync + 'static {
    /// Makes durable what was written.
    ///
    /// # Errors
    /// If the disk fails: nothing is known then of what it has.
    fn sync(&self) -> io::Result<()>;
}

/// Writes a small file, and makes its content durable.
pub(super) fn write_synced(storage: &impl Storage, name: &str, text: &str) -> io::Result<()> {
    let mut file = storage.create(name)?;
    file.write_all(text.as_bytes())?;
    file.sync()
}

/// Replaces a small file: readers find its old text or its new one; after a loss of power too, if
/// the content `is_synced`.
pub(super) fn replace(storage: &impl Storage, name: &str, text: &str, is_synced: bool) -> io::Result<()> {
    let new = format!("{name}.new");
    if is_synced {
        write_synced(storage, &new, text)?;
    } else {
        storage.create(&new)?.write_all(text.as_bytes())?;
    }
    storage.rename(&new, name)
}

/// The same, durably: after a crash it has its old text or its new one.
pub(super) fn replace_durably(storage: &impl Storage, name: &str, text: &str) -> io::Result<()> {
    replace(storage, name, text, true)?;
    storage.sync_directory()
}

/// Removes a file that may not be there.
pub(super) fn remove_if_there(storage: &impl Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
