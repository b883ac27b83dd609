//! Files that an operator names.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens the file at `path` to read it.
///
/// Refuses a FIFO, and a device that isn't a disk: opening a FIFO would wait for a writer, deaf to
/// Ctrl-C, and reading a device need not end.
///
/// # Errors
/// If it can't be opened, or isn't a file that can be read to its end at once.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without the flag, opening a FIFO waits. It has no effect on regular files and disks.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() {
        return Err(io::Error::other(
            "it is a FIFO (a named pipe); copy what comes out of it into a file, and name that",
        ));
    }
    if kind.is_char_device() {
        return Err(io::Error::other("it is a device without an end; name a file"));
    }
    Ok(file)
}

/// Opens the file at `path` to read it once from its beginning: a pipe that this process was
/// started with (`/dev/stdin`, a shell's `/dev/fd/63`) will do, because it has a writer already.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_stream(path: &Path) -> io::Result<File> {
    if ["/dev/stdin", "/dev/fd", "/proc/self/fd"].iter().any(|given| path.starts_with(given)) {
        return File::open(path);
    }
    open(path)
}

/// Opens a device or a pipe at `path` to write to it.
///
/// # Errors
/// If it can't be opened, or is a FIFO without a reader: opening it would wait for one, deaf to
/// Ctrl-C.
pub(crate) fn open_to_write(path: &Path) -> io::Result<File> {
    let file = match OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {
            return Err(io::Error::other("it is a FIFO (a named pipe) that nobody reads"));
        }
        opened => opened?,
    };
    // Writing itself may wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{open, open_to_write};
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::io::Read;
    use std::path::Path;

    /// Without the fix this doesn't end.
    #[test]
    fn a_fifo_is_refused_at_once_for_reading_and_for_writing_without_a_reader() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let refused = open(&fifo).unwrap_err().to_string();
        assert!(refused.contains("FIFO") && refused.contains("into a file"), "{refused}");
        assert!(open_to_write(&fifo).unwrap_err().to_string().contains("FIFO"));
        // With a process at the other end it opens, and is refused all the same.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(open(&fifo).unwrap_err().to_string().contains("FIFO"));
        let file = open_to_write(&fifo).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "a reader that is slow makes the writer wait");
    }

    #[test]
    fn a_file_is_a_file_and_a_device_without_an_end_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(open(&path).is_err());
        fs::write(&path, b"contents").unwrap();
        let mut contents = String::new();
        open(&path).unwrap().read_to_string(&mut contents).unwrap();
        assert_eq!(contents, "contents");
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("without an end"));
        assert!(open_to_write(Path::new("/dev/null")).is_ok());
    }
}
