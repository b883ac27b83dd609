//! The loader: Linux kernels, initrds, ELF programs, and errors that tell what to do.

use crate::common::hostile::Random;
use crate::common::{NOP, RAM, elf, elf_of_bytes, run_by, small_config};
use vm::{BootMode, Exit, Image, LoadError, Machine, MachineConfig};

const TEXT_OFFSET: u64 = 0x20_0000;
/// `image_size` in the kernels' headers, which is more than the file has.
const IMAGE_SIZE: u64 = 0x3000;

/// A kernel in Linux's Image format, all of whose instructions are NOPs.
fn linux(text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut kernel: Vec<u8> = [NOP; 0x100].iter().flat_map(|word| word.to_le_bytes()).collect();
    // Two instructions, of which the first is also "MZ", as in a kernel that EFI can start.
    kernel[..8].copy_from_slice(&[0x4d, 0x5a, 0x6f, 0x00, 0xc0, 0x03, 0x01, 0x00]);
    kernel[8..16].copy_from_slice(&text_offset.to_le_bytes());
    kernel[16..24].copy_from_slice(&image_size.to_le_bytes());
    kernel[24..32].fill(0);
    kernel[32..36].copy_from_slice(&2_u32.to_le_bytes());
    kernel[36..48].fill(0);
    kernel[48..60].copy_from_slice(b"RISCV\0\0\0RSC\x05");
    kernel
}

fn new(image: &Image<'_>) -> Result<Machine, LoadError> {
    Machine::new(&small_config(), &image.pack())
}

fn refused(kernel: &[u8]) -> LoadError {
    new(&Image::of_kernel(kernel)).unwrap_err()
}

/// A kernel's file with some bytes changed.
fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut kernel = linux(TEXT_OFFSET, IMAGE_SIZE);
    kernel[offset..offset + bytes.len()].copy_from_slice(bytes);
    kernel
}

/// Values of the 64-bit properties in the machine's device tree, which are found by their bytes:
/// token 3, length 8, offset of the name, value.
fn tree_words(machine: &Machine) -> Vec<u64> {
    let tree = machine.registers()[11];
    let header = machine.memory(tree, 8).unwrap();
    let bytes = u32::from_be_bytes(*header[4..].first_chunk().unwrap());
    let tree = machine.memory(tree, bytes.into()).unwrap();
    let property = |window: &[u8]| window.starts_with(&[0, 0, 0, 3, 0, 0, 0, 8]);
    let word = |window: &[u8]| u64::from_be_bytes(*window[12..].first_chunk().unwrap());
    tree.windows(20).step_by(4).filter(|window| property(window)).map(word).collect()
}

#[test]
fn a_linux_kernel_starts_at_its_offset_with_the_device_tree_in_a1() {
    let kernel = linux(TEXT_OFFSET, IMAGE_SIZE);
    let mut machine = new(&Image::of_kernel(&kernel)).unwrap();
    assert_eq!(machine.pc(), RAM + TEXT_OFFSET);
    assert_eq!(machine.memory(machine.pc(), kernel.len() as u64), Some(&kernel[..]));
    assert_eq!(machine.registers()[10], 0);
    let tree = machine.registers()[11];
    assert_eq!(machine.memory(tree, 4).unwrap(), 0xd00d_feed_u32.to_be_bytes());
    assert!(tree.is_multiple_of(4096) && tree >= machine.pc() + IMAGE_SIZE);
    // The header itself is code: a no-op, and a jump over the rest in a real kernel.
    assert_eq!(run_by(&mut machine, 1), Exit::LimitReached);
    assert_eq!(machine.pc(), RAM + TEXT_OFFSET + 2);
}

#[test]
fn an_initrd_lies_as_high_as_it_fits_and_the_device_tree_says_where() {
    let kernel = linux(TEXT_OFFSET, IMAGE_SIZE);
    for bytes in [1_usize, 4096, 4097, 100_000] {
        let initrd: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[0] | 1).collect();
        let machine = new(&Image { kernel: &kernel, initrd: Some(&initrd), disk: None }).unwrap();
        let tree = machine.registers()[11];
        let start = (tree - bytes as u64) / 4096 * 4096;
        assert_eq!(machine.memory(start, bytes as u64), Some(&initrd[..]));
        assert_eq!(tree_words(&machine), [start, start + bytes as u64], "initrd-start and initrd-end");
        assert_eq!(machine.memory(machine.pc(), kernel.len() as u64), Some(&kernel[..]));
    }
    let machine = new(&Image::of_kernel(&kernel)).unwrap();
    assert_eq!(tree_words(&machine), []);
    // An ELF program may have an initrd too.
    let initrd = [9; 10];
    let machine = new(&Image { kernel: &elf(&[NOP]), initrd: Some(&initrd), disk: None }).unwrap();
    assert_eq!(machine.pc(), RAM);
    assert_eq!(machine.memory(tree_words(&machine)[0], 10), Some(&initrd[..]));
}

/// Each part that takes room is tried with the size that just fits, and with a byte more.
#[test]
fn kernel_and_initrd_never_overlap() {
    let config = small_config();
    let plain = linux(TEXT_OFFSET, IMAGE_SIZE);
    let tree = new(&Image::of_kernel(&plain)).unwrap().registers()[11];
    let room = tree - RAM - TEXT_OFFSET;
    assert!(new(&Image::of_kernel(&linux(TEXT_OFFSET, room))).is_ok());
    let error = refused(&linux(TEXT_OFFSET, room + 1));
    assert!(matches!(error, LoadError::NoRoom { what: "kernel", .. }), "{error}");
    assert!(error.to_string().contains("--memory"), "{error}");
    // The file's own length counts, even if `image_size` is smaller.
    let mut long = linux(TEXT_OFFSET, 0);
    long.resize(usize::try_from(room).unwrap(), 1);
    assert!(new(&Image::of_kernel(&long)).is_ok());
    long.push(1);
    assert!(matches!(refused(&long), LoadError::NoRoom { what: "kernel", .. }));

    let packed = |kernel: &[u8], initrd_bytes: u64| {
        Image { kernel, initrd: Some(&vec![1; usize::try_from(initrd_bytes).unwrap()]), disk: None }.pack()
    };
    // An initrd makes the device tree longer, but not by a page.
    let initrd_room = room - IMAGE_SIZE;
    assert!(Machine::new(&config, &packed(&plain, initrd_room)).is_ok());
    let error = Machine::new(&config, &packed(&plain, initrd_room + 1)).unwrap_err();
    assert!(matches!(error, LoadError::NoRoom { what: "kernel", .. }), "{error}");
    for bytes in [tree - RAM + 1, 8 << 20] {
        let error = Machine::new(&config, &packed(&plain, bytes)).unwrap_err();
        assert!(matches!(error, LoadError::NoRoom { what: "initrd", bytes: found, .. } if found == bytes), "{error}");
    }
    let code = vec![1; usize::try_from(tree - RAM).unwrap()];
    assert!(Machine::new(&config, &elf_of_bytes(&code)).is_ok());
    let error = Machine::new(&config, &packed(&elf_of_bytes(&code), 1)).unwrap_err();
    assert!(matches!(error, LoadError::SegmentOutsideRam { segment: 0, .. }), "{error}");
}

#[test]
fn every_field_of_a_linux_header_is_checked() {
    for offset in [1, 8, 0xfff, 0x20_0800, 4 << 20, !0xfff, u64::MAX, (1 << 63) - 4096] {
        let error = refused(&linux(offset, IMAGE_SIZE));
        let named = matches!(
            error,
            LoadError::LinuxHeader { field: "text_offset", .. } | LoadError::NoRoom { what: "kernel", .. }
        );
        assert!(named, "{offset:#x}: {error}");
    }
    for size in [4 << 20, u64::MAX, u64::MAX - RAM - TEXT_OFFSET + 1] {
        let error = refused(&linux(TEXT_OFFSET, size));
        assert!(matches!(error, LoadError::NoRoom { bytes, .. } if bytes == size), "{size:#x}: {error}");
    }
    assert!(matches!(refused(&patched(24, &[1])), LoadError::LinuxHeader { field: "flags", .. }), "big-endian");
    assert!(matches!(refused(&patched(0x38, b"ARM\x64")), LoadError::NotElf(_)), "another architecture");
    assert!(new(&Image::of_kernel(&linux(0, 0))).is_ok());
}

#[test]
fn kernels_that_are_cut_or_random_are_refused_or_load() {
    let kernel = linux(TEXT_OFFSET, IMAGE_SIZE);
    for length in 0..64 {
        assert!(matches!(refused(&kernel[..length]), LoadError::NotElf(_)), "cut at {length}");
    }
    for seed in 0..3000 {
        let mut random = Random { state: seed, care: 0 };
        let mut kernel = kernel.clone();
        for _ in 0..1 + random.next() % 4 {
            let at = usize::try_from(random.next() % 0x38).unwrap();
            kernel[at] = random.next().to_le_bytes()[0];
        }
        let initrd = vec![1; usize::try_from(random.next() % (3 << 20)).unwrap()];
        if let Ok(machine) = new(&Image { kernel: &kernel, initrd: Some(&initrd), disk: None }) {
            let [start, end] = tree_words(&machine)[..] else { panic!("seed {seed}: no initrd in the device tree") };
            assert_eq!(machine.memory(start, end - start), Some(&initrd[..]), "seed {seed}");
            assert_eq!(machine.memory(machine.pc(), kernel.len() as u64), Some(&kernel[..]), "seed {seed}");
        }
    }
}

#[test]
fn compressed_kernels_are_refused_with_what_to_do() {
    let compressed: [(&[u8], &str); 3] =
        [(b"\x1f\x8b\x08\0", "gunzip"), (b"\xfd7zXZ\0\0\x04", "unxz"), (b"\x28\xb5\x2f\xfd", "unzstd")];
    for (magic, tool) in compressed {
        let error = refused(&[magic, &[0; 100]].concat());
        assert!(matches!(error, LoadError::Compressed { .. }) && error.to_string().contains(tool), "{error}");
    }
    let mut zboot = vec![0; 200];
    zboot[..8].copy_from_slice(b"MZ\0\0zimg");
    zboot[8..16].copy_from_slice(&[0, 0x60, 0, 0, 0x10, 0x27, 0, 0]);
    let error = refused(&zboot);
    assert_eq!(error, LoadError::Zboot { offset: 0x6000, bytes: 10_000 });
    assert!(error.to_string().contains("tail -c +24577 KERNEL | head -c 10000 | gunzip"), "{error}");
    zboot[8..16].fill(0xff);
    assert!(matches!(refused(&zboot), LoadError::Zboot { .. }), "lengths of no file");
}

/// A vmlinux has a virtual entry address and physical addresses from 0 on, where its header is.
#[test]
fn a_vmlinux_goes_where_its_header_says() {
    let kernel = linux(TEXT_OFFSET, IMAGE_SIZE);
    let mut file = elf_of_bytes(&kernel);
    file[24..32].copy_from_slice(&0xffff_ffff_8000_0000_u64.to_le_bytes());
    file[80..88].copy_from_slice(&0xffff_ffff_8000_0000_u64.to_le_bytes());
    file[88..96].fill(0);
    let machine = new(&Image::of_kernel(&file)).unwrap();
    assert_eq!(machine.pc(), RAM + TEXT_OFFSET);
    assert_eq!(machine.memory(machine.pc(), kernel.len() as u64), Some(&kernel[..]));
    // Anything else at address 0 is outside RAM.
    file[120 + 0x38] = 0;
    assert!(matches!(refused(&file), LoadError::SegmentOutsideRam { address: 0, .. }));
}

#[test]
fn bare_programs_are_elf_files_and_start_at_their_entry() {
    let bare = MachineConfig { boot: BootMode::Bare, ..small_config() };
    assert_eq!(Machine::new(&bare, &elf(&[NOP])).unwrap().pc(), RAM);
    let error = Machine::new(&bare, &linux(TEXT_OFFSET, IMAGE_SIZE)).unwrap_err();
    assert!(matches!(error, LoadError::NotElf(_)), "{error}");
}

#[test]
fn a_container_is_checked_before_what_is_in_it() {
    let packed = Image { kernel: &elf(&[NOP]), initrd: Some(b"initrd"), disk: None }.pack();
    for length in 0..packed.len() {
        assert!(Machine::new(&small_config(), &packed[..length]).is_err(), "cut at {length}");
    }
    assert!(matches!(Machine::new(&small_config(), &packed[..50]), Err(LoadError::Image(_))));
}

/// An executable whose first segment begins `below` bytes below RAM with byte `offset` of the file,
/// and whose code is in RAM.
fn beginning_below_ram(below: u64, offset: u64) -> Vec<u8> {
    let mut file = elf_of_bytes(&[]);
    file.resize(usize::try_from(offset + below).unwrap(), 0);
    file.extend([NOP, NOP].map(u32::to_le_bytes).concat());
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(72, offset);
    for address in [80, 88] {
        put(address, RAM - below);
    }
    for length in [96, 104] {
        put(length, below + 8);
    }
    file
}

#[test]
fn the_headers_of_an_executable_may_lie_below_ram_and_nothing_else_may() {
    for below in [120, 0x1000] {
        let machine = new(&Image::of_kernel(&beginning_below_ram(below, 0))).unwrap();
        assert_eq!(machine.pc(), RAM);
        assert_eq!(machine.memory(RAM, 12), Some(&[NOP, NOP, 0].map(u32::to_le_bytes).concat()[..]), "{below:#x}");
    }
    for (below, offset) in [(0x1008, 0), (0x1000, 120), (8, 120)] {
        let error = refused(&beginning_below_ram(below, offset));
        assert!(matches!(error, LoadError::SegmentOutsideRam { segment: 0, .. }), "{below:#x} {offset:#x}: {error}");
    }
    // More in memory than in the file, all of it below RAM.
    let mut short = beginning_below_ram(0x1000, 0);
    short[96..104].copy_from_slice(&0xff8_u64.to_le_bytes());
    assert!(matches!(refused(&short), LoadError::SegmentOutsideRam { segment: 0, .. }));
}
