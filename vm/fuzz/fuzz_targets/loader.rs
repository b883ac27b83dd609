//! Anything as an image: an ELF, a kernel, or a container of both. What loads also runs.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vm::{BootMode, Image, InstructionCount, Machine, MachineConfig};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    bare: bool,
    disk_pages: u8,
    bootargs: &'a str,
    /// What the image begins with: nothing, or what makes it one of the formats.
    format: u8,
    image: &'a [u8],
}

/// The beginning of the header of a kernel, up to its magic number.
fn kernel_header(image: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..image.len().min(64)].copy_from_slice(&image[..image.len().min(64)]);
    header[8..16].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    header[56..60].copy_from_slice(b"RSC\x05");
    header
}

fuzz_target!(|input: Input<'_>| {
    let mut image = match input.format % 4 {
        1 => vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 243, 0, 1, 0, 0, 0],
        2 => kernel_header(input.image),
        _ => Vec::new(),
    };
    image.extend_from_slice(input.image);
    let _ = Image::parse(&image);
    let config = MachineConfig {
        ram_bytes: 4 << 20,
        boot: if input.bare { BootMode::Bare } else { BootMode::Firmware },
        disk_bytes: u64::from(input.disk_pages) << 12,
        bootargs: input.bootargs.into(),
        ..MachineConfig::default()
    };
    if let Ok(mut machine) = Machine::new(&config, &image) {
        let _ = machine.run(InstructionCount(100));
        let _ = machine.digest();
    }
});
