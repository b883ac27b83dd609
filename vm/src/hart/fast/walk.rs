//! Page-table walks for the caches.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::mmu::{Access, GuestVirtAddr};

/// Where in RAM `address` is for this kind of access, and the page tables that say so are watched from now on. `None` if
/// the access traps or goes to a device: the plain interpreter knows.
pub(super) fn walk(hart: &Hart, bus: &mut Bus, address: u64, access: Access) -> Option<usize> {
    let physical = hart.mmu.translate(GuestVirtAddr(address), access).ok()?;
    bus.ram.offset(physical)
}
