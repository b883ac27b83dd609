//! Guests: the built-in ones, and those in files.

use super::files;
use logchannel::session::IMAGE_BYTES_MAX;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use vm::{DISK_BYTES_MAX, Image, PAGE_BYTES};

/// A guest's image.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its built-in name, or its kernel's path.
    pub name: String,
    /// The kernel, or a container of kernel, initrd and disk: see [`vm::Image`].
    pub image: Vec<u8>,
}

const BUILT_IN: [(&str, &[u8]); 9] = [
    ("bench", include_bytes!(concat!(env!("OUT_DIR"), "/bench.elf"))),
    ("counter", include_bytes!(concat!(env!("OUT_DIR"), "/counter.elf"))),
    ("echo", include_bytes!(concat!(env!("OUT_DIR"), "/echo.elf"))),
    ("hello", include_bytes!(concat!(env!("OUT_DIR"), "/hello.elf"))),
    ("kv", include_bytes!(concat!(env!("OUT_DIR"), "/kv.elf"))),
    ("lock", include_bytes!(concat!(env!("OUT_DIR"), "/lock.elf"))),
    ("rewrite", include_bytes!(concat!(env!("OUT_DIR"), "/rewrite.elf"))),
    ("suite", include_bytes!(concat!(env!("OUT_DIR"), "/suite.elf"))),
    ("tally", include_bytes!(concat!(env!("OUT_DIR"), "/tally.elf"))),
];

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The name is neither a built-in guest's nor a file's.
    #[error("guest {name}: not a built-in guest ({}), and as a file: {source}", built_in_names())]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// Why the file can't be read.
        source: io::Error,
    },
    /// A file of the guest can't be read.
    #[error("can't read the {what} {}: {source}", .path.display())]
    Unreadable {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has nothing in it.
    #[error("the {what} {} is empty", .path.display())]
    Empty {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// The image is larger than a log can carry.
    #[error(
        "the {what} {} is too large: a disk may have {} MiB, and the files of a guest {} MiB together, because a log carries them",
        .path.display(), DISK_BYTES_MAX >> 20, IMAGE_BYTES_MAX >> 20
    )]
    TooLarge {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
}

impl Guest {
    /// The built-in guest of that name, or else the file of that name.
    ///
    /// # Errors
    /// [`GuestError`] if there is neither, or it is too large.
    pub fn load(name: &str) -> Result<Self, GuestError> {
        if let Some((_, image)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Ok(Self { name: name.into(), image: image.to_vec() });
        }
        Self::from_kernel("guest", Path::new(name)).map_err(|error| match error {
            GuestError::Unreadable { source, .. } => GuestError::Unknown { name: name.into(), source },
            error @ (GuestError::Unknown { .. } | GuestError::Empty { .. } | GuestError::TooLarge { .. }) => error,
        })
    }

    /// The guest whose kernel, or bare program, is the file at `path`. `what` names it in an error.
    ///
    /// # Errors
    /// [`GuestError`] if it can't be read, or is too large.
    pub fn from_kernel(what: &'static str, path: &Path) -> Result<Self, GuestError> {
        Ok(Self { name: path.display().to_string(), image: read(what, path, IMAGE_BYTES_MAX)? })
    }

    /// Adds an initrd and a disk, as far as they are given. A disk that isn't a whole number of
    /// pages is filled up with zeros.
    ///
    /// # Errors
    /// [`GuestError`] if a file can't be read, or they are too large together.
    pub fn with_files(self, initrd: Option<&Path>, disk: Option<&Path>) -> Result<Self, GuestError> {
        if initrd.is_none() && disk.is_none() {
            return Ok(self);
        }
        // The container's header and the disk's last page come on top.
        let mut room = IMAGE_BYTES_MAX.saturating_sub(self.image.len() + 2 * PAGE_BYTES);
        let initrd = initrd.map(|path| read("initrd", path, room)).transpose()?;
        room -= initrd.as_ref().map_or(0, Vec::len);
        let mut disk = disk
            .map(|path| read("disk", path, room.min(usize::try_from(DISK_BYTES_MAX).unwrap_or(usize::MAX))))
            .transpose()?;
        if let Some(disk) = &mut disk {
            disk.resize(disk.len().next_multiple_of(PAGE_BYTES), 0);
        }
        let image = Image { kernel: &self.image, initrd: initrd.as_deref(), disk: disk.as_deref() }.pack();
        Ok(Self { name: self.name, image })
    }

    /// The length of its disk, in bytes; 0 if it has none.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let disk = Image::parse(&self.image).ok().and_then(|image| image.disk);
        disk.map_or(0, |disk| disk.len().next_multiple_of(PAGE_BYTES) as u64)
    }
}

/// The contents of a file. Of a file longer than `bytes_max` only a little more than that is read.
fn read(what: &'static str, path: &Path, bytes_max: usize) -> Result<Vec<u8>, GuestError> {
    let unreadable = |source| GuestError::Unreadable { what, path: path.into(), source };
    let mut contents = Vec::new();
    let file = files::open(path).map_err(unreadable)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut contents).map_err(unreadable)?;
    if contents.len() > bytes_max {
        return Err(GuestError::TooLarge { what, path: path.into() });
    }
    if contents.is_empty() {
        return Err(GuestError::Empty { what, path: path.into() });
    }
    Ok(contents)
}

/// The names of the built-in guests, for a person.
#[must_use]
pub fn built_in_names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::{Guest, GuestError, read};
    use std::fs;
    use std::path::Path;
    use vm::Image;

    #[test]
    fn files_are_packed_and_a_disk_has_whole_pages() {
        let directory = tempfile::tempdir().unwrap();
        let [kernel, initrd, disk] = ["kernel", "initrd", "disk"].map(|name| {
            let path = directory.path().join(name);
            fs::write(&path, name).unwrap();
            path
        });
        let guest = Guest::from_kernel("kernel", &kernel).unwrap();
        assert_eq!(guest.image, b"kernel");
        assert_eq!(guest.clone().with_files(None, None).unwrap().image, b"kernel");
        let guest = guest.with_files(Some(&initrd), Some(&disk)).unwrap();
        assert_eq!(guest.name, kernel.display().to_string());
        let image = Image::parse(&guest.image).unwrap();
        assert_eq!((image.kernel, image.initrd), (&b"kernel"[..], Some(&b"initrd"[..])));
        let disk = image.disk.unwrap();
        assert_eq!((disk.len(), &disk[..4]), (4096, &b"disk"[..]));
        assert!(disk[4..].iter().all(|byte| *byte == 0));
        assert_eq!(guest.disk_bytes(), 4096);
    }

    #[test]
    fn what_cannot_be_a_file_of_a_guest_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let refused = |path: &Path| read("initrd", path, 10).unwrap_err().to_string();
        let named = format!("the initrd {}", path.display());
        assert!(refused(&path).contains(&format!("can't read {named}: No such file")), "{}", refused(&path));
        fs::write(&path, b"").unwrap();
        assert_eq!(refused(&path), format!("{named} is empty"));
        fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read("initrd", &path, 10).unwrap().len(), 10);
        fs::write(&path, b"0123456789a").unwrap();
        assert!(refused(&path).contains(&format!("{named} is too large: ")), "{}", refused(&path));
        assert!(refused(directory.path()).contains("Is a directory"), "{}", refused(directory.path()));
        assert!(matches!(read("disk", Path::new("/dev/zero"), 1000), Err(GuestError::Unreadable { .. })));
        let unknown = Guest::load("no such guest").unwrap_err().to_string();
        assert!(unknown.contains("not a built-in guest (bench, counter, echo, hello"), "{unknown}");
    }
}
