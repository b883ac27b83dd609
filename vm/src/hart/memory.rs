//! The data accesses of the hart: integer and floating-point loads and stores alike.

use super::Hart;
use super::trap::Trap;
use crate::bus::Bus;
use crate::mmu::{Access, GuestVirtAddr};

impl Hart {
    /// Reads `N` bytes, 1, 2, 4 or 8, at an address of any alignment.
    ///
    /// # Errors
    /// The trap of the first part that can't be read.
    #[inline]
    pub(super) fn load<const N: usize>(&mut self, bus: &mut Bus, address: GuestVirtAddr) -> Result<[u8; N], Trap> {
        let physical = self.mmu.translate(address, Access::Load)?;
        bus.load(physical).ok_or(Access::Load.fault(address))
    }

    /// Writes `N` bytes, 1, 2, 4 or 8, at an address of any alignment.
    ///
    /// # Errors
    /// The trap of the first part that can't be written; nothing has been written.
    #[inline]
    pub(super) fn store<const N: usize>(
        &mut self,
        bus: &mut Bus,
        address: GuestVirtAddr,
        bytes: [u8; N],
    ) -> Result<(), Trap> {
        let physical = self.mmu.translate(address, Access::Store)?;
        bus.store(physical, bytes).ok_or(Access::Store.fault(address))
    }
}
