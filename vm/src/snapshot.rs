//! Snapshots: a machine goes on elsewhere, exactly alike.
//!
//! ```text
//!   begin_copy ─► take_page … ─► guest runs on ─► take_page … ─► guest at rest: take_page … + state
//!                     │                               │                              │
//!                     ▼                               ▼                              ▼
//!   Restoration::new ─► put_pages … ────────────► put_pages … ───────────► put_pages … ─► finish ─► Machine
//! ```
//!
//! RAM and the disk are most of it, so they are copied while the guest runs on; pages written
//! meanwhile are taken again, until few enough are left to be taken while the guest waits. What was
//! sent to whom, and when it is few enough, is not known here. The pages of the disk have the
//! indices behind those of RAM.

use crate::boot::loader::{self, LoadError};
use crate::config::MachineConfig;
use crate::isa::address::GuestPhysAddr;
use crate::machine::Machine;
use crate::ram::disk::Disk;
use crate::ram::pages::{PAGE_BYTES, PageCopy};
use crate::ram::{RAM_BASE, Ram};
use crate::state::{RestoreError, StateWriter};
use alloc::vec::Vec;

/// The most bytes of [`Machine::state`].
pub const STATE_BYTES_MAX: usize = 64 << 10;

impl Machine {
    /// Begins a copy of RAM and the disk to a memory that is all zero: every page that isn't known
    /// to be all zero is to be taken.
    pub fn begin_copy(&mut self, copy: PageCopy) {
        for (pages, _) in self.bus.memories() {
            pages.begin_copy(copy);
        }
    }

    /// The first page at or after page index `from` that is to be taken, because the copy has just
    /// begun or because it was written since it was last taken; now it is taken. Its index and its
    /// [`PAGE_BYTES`] bytes.
    pub fn take_page(&mut self, copy: PageCopy, from: u64) -> Option<(u64, &[u8])> {
        self.bus.memories().find_map(|(pages, contents)| pages.take(copy, from, contents))
    }

    /// The number of pages to be taken; asking costs nothing.
    #[must_use]
    pub fn pages_to_take(&self, copy: PageCopy) -> usize {
        self.bus.ram.pages().to_take(copy) + self.bus.disk().map_or(0, |disk| disk.pages().to_take(copy))
    }

    /// All of the state but the contents of RAM and of the disk; at most [`STATE_BYTES_MAX`] bytes.
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

/// A machine under construction from a snapshot.
#[derive(Debug)]
pub struct Restoration {
    ram: Ram,
    disk: Option<Disk>,
    config: MachineConfig,
}

impl Restoration {
    /// A machine of this configuration, whose RAM and disk are zero so far.
    ///
    /// # Errors
    /// [`LoadError::Config`] if the configuration is out of range; [`LoadError::NoMemory`].
    pub fn new(config: &MachineConfig) -> Result<Self, LoadError> {
        let ram_bytes = loader::checked_ram_bytes(config)?;
        loader::ask_for_memory(config)?;
        let ram = Ram::new(ram_bytes);
        Ok(Self { ram, disk: loader::disk(config, &[])?, config: config.clone() })
    }

    /// Writes the pages from page index `first` on, as many as there are in `bytes`. A page may
    /// come again; the last one counts.
    ///
    /// # Errors
    /// [`RestoreError::NotWholePages`], [`RestoreError::NoSuchPages`]; nothing has been written.
    pub fn put_pages(&mut self, first: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        if !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(RestoreError::NotWholePages { bytes: bytes.len() });
        }
        let pages = bytes.len() / PAGE_BYTES;
        let ram_pages = self.ram.pages().end();
        let machine_pages = self.disk.as_ref().map_or(ram_pages, |disk| disk.pages().end());
        if first.checked_add(pages as u64).is_none_or(|end| end > machine_pages) {
            return Err(RestoreError::NoSuchPages { first, pages, machine_pages });
        }
        // The last pages of RAM and the first of the disk may come together.
        let in_ram = usize::try_from(ram_pages.saturating_sub(first)).map_or(pages, |left| left.min(pages));
        let (to_ram, to_disk) = bytes.split_at(in_ram * PAGE_BYTES);
        if !to_ram.is_empty() {
            let address = GuestPhysAddr(RAM_BASE + first * PAGE_BYTES as u64);
            self.ram.write(address, to_ram).expect("the pages were checked to be in RAM");
        }
        if let Some(disk) = self.disk.as_mut().filter(|_| !to_disk.is_empty()) {
            let offset = first.saturating_sub(ram_pages) * PAGE_BYTES as u64;
            disk.write(offset, to_disk).expect("the pages were checked to be on the disk");
        }
        Ok(())
    }

    /// Completes the machine with its state from [`Machine::state`].
    ///
    /// Missing pages aren't noticed here: compare [`Machine::digest`] with the original's.
    ///
    /// # Errors
    /// [`RestoreError`] if no machine of this configuration has such a state.
    pub fn finish(self, state: &[u8]) -> Result<Machine, RestoreError> {
        Machine::restored(&self.config, self.ram, self.disk, state)
    }
}
