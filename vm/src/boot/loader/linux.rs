//! Linux kernels in the `Image` format: 64 bytes of header that are also code, and the kernel as it
//! lies in memory.
//!
//! Source: Linux, Documentation/arch/riscv/boot-image-header.rst.

use super::{LoadError, LoadedKernel, copy};
use crate::ram::pages::PAGE_BYTES;
use crate::ram::{RAM_BASE, Ram};
use core::ops::Range;

const HEADER_BYTES: usize = 64;
const MAGIC: Range<usize> = 0x38..0x3c;
const FLAG_BIG_ENDIAN: u64 = 1 << 0;

/// The fields of the header that a loader needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinuxHeader {
    /// Offset of the kernel from the beginning of RAM.
    pub(super) text_offset: u64,
    /// Bytes that the kernel takes in RAM, including those that aren't in the file.
    image_size: u64,
    flags: u64,
}

impl LinuxHeader {
    /// The header that `kernel` begins with, if it begins with one.
    pub(super) fn read(kernel: &[u8]) -> Option<Self> {
        let header = kernel.first_chunk::<HEADER_BYTES>()?;
        if header[MAGIC] != *b"RSC\x05" {
            return None;
        }
        let word = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Some(Self { text_offset: word(0x08), image_size: word(0x10), flags: word(0x18) })
    }
}

/// The physical address of a kernel with this text offset.
pub(super) const fn address(text_offset: u64) -> Option<u64> {
    if text_offset.is_multiple_of(PAGE_BYTES as u64) { RAM_BASE.checked_add(text_offset) } else { None }
}

/// Copies `kernel` to the address that its `header` says, below `end`.
pub(super) fn load(ram: &mut Ram, end: u64, header: LinuxHeader, kernel: &[u8]) -> Result<LoadedKernel, LoadError> {
    let LinuxHeader { text_offset, image_size, flags } = header;
    if flags & FLAG_BIG_ENDIAN != 0 {
        return Err(LoadError::LinuxHeader { field: "flags", value: flags, expected: "a little-endian kernel" });
    }
    let misplaced =
        LoadError::LinuxHeader { field: "text_offset", value: text_offset, expected: "a multiple of 4096 within RAM" };
    let address = address(text_offset).ok_or(misplaced)?;
    // Old kernels have image_size 0.
    let bytes = image_size.max(kernel.len() as u64);
    if address.checked_add(bytes).is_none_or(|kernel_end| kernel_end > end) {
        return Err(LoadError::NoRoom { what: "kernel", bytes, from: address, end });
    }
    copy(ram, address, kernel);
    Ok(LoadedKernel { entry: address, host_port: None })
}

/// The format in which `kernel` is compressed and the tool that unpacks it; `None` if it isn't
/// compressed.
pub(super) fn compression(kernel: &[u8]) -> Option<(&'static str, &'static str)> {
    const FORMATS: [(&[u8], &str, &str); 5] = [
        (b"\x1f\x8b", "gzip", "gunzip"),
        (b"\xfd7zXZ\0", "xz", "unxz"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
        (b"BZh", "bzip2", "bunzip2"),
        (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    ];
    FORMATS.iter().find(|(magic, ..)| kernel.starts_with(magic)).map(|(_, name, tool)| (*name, *tool))
}

/// The position of the compressed kernel in an EFI zboot image, which unpacks itself on EFI
/// firmware only.
///
/// Source: Linux, drivers/firmware/efi/libstub/zboot-header.S.
pub(super) fn zboot_payload(kernel: &[u8]) -> Option<Range<u64>> {
    let header = kernel.first_chunk::<HEADER_BYTES>()?;
    if header[..2] != *b"MZ" || header[4..8] != *b"zimg" {
        return None;
    }
    let word = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    Some(word(8)..word(8) + word(12))
}
