//! From an image to the initial state: kernel, initrd and device tree in RAM.
//!
//! ```text
//!   RAM_BASE ── kernel: segments at their physical addresses, or an Image at its offset ── … ── initrd ── device tree ── end
//!                                                                       both page-aligned, as high as they fit
//! ```

mod elf;
mod linux;

use self::linux::LinuxHeader;
use super::device_tree::{self, Contents};
use super::image::{Image, ImageError};
use crate::config::{BootMode, MachineConfig};
use crate::hart::HostPort;
use crate::isa::address::GuestPhysAddr;
use crate::ram::disk::Disk;
use crate::ram::pages::PAGE_BYTES;
use crate::ram::{RAM_BASE, Ram};
use alloc::vec::Vec;

const RAM_BYTES_MIN: u64 = 4 << 20;
const RAM_BYTES_MAX: u64 = 4 << 30;
/// Memory that a machine takes beside its RAM and its disk, in bytes: caches and queues.
const SPARE_BYTES: u64 = 8 << 20;
/// The largest disk, in bytes.
pub const DISK_BYTES_MAX: u64 = 1 << 30;
const BOOTARGS_BYTES_MAX: usize = 2048;

/// Why an image can't be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The configuration is out of range.
    #[error("{0}")]
    Config(&'static str),
    /// The image is a malformed container of files.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel is neither a well-formed ELF file of 64 bits, little-endian, nor a Linux `Image`.
    #[error("the kernel is neither a RISC-V Linux Image nor a 64-bit little-endian ELF file: {0}")]
    NotElf(&'static str),
    /// The kernel is an ELF file for another processor.
    #[error("the kernel is an ELF file for {} (e_machine {found}), not for RISC-V: build it for riscv64", elf::machine_name(*.found))]
    OtherProcessor {
        /// `e_machine`.
        found: u16,
    },
    /// The kernel is an ELF file for RISC-V, but not a statically linked executable.
    #[error(
        "the kernel is {} (e_type {found}), not a static executable: link it with a fixed address (-static -no-pie), or take a \
         Linux kernel's Image", elf::type_name(*.found)
    )]
    NotExecutable {
        /// `e_type`.
        found: u16,
    },
    /// The host has no memory for the machine.
    #[error(
        "the host doesn't give the {} MiB of memory that the machine takes (its RAM, its disk, and notes on their pages)",
        .bytes.div_ceil(1 << 20)
    )]
    NoMemory {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The kernel is a compressed file.
    #[error("the kernel is compressed with {format}; unpack it first: {tool} < KERNEL > Image")]
    Compressed {
        /// Name of the compression format.
        format: &'static str,
        /// The command that unpacks it.
        tool: &'static str,
    },
    /// The kernel is compressed and unpacks itself, but only on EFI firmware.
    #[error(
        "the kernel is an EFI zboot image, which needs EFI firmware; unpack the kernel in it first: \
         tail -c +{} KERNEL | head -c {bytes} | gunzip > Image", .offset + 1
    )]
    Zboot {
        /// Offset of the compressed kernel in the file.
        offset: u64,
        /// Length of the compressed kernel.
        bytes: u64,
    },
    /// A Linux kernel's header has a value with which it can't be loaded.
    #[error("the Linux kernel's header has {field} {value:#x}; it must say {expected}")]
    LinuxHeader {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The values that are accepted, in words.
        expected: &'static str,
    },
    /// There is no room for a part of the image.
    #[error(
        "the {what} takes {bytes:#x} bytes, and there is no room for them between {from:#x} and {end:#x}; give the machine more \
         RAM (--memory)"
    )]
    NoRoom {
        /// Name of the part.
        what: &'static str,
        /// Its length, in bytes.
        bytes: u64,
        /// The lowest address that it may begin at.
        from: u64,
        /// The highest address that it may end at.
        end: u64,
    },
    /// A segment isn't within RAM and below `end`, or all segments together take more than that.
    #[error(
        "segment {segment} takes {bytes:#x} bytes at {address:#x}, which is not between {RAM_BASE:#x} and {end:#x}; \
         link it to RAM, or give the machine more (--memory)"
    )]
    SegmentOutsideRam {
        /// Which program header.
        segment: usize,
        /// Its physical address.
        address: u64,
        /// Its length in memory.
        bytes: u64,
        /// Address of the initrd, or of the device tree if there is no initrd.
        end: u64,
    },
    /// A segment's contents are not in the file, or are longer than the segment.
    #[error("segment {segment}: its contents are not in the image; the file may be truncated")]
    SegmentNotInImage {
        /// Which program header.
        segment: usize,
    },
    /// The entry is not in RAM, or is odd.
    #[error("the entry {entry:#x} is not an instruction address in RAM")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
}

/// A machine's memory with an image loaded, and the addresses that the hart starts with.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) ram: Ram,
    pub(crate) disk: Option<Disk>,
    pub(crate) entry: u64,
    pub(crate) device_tree: u64,
    /// Addresses of the HTIF doublewords of a bare program; `None` if it has none.
    pub(crate) host_port: Option<HostPort>,
}

/// What the machine needs to know about a kernel that is in RAM.
#[derive(Debug)]
struct LoadedKernel {
    entry: u64,
    host_port: Option<HostPort>,
}

/// Loads an image's kernel and initrd and a device tree into RAM.
///
/// # Errors
/// [`LoadError`] if the configuration is out of range, the image is not loadable, or RAM has no
/// room for it.
pub(crate) fn load(config: &MachineConfig, image: &[u8]) -> Result<Loaded, LoadError> {
    let ram_bytes = checked_ram_bytes(config)?;
    ask_for_memory(config)?;
    let Image { kernel, initrd, disk } = Image::parse(image)?;
    let disk = self::disk(config, disk.unwrap_or_default())?;
    let mut ram = Ram::new(ram_bytes);

    // The tree's length doesn't depend on the addresses in it, and the initrd's address depends on
    // the tree's length: so the tree is built twice.
    let initrd_bytes = initrd.map(|initrd| initrd.len() as u64);
    let mut contents = Contents { initrd: initrd_bytes.map(|_| 0..0) };
    let tree =
        |contents: &Contents| device_tree::build(config, contents).expect("a configuration in range can be described");
    let device_tree = highest_address("device tree", tree(&contents).len() as u64, ram.end())?;
    let mut end = device_tree;
    if let (Some(initrd), Some(bytes)) = (initrd, initrd_bytes) {
        end = highest_address("initrd", bytes, device_tree)?;
        contents.initrd = Some(end..end + bytes);
        copy(&mut ram, end, initrd);
    }
    copy(&mut ram, device_tree, &tree(&contents));

    let LoadedKernel { entry, host_port } = load_kernel(config.boot, &mut ram, end, kernel)?;
    if !entry.is_multiple_of(2) || ram.slice(GuestPhysAddr(entry), 2).is_none() {
        return Err(LoadError::Entry { entry });
    }
    let host_port = host_port.filter(|_| config.boot == BootMode::Bare);
    Ok(Loaded { ram, disk, entry, device_tree, host_port })
}

fn load_kernel(boot: BootMode, ram: &mut Ram, end: u64, kernel: &[u8]) -> Result<LoadedKernel, LoadError> {
    if let Some(header) = LinuxHeader::read(kernel) {
        return match boot {
            BootMode::Firmware => linux::load(ram, end, header, kernel),
            BootMode::Bare => Err(LoadError::NotElf("it is a Linux Image, which needs firmware: start it as a kernel")),
        };
    }
    if let Some(payload) = linux::zboot_payload(kernel) {
        return Err(LoadError::Zboot { offset: payload.start, bytes: payload.end - payload.start });
    }
    if let Some((format, tool)) = linux::compression(kernel) {
        return Err(LoadError::Compressed { format, tool });
    }
    elf::load(ram, end, kernel)
}

/// The highest page-aligned address at which `bytes` fit between the beginning of RAM and `end`.
fn highest_address(what: &'static str, bytes: u64, end: u64) -> Result<u64, LoadError> {
    let no_room = LoadError::NoRoom { what, bytes, from: RAM_BASE, end };
    let start = end.checked_sub(bytes).ok_or(no_room)? & !(PAGE_BYTES as u64 - 1);
    if start < RAM_BASE { Err(LoadError::NoRoom { what, bytes, from: RAM_BASE, end }) } else { Ok(start) }
}

/// Copies `bytes` to `address`; the caller has checked that there is room.
fn copy(ram: &mut Ram, address: u64, bytes: &[u8]) {
    ram.write(GuestPhysAddr(address), bytes).expect("the caller has checked that this is RAM");
}

/// The size of RAM of a configuration that is in range.
///
/// # Errors
/// [`LoadError::Config`] if any of it is out of range.
pub(crate) fn checked_ram_bytes(config: &MachineConfig) -> Result<usize, LoadError> {
    if !(RAM_BYTES_MIN..=RAM_BYTES_MAX).contains(&config.ram_bytes) {
        return Err(LoadError::Config("ram_bytes must be between 4 MiB and 4 GiB"));
    }
    if !config.ram_bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(LoadError::Config("ram_bytes must be a multiple of 4096"));
    }
    if config.bootargs.len() > BOOTARGS_BYTES_MAX {
        return Err(LoadError::Config("bootargs must be at most 2048 bytes"));
    }
    if config.bootargs.contains('\0') {
        return Err(LoadError::Config("bootargs must not contain a NUL character"));
    }
    check_disk_bytes(config)?;
    usize::try_from(config.ram_bytes).map_err(|_| LoadError::Config("ram_bytes is more than this host can address"))
}

fn check_disk_bytes(config: &MachineConfig) -> Result<(), LoadError> {
    if config.disk_bytes > DISK_BYTES_MAX || !config.disk_bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(LoadError::Config("disk_bytes must be a multiple of 4096 and at most 1 GiB"));
    }
    Ok(())
}

/// Allocates as much memory as a machine of this configuration takes, and frees it.
///
/// The machine allocates it afterwards in pieces that aren't prepared for a refusal, which would
/// abort the process. A log or a peer can ask for 5 GiB with a few bytes.
///
/// # Errors
/// [`LoadError::NoMemory`].
pub(crate) fn ask_for_memory(config: &MachineConfig) -> Result<(), LoadError> {
    /// Bytes of bookkeeping per page: flags, digests and watches.
    const NOTES_BYTES: u64 = 32;
    let contents = config.ram_bytes.saturating_add(config.disk_bytes);
    let bytes = contents.saturating_add(contents / PAGE_BYTES as u64 * NOTES_BYTES).saturating_add(SPARE_BYTES);
    let mut memory: Vec<u8> = Vec::new();
    let asked = usize::try_from(bytes).ok().and_then(|bytes| memory.try_reserve_exact(bytes).ok());
    asked.ok_or(LoadError::NoMemory { bytes })
}

/// The disk of a configuration that is in range, with these contents; `None` if the machine has no
/// disk.
///
/// # Errors
/// [`LoadError::Config`] if its size is out of range, or less than the contents.
pub(crate) fn disk(config: &MachineConfig, contents: &[u8]) -> Result<Option<Disk>, LoadError> {
    let page_bytes = PAGE_BYTES as u64;
    check_disk_bytes(config)?;
    if (contents.len() as u64) > config.disk_bytes {
        return Err(LoadError::Config("disk_bytes is less than what the image has for the disk"));
    }
    let bytes = usize::try_from(config.disk_bytes)
        .map_err(|_| LoadError::Config("disk_bytes is more than this host can address"))?;
    Ok((bytes > 0).then(|| Disk::new(bytes, config.ram_bytes / page_bytes, contents)))
}

#[cfg(test)]
mod tests;
