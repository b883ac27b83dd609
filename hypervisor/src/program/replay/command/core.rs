//! `ft-replay core`: the guest's memory and registers as an ELF core file, for gdb and others.
//!
//! Its segments are the mappings of the address space of the moment, so that a debugger with the
//! kernel's symbols reads virtual addresses; behind them all of RAM, at its physical address.

use super::super::length::Length;
use super::bar::Bar;
use super::{LogOptions, complain, resolve, told};
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::recording::{Position, Seeker};
use clap::Args;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use vm::{Machine, PAGE_BYTES};

/// Where RAM begins.
const RAM_BASE: u64 = 0x8000_0000;

const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;

/// The most mappings: a file has at most 65534 program headers.
const MAPPINGS_MAX: usize = 65_000;

const TYPE_CORE: u16 = 4;
const MACHINE_RISCV: u16 = 243;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;

/// The registers' offset in `elf_prstatus` of riscv64, and its length.
const REGISTERS_OFFSET: usize = 112;
const PRSTATUS_BYTES: usize = 376;

/// Options of `ft-replay core`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// The file to write; it must not exist
    #[arg(value_name = "FILE")]
    output: PathBuf,
    /// The moment
    #[arg(long, value_name = "POSITION", default_value = "end")]
    at: Position,
}

#[derive(Serialize)]
struct Written {
    event: &'static str,
    file: String,
    instruction_count: u64,
    mappings: usize,
    bytes: u64,
}

/// Pages that follow each other both in an address space and in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    address: u64,
    physical: u64,
    bytes: u64,
    /// As in a program header: 1 execute, 2 write, 4 read.
    rights: u32,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let target = resolve(&recording, &self.at)?;
        let seeker = Seeker::new(&recording);
        let sought = seeker.seek(target, &Bar::new(Length::default(), self.log.json));
        complain(&seeker);
        let replay = sought.map_err(told)?;
        let machine = replay.machine();
        let mappings = mappings(machine);
        let written = self.write(machine, &mappings);
        let bytes = written.map_err(|error| format!("can't write {}: {error}", self.output.display()))?;
        let written = Written {
            event: "core",
            file: self.output.display().to_string(),
            instruction_count: replay.moment().count.0,
            mappings: mappings.len(),
            bytes,
        };
        let (count, segments) = (Grouped(written.instruction_count), Grouped(mappings.len() as u64));
        let text = format_args!("{}: the guest at instruction {count}, {segments} mappings", written.file);
        let mut lines = self.log.lines();
        lines.put(&written, text)?;
        Ok(lines.flush()?)
    }

    fn write(&self, machine: &Machine, mappings: &[Mapping]) -> io::Result<u64> {
        // The guest's secrets are in it.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.output)?;
        let mut out = BufWriter::new(&file);
        let note = note(machine);
        let headers = 2 + mappings.len() as u64;
        let note_at = HEADER_BYTES + headers * PROGRAM_HEADER_BYTES;
        let ram_at = (note_at + note.len() as u64).next_multiple_of(PAGE_BYTES as u64);
        let ram = machine.ram();
        out.write_all(&elf_header(headers))?;
        out.write_all(&program_header(PT_NOTE, 0, note_at, 0, 0, note.len() as u64))?;
        for mapping in mappings {
            let offset = ram_at + (mapping.physical - RAM_BASE);
            let header =
                program_header(PT_LOAD, mapping.rights, offset, mapping.address, mapping.physical, mapping.bytes);
            out.write_all(&header)?;
        }
        out.write_all(&program_header(PT_LOAD, 7, ram_at, RAM_BASE, RAM_BASE, ram.len() as u64))?;
        out.write_all(&note)?;
        // Zero pages are holes.
        for (page, number) in ram.chunks(PAGE_BYTES).zip(0_u64..).filter(|(page, _)| page.iter().any(|byte| *byte != 0))
        {
            out.seek(SeekFrom::Start(ram_at + number * PAGE_BYTES as u64))?;
            out.write_all(page)?;
        }
        out.flush()?;
        let bytes = ram_at + ram.len() as u64;
        file.set_len(bytes)?;
        Ok(bytes)
    }
}

fn elf_header(program_headers: u64) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend_from_slice(&TYPE_CORE.to_le_bytes());
    header.extend_from_slice(&MACHINE_RISCV.to_le_bytes());
    header.extend_from_slice(&1_u32.to_le_bytes());
    for field in [0, HEADER_BYTES, 0] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    // Compressed instructions and floats in registers, as all guests here.
    header.extend_from_slice(&5_u32.to_le_bytes());
    let count = u16::try_from(program_headers).unwrap_or(u16::MAX);
    for field in [64, 56, count, 64, 0, 0] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, rights: u32, offset: u64, address: u64, physical: u64, bytes: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend_from_slice(&rights.to_le_bytes());
    let align = if kind == PT_LOAD { PAGE_BYTES as u64 } else { 4 };
    for field in [offset, address, physical, bytes, bytes, align] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header
}

/// The note with the registers, as Linux writes it for a thread.
fn note(machine: &Machine) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS_BYTES];
    let registers = [machine.pc()].into_iter().chain(machine.registers()[1..].iter().copied());
    for (register, at) in registers.zip((REGISTERS_OFFSET..).step_by(8)) {
        status[at..at + 8].copy_from_slice(&register.to_le_bytes());
    }
    // The number of the thread.
    status[32] = 1;
    let mut note = Vec::new();
    for field in [5, PRSTATUS_BYTES, NT_PRSTATUS as usize] {
        note.extend_from_slice(&u32::try_from(field).unwrap_or(0).to_le_bytes());
    }
    note.extend_from_slice(b"CORE\0\0\0\0");
    note.extend_from_slice(&status);
    note
}

/// The mappings of the present address space that lead to RAM, in the order of their addresses.
fn mappings(machine: &Machine) -> Vec<Mapping> {
    let satp = machine.csr(0x180).unwrap_or(0);
    let mut mappings = Vec::new();
    if satp >> 60 == 8 {
        walk(machine, (satp & ((1 << 44) - 1)) << 12, 2, 0, &mut mappings);
    }
    mappings
}

/// Adds what the table at `table` maps, whose entries are of `level`.
fn walk(machine: &Machine, table: u64, level: u32, base: u64, mappings: &mut Vec<Mapping>) {
    let Some(entries) = machine.memory(table, PAGE_BYTES as u64) else { return };
    for (entry, number) in entries.as_chunks::<8>().0.iter().zip(0_u64..) {
        let entry = u64::from_le_bytes(*entry);
        let bytes = 1_u64 << (12 + 9 * level);
        let address = base | number << (12 + 9 * level);
        // Sv39: bit 38 is repeated above.
        let address = (address << 25).cast_signed().wrapping_shr(25).cast_unsigned();
        let physical = (entry >> 10 & ((1 << 44) - 1)) << 12;
        let rights = entry >> 1 & 7;
        match (entry & 1, rights) {
            (0, _) => {}
            (_, 0) if level > 0 => walk(machine, physical, level - 1, address, mappings),
            (_, 0) => {}
            _ => add(machine, Mapping { address, physical, bytes, rights: elf_rights(rights) }, mappings),
        }
    }
}

/// Rights of a page-table entry (1 read, 2 write, 4 execute) as of a program header.
fn elf_rights(rights: u64) -> u32 {
    let has = |bit: u64| u32::from(rights & bit != 0);
    has(1) << 2 | has(2) << 1 | has(4)
}

/// Adds a mapping, as a part of the last one if it goes on there.
fn add(machine: &Machine, mut mapping: Mapping, mappings: &mut Vec<Mapping>) {
    let ram_end = RAM_BASE + machine.ram().len() as u64;
    // A large page may go beyond RAM.
    mapping.bytes = mapping.bytes.min(ram_end.saturating_sub(mapping.physical));
    if mapping.physical < RAM_BASE || mapping.bytes == 0 {
        return;
    }
    if let Some(last) = mappings.last_mut()
        && last.address.wrapping_add(last.bytes) == mapping.address
        && last.physical + last.bytes == mapping.physical
        && last.rights == mapping.rights
    {
        last.bytes += mapping.bytes;
    } else if mappings.len() < MAPPINGS_MAX {
        mappings.push(mapping);
    }
}
