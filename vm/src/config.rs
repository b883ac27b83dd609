//! What a machine is made of.

use alloc::string::String;

/// What the machine is made of; with the image it is the whole of the initial state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MachineConfig {
    /// RAM from 0x8000_0000, in bytes; a multiple of 4096, 4 MiB to 4 GiB.
    pub ram_bytes: u64,
    /// The network device's address.
    pub mac: [u8; 6],
    /// `/chosen/bootargs` of the device tree; at most 2048 bytes, none of them NUL.
    pub bootargs: String,
    /// `/chosen/rng-seed` of the device tree.
    pub rng_seed: [u8; 32],
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            ram_bytes: 64 << 20,
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            bootargs: String::new(),
            rng_seed: [0; 32],
        }
    }
}
