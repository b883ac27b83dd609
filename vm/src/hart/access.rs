//! Memory access of the hart: instruction fetch, and loads and stores of integers and
//! floating-point numbers.
//!
//! Accesses may have any alignment. An access that reaches into a second page is translated twice
//! before anything is done, and is for RAM alone: devices take only aligned accesses, which never
//! reach into a second page.

use super::csr::Status;
use super::mmu::{Access, Accessor, Mark, Translation};
use super::{Hart, Unretired};
use crate::bus::{Bus, Clock};
use crate::isa::address::{GuestPhysAddr, GuestVirtAddr};
use crate::isa::decode;
use crate::isa::instruction::LoadKind;
use crate::isa::privilege::Privilege;
use crate::isa::trap::Trap;
use crate::ram::Ram;
use crate::ram::pages::PAGE_BYTES;

/// The bits at pc, and the page-table marks to put before they are executed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetched {
    /// 32 bits, or 16 if they are a compressed instruction at the end of its page.
    pub(super) bits: u32,
    marks: [Option<Mark>; 2],
}

impl Fetched {
    /// `true` if executing the instruction sets accessed bits.
    #[inline]
    pub(super) const fn has_marks(&self) -> bool {
        self.marks[0].is_some() || self.marks[1].is_some()
    }

    /// Sets the accessed bits in the page table: the instruction is going to be executed.
    #[inline]
    pub(super) fn put_marks(&self, ram: &mut Ram) {
        for mark in self.marks.iter().flatten() {
            mark.put(ram);
        }
    }
}

/// A load or store that needs a clock of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockAccess {
    pub(super) clock: Clock,
    pub(super) address: GuestPhysAddr,
    /// To be put when the access is completed.
    pub(super) mark: Option<Mark>,
    pub(super) accessed: Accessed,
}

/// What such an access does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accessed {
    Load(LoadKind),
    /// A store of the low 32 bits of this value: only the real-time clock needs the host's for one,
    /// and it has words.
    Store(u64),
}

impl Hart {
    /// The access to `address` that the next instruction would make, if it needs a clock of the
    /// host.
    pub(super) fn clock_access(&self, ram: &Ram, address: GuestVirtAddr, accessed: Accessed) -> Option<ClockAccess> {
        let (width, access) = match accessed {
            Accessed::Load(kind) => (kind.bytes(), Access::Load),
            Accessed::Store(_) => (4, Access::Store),
        };
        if bytes_to_page_end(address) < width as u64 {
            return None;
        }
        let translation = self.walk(ram, address, access).ok()?;
        let clock = Bus::clock_of(translation.physical, width, access == Access::Store)?;
        Some(ClockAccess { clock, address: translation.physical, mark: translation.mark, accessed })
    }

    /// Fetches the instruction at pc, without changing anything, in the page table neither.
    ///
    /// # Errors
    /// The trap of the half that can't be fetched; its `tval` is the address of that half.
    #[inline]
    pub(super) fn fetch(&self, ram: &Ram) -> Result<Fetched, Trap> {
        let pc = GuestVirtAddr(self.pc);
        let translation = self.walk_fetch(ram, pc)?;
        if bytes_to_page_end(pc) >= 4 {
            let bytes = ram.load(translation.physical).ok_or(Access::Fetch.fault(pc))?;
            return Ok(Fetched { bits: u32::from_le_bytes(bytes), marks: [translation.mark, None] });
        }
        self.fetch_at_page_end(ram, pc, translation)
    }

    #[cold]
    fn fetch_at_page_end(&self, ram: &Ram, pc: GuestVirtAddr, first: Translation) -> Result<Fetched, Trap> {
        let half = |translation: Translation, address: GuestVirtAddr| {
            let bytes = ram.load(translation.physical).ok_or(Access::Fetch.fault(address))?;
            Ok(u32::from(u16::from_le_bytes(bytes)))
        };
        let low = half(first, pc)?;
        if decode::length(low) == 2 {
            return Ok(Fetched { bits: low, marks: [first.mark, None] });
        }
        let rest = GuestVirtAddr(pc.0.wrapping_add(2));
        let second = self.walk_fetch(ram, rest)?;
        let bits = low | half(second, rest)? << 16;
        Ok(Fetched { bits, marks: [first.mark, second.mark] })
    }

    /// Reads `N` bytes, 1, 2, 4 or 8, at an address of any alignment.
    ///
    /// # Errors
    /// The trap of the first part that can't be read; its `tval` is the first address of that part.
    /// [`Unretired::Awaits`] if this reads a clock, and nothing has changed.
    #[inline]
    pub(super) fn load<const N: usize>(&mut self, bus: &mut Bus, address: GuestVirtAddr) -> Result<[u8; N], Unretired> {
        if bytes_to_page_end(address) < N as u64 {
            return Ok(self.load_across(bus, address)?);
        }
        let translation = self.walk(&bus.ram, address, Access::Load)?;
        if let Some(clock) = Bus::clock_of(translation.physical, N, false) {
            return Err(Unretired::Awaits(clock.into()));
        }
        if let Some(mark) = translation.mark {
            mark.put(&mut bus.ram);
        }
        bus.load(translation.physical).ok_or(Access::Load.fault(address).into())
    }

    /// Writes `N` bytes, 1, 2, 4 or 8, at an address of any alignment.
    ///
    /// # Errors
    /// The trap of the first part that can't be written; its `tval` is the first address of that
    /// part, and nothing has been written. [`Unretired::Awaits`] if this sets the real-time clock,
    /// and nothing has changed.
    #[inline]
    pub(super) fn store<const N: usize>(
        &mut self,
        bus: &mut Bus,
        address: GuestVirtAddr,
        bytes: [u8; N],
    ) -> Result<(), Unretired> {
        if bytes_to_page_end(address) < N as u64 {
            return Ok(self.store_across(bus, address, bytes)?);
        }
        let translation = self.walk(&bus.ram, address, Access::Store)?;
        let physical = translation.physical;
        if let Some(clock) = Bus::clock_of(physical, N, true) {
            return Err(Unretired::Awaits(clock.into()));
        }
        if let Some(mark) = translation.mark {
            mark.put(&mut bus.ram);
        }
        bus.store(physical, bytes).ok_or(Access::Store.fault(address))?;
        self.notice_tohost(bus, physical, N as u64);
        Ok(())
    }

    /// Translates the address of a data access, which must not reach beyond its page, and sets
    /// accessed and dirty bits.
    #[inline]
    pub(super) fn translate(
        &self,
        bus: &mut Bus,
        address: GuestVirtAddr,
        access: Access,
    ) -> Result<GuestPhysAddr, Trap> {
        let translation = self.mmu.translate(&mut bus.ram, address, access, self.data_accessor())?;
        Ok(translation.physical)
    }

    #[cold]
    fn load_across<const N: usize>(&self, bus: &mut Bus, address: GuestVirtAddr) -> Result<[u8; N], Trap> {
        let parts = self.translate_across(bus, address, N as u64, Access::Load)?;
        let mut bytes = [0; N];
        for (byte, address_of_byte) in bytes.iter_mut().zip(parts.addresses()) {
            [*byte] = bus.ram.load(address_of_byte).ok_or(Access::Load.fault(address))?;
        }
        Ok(bytes)
    }

    #[cold]
    fn store_across<const N: usize>(&self, bus: &mut Bus, address: GuestVirtAddr, bytes: [u8; N]) -> Result<(), Trap> {
        let parts = self.translate_across(bus, address, N as u64, Access::Store)?;
        for (byte, address_of_byte) in bytes.into_iter().zip(parts.addresses()) {
            bus.ram.store(address_of_byte, [byte]).ok_or(Access::Store.fault(address))?;
        }
        self.notice_tohost(bus, parts.first, parts.first_bytes);
        self.notice_tohost(bus, parts.second, N as u64 - parts.first_bytes);
        Ok(())
    }

    /// Translates the two parts of an access of `length` bytes that reaches into a second page;
    /// both must be in RAM.
    fn translate_across(
        &self,
        bus: &mut Bus,
        address: GuestVirtAddr,
        length: u64,
        access: Access,
    ) -> Result<Parts, Trap> {
        let accessor = self.data_accessor();
        let first_bytes = bytes_to_page_end(address);
        let second_address = GuestVirtAddr(address.0.wrapping_add(first_bytes));
        let first = self.mmu.walk(&bus.ram, address, access, accessor)?;
        bus.ram.slice(first.physical, first_bytes).ok_or(access.fault(address))?;
        let second = self.mmu.walk(&bus.ram, second_address, access, accessor)?;
        bus.ram.slice(second.physical, length - first_bytes).ok_or(access.fault(second_address))?;
        for mark in [first.mark, second.mark].into_iter().flatten() {
            mark.put(&mut bus.ram);
        }
        Ok(Parts { first: first.physical, first_bytes, second: second.physical })
    }

    /// Loads a doubleword at a virtual address for the firmware, with the rights of its caller;
    /// `None` if that traps.
    pub(crate) fn load_for_firmware(&mut self, bus: &mut Bus, address: u64) -> Option<u64> {
        self.load(bus, GuestVirtAddr(address)).ok().map(u64::from_le_bytes)
    }

    #[inline]
    fn walk_fetch(&self, ram: &Ram, address: GuestVirtAddr) -> Result<Translation, Trap> {
        self.mmu.walk(ram, address, Access::Fetch, self.accessor(self.privilege))
    }

    /// Translates `address` for an access of this kind that the next instruction would make, and
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Mmu::walk`].
    pub(crate) fn walk(&self, ram: &Ram, address: GuestVirtAddr, access: Access) -> Result<Translation, Trap> {
        match access {
            Access::Fetch => self.walk_fetch(ram, address),
            Access::Load | Access::Store => self.mmu.walk(ram, address, access, self.data_accessor()),
        }
    }

    /// The accessor of loads and stores.
    #[inline]
    pub(crate) fn data_accessor(&self) -> Accessor {
        let modified = self.csrs.status.has(Status::MPRV);
        self.accessor(if modified { self.csrs.status.machine_previous() } else { self.privilege })
    }

    #[inline]
    const fn accessor(&self, privilege: Privilege) -> Accessor {
        let status = self.csrs.status;
        Accessor { privilege, sum: status.has(Status::SUM), mxr: status.has(Status::MXR) }
    }
}

/// The two parts of an access that reaches into a second page.
struct Parts {
    first: GuestPhysAddr,
    first_bytes: u64,
    second: GuestPhysAddr,
}

impl Parts {
    /// The physical address of each byte.
    fn addresses(&self) -> impl Iterator<Item = GuestPhysAddr> {
        let first = self.first.0..self.first.0 + self.first_bytes;
        first.chain(self.second.0..).map(GuestPhysAddr)
    }
}

/// The number of bytes from `address` to the end of its page.
#[inline]
const fn bytes_to_page_end(address: GuestVirtAddr) -> u64 {
    PAGE_BYTES as u64 - address.0 % PAGE_BYTES as u64
}
