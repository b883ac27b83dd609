//! Page-table walks for the caches.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::hart::mmu::Access;
use crate::isa::address::GuestVirtAddr;
use crate::ram::pages::PAGE_BYTES;

/// The offset in RAM that `address` has for this kind of access. The page tables that say so are
/// watched from now on.
///
/// `None` if the access traps, goes to a device or to the page of `tohost`, or has to be marked in
/// a page table: the plain interpreter does that, once it is sure that the instruction is executed.
pub(super) fn ram_offset(hart: &Hart, bus: &mut Bus, address: u64, access: Access) -> Option<usize> {
    let translation = hart.walk(&bus.ram, GuestVirtAddr(address), access).ok()?;
    if translation.mark.is_some() {
        return None;
    }
    let offset = bus.ram.offset(translation.physical)?;
    if access == Access::Store && hart.shares_page_with_tohost(translation.physical) {
        return None;
    }
    for table in translation.tables() {
        let table = bus.ram.offset(table).expect("a walk reads tables in RAM");
        bus.ram.watches_mut().watch_table(table / PAGE_BYTES);
    }
    Some(offset)
}
