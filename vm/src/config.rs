//! The configuration of a machine.

use alloc::string::String;

/// Ticks per second of the guest's clock (CSR `time`), as in QEMU's `virt` board.
pub const TIMEBASE_HZ: u64 = 10_000_000;

/// What runs before the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BootMode {
    /// The hypervisor is the firmware: the image starts in S-mode with a0 = hart id and a1 = device
    /// tree, and its environment calls are SBI calls.
    #[default]
    Firmware,
    /// Nothing: an ELF image starts in M-mode at its entry, and may end through its symbol
    /// `tohost`.
    Bare,
}

/// The configuration of a machine; with the image it is the whole of the initial state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MachineConfig {
    /// RAM from 0x8000_0000, in bytes; a multiple of 4096, 4 MiB to 4 GiB.
    pub ram_bytes: u64,
    /// The network device's MAC address.
    pub mac: [u8; 6],
    /// `/chosen/bootargs` of the device tree; at most 2048 bytes, none of them NUL.
    pub bootargs: String,
    /// `/chosen/rng-seed` of the device tree.
    pub rng_seed: [u8; 32],
    /// What runs before the image.
    pub boot: BootMode,
    /// Size of the disk in bytes: a multiple of 4096 up to 1 GiB, 0 for no disk.
    pub disk_bytes: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            ram_bytes: 64 << 20,
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            bootargs: String::new(),
            rng_seed: [0; 32],
            boot: BootMode::Firmware,
            disk_bytes: 0,
        }
    }
}
