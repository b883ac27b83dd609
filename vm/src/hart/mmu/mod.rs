//! Address translation: bare and Sv39.
//!
//! Every fetch, load and store of the hart goes through [`Mmu::walk`], which reads the page table
//! each time: translation is coherent with memory, so SFENCE.VMA has nothing to do. A cache of
//! translations has to notice stores to the tables that they were read from
//! ([`Translation::tables`]).
//!
//! A walk changes nothing. The accessed and dirty bits that it would set are a [`Mark`], which the
//! hart writes once the access is certain to be made. So an access of two pages of which one is
//! missing leaves no trace in either, and looking at the next instruction leaves none.

mod sv39;

use crate::isa::address::{GuestPhysAddr, GuestVirtAddr};
use crate::isa::privilege::Privilege;
use crate::isa::trap::{Exception, Trap};
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};

/// The kind of an access, which decides the exception of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Fetch,
    Load,
    Store,
}

impl Access {
    /// The access fault of this kind of access at `address`.
    pub(crate) const fn fault(self, address: GuestVirtAddr) -> Trap {
        let exception = match self {
            Self::Fetch => Exception::InstructionAccessFault,
            Self::Load => Exception::LoadAccessFault,
            Self::Store => Exception::StoreAccessFault,
        };
        Trap { exception, tval: address.0 }
    }

    /// The page fault of this kind of access at `address`.
    const fn page_fault(self, address: GuestVirtAddr) -> Trap {
        let exception = match self {
            Self::Fetch => Exception::InstructionPageFault,
            Self::Load => Exception::LoadPageFault,
            Self::Store => Exception::StorePageFault,
        };
        Trap { exception, tval: address.0 }
    }
}

/// The rights of an access: privilege mode, and what `mstatus` permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accessor {
    /// The privilege mode whose rights apply; for loads and stores `mstatus.MPRV` may make it
    /// another than the hart's.
    pub(crate) privilege: Privilege,
    /// `mstatus.SUM`: the supervisor may load from and store to pages of the user.
    pub(crate) sum: bool,
    /// `mstatus.MXR`: what is executable is readable.
    pub(crate) mxr: bool,
}

/// A page-table entry with accessed or dirty bits to be set: its address and its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    entry: GuestPhysAddr,
    bits: u64,
}

impl Mark {
    /// Writes the entry.
    pub(crate) fn put(self, ram: &mut Ram) {
        ram.store_mark(self.entry, self.bits).expect("a walk marks only an entry that it has read from RAM");
    }
}

/// The result of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) physical: GuestPhysAddr,
    /// `true` if the same accessor may load from this page without another walk.
    pub(crate) readable: bool,
    /// `true` if the same accessor may store to this page without another walk: with the mark
    /// written, the dirty bit is set.
    pub(crate) writable: bool,
    /// To be written before the access is made.
    pub(crate) mark: Option<Mark>,
    /// The tables that were read, from the root on.
    tables: [Option<GuestPhysAddr>; sv39::LEVELS],
}

impl Translation {
    const fn bare(address: GuestVirtAddr) -> Self {
        let tables = [None; sv39::LEVELS];
        Self { physical: GuestPhysAddr(address.0), readable: true, writable: true, mark: None, tables }
    }

    /// The addresses of the pages whose contents this translation depends on.
    pub(crate) fn tables(&self) -> impl Iterator<Item = GuestPhysAddr> {
        self.tables.into_iter().flatten()
    }
}

/// Width of a physical address of an RV64 hart, in bits.
const PHYSICAL_ADDRESS_BITS: u32 = 56;

/// `satp.MODE`, bits 63:60.
const SATP_MODE_BARE: u64 = 0;
const SATP_MODE_SV39: u64 = 8;

/// `satp.MODE` and `satp.PPN`. There are no address-space identifiers: without visible caches they
/// would have no effect.
const SATP_MASK: u64 = 0xf << 60 | ((1 << 44) - 1);

/// Address translation and the state that governs it.
#[derive(Debug)]
pub(crate) struct Mmu {
    /// Invariant: zero, or MODE is Sv39 and only the fields of [`SATP_MASK`] are set.
    satp: u64,
}

impl Mmu {
    /// Bare translation.
    pub(crate) const fn new() -> Self {
        Self { satp: 0 }
    }

    /// Translates the address of an access, which must not reach beyond its page.
    ///
    /// # Errors
    /// The page fault of an address that the accessor may not use in this way; the access fault of
    /// an address beyond the physical address space, or of one whose page table isn't in RAM.
    #[inline]
    pub(crate) fn walk(
        &self,
        ram: &Ram,
        address: GuestVirtAddr,
        access: Access,
        accessor: Accessor,
    ) -> Result<Translation, Trap> {
        if self.satp != 0 && accessor.privilege != Privilege::Machine {
            return sv39::walk(ram, self.satp, address, access, accessor);
        }
        if address.0 >> PHYSICAL_ADDRESS_BITS == 0 {
            Ok(Translation::bare(address))
        } else {
            Err(access.fault(address))
        }
    }

    /// Like [`Self::walk`], for an access that is certain to be made: its mark is written.
    #[inline]
    pub(crate) fn translate(
        &self,
        ram: &mut Ram,
        address: GuestVirtAddr,
        access: Access,
        accessor: Accessor,
    ) -> Result<Translation, Trap> {
        let translation = self.walk(ram, address, access, accessor)?;
        if let Some(mark) = translation.mark {
            mark.put(ram);
        }
        Ok(translation)
    }

    /// CSR `satp`.
    pub(crate) const fn satp(&self) -> u64 {
        self.satp
    }

    /// Writes CSR `satp`. As the specification requires, a write with a MODE that isn't offered has
    /// no effect; in Bare mode the other fields are zero.
    pub(crate) const fn set_satp(&mut self, value: u64) {
        match value >> 60 {
            SATP_MODE_BARE => self.satp = 0,
            SATP_MODE_SV39 => self.satp = value & SATP_MASK,
            _ => {}
        }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { satp } = self;
        writer.u64(*satp);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let satp = reader.u64()?;
        let offered = satp == 0 || (satp >> 60 == SATP_MODE_SV39 && satp & !SATP_MASK == 0);
        reader.require(offered, "satp selects a translation that isn't offered")?;
        Ok(Self { satp })
    }
}
