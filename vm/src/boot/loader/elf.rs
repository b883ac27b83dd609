//! ELF executables.

use super::linux::{self, LinuxHeader};
use super::{LoadError, LoadedKernel, copy};
use crate::hart::HostPort;
use crate::isa::address::GuestPhysAddr;
use crate::ram::pages::PAGE_BYTES;
use crate::ram::{RAM_BASE, Ram};
use elf::ElfBytes;
use elf::abi::{
    EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, ET_REL, PT_LOAD,
    SHT_SYMTAB,
};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::segment::ProgramHeader;

type Elf<'a> = ElfBytes<'a, LittleEndian>;

/// Copies the segments of an executable to their physical addresses, below `end`.
pub(super) fn load(ram: &mut Ram, end: u64, file: &[u8]) -> Result<LoadedKernel, LoadError> {
    let elf = parse(file)?;
    let vmlinux = vmlinux(&elf, file);
    let offset = vmlinux.map_or(0, |(offset, _)| offset);
    // Segments must not overlap, so their total length is bounded by RAM's. Without this bound, a
    // file with many overlapping segments would be copied for minutes.
    let mut room = end - RAM_BASE;
    for (index, segment) in segments(&elf) {
        let address = segment.p_paddr.wrapping_add(offset);
        load_segment(ram, end, file, index, address, &segment)?;
        let bytes = segment.p_memsz;
        let no_room = LoadError::SegmentOutsideRam { segment: index, address, bytes, end };
        room = room.checked_sub(bytes).ok_or(no_room)?;
    }
    let entry = vmlinux.map_or(elf.ehdr.e_entry, |(_, entry)| entry);
    Ok(LoadedKernel { entry, host_port: host_port(&elf) })
}

fn parse(file: &[u8]) -> Result<Elf<'_>, LoadError> {
    let elf = Elf::minimal_parse(file)
        .map_err(|_| LoadError::NotElf("it has another magic, or a header or a table is malformed or truncated"))?;
    if elf.ehdr.class != Class::ELF64 {
        return Err(LoadError::NotElf("it is of 32 bits"));
    }
    if elf.ehdr.e_machine != EM_RISCV {
        return Err(LoadError::OtherProcessor { found: elf.ehdr.e_machine });
    }
    if elf.ehdr.e_type != ET_EXEC {
        return Err(LoadError::NotExecutable { found: elf.ehdr.e_type });
    }
    Ok(elf)
}

/// The usual name of an ELF machine number.
pub(super) const fn machine_name(e_machine: u16) -> &'static str {
    match e_machine {
        EM_386 => "x86 of 32 bits",
        EM_X86_64 => "x86-64",
        EM_ARM => "ARM of 32 bits",
        EM_AARCH64 => "AArch64",
        EM_PPC64 => "POWER",
        EM_S390 => "s390",
        EM_RISCV => "RISC-V",
        _ => "another processor",
    }
}

/// A description of an ELF file type.
pub(super) const fn type_name(e_type: u16) -> &'static str {
    match e_type {
        ET_REL => "an object file that isn't linked",
        ET_EXEC => "an executable",
        ET_DYN => "a position-independent executable or a shared library",
        ET_CORE => "a core dump",
        _ => "an ELF file of an unknown kind",
    }
}

/// The loadable segments that aren't empty, each with its number.
fn segments(elf: &Elf<'_>) -> impl Iterator<Item = (usize, ProgramHeader)> {
    let all = elf.segments().into_iter().flat_map(|table| table.iter()).enumerate();
    all.filter(|(_, segment)| segment.p_type == PT_LOAD && segment.p_memsz > 0)
}

/// The offset of physical addresses and the entry of a `vmlinux`, the ELF file that a Linux `Image`
/// is made from; `None` for any other file.
///
/// Its physical addresses count from 0, and the entry in its ELF header is a virtual address: the
/// kernel is entered at its first byte, as in an `Image`.
fn vmlinux(elf: &Elf<'_>, file: &[u8]) -> Option<(u64, u64)> {
    let (_, first) = segments(elf).min_by_key(|(_, segment)| segment.p_paddr)?;
    if first.p_paddr >= RAM_BASE {
        return None;
    }
    let header = LinuxHeader::read(contents(file, &first)?)?;
    let base = linux::address(header.text_offset)?;
    Some((base.wrapping_sub(first.p_paddr), base))
}

fn load_segment(
    ram: &mut Ram,
    end: u64,
    file: &[u8],
    index: usize,
    address: u64,
    segment: &ProgramHeader,
) -> Result<(), LoadError> {
    let bytes = segment.p_memsz;
    let contents = contents(file, segment).ok_or(LoadError::SegmentNotInImage { segment: index })?;
    let below = headers_below_ram(address, segment);
    let start = address.saturating_add(below);
    let fits = start >= RAM_BASE && address.checked_add(bytes).is_some_and(|segment_end| segment_end <= end);
    let inside = usize::try_from(below).ok().and_then(|below| contents.get(below..));
    let Some(inside) = inside.filter(|_| fits) else {
        return Err(LoadError::SegmentOutsideRam { segment: index, address, bytes, end });
    };
    // What is beyond the contents is zero already.
    copy(ram, start, inside);
    Ok(())
}

/// How many leading bytes of a segment lie below RAM and are left out: a linker without a linker
/// script begins the segment of code one page before the address it was given, with the file's
/// headers.
fn headers_below_ram(address: u64, segment: &ProgramHeader) -> u64 {
    let below = RAM_BASE.saturating_sub(address);
    if segment.p_offset == 0 && below <= PAGE_BYTES as u64 { below } else { 0 }
}

/// The segment's contents in the file, which must not be longer than the segment.
fn contents<'a>(file: &'a [u8], segment: &ProgramHeader) -> Option<&'a [u8]> {
    let start = usize::try_from(segment.p_offset).ok()?;
    let length = usize::try_from(segment.p_filesz).ok().filter(|_| segment.p_filesz <= segment.p_memsz)?;
    file.get(start..start.checked_add(length)?)
}

/// The addresses of the symbols `tohost` and `fromhost`, by which test programs report. `None` if
/// the file has no symbols, or a malformed table of them.
fn host_port(elf: &Elf<'_>) -> Option<HostPort> {
    let sections = elf.section_headers()?;
    let section = sections.iter().find(|section| section.sh_type == SHT_SYMTAB)?;
    // Names are compared in place: searching for the end of each name would take hours with a file
    // made for that.
    let names = sections.get(usize::try_from(section.sh_link).ok()?).ok()?;
    let (names, _) = elf.section_data(&names).ok()?;
    let (symbols, _) = elf.symbol_table().ok()??;
    let address = |wanted: &[u8]| {
        let is_it = |name: u32| names.get(name as usize..).is_some_and(|rest| rest.starts_with(wanted));
        symbols.iter().find(|symbol| is_it(symbol.st_name)).map(|symbol| GuestPhysAddr(symbol.st_value))
    };
    Some(HostPort { tohost: address(b"tohost\0")?, fromhost: address(b"fromhost\0") })
}
