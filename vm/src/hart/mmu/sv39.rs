//! Sv39: three levels of tables of 512 entries each, pages of 4 KiB, 2 MiB and 1 GiB.
//!
//! Accessed and dirty bits are set by the hardware, as on QEMU's board. Svnapot and Svpbmt aren't
//! offered: their bits are reserved, and an entry that sets them faults.
//!
//! Source: RISC-V Privileged Architecture 1.12, §4.3.2 and §4.4.

use super::{Access, Accessor, Mark, Translation};
use crate::isa::address::{GuestPhysAddr, GuestVirtAddr};
use crate::isa::privilege::Privilege;
use crate::isa::trap::Trap;
use crate::ram::Ram;

/// The most tables that a walk reads.
pub(super) const LEVELS: usize = 3;

/// Width of a page offset, in bits.
const PAGE_SHIFT: u32 = 12;

/// Width of the index into one table, in bits.
const INDEX_BITS: u32 = 9;

/// Width of a virtual address; the bits above are copies of the highest.
const ADDRESS_BITS: u32 = 39;

/// Width of a physical page number.
const PPN_BITS: u32 = 44;

/// A page-table entry.
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    const VALID: u64 = 1 << 0;
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 2;
    const EXECUTE: u64 = 1 << 3;
    const USER: u64 = 1 << 4;
    const ACCESSED: u64 = 1 << 6;
    const DIRTY: u64 = 1 << 7;
    const PPN_SHIFT: u32 = 10;
    const RESERVED: u64 = !((1 << (Self::PPN_SHIFT + PPN_BITS)) - 1);

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// `true` if the entry is valid and has no reserved encoding.
    const fn is_valid(self) -> bool {
        let write_only = self.has(Self::WRITE) && !self.has(Self::READ);
        self.has(Self::VALID) && !write_only && !self.has(Self::RESERVED)
    }

    /// `true` if the entry maps a page; otherwise it points to the next table.
    const fn is_leaf(self) -> bool {
        self.has(Self::READ | Self::WRITE | Self::EXECUTE)
    }

    /// `true` if the bits are clear that only leaves may have.
    const fn is_clean_pointer(self) -> bool {
        !self.has(Self::ACCESSED | Self::DIRTY | Self::USER)
    }

    /// The physical address of the table or page.
    const fn address(self) -> u64 {
        ((self.0 & !Self::RESERVED) >> Self::PPN_SHIFT) << PAGE_SHIFT
    }

    /// `true` if `accessor` may make this kind of access to the page of this leaf.
    const fn permits(self, access: Access, accessor: Accessor) -> bool {
        let reachable = match (self.has(Self::USER), accessor.privilege) {
            (user, Privilege::User) => user,
            (false, Privilege::Supervisor | Privilege::Machine) => true,
            (true, _) => accessor.sum && !matches!(access, Access::Fetch),
        };
        let allowed = match access {
            Access::Fetch => self.has(Self::EXECUTE),
            Access::Load => self.has(Self::READ) || (accessor.mxr && self.has(Self::EXECUTE)),
            Access::Store => self.has(Self::WRITE),
        };
        reachable && allowed
    }

    /// The entry with accessed and dirty bits as after such an access.
    const fn marked(self, access: Access) -> Self {
        match access {
            Access::Fetch | Access::Load => Self(self.0 | Self::ACCESSED),
            Access::Store => Self(self.0 | Self::ACCESSED | Self::DIRTY),
        }
    }
}

/// Translates `address` by the tables that begin at the root in `satp`; see
/// [`Mmu::walk`](super::Mmu::walk).
pub(super) fn walk(
    ram: &Ram,
    satp: u64,
    address: GuestVirtAddr,
    access: Access,
    accessor: Accessor,
) -> Result<Translation, Trap> {
    let page_fault = access.page_fault(address);
    let unused = u64::BITS - ADDRESS_BITS;
    if ((address.0 << unused).cast_signed() >> unused).cast_unsigned() != address.0 {
        return Err(page_fault);
    }
    let mut tables = [None; LEVELS];
    let mut table = (satp & ((1 << PPN_BITS) - 1)) << PAGE_SHIFT;
    let mut shift = ADDRESS_BITS;
    for read in &mut tables {
        shift -= INDEX_BITS;
        let index = (address.0 >> shift) & ((1 << INDEX_BITS) - 1);
        let entry_address = GuestPhysAddr(table + index * 8);
        let entry = Entry(ram.load(entry_address).map(u64::from_le_bytes).ok_or(access.fault(address))?);
        *read = Some(GuestPhysAddr(table));
        if !entry.is_valid() {
            return Err(page_fault);
        }
        if entry.is_leaf() {
            let offset_mask = (1 << shift) - 1;
            let misaligned_superpage = entry.address() & offset_mask != 0;
            if misaligned_superpage || !entry.permits(access, accessor) {
                return Err(page_fault);
            }
            let marked = entry.marked(access);
            return Ok(Translation {
                physical: GuestPhysAddr(entry.address() | (address.0 & offset_mask)),
                readable: entry.permits(Access::Load, accessor),
                writable: entry.permits(Access::Store, accessor) && marked.has(Entry::DIRTY),
                mark: (marked.0 != entry.0).then_some(Mark { entry: entry_address, bits: marked.0 }),
                tables,
            });
        }
        if !entry.is_clean_pointer() {
            return Err(page_fault);
        }
        table = entry.address();
    }
    // The last level has only leaves.
    Err(page_fault)
}

#[cfg(test)]
mod tests {
    use super::super::{Access, Accessor, Mmu, Translation};
    use crate::isa::address::{GuestPhysAddr, GuestVirtAddr};
    use crate::isa::privilege::Privilege;
    use crate::isa::trap::{Exception, Trap};
    use crate::ram::{RAM_BASE, Ram};
    use alloc::vec::Vec;

    const ROOT: u64 = RAM_BASE;
    const MIDDLE: u64 = RAM_BASE + 0x1000;
    const LAST: u64 = RAM_BASE + 0x2000;
    const POINTER: u64 = 0b0001;
    /// V, R, W, X, A and D.
    const ALL: u64 = 0b1100_1111;
    const SUPERVISOR: Accessor = Accessor { privilege: Privilege::Supervisor, sum: false, mxr: false };

    fn entry(address: u64, flags: u64) -> u64 {
        address >> 2 | flags
    }

    /// Entry 0 of the root points to the middle table, whose entry 0 points to the last.
    fn tables() -> (Mmu, Ram) {
        let (mut mmu, mut ram) = (Mmu::new(), Ram::new(16 << 12));
        mmu.set_satp(8 << 60 | ROOT >> 12);
        put(&mut ram, ROOT, entry(MIDDLE, POINTER));
        put(&mut ram, MIDDLE, entry(LAST, POINTER));
        (mmu, ram)
    }

    fn put(ram: &mut Ram, address: u64, value: u64) {
        ram.store(GuestPhysAddr(address), value.to_le_bytes()).unwrap();
    }

    fn get(ram: &Ram, address: u64) -> u64 {
        u64::from_le_bytes(ram.load(GuestPhysAddr(address)).unwrap())
    }

    fn walk(mmu: &Mmu, ram: &Ram, address: u64, access: Access) -> Result<Translation, Trap> {
        mmu.walk(ram, GuestVirtAddr(address), access, SUPERVISOR)
    }

    #[test]
    fn a_walk_names_the_tables_that_it_read() {
        let (mmu, mut ram) = tables();
        put(&mut ram, LAST + 8 * 3, entry(0x8765_4000, ALL));
        let found = walk(&mmu, &ram, 0x3abc, Access::Load).unwrap();
        assert_eq!(found.physical, GuestPhysAddr(0x8765_4abc));
        assert_eq!(found.tables().map(|table| table.0).collect::<Vec<_>>(), [ROOT, MIDDLE, LAST]);
        put(&mut ram, MIDDLE + 8, entry(0x8740_0000, ALL));
        let found = walk(&mmu, &ram, 0x2a_bcde, Access::Load).unwrap();
        assert_eq!(found.physical, GuestPhysAddr(0x874a_bcde));
        assert_eq!(found.tables().map(|table| table.0).collect::<Vec<_>>(), [ROOT, MIDDLE]);
        put(&mut ram, ROOT + 8 * 511, entry(0x4000_0000, ALL));
        let found = walk(&mmu, &ram, 0xffff_ffff_fabc_def0, Access::Fetch).unwrap();
        assert_eq!(found.physical, GuestPhysAddr(0x7abc_def0));
        assert_eq!(found.tables().count(), 1);
        assert_eq!(Translation::bare(GuestVirtAddr(1)).tables().count(), 0);
    }

    #[test]
    fn a_walk_writes_nothing_and_its_mark_sets_the_bits_of_the_access() {
        const VRWX: u64 = 0b1111;
        const ACCESSED: u64 = 1 << 6;
        const DIRTY: u64 = 1 << 7;
        for (access, before, after) in [
            (Access::Fetch, VRWX, VRWX | ACCESSED),
            (Access::Load, VRWX, VRWX | ACCESSED),
            (Access::Store, VRWX, VRWX | ACCESSED | DIRTY),
            (Access::Store, VRWX | ACCESSED, VRWX | ACCESSED | DIRTY),
            (Access::Load, VRWX | DIRTY, VRWX | ACCESSED | DIRTY),
        ] {
            let (mmu, mut ram) = tables();
            put(&mut ram, LAST, entry(LAST, before));
            let found = walk(&mmu, &ram, 0, access).unwrap();
            assert_eq!(get(&ram, LAST), entry(LAST, before), "{access:?} {before:#x}");
            assert_eq!((found.readable, found.writable), (true, after & DIRTY != 0), "{access:?} {before:#x}");
            found.mark.unwrap().put(&mut ram);
            assert_eq!(get(&ram, LAST), entry(LAST, after), "{access:?} {before:#x}");
            assert_eq!(walk(&mmu, &ram, 0, access).unwrap().mark, None, "there is nothing left to mark");
        }
    }

    #[test]
    fn entries_that_mean_nothing_fault() {
        let fault = |ram: &Ram, mmu: &Mmu, address| walk(mmu, ram, address, Access::Load).unwrap_err();
        let page_fault = |address| Trap { exception: Exception::LoadPageFault, tval: address };
        let with_leaf = |bits: u64| {
            let (mmu, mut ram) = tables();
            put(&mut ram, LAST, bits);
            fault(&ram, &mmu, 0x123)
        };
        let invalid = [0, ALL & !1, 0b1100_0101, 0b1100_1101, POINTER];
        for flags in invalid {
            assert_eq!(with_leaf(entry(LAST, flags)), page_fault(0x123), "{flags:#b}");
        }
        for bit in 54..64 {
            assert_eq!(with_leaf(entry(LAST, ALL) | 1 << bit), page_fault(0x123), "reserved bit {bit}");
        }
        // Pointers keep A, D and U clear.
        for flag in [1 << 4, 1 << 6, 1 << 7] {
            let (mmu, mut ram) = tables();
            put(&mut ram, LAST, entry(LAST, ALL));
            put(&mut ram, MIDDLE, entry(LAST, POINTER | flag));
            assert_eq!(fault(&ram, &mmu, 0), page_fault(0), "{flag:#b}");
        }
        // Superpages are where their size puts them.
        for (entry_address, address) in [(MIDDLE, 0x8000_1000), (ROOT, 0x8020_0000)] {
            let (mmu, mut ram) = tables();
            put(&mut ram, entry_address, entry(address, ALL));
            assert_eq!(fault(&ram, &mmu, 0), page_fault(0), "{address:#x}");
        }
    }

    #[test]
    fn an_address_has_its_highest_bit_in_all_above() {
        let (mmu, mut ram) = tables();
        put(&mut ram, ROOT, entry(0, ALL));
        put(&mut ram, ROOT + 8 * 256, entry(0, ALL));
        for (address, mapped) in [
            (0, true),
            (1 << 39, false),
            (1 << 63, false),
            (1 << 38, false),
            (u64::MAX << 38, true),
            (u64::MAX << 38 & !(1 << 39), false),
        ] {
            assert_eq!(walk(&mmu, &ram, address, Access::Load).is_ok(), mapped, "{address:#x}");
        }
    }

    #[test]
    fn a_table_outside_ram_is_an_access_fault_of_the_access() {
        let (mut mmu, mut ram) = tables();
        for (access, exception) in [
            (Access::Fetch, Exception::InstructionAccessFault),
            (Access::Load, Exception::LoadAccessFault),
            (Access::Store, Exception::StoreAccessFault),
        ] {
            put(&mut ram, MIDDLE, entry(0x1000_0000, POINTER));
            assert_eq!(walk(&mmu, &ram, 0x40, access), Err(Trap { exception, tval: 0x40 }));
        }
        mmu.set_satp(u64::MAX >> 20 | 8 << 60);
        assert_eq!(walk(&mmu, &ram, 0, Access::Load).unwrap_err().exception, Exception::LoadAccessFault);
    }

    #[test]
    fn satp_takes_the_modes_that_are_offered() {
        let mut mmu = Mmu::new();
        for (written, kept) in [
            (8 << 60 | 0xffff << 44 | 5, 8 << 60 | 5), // no ASID
            (9 << 60 | 6, 8 << 60 | 5),
            (10 << 60 | 6, 8 << 60 | 5),
            (1 << 60, 8 << 60 | 5),
            (7, 0),
            (9 << 60 | 6, 0),
        ] {
            mmu.set_satp(written);
            assert_eq!(mmu.satp(), kept, "{written:#x}");
        }
    }
}
