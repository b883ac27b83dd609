//! Files that an operator names.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens the file at `path` to read it.
///
/// A FIFO is refused, and so is a device that isn't a disk: a program that waits there for a writer doesn't hear Ctrl-C, and
/// what comes out of a device need not end.
///
/// # Errors
/// If it can't be opened, or is none that can be read to its end at once.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without the flag, opening a FIFO is what waits. It means nothing for regular files and disks.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    refuse_fifo(file.metadata()?.file_type(), "copy what comes out of it into a file, and name that")?;
    if file.metadata()?.file_type().is_char_device() {
        return Err(io::Error::other("it is a device without an end; name a file"));
    }
    Ok(file)
}

/// Opens the file at `path` to write it from its beginning.
///
/// # Errors
/// If it can't be opened, or is a FIFO: writing there waits for a reader, and a log is written in one go with the guest's run.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = match options.custom_flags(nix::libc::O_NONBLOCK).open(path) {
        // What a FIFO that nobody reads answers.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {
            return Err(io::Error::other("it is a FIFO or a socket; name a file"));
        }
        opened => opened?,
    };
    refuse_fifo(file.metadata()?.file_type(), "name a file")?;
    Ok(file)
}

fn refuse_fifo(kind: FileType, advice: &str) -> io::Result<()> {
    if kind.is_fifo() {
        return Err(io::Error::other(format!("it is a FIFO (a named pipe); {advice}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{create, open};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::io::Read;
    use std::path::Path;

    /// Without the fix this doesn't end.
    #[test]
    fn a_fifo_is_refused_at_once_for_reading_and_for_writing() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let refused = open(&fifo).unwrap_err().to_string();
        assert!(refused.contains("FIFO") && refused.contains("into a file"), "{refused}");
        assert!(create(&fifo).unwrap_err().to_string().contains("FIFO"));
        // With somebody at the other end it opens, and is one all the same.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(open(&fifo).unwrap_err().to_string().contains("FIFO"));
        assert!(create(&fifo).unwrap_err().to_string().contains("FIFO"));
    }

    #[test]
    fn a_file_is_a_file_and_a_device_without_an_end_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(open(&path).is_err());
        drop(create(&path).unwrap());
        fs::write(&path, b"contents").unwrap();
        let mut contents = String::new();
        open(&path).unwrap().read_to_string(&mut contents).unwrap();
        assert_eq!(contents, "contents");
        drop(create(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("without an end"));
        assert!(create(Path::new("/dev/null")).is_ok());
    }
}
