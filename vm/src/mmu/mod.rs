//! From the addresses a guest uses to the addresses of the bus.
//!
//! Only Bare translation is offered: `satp` reads zero, and the device tree names no `mmu-type`. Paged modes belong here,
//! behind [`Mmu::translate`]; every fetch, load and store of the hart goes through it already. What a paged mode adds to
//! the callers is that one access may touch two pages.

use crate::hart::trap::{Exception, Trap};
use crate::state::{RestoreError, StateReader, StateWriter};

/// An address on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestPhysAddr(pub(crate) u64);

/// An address as an instruction computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestVirtAddr(pub(crate) u64);

/// What an access is for; it decides which exception a failure raises.
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
}

/// Width of a physical address of an RV64 hart, in bits.
const PHYSICAL_ADDRESS_BITS: u32 = 56;

/// `satp.MODE` of Bare translation; the field is in bits 63:60.
const SATP_MODE_BARE: u64 = 0;

/// Address translation and the state that governs it.
#[derive(Debug)]
pub(crate) struct Mmu {
    satp: u64,
}

impl Mmu {
    /// Bare translation.
    pub(crate) const fn new() -> Self {
        Self { satp: 0 }
    }

    /// The physical address of `address`.
    ///
    /// # Errors
    /// The access fault of an address beyond the physical address space.
    #[inline]
    pub(crate) const fn translate(&self, address: GuestVirtAddr, access: Access) -> Result<GuestPhysAddr, Trap> {
        if address.0 >> PHYSICAL_ADDRESS_BITS == 0 { Ok(GuestPhysAddr(address.0)) } else { Err(access.fault(address)) }
    }

    /// CSR `satp`.
    pub(crate) const fn satp(&self) -> u64 {
        self.satp
    }

    /// Writes CSR `satp`. As the specification wants it, a write with a MODE that isn't offered has no effect; in Bare mode
    /// the other fields are zero.
    pub(crate) const fn set_satp(&mut self, value: u64) {
        if value >> 60 == SATP_MODE_BARE {
            self.satp = 0;
        }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { satp } = self;
        writer.u64(*satp);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let satp = reader.u64()?;
        reader.require(satp == 0, "satp selects a translation that isn't offered")?;
        Ok(Self { satp })
    }
}
