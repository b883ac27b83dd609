//! An image: the files that a guest starts from, in one sequence of bytes.
//!
//! Logs and digests treat an image as opaque bytes. An image of a kernel alone is the kernel file
//! itself. With an initrd or a disk it is a container; its integers are little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `FTIMAGE\0` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | parts beside the kernel: bit 0 initrd, bit 1 disk |
//! | 16 | 8 | length of the kernel, in bytes |
//! | 24 | 8 | length of the initrd; 0 if there is none |
//! | 32 | 8 | length of the disk; 0 if there is none |
//! | 40 | | kernel, initrd and disk, one after the other to the end |

use alloc::vec::Vec;

const MAGIC: [u8; 8] = *b"FTIMAGE\0";
const VERSION: u32 = 1;
const HAS_INITRD: u32 = 1 << 0;
const HAS_DISK: u32 = 1 << 1;
const HEADER_BYTES: usize = 40;

/// The files that a guest starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// The kernel: an ELF file, or a Linux kernel in its `Image` format.
    pub kernel: &'a [u8],
    /// The initial ramdisk, which the kernel finds through its device tree.
    pub initrd: Option<&'a [u8]>,
    /// The contents of the disk at reset.
    pub disk: Option<&'a [u8]>,
}

/// Bytes that begin like a container of files and aren't one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The length of the bytes is not the one that the header says.
    #[error("the image has {found} bytes, its header says {expected}; it may be truncated")]
    Length {
        /// Length according to the header, in bytes; that of the header itself if the bytes end in
        /// it.
        expected: u128,
        /// Length of the bytes.
        found: usize,
    },
    /// A container of another version than this build reads.
    #[error("the image is a container of version {found}; this build knows version {VERSION}")]
    Version {
        /// Version according to the header.
        found: u32,
    },
    /// The header names parts that don't exist, or gives a length to an absent part.
    #[error("the image's header is malformed: {0}")]
    Malformed(&'static str),
}

impl<'a> Image<'a> {
    /// An image of a kernel alone.
    #[must_use]
    pub const fn of_kernel(kernel: &'a [u8]) -> Self {
        Self { kernel, initrd: None, disk: None }
    }

    /// Packs the image into one sequence of bytes, which [`Self::parse`] reads.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let Self { kernel, initrd, disk } = *self;
        // A kernel that begins like a container is put into one, so that it isn't taken for one.
        if initrd.is_none() && disk.is_none() && !kernel.starts_with(&MAGIC) {
            return kernel.to_vec();
        }
        let parts = if initrd.is_some() { HAS_INITRD } else { 0 } | if disk.is_some() { HAS_DISK } else { 0 };
        let contents = [kernel, initrd.unwrap_or_default(), disk.unwrap_or_default()];
        let bytes = HEADER_BYTES + contents.iter().map(|part| part.len()).sum::<usize>();
        let mut packed = Vec::with_capacity(bytes);
        packed.extend_from_slice(&MAGIC);
        packed.extend_from_slice(&VERSION.to_le_bytes());
        packed.extend_from_slice(&parts.to_le_bytes());
        contents.iter().for_each(|part| packed.extend_from_slice(&(part.len() as u64).to_le_bytes()));
        contents.iter().for_each(|part| packed.extend_from_slice(part));
        packed
    }

    /// Reads the image in `bytes`, without looking into its files.
    ///
    /// # Errors
    /// [`ImageError`] if `bytes` begin like a container and aren't one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        if !bytes.starts_with(&MAGIC) {
            return Ok(Self::of_kernel(bytes));
        }
        let Some((header, contents)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ImageError::Length { expected: HEADER_BYTES as u128, found: bytes.len() });
        };
        let [version, parts] = [8, 12].map(|at| u32::from_le_bytes(field(header, at)));
        let [kernel, initrd, disk] = [16, 24, 32].map(|at| u64::from_le_bytes(field(header, at)));
        if version != VERSION {
            return Err(ImageError::Version { found: version });
        }
        if parts & !(HAS_INITRD | HAS_DISK) != 0 {
            return Err(ImageError::Malformed("it has parts that don't exist"));
        }
        let [has_initrd, has_disk] = [HAS_INITRD, HAS_DISK].map(|part| parts & part != 0);
        if (!has_initrd && initrd != 0) || (!has_disk && disk != 0) {
            return Err(ImageError::Malformed("it gives a length to a part that is absent"));
        }
        let expected = HEADER_BYTES as u128 + [kernel, initrd, disk].map(u128::from).iter().sum::<u128>();
        if expected != bytes.len() as u128 {
            return Err(ImageError::Length { expected, found: bytes.len() });
        }
        let truncated = ImageError::Length { expected, found: bytes.len() };
        let take = |rest: &'a [u8], length: u64| usize::try_from(length).ok().and_then(|at| rest.split_at_checked(at));
        let (kernel, rest) = take(contents, kernel).ok_or(truncated)?;
        let (initrd, disk) = take(rest, initrd).ok_or(truncated)?;
        Ok(Self { kernel, initrd: has_initrd.then_some(initrd), disk: has_disk.then_some(disk) })
    }
}

/// The `N` bytes of a header from `at` on.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("the fields lie in the header")
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, Image, ImageError, MAGIC};
    use alloc::vec::Vec;

    fn all() -> [Image<'static>; 6] {
        let image = |initrd, disk| Image { kernel: b"kernel", initrd, disk };
        [
            image(None, None),
            image(Some(b"initrd"), None),
            image(None, Some(b"disk")),
            image(Some(b""), Some(b"disk")),
            Image::of_kernel(b""),
            Image::of_kernel(b"FTIMAGE\0 in disguise"),
        ]
    }

    fn patched(offset: usize, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
        let mut packed = Image { kernel: b"kernel", initrd: Some(b"initrd"), disk: None }.pack();
        packed[offset..offset + bytes.len()].copy_from_slice(bytes);
        Image::parse(&packed).map(|image| image.kernel.to_vec())
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        for image in all() {
            assert_eq!(Image::parse(&image.pack()), Ok(image));
        }
        assert_eq!(Image::of_kernel(b"\x7fELF").pack(), b"\x7fELF", "a kernel alone is its own image");
    }

    #[test]
    fn a_container_that_is_cut_or_too_long_is_refused() {
        for image in all().iter().filter(|image| image.pack().starts_with(&MAGIC)) {
            let mut packed = image.pack();
            for length in MAGIC.len()..packed.len() {
                let cut = Image::parse(&packed[..length]);
                assert!(matches!(cut, Err(ImageError::Length { .. })), "cut at {length}: {cut:?}");
            }
            packed.push(0);
            assert!(matches!(Image::parse(&packed), Err(ImageError::Length { .. })));
        }
    }

    #[test]
    fn every_field_of_the_header_is_checked() {
        assert_eq!(patched(8, &[2]), Err(ImageError::Version { found: 2 }));
        assert!(matches!(patched(12, &[5]), Err(ImageError::Malformed(_))), "a third part");
        assert!(matches!(patched(12, &[0]), Err(ImageError::Malformed(_))), "a length without a part");
        assert!(matches!(patched(32, &[1]), Err(ImageError::Malformed(_))), "a length without a part");
        for at in [16, 24] {
            assert!(matches!(patched(at, &[7]), Err(ImageError::Length { .. })), "one more");
            assert!(matches!(patched(at, &[0xff; 8]), Err(ImageError::Length { .. })), "beyond all bounds");
        }
        // Lengths whose sum overflows back to what is there.
        let mut both = [0; 16];
        both[..8].copy_from_slice(&(u64::MAX - 5).to_le_bytes());
        both[8..].copy_from_slice(&18_u64.to_le_bytes());
        assert!(matches!(patched(16, &both), Err(ImageError::Length { .. })));
        assert_eq!(patched(HEADER_BYTES, b"K"), Ok(b"Kernel".to_vec()));
    }
}
