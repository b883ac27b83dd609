//! From an image to the initial state: ELF segments and the device tree in RAM.
//!
//! ```text
//!   RAM_BASE ── segments at their physical addresses ── … ── device tree (page-aligned, as high as it fits) ── end
//! ```

use crate::config::MachineConfig;
use crate::device_tree;
use crate::disk::Disk;
use crate::mmu::GuestPhysAddr;
use crate::pages::PAGE_BYTES;
use crate::ram::{RAM_BASE, Ram};
use elf::ElfBytes;
use elf::abi::{EM_RISCV, ET_EXEC, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::segment::ProgramHeader;

const RAM_BYTES_MIN: u64 = 4 << 20;
const RAM_BYTES_MAX: u64 = 4 << 30;
const DISK_BYTES_MAX: u64 = 1 << 30;
const BOOTARGS_BYTES_MAX: usize = 2048;

/// Why an image can't be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The configuration is out of range.
    #[error("{0}")]
    Config(&'static str),
    /// The image is not a well-formed ELF file of 64 bits, little-endian.
    #[error("the image is not a 64-bit little-endian ELF file: {0}")]
    NotElf(&'static str),
    /// The image is an ELF file, but not a statically linked RISC-V executable.
    #[error(
        "the image is not a static RISC-V executable: {what} is {found}, not {expected}; link it with a fixed address"
    )]
    NotExecutable {
        /// The field of the ELF header.
        what: &'static str,
        /// What it is.
        found: u16,
        /// What it must be.
        expected: u16,
    },
    /// A segment doesn't lie within RAM, below the device tree, or there is no room for it beside those before it.
    #[error(
        "segment {segment} takes {bytes:#x} bytes at {address:#x}, which is not between {RAM_BASE:#x} and {end:#x}; \
         link it to RAM, or give the machine more"
    )]
    SegmentOutsideRam {
        /// Which program header.
        segment: usize,
        /// Its physical address.
        address: u64,
        /// Its length in memory.
        bytes: u64,
        /// Where the device tree begins.
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

/// RAM with an image in it, the disk, and where to begin.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) ram: Ram,
    pub(crate) disk: Option<Disk>,
    pub(crate) entry: u64,
    pub(crate) device_tree: u64,
}

/// Loads an ELF executable by the physical addresses of its segments, and a device tree above it.
///
/// # Errors
/// [`LoadError`] if the configuration is out of range or the image is not a loadable RV64 executable.
pub(crate) fn load(config: &MachineConfig, image: &[u8]) -> Result<Loaded, LoadError> {
    let ram_bytes = checked_ram_bytes(config)?;
    let elf = parse(image)?;

    let mut ram = Ram::new(ram_bytes);
    let tree = device_tree::build(config).expect("a configuration in range can be described");
    let device_tree = (ram.end() - tree.len() as u64) & !(PAGE_BYTES as u64 - 1);
    ram.write(GuestPhysAddr(device_tree), &tree).expect("a device tree is smaller than the smallest RAM");

    // Segments don't overlap, so that there is room for all of them together: without this bound many that do would be copied
    // over each other for minutes.
    let mut room = device_tree - RAM_BASE;
    let segments = elf.segments().into_iter().flat_map(|table| table.iter()).enumerate();
    for (index, segment) in segments.filter(|(_, segment)| segment.p_type == PT_LOAD && segment.p_memsz > 0) {
        load_segment(&mut ram, device_tree, image, index, &segment)?;
        let (address, bytes) = (segment.p_paddr, segment.p_memsz);
        let no_room = LoadError::SegmentOutsideRam { segment: index, address, bytes, end: device_tree };
        room = room.checked_sub(bytes).ok_or(no_room)?;
    }
    let entry = elf.ehdr.e_entry;
    if !entry.is_multiple_of(2) || ram.slice(GuestPhysAddr(entry), 2).is_none() {
        return Err(LoadError::Entry { entry });
    }
    Ok(Loaded { ram, disk: disk(config, &[])?, entry, device_tree })
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
    usize::try_from(config.ram_bytes).map_err(|_| LoadError::Config("ram_bytes is more than this host can address"))
}

/// The disk of a configuration that is in range, with these contents, if the machine has one.
///
/// # Errors
/// [`LoadError::Config`] if its size is out of range, or less than the contents.
pub(crate) fn disk(config: &MachineConfig, contents: &[u8]) -> Result<Option<Disk>, LoadError> {
    let page_bytes = PAGE_BYTES as u64;
    if config.disk_bytes > DISK_BYTES_MAX || !config.disk_bytes.is_multiple_of(page_bytes) {
        return Err(LoadError::Config("disk_bytes must be a multiple of 4096 and at most 1 GiB"));
    }
    if (contents.len() as u64) > config.disk_bytes {
        return Err(LoadError::Config("disk_bytes is less than what is on the disk"));
    }
    let bytes = usize::try_from(config.disk_bytes)
        .map_err(|_| LoadError::Config("disk_bytes is more than this host can address"))?;
    Ok((bytes > 0).then(|| Disk::new(bytes, config.ram_bytes / page_bytes, contents)))
}

fn parse(image: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, LoadError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image)
        .map_err(|_| LoadError::NotElf("its header or a table is malformed or truncated"))?;
    if elf.ehdr.class != Class::ELF64 {
        return Err(LoadError::NotElf("it is of 32 bits"));
    }
    let fields = [("e_type", elf.ehdr.e_type, ET_EXEC), ("e_machine", elf.ehdr.e_machine, EM_RISCV)];
    for (what, found, expected) in fields {
        if found != expected {
            return Err(LoadError::NotExecutable { what, found, expected });
        }
    }
    Ok(elf)
}

fn load_segment(ram: &mut Ram, end: u64, image: &[u8], index: usize, segment: &ProgramHeader) -> Result<(), LoadError> {
    let (address, bytes) = (segment.p_paddr, segment.p_memsz);
    let fits = address >= RAM_BASE && address.checked_add(bytes).is_some_and(|segment_end| segment_end <= end);
    if !fits {
        return Err(LoadError::SegmentOutsideRam { segment: index, address, bytes, end });
    }
    let not_in_image = LoadError::SegmentNotInImage { segment: index };
    let start = usize::try_from(segment.p_offset).ok();
    let length = usize::try_from(segment.p_filesz).ok().filter(|_| segment.p_filesz <= bytes);
    let contents = start
        .zip(length)
        .and_then(|(start, length)| image.get(start..start.checked_add(length)?))
        .ok_or(not_in_image)?;
    // What is beyond the contents is zero already.
    ram.write(GuestPhysAddr(address), contents).expect("the segment was checked to be in RAM");
    Ok(())
}
