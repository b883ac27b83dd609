//! Snapshots: a machine goes on elsewhere, exactly alike.
//!
//! ```text
//!   begin_copy ─► take_page … ─► guest runs on ─► take_page … ─► guest at rest: take_page … + state
//!                     │                               │                              │
//!                     ▼                               ▼                              ▼
//!   Restoration::new ─► put_pages … ────────────► put_pages … ───────────► put_pages … ─► finish ─► Machine
//! ```
//!
//! RAM is most of it, so it is copied while the guest runs on; pages written meanwhile are taken again, until few enough
//! are left to be taken while the guest waits. What was sent to whom, and when it is few enough, is not known here.

use crate::LoadError;
use crate::config::{BootMode, MachineConfig};
use crate::loader;
use crate::machine::Machine;
use crate::ram::{PageCopy, Ram};
use crate::state::{RestoreError, StateWriter};
use alloc::vec::Vec;

/// The most bytes of [`Machine::state`].
pub const STATE_BYTES_MAX: usize = 64 << 10;

impl Machine {
    /// Begins a copy of RAM to where everything is zero: every page that isn't all zero is to be taken.
    pub fn begin_copy(&mut self, copy: PageCopy) {
        self.bus.ram.begin_copy(copy);
    }

    /// The first page at or after page index `from` that is to be taken, because the copy has just begun or because it was
    /// written since it was last taken; now it is taken. Its index and its [`PAGE_BYTES`](crate::PAGE_BYTES) bytes.
    pub fn take_page(&mut self, copy: PageCopy, from: u64) -> Option<(u64, &[u8])> {
        self.bus.ram.take_page(copy, from)
    }

    /// How many pages are to be taken.
    #[must_use]
    pub fn pages_to_take(&self, copy: PageCopy) -> usize {
        self.bus.ram.pages_to_take(copy)
    }

    /// All of the state but RAM's contents; at most [`STATE_BYTES_MAX`] bytes.
    ///
    /// # Panics
    /// If there are outputs to be taken. They are not part of the state and would be lost.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        assert!(self.bus.outputs.is_empty(), "outputs are taken before the state is");
        let mut writer = StateWriter::default();
        self.write_to(&mut writer);
        writer.into_bytes()
    }
}

/// A machine that is being put together from a snapshot.
#[derive(Debug)]
pub struct Restoration {
    ram: Ram,
    mac: [u8; 6],
    boot: BootMode,
}

impl Restoration {
    /// A machine of this configuration, whose RAM is zero so far.
    ///
    /// # Errors
    /// [`LoadError::Config`] if the configuration is out of range.
    pub fn new(config: &MachineConfig) -> Result<Self, LoadError> {
        Ok(Self { ram: Ram::new(loader::checked_ram_bytes(config)?), mac: config.mac, boot: config.boot })
    }

    /// The contents of the pages from page index `first` on, as many as there are in `bytes`. A page may come again; the
    /// last counts.
    ///
    /// # Errors
    /// [`RestoreError::NotWholePages`], [`RestoreError::PagesOutsideRam`]; nothing has been put anywhere.
    pub fn put_pages(&mut self, first: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        self.ram.put_pages(first, bytes)
    }

    /// The machine, with its state from [`Machine::state`].
    ///
    /// Whether all pages came is not known here: compare [`Machine::digest`] with the original's.
    ///
    /// # Errors
    /// [`RestoreError`] if no machine of this configuration has such a state.
    pub fn finish(self, state: &[u8]) -> Result<Machine, RestoreError> {
        Machine::restored(self.ram, self.mac, self.boot, state)
    }
}
