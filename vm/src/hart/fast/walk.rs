//! Page-table walks for the caches.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::mmu::{Access, GuestVirtAddr};
use crate::pages::PAGE_BYTES;

impl Hart {
    /// Where in RAM `address` is for this kind of access. The page tables that say so are watched
    /// from now on.
    ///
    /// `None` if the access traps, goes to a device or to where somebody looks, or has to be marked
    /// in a page table: the plain interpreter does that, once it is sure that the instruction is
    /// executed.
    pub(super) fn place_in_ram(&self, bus: &mut Bus, address: u64, access: Access) -> Option<usize> {
        let accessor = match access {
            Access::Fetch => self.accessor(self.privilege),
            Access::Load | Access::Store => self.data_accessor(),
        };
        let translation = self.mmu.walk(&bus.ram, GuestVirtAddr(address), access, accessor).ok()?;
        if translation.mark.is_some() {
            return None;
        }
        let offset = bus.ram.offset(translation.physical)?;
        if access == Access::Store && self.shares_page_with_tohost(translation.physical) {
            return None;
        }
        for table in translation.tables() {
            let table = bus.ram.offset(table).expect("a walk reads tables in RAM");
            bus.ram.watches_mut().watch_table(table / PAGE_BYTES);
        }
        Some(offset)
    }
}
