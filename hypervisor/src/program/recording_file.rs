//! The file of a recording: locked while it is written, and not under its name before it can be
//! replayed.
//!
//! ```text
//!   NAME.part   locked, being begun       rename       NAME   locked, being written
//!               image not whole yet    ───────────►           whole up to its last frame at any time
//! So two recordings under one name don't destroy each other, and a recording that can't begin
//! destroys no older one.

use super::Failure;
use super::files;
use logchannel::file::LogWriter;
use logchannel::session::SessionHeader;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Writes a log's head, and returns the writer of its entries. From then on the file is at `path`;
/// an existing file is replaced only if `is_forced`.
pub(super) fn create(
    path: &Path,
    is_forced: bool,
    session: &SessionHeader,
    image: &[u8],
) -> Result<LogWriter<BufWriter<File>>, Failure> {
    let name = path.display();
    let unwritable = |error: io::Error| format!("can't write the log {name}: {error}");
    let writing = |error: io::Error| format!("writing {name}: {error}");
    let exists = || format!("{name} exists; --force overwrites it, --output names another");
    let begin = |file: File| LogWriter::create(BufWriter::new(file), session, image).map_err(writing);
    // Replaces the target of a symbolic link, and not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.into());
    match fs::metadata(path) {
        Ok(_) if !is_forced => return Err(exists().into()),
        // A device or a pipe has no neighbour `NAME.part`.
        Ok(metadata) if !metadata.is_file() => {
            return Ok(begin(files::open_to_write(path).map_err(unwritable)?)?);
        }
        Ok(_) | Err(_) => {}
    }
    let part = Part::open(path).map_err(unwritable)?.ok_or_else(|| being_written(path))?;
    if is_forced && File::open(path).is_ok_and(|old| matches!(old.try_lock_shared(), Err(TryLockError::WouldBlock))) {
        return Err(being_written(path).into());
    }
    part.file.set_len(0).map_err(unwritable)?;
    let log = begin(part.file.try_clone().map_err(unwritable)?)?;
    match part.rename(path, is_forced) {
        Ok(()) => Ok(log),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists().into()),
        Err(error) => Err(unwritable(error).into()),
    }
}

fn being_written(path: &Path) -> String {
    format!("{} is being written by another process; --output names another", path.display())
}

/// The file under its first name, which is removed when this is dropped.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opens and locks the part of `path`; `None` if another process has it.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let mut name = OsString::from(path);
        name.push(".part");
        let path = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // It may have been opened before another process renamed it, and locked after that process
        // ended.
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let is_there = fs::metadata(&path).map(identity).ok() == Some(identity(file.metadata()?));
        Ok(is_there.then_some(Self { path, file }))
    }

    /// Renames the file to `path`.
    fn rename(&self, path: &Path, is_forced: bool) -> io::Result<()> {
        if is_forced {
            return fs::rename(&self.path, path);
        }
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            // A file system without this flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(&self.path, path),
            result => Ok(result?),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has none any more if it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::{LogWriter, SessionHeader, create};
    use logchannel::entry::Generation;
    use logchannel::file::LogReader;
    use logchannel::session::VmId;
    use std::fs::{self, File};
    use std::io::BufWriter;
    use std::path::Path;
    use vm::MachineConfig;

    fn begin(path: &Path, is_forced: bool) -> Result<LogWriter<BufWriter<File>>, String> {
        let header =
            SessionHeader::new(VmId::new("vm0").unwrap(), Generation(0), MachineConfig::default(), "", b"image");
        create(path, is_forced, &header.unwrap(), b"image").map_err(|error| error.to_string())
    }

    #[test]
    fn two_recordings_under_one_name_do_not_destroy_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let first = begin(&path, false).unwrap();
        assert!(LogReader::open(File::open(&path).unwrap()).is_ok(), "its head is whole as soon as it has its name");
        assert!(begin(&path, false).unwrap_err().contains("exists; --force overwrites it"));
        assert!(begin(&path, true).unwrap_err().contains("is being written by another process"));
        drop(first.finish().unwrap());
        let whole = fs::read(&path).unwrap();
        assert!(begin(&path, false).is_err());
        assert_eq!(fs::read(&path).unwrap(), whole);
        drop(begin(&path, true).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn while_one_begins_another_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let part = super::Part::open(&path).unwrap().unwrap();
        assert!(begin(&path, false).unwrap_err().contains("is being written by another process"));
        // The name belongs to another file by now, as when a recording ends in between.
        let late = File::open(&part.path).unwrap();
        fs::rename(&part.path, &path).unwrap();
        assert!(begin(&path, false).unwrap_err().contains("exists"));
        assert!(begin(&path, true).unwrap_err().contains("is being written by another process"));
        drop((part, late));
    }

    #[test]
    fn a_device_stays_what_it_is() {
        drop(begin(Path::new("/dev/null"), true).unwrap());
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(begin(Path::new("/dev/full"), true).unwrap_err().contains("No space left on device"));
    }
}
