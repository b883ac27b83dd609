//! The CSRs of physical memory protection. They store what is written, and locked entries can't be
//! written; accesses are not checked against them: software in M-mode trusts here what it starts.

use crate::state::{RestoreError, StateReader, StateWriter};

/// Number of entries.
const ENTRIES: usize = 16;

/// The configuration of one entry; bits 5 and 6 don't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config(u8);

impl Config {
    const READ: u8 = 1 << 0;
    const WRITE: u8 = 1 << 1;
    const MATCH: u8 = 3 << 3;
    /// Address matching TOR: the range begins at the end of the one before.
    const MATCH_TOP_OF_RANGE: u8 = 1 << 3;
    const LOCKED: u8 = 1 << 7;
    const FIELDS: u8 = Self::LOCKED | Self::MATCH | 7;

    /// The configuration that results from writing `byte`. Writable but not readable is reserved:
    /// such an entry gets no permission to write.
    const fn legal(byte: u8) -> Self {
        let write_only = byte & (Self::READ | Self::WRITE) == Self::WRITE;
        Self(byte & Self::FIELDS & if write_only { !Self::WRITE } else { u8::MAX })
    }

    const fn is_locked(self) -> bool {
        self.0 & Self::LOCKED != 0
    }
}

/// CSRs `pmpcfg0`, `pmpcfg2` and `pmpaddr0` to `pmpaddr15`.
#[derive(Debug)]
pub(super) struct Pmp {
    configs: [Config; ENTRIES],
    addresses: [u64; ENTRIES],
}

impl Pmp {
    /// Bits of `pmpaddr` that exist: bits 55:2 of an address.
    const ADDRESS_MASK: u64 = (1 << 54) - 1;

    /// Every entry is off.
    pub(super) const fn new() -> Self {
        Self { configs: [Config(0); ENTRIES], addresses: [0; ENTRIES] }
    }

    /// The configuration of the eight entries from `first` on, which must be 0 or 8.
    pub(super) fn configs(&self, first: usize) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|index| self.configs[first + index].0))
    }

    /// Writes the configuration of the eight entries from `first` on, 0 or 8, except for those that
    /// are locked.
    pub(super) fn set_configs(&mut self, first: usize, value: u64) {
        for (config, byte) in self.configs[first..].iter_mut().zip(value.to_le_bytes()) {
            if !config.is_locked() {
                *config = Config::legal(byte);
            }
        }
    }

    /// The address of entry `index`, below 16.
    pub(super) const fn address(&self, index: usize) -> u64 {
        self.addresses[index]
    }

    /// Writes the address of entry `index`, below 16, unless it is locked, or is the locked
    /// beginning of the next range.
    pub(super) fn set_address(&mut self, index: usize, value: u64) {
        let begins_locked = self
            .configs
            .get(index + 1)
            .is_some_and(|next| next.is_locked() && next.0 & Config::MATCH == Config::MATCH_TOP_OF_RANGE);
        if !self.configs[index].is_locked() && !begins_locked {
            self.addresses[index] = value & Self::ADDRESS_MASK;
        }
    }

    pub(super) fn write_to(&self, writer: &mut StateWriter) {
        let Self { configs, addresses } = self;
        for (config, address) in configs.iter().zip(addresses) {
            writer.u8(config.0);
            writer.u64(*address);
        }
    }

    pub(super) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let mut pmp = Self::new();
        for (config, address) in pmp.configs.iter_mut().zip(&mut pmp.addresses) {
            let byte = reader.u8()?;
            *config = Config::legal(byte);
            *address = reader.u64()?;
            let possible = config.0 == byte && *address & !Self::ADDRESS_MASK == 0;
            reader.require(possible, "a memory protection entry has bits that don't exist")?;
        }
        Ok(pmp)
    }
}
