//! What only the loader sees; what the machine shows is in `tests/loader.rs`.

use super::LoadError;
use super::load;
use crate::boot::image::Image;
use crate::config::{BootMode, MachineConfig};
use crate::hart::HostPort;
use crate::isa::address::GuestPhysAddr;
use alloc::vec;
use alloc::vec::Vec;

const RAM: u64 = 0x8000_0000;
const HEADER: usize = 64;

/// An ELF executable of one instruction with symbols: `symbols` gives names and values.
fn elf_with_symbols(symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut table = vec![0; 24];
    for (name, value) in symbols {
        table.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        table.extend([0x11, 0, 1, 0]);
        table.extend(value.to_le_bytes());
        table.extend(8_u64.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let code = HEADER + 56;
    let table_at = code + 8;
    let names_at = table_at + table.len();
    let sections_at = names_at + names.len();
    let mut file = vec![0_u8; code + 8];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 243, 0, 1]);
    put(24, &RAM.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(40, &(sections_at as u64).to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0, 3, 0]);
    put(64, &[1]);
    put(72, &(code as u64).to_le_bytes());
    put(80, &RAM.to_le_bytes());
    put(88, &RAM.to_le_bytes());
    put(96, &[8]);
    put(104, &[8]);
    put(code, &[0x13, 0, 0, 0, 0x13, 0, 0, 0]);
    file.extend_from_slice(&table);
    file.extend_from_slice(&names);
    let section = |kind: u8, at: usize, bytes: usize, link: u8, entry: u8| {
        let mut section = vec![0_u8; 64];
        section[4] = kind;
        section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
        section[40] = link;
        section[56] = entry;
        section
    };
    file.extend(section(0, 0, 0, 0, 0));
    file.extend(section(2, table_at, table.len(), 2, 24));
    file.extend(section(3, names_at, names.len(), 0, 0));
    file
}

fn config(boot: BootMode) -> MachineConfig {
    MachineConfig { ram_bytes: 4 << 20, boot, ..MachineConfig::default() }
}

#[test]
fn tohost_is_found_by_its_name_and_only_for_bare_programs() {
    let file = elf_with_symbols(&[("tohost2", RAM), ("xtohost", RAM + 8), ("tohost", RAM + 0x1000), ("fromhost", 1)]);
    let port = HostPort { tohost: GuestPhysAddr(RAM + 0x1000), fromhost: Some(GuestPhysAddr(1)) };
    assert_eq!(load(&config(BootMode::Bare), &file).unwrap().host_port, Some(port));
    assert_eq!(load(&config(BootMode::Firmware), &file).unwrap().host_port, None);
    let without = elf_with_symbols(&[("tohos", RAM)]);
    assert_eq!(load(&config(BootMode::Bare), &without).unwrap().host_port, None);
}

/// A file whose symbols are a mess is started without them, if it is one that starts at all.
#[test]
fn no_symbol_table_makes_the_loader_panic() {
    let file = elf_with_symbols(&[("tohost", RAM + 0x1000)]);
    let config = config(BootMode::Bare);
    let whole = load(&config, &file).unwrap().entry;
    for length in HEADER..file.len() {
        if let Ok(loaded) = load(&config, &file[..length]) {
            assert_eq!(loaded.entry, whole, "cut at {length}");
        }
    }
    for at in HEADER + 56 + 8..file.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut file = file.clone();
            file[at] = value;
            assert_eq!(load(&config, &file).unwrap().entry, whole, "{value} at {at}");
        }
    }
}

#[test]
fn a_disk_comes_out_of_the_image() {
    let kernel = elf_with_symbols(&[]);
    let contents = [7; 512];
    let image = Image { kernel: &kernel, initrd: None, disk: Some(&contents) }.pack();
    let config = MachineConfig { disk_bytes: 8192, ..config(BootMode::Firmware) };
    let disk = load(&config, &image).unwrap().disk.unwrap();
    assert_eq!((disk.length(), disk.slice(0, 513)), (8192, Some(&[&contents[..], &[0]].concat()[..])));
    let empty = load(&config, &kernel).unwrap().disk.unwrap();
    assert_eq!((empty.length(), empty.slice(0, 512)), (8192, Some(&[0; 512][..])));

    let without = MachineConfig { disk_bytes: 0, ..config };
    assert!(load(&without, &kernel).unwrap().disk.is_none());
    assert!(matches!(load(&without, &image), Err(LoadError::Config(_))), "there is no disk for it");
}
