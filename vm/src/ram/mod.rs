//! The guest's memory.

#[expect(unsafe_code, reason = "one allocation that is reached by one pointer only")]
mod allocation;
pub(crate) mod disk;
pub(crate) mod pages;
pub(crate) mod watch;

use crate::isa::address::GuestPhysAddr;
use crate::ram::allocation::Memory;
use crate::ram::pages::{PAGE_BYTES, Pages};
use crate::ram::watch::Watches;
use core::fmt;

/// Where RAM begins on the bus, as on QEMU's `virt` board.
pub(crate) const RAM_BASE: u64 = 0x8000_0000;

/// Contiguous memory from [`RAM_BASE`] on.
///
/// All accesses are checked against its bounds and none panics.
pub(crate) struct Ram {
    memory: Memory,
    pages: Pages,
    watches: Watches,
}

impl Ram {
    /// Zeroed memory of `bytes` bytes, a multiple of [`PAGE_BYTES`].
    pub(crate) fn new(bytes: usize) -> Self {
        Self { memory: Memory::zeroed(bytes), pages: Pages::new(0, bytes), watches: Watches::new(bytes / PAGE_BYTES) }
    }

    /// One past the last address.
    pub(crate) const fn end(&self) -> u64 {
        RAM_BASE + self.memory.len() as u64
    }

    /// `N` bytes at `address`; `None` if not all of them are RAM.
    #[inline]
    pub(crate) fn load<const N: usize>(&self, address: GuestPhysAddr) -> Option<[u8; N]> {
        let offset = self.offset(address)?;
        self.memory.as_slice().get(offset..)?.first_chunk::<N>().copied()
    }

    /// Writes `N` bytes at `address`; `None` if not all of them are RAM, and then nothing is
    /// written.
    #[inline]
    pub(crate) fn store<const N: usize>(&mut self, address: GuestPhysAddr, value: [u8; N]) -> Option<()> {
        let offset = self.offset(address)?;
        *self.memory.as_mut_slice().get_mut(offset..)?.first_chunk_mut::<N>()? = value;
        self.pages.mark::<N>(offset);
        self.watches.written(offset, N);
        Some(())
    }

    /// Writes a page-table entry with its accessed or dirty bit set, as [`Self::store`].
    pub(crate) fn store_mark(&mut self, address: GuestPhysAddr, entry: u64) -> Option<()> {
        self.store(address, entry.to_le_bytes())?;
        let offset = self.offset(address)?;
        self.watches.written_by_mark(offset);
        Some(())
    }

    /// The `length` bytes at `address`; `None` if not all of them are RAM.
    pub(crate) fn slice(&self, address: GuestPhysAddr, length: u64) -> Option<&[u8]> {
        let offset = self.offset(address)?;
        let length = usize::try_from(length).ok()?;
        self.memory.as_slice().get(offset..offset.checked_add(length)?)
    }

    /// Writes `bytes` at `address`; `None` if not all of it is RAM, and then nothing is written.
    pub(crate) fn write(&mut self, address: GuestPhysAddr, bytes: &[u8]) -> Option<()> {
        let offset = self.offset(address)?;
        self.memory.as_mut_slice().get_mut(offset..offset.checked_add(bytes.len())?)?.copy_from_slice(bytes);
        self.pages.mark_range(offset, bytes.len());
        self.watches.written(offset, bytes.len());
        Some(())
    }

    /// Its pages, which are the machine's first.
    pub(crate) const fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Its pages and its contents. The caller may clear dirty flags of pages: the next store to
    /// each page is noticed again.
    pub(crate) fn paged(&mut self) -> (&mut Pages, &[u8]) {
        self.watches.revoke_stores();
        (&mut self.pages, self.memory.as_slice())
    }

    /// The page with this index, which is one of RAM's.
    pub(crate) fn page(&self, index: usize) -> &[u8; PAGE_BYTES] {
        let page = self.memory.as_slice().get(index * PAGE_BYTES..).and_then(|rest| rest.first_chunk());
        page.expect("an index that is less than the number of pages")
    }

    /// The memory, for the fast path: it may read pages that it has translated, and write pages for
    /// which [`Self::allow_stores`] returned `true`.
    pub(crate) const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Permits writing the page at `offset` without [`Self::store`], until the next invalidation;
    /// `false` if the page is watched. The page counts as written.
    pub(crate) fn allow_stores(&mut self, offset: usize) -> bool {
        let allowed = self.watches.allow_stores(offset / PAGE_BYTES);
        if allowed {
            self.pages.mark::<1>(offset);
        }
        allowed
    }

    /// The record of what was derived from which page.
    pub(crate) const fn watches_mut(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// The offset of `address` from [`RAM_BASE`]; `None` if it isn't in RAM.
    #[inline]
    pub(crate) fn offset(&self, address: GuestPhysAddr) -> Option<usize> {
        let offset = address.0.wrapping_sub(RAM_BASE);
        if offset < self.memory.len() as u64 { usize::try_from(offset).ok() } else { None }
    }
}

/// Without the contents, which are too long for a log.
impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").field("bytes", &self.memory.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestPhysAddr, PAGE_BYTES, RAM_BASE, Ram};

    const LAST: u64 = RAM_BASE + 2 * PAGE_BYTES as u64 - 1;

    fn at(offset: u64) -> GuestPhysAddr {
        GuestPhysAddr(RAM_BASE + offset)
    }

    fn digest(ram: &mut Ram) -> u128 {
        let (pages, contents) = ram.paged();
        pages.digest(contents)
    }

    #[test]
    fn accesses_end_at_the_bounds() {
        let mut ram = Ram::new(2 * PAGE_BYTES);
        assert_eq!(ram.end(), LAST + 1);
        assert_eq!(ram.load::<1>(GuestPhysAddr(LAST)), Some([0]));
        assert_eq!(ram.load::<2>(GuestPhysAddr(LAST)), None);
        assert_eq!(ram.load::<1>(GuestPhysAddr(LAST + 1)), None);
        assert_eq!(ram.load::<1>(GuestPhysAddr(RAM_BASE - 1)), None);
        assert_eq!(ram.load::<8>(GuestPhysAddr(u64::MAX)), None);
        assert_eq!(ram.store(GuestPhysAddr(LAST - 2), [1; 4]), None);
        assert_eq!(ram.load::<2>(GuestPhysAddr(LAST - 1)), Some([0; 2]), "a refused store writes nothing");
        assert_eq!(ram.write(GuestPhysAddr(LAST), &[1, 2]), None);
        assert!(ram.slice(at(0), u64::MAX).is_none());
        assert_eq!(ram.slice(at(0), 2 * PAGE_BYTES as u64).map(<[u8]>::len), Some(2 * PAGE_BYTES));
    }

    #[test]
    fn digest_sees_every_way_to_write_and_depends_on_contents_alone() {
        let mut asked_often = Ram::new(4 * PAGE_BYTES);
        let mut asked_once = Ram::new(4 * PAGE_BYTES);
        assert_eq!(digest(&mut asked_often), 0);
        let mut seen = alloc::vec![0];
        for step in 0..3 {
            for ram in [&mut asked_often, &mut asked_once] {
                match step {
                    0 => ram.store(at(PAGE_BYTES as u64 - 1), [0, 7]).unwrap(), // only the second page changes
                    1 => ram.write(at(100), &[3; 2 * PAGE_BYTES]).unwrap(),
                    _ => ram.store(at(0), [1_u8]).unwrap(),
                }
            }
            let digest = digest(&mut asked_often);
            assert!(!seen.contains(&digest), "step {step} changed nothing");
            seen.push(digest);
        }
        assert_eq!(digest(&mut asked_often), digest(&mut asked_once));
    }

    #[test]
    fn digest_of_a_page_cleared_again_is_that_of_a_page_never_written() {
        let mut ram = Ram::new(2 * PAGE_BYTES);
        ram.store(at(8), [1_u8]).unwrap();
        assert_ne!(digest(&mut ram), 0);
        ram.store(at(8), [0_u8]).unwrap();
        assert_eq!(digest(&mut ram), 0);
    }

    #[test]
    fn digest_tells_equal_pages_apart_by_their_index() {
        let (mut first, mut second) = (Ram::new(2 * PAGE_BYTES), Ram::new(2 * PAGE_BYTES));
        first.store(at(0), [9_u8]).unwrap();
        second.store(at(PAGE_BYTES as u64), [9_u8]).unwrap();
        assert_ne!(digest(&mut first), digest(&mut second));
    }
}
