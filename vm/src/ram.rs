//! The guest's memory, and which of its pages were written.

use crate::hart::memory::Memory;
use crate::mmu::GuestPhysAddr;
use crate::state::RestoreError;
use crate::watch::Watches;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Where RAM begins on the bus, as on QEMU's `virt` board.
pub(crate) const RAM_BASE: u64 = 0x8000_0000;

/// The unit in which writes are tracked and RAM is copied, in bytes.
pub const PAGE_BYTES: usize = 4096;

const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();

/// The dirty flag of the incremental digest. A write sets all eight flags of a page, and each reader of dirty pages clears
/// its own, so that one reader doesn't take the news from another.
const DIRTY_FOR_DIGEST: u8 = 1 << 0;

/// Nobody clears this one: a page without it was never written, and is zero.
const EVER_WRITTEN: u8 = 1 << 7;

/// What a write does to a page's dirty flags.
const DIRTY_FOR_ALL: u8 = u8::MAX;

/// How many pages are looked at together in the search for a dirty one.
const PAGES_AT_ONCE: usize = 64;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Who copies pages. Each has its own dirty flags, so that one copy doesn't take the news from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageCopy {
    /// The copy that a new backup gets.
    Backup,
    /// The copy that is kept with a log on disk.
    Disk,
}

impl PageCopy {
    const fn dirty_flag(self) -> u8 {
        match self {
            Self::Backup => 1 << 1,
            Self::Disk => 1 << 2,
        }
    }
}

/// Contiguous memory from [`RAM_BASE`] on.
///
/// All accesses are checked against its bounds and none panics. Invariant: `digest_sum` is the wrapping sum of
/// `page_digests`, and `page_digests[i]` is right for every page that isn't dirty for the digest.
pub(crate) struct Ram {
    memory: Memory,
    watches: Watches,
    dirty: Vec<u8>,
    page_digests: Vec<u128>,
    digest_sum: u128,
}

impl Ram {
    /// Zeroed memory of `bytes` bytes, a multiple of [`PAGE_BYTES`].
    pub(crate) fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE_BYTES), "RAM consists of whole pages");
        let pages = bytes / PAGE_BYTES;
        Self {
            memory: Memory::zeroed(bytes),
            watches: Watches::new(pages),
            dirty: vec![0; pages],
            page_digests: vec![0; pages],
            digest_sum: 0,
        }
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

    /// Writes `N` bytes at `address`; `None` if not all of them are RAM, and then nothing is written.
    #[inline]
    pub(crate) fn store<const N: usize>(&mut self, address: GuestPhysAddr, value: [u8; N]) -> Option<()> {
        let offset = self.offset(address)?;
        *self.memory.as_mut_slice().get_mut(offset..)?.first_chunk_mut::<N>()? = value;
        let (first, last) = (offset >> PAGE_SHIFT, (offset + (N - 1)) >> PAGE_SHIFT);
        self.dirty[first] = DIRTY_FOR_ALL;
        self.dirty[last] = DIRTY_FOR_ALL;
        if self.watches.watches(first) || self.watches.watches(last) {
            self.watches.written(offset, N);
        }
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
        if let Some(last) = bytes.len().checked_sub(1) {
            self.dirty[offset >> PAGE_SHIFT..=(offset + last) >> PAGE_SHIFT].fill(DIRTY_FOR_ALL);
            self.watches.written(offset, bytes.len());
        }
        Some(())
    }

    /// The digest of the contents: a function of them alone, however often and whenever it was asked for.
    ///
    /// It is the wrapping sum over all pages that aren't all zero of the xxh3-128 of the page, seeded with its index; a page
    /// that was never written costs nothing.
    pub(crate) fn digest(&mut self) -> u128 {
        let Self { memory, watches, dirty, page_digests, digest_sum } = self;
        let pages = memory.as_slice().chunks_exact(PAGE_BYTES).zip(dirty).zip(page_digests);
        for (index, ((page, dirty), page_digest)) in pages.enumerate() {
            if *dirty & DIRTY_FOR_DIGEST == 0 {
                continue;
            }
            *dirty &= !DIRTY_FOR_DIGEST;
            watches.revoke_stores(index);
            let fresh = if page == ZERO_PAGE { 0 } else { xxh3_128_with_seed(page, index as u64) };
            *digest_sum = digest_sum.wrapping_sub(*page_digest).wrapping_add(fresh);
            *page_digest = fresh;
        }
        *digest_sum
    }

    /// Every page that isn't all zero is to be taken by `copy`.
    pub(crate) fn begin_copy(&mut self, copy: PageCopy) {
        let pages = self.memory.as_slice().chunks_exact(PAGE_BYTES).zip(&mut self.dirty);
        for (index, (page, dirty)) in pages.enumerate() {
            if *dirty & EVER_WRITTEN != 0 && page != ZERO_PAGE {
                *dirty |= copy.dirty_flag();
            } else {
                *dirty &= !copy.dirty_flag();
                self.watches.revoke_stores(index);
            }
        }
    }

    /// Takes the first page at or after page index `from` that is dirty for `copy`.
    pub(crate) fn take_page(&mut self, copy: PageCopy, from: u64) -> Option<(u64, &[u8])> {
        let from = usize::try_from(from).ok()?;
        let index = from + first_dirty(self.dirty.get(from..)?, copy.dirty_flag())?;
        self.dirty[index] &= !copy.dirty_flag();
        self.watches.revoke_stores(index);
        let start = index * PAGE_BYTES;
        Some((index as u64, &self.memory.as_slice()[start..start + PAGE_BYTES]))
    }

    /// How many pages are dirty for `copy`.
    pub(crate) fn pages_to_take(&self, copy: PageCopy) -> usize {
        self.dirty.iter().filter(|dirty| **dirty & copy.dirty_flag() != 0).count()
    }

    /// Overwrites the pages from page index `first` on.
    ///
    /// # Errors
    /// [`RestoreError::NotWholePages`], [`RestoreError::PagesOutsideRam`]; nothing has been written.
    pub(crate) fn put_pages(&mut self, first: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        if !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(RestoreError::NotWholePages { bytes: bytes.len() });
        }
        let (pages, ram_pages) = (bytes.len() / PAGE_BYTES, self.dirty.len());
        let end = first.checked_add(pages as u64).filter(|end| *end <= ram_pages as u64);
        let Some((start, _)) = usize::try_from(first).ok().zip(end) else {
            return Err(RestoreError::PagesOutsideRam { first, pages, ram_pages });
        };
        self.memory.as_mut_slice()[start * PAGE_BYTES..][..bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.watches.written(start * PAGE_BYTES, bytes.len());
        }
        self.dirty[start..start + pages].fill(DIRTY_FOR_ALL);
        Ok(())
    }

    /// How many pages there are.
    pub(crate) const fn pages(&self) -> usize {
        self.dirty.len()
    }

    /// The page with this index.
    pub(crate) fn page(&self, index: usize) -> &[u8; PAGE_BYTES] {
        let page = self.memory.as_slice().get(index * PAGE_BYTES..).and_then(|rest| rest.first_chunk());
        page.expect("an index that is less than the number of pages")
    }

    /// Where the memory is, for the fast path: it may read what it has translated, and write where
    /// [`Self::allow_stores`] has said so.
    pub(crate) const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Whether the page at `offset` may be written without [`Self::store`] from now on, until there are news. It counts as
    /// written.
    pub(crate) fn allow_stores(&mut self, offset: usize) -> bool {
        let page = offset >> PAGE_SHIFT;
        let allowed = self.watches.allow_stores(page);
        if allowed {
            self.dirty[page] = DIRTY_FOR_ALL;
        }
        allowed
    }

    /// What was derived from which page.
    pub(crate) const fn watches_mut(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// Where `address` is in RAM, if it is in RAM.
    #[inline]
    pub(crate) fn offset(&self, address: GuestPhysAddr) -> Option<usize> {
        let offset = address.0.wrapping_sub(RAM_BASE);
        if offset < self.memory.len() as u64 { usize::try_from(offset).ok() } else { None }
    }
}

/// The first of the pages with these flags that has `flag`. Most don't, so many are looked at together.
fn first_dirty(dirty: &[u8], flag: u8) -> Option<usize> {
    let has_one = |chunk: &[u8]| chunk.iter().fold(0, |all, dirty| all | dirty) & flag != 0;
    let chunk = dirty.chunks(PAGES_AT_ONCE).position(has_one)?;
    let start = chunk * PAGES_AT_ONCE;
    let place = dirty[start..].iter().position(|dirty| dirty & flag != 0)?;
    Some(start + place)
}

/// Without the contents, which nobody wants to see in a log.
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
        assert_eq!(asked_often.digest(), 0);
        let mut seen = alloc::vec![0];
        for step in 0..3 {
            for ram in [&mut asked_often, &mut asked_once] {
                match step {
                    0 => ram.store(at(PAGE_BYTES as u64 - 1), [0, 7]).unwrap(), // only the second page changes
                    1 => ram.write(at(100), &[3; 2 * PAGE_BYTES]).unwrap(),
                    _ => ram.store(at(0), [1_u8]).unwrap(),
                }
            }
            let digest = asked_often.digest();
            assert!(!seen.contains(&digest), "step {step} changed nothing");
            seen.push(digest);
        }
        assert_eq!(asked_often.digest(), asked_once.digest());
    }

    #[test]
    fn digest_of_a_page_cleared_again_is_that_of_a_page_never_written() {
        let mut ram = Ram::new(2 * PAGE_BYTES);
        ram.store(at(8), [1_u8]).unwrap();
        assert_ne!(ram.digest(), 0);
        ram.store(at(8), [0_u8]).unwrap();
        assert_eq!(ram.digest(), 0);
    }

    #[test]
    fn digest_tells_equal_pages_apart_by_their_place() {
        let (mut first, mut second) = (Ram::new(2 * PAGE_BYTES), Ram::new(2 * PAGE_BYTES));
        first.store(at(0), [9_u8]).unwrap();
        second.store(at(PAGE_BYTES as u64), [9_u8]).unwrap();
        assert_ne!(first.digest(), second.digest());
    }
}
