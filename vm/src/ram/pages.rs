//! Dirty flags and digests of a memory's pages.
//!
//! RAM and the disk have one of these each. Their pages share one sequence of indices, RAM's first,
//! so that a copier of pages needn't distinguish them.

use alloc::vec;
use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The unit in which writes are tracked and memory is copied, in bytes.
pub const PAGE_BYTES: usize = 4096;

const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();

/// The dirty flag of the incremental digest. A write sets all eight flags of a page, and each
/// reader of dirty pages clears its own flag only.
const DIRTY_FOR_DIGEST: u8 = 1 << 0;

/// Never cleared: a page without this flag was never written, and is zero.
const EVER_WRITTEN: u8 = 1 << 7;

/// The dirty flags that a write sets.
const DIRTY_FOR_ALL: u8 = u8::MAX;

/// Pages that the search for a dirty one looks at together.
const PAGES_AT_ONCE: usize = 64;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A purpose of copying pages. Each has its own dirty flags, so that copies don't disturb each
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageCopy {
    /// The copy that a new backup gets.
    Backup,
    /// The copy that is stored with a log.
    Log,
}

impl PageCopy {
    const ALL: [Self; 2] = [Self::Backup, Self::Log];

    const fn dirty_flag(self) -> u8 {
        match self {
            Self::Backup => 1 << 1,
            Self::Log => 1 << 2,
        }
    }
}

/// A range of the machine's pages; those of the disk follow those of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The index of the first.
    pub first: u64,
    /// One past the last.
    pub end: u64,
}

/// The digest of a range of a memory's pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartDigest {
    /// One past the range's last page, as an index among the machine's pages.
    pub(crate) end: u64,
    /// Pages in the range that had been written since their last digest.
    pub(crate) looked_at: usize,
    /// The wrapping sum of the pages' digests.
    pub(crate) sum: u128,
}

/// The written pages of a memory. The memory stores its contents itself, is zero at first, and
/// reports each write.
///
/// Invariants: `digest_sum` is the wrapping sum of `page_digests`, and `page_digests[i]` is right
/// for every page that isn't dirty for the digest; `to_take[copy]` counts the pages that are dirty
/// for `copy`. From the beginning of a copy on, every page that is dirty for the digest is dirty
/// for the copy, because a page that is taken is digested too: when a copy is complete the digest
/// costs nothing.
pub(crate) struct Pages {
    /// The index of the memory's first page among the machine's.
    first: u64,
    dirty: Vec<u8>,
    page_digests: Vec<u128>,
    digest_sum: u128,
    to_take: [usize; PageCopy::ALL.len()],
}

impl Pages {
    /// For a memory of `bytes` bytes, a multiple of [`PAGE_BYTES`], whose pages follow the
    /// machine's first `first` pages.
    pub(crate) fn new(first: u64, bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE_BYTES), "a memory consists of whole pages");
        let pages = bytes / PAGE_BYTES;
        Self { first, dirty: vec![0; pages], page_digests: vec![0; pages], digest_sum: 0, to_take: [0; 2] }
    }

    /// One past its last page, as an index among the machine's pages.
    pub(crate) const fn end(&self) -> u64 {
        self.first + self.dirty.len() as u64
    }

    /// Records that `N` bytes were written at `offset`: at least one and at most a page.
    #[inline]
    pub(crate) fn mark<const N: usize>(&mut self, offset: usize) {
        self.mark_page(offset >> PAGE_SHIFT);
        self.mark_page((offset + (N - 1)) >> PAGE_SHIFT);
    }

    /// Records that `length` bytes were written at `offset`.
    pub(crate) fn mark_range(&mut self, offset: usize, length: usize) {
        if let Some(last) = length.checked_sub(1) {
            (offset >> PAGE_SHIFT..=(offset + last) >> PAGE_SHIFT).for_each(|page| self.mark_page(page));
        }
    }

    #[inline]
    fn mark_page(&mut self, index: usize) {
        if self.dirty[index] != DIRTY_FOR_ALL {
            self.first_mark(index);
        }
    }

    /// Records the first write to a page since one of its readers has cleared its flag.
    #[cold]
    fn first_mark(&mut self, index: usize) {
        for copy in PageCopy::ALL {
            self.to_take[copy as usize] += usize::from(self.dirty[index] & copy.dirty_flag() == 0);
        }
        self.dirty[index] = DIRTY_FOR_ALL;
    }

    /// The digest of the contents: a function of them alone, however often it is computed.
    ///
    /// It is the wrapping sum over all pages that aren't all zero of the xxh3-128 of the page,
    /// seeded with its index. A page that was never written costs nothing.
    pub(crate) fn digest(&mut self, contents: &[u8]) -> u128 {
        self.digest_some(self.first, usize::MAX, contents).sum
    }

    /// The digest of the pages from the machine's page `from` on, until `dirty_max` pages that were
    /// written have been hashed.
    pub(crate) fn digest_some(&mut self, from: u64, dirty_max: usize, contents: &[u8]) -> PartDigest {
        let start = self.index_of(from);
        let (mut next, mut looked_at) = (start, 0);
        while looked_at < dirty_max {
            let Some(index) = first_dirty(&self.dirty, next, DIRTY_FOR_DIGEST) else {
                next = self.dirty.len();
                break;
            };
            self.digest_page(index, contents);
            next = index + 1;
            looked_at += 1;
        }
        PartDigest { end: self.first + next as u64, looked_at, sum: self.sum(start, next) }
    }

    /// The digest of those of the machine's pages `from..end` that are in this memory.
    pub(crate) fn digest_range(&mut self, from: u64, end: u64, contents: &[u8]) -> u128 {
        let (start, end) = (self.index_of(from), self.index_of(end));
        let mut next = start;
        while let Some(index) = first_dirty(&self.dirty[..end], next, DIRTY_FOR_DIGEST) {
            self.digest_page(index, contents);
            next = index + 1;
        }
        self.sum(start, end)
    }

    /// Begins a copy: every page that isn't known to be all zero is to be taken.
    ///
    /// Pages written since their last digest are not looked at here: the guest is stopped, and
    /// looking at all of a large memory takes tens of milliseconds. The caller of [`Self::take`]
    /// sees whether they are zero.
    pub(crate) fn begin_copy(&mut self, copy: PageCopy) {
        let mut to_take = 0;
        for (dirty, page_digest) in self.dirty.iter_mut().zip(&self.page_digests) {
            let is_zero = *dirty & DIRTY_FOR_DIGEST == 0 && (*dirty & EVER_WRITTEN == 0 || *page_digest == 0);
            if is_zero {
                *dirty &= !copy.dirty_flag();
            } else {
                *dirty |= copy.dirty_flag();
                to_take += 1;
            }
        }
        self.to_take[copy as usize] = to_take;
    }

    /// Takes the first page at or after the machine's page `from` that is dirty for `copy`, with
    /// its index, and digests it.
    pub(crate) fn take<'a>(&mut self, copy: PageCopy, from: u64, contents: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let index = first_dirty(&self.dirty, self.index_of(from), copy.dirty_flag())?;
        self.dirty[index] &= !copy.dirty_flag();
        self.to_take[copy as usize] -= 1;
        if self.dirty[index] & DIRTY_FOR_DIGEST != 0 {
            self.digest_page(index, contents);
        }
        Some((self.first + index as u64, page(contents, index)))
    }

    /// The number of pages that are dirty for `copy`.
    pub(crate) const fn to_take(&self, copy: PageCopy) -> usize {
        self.to_take[copy as usize]
    }

    fn digest_page(&mut self, index: usize, contents: &[u8]) {
        self.dirty[index] &= !DIRTY_FOR_DIGEST;
        let page = page(contents, index);
        let fresh = if is_zero(page) { 0 } else { xxh3_128_with_seed(page, self.first + index as u64) };
        self.digest_sum = self.digest_sum.wrapping_sub(self.page_digests[index]).wrapping_add(fresh);
        self.page_digests[index] = fresh;
    }

    fn sum(&self, start: usize, end: usize) -> u128 {
        if (start, end) == (0, self.dirty.len()) {
            return self.digest_sum;
        }
        self.page_digests[start..end].iter().fold(0, |sum, digest| sum.wrapping_add(*digest))
    }

    /// The index in this memory of the machine's page `page`; clamped to the memory's pages, and
    /// one past the last.
    fn index_of(&self, page: u64) -> usize {
        let index = page.saturating_sub(self.first);
        usize::try_from(index).map_or(self.dirty.len(), |index| index.min(self.dirty.len()))
    }
}

/// `true` if this page, or part of one, is all zero.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZERO_PAGE[..page.len()]
}

fn page(contents: &[u8], index: usize) -> &[u8] {
    &contents[index * PAGE_BYTES..][..PAGE_BYTES]
}

/// The first page at or after `from` that has `flag` set. Most don't, so many are checked together.
fn first_dirty(dirty: &[u8], from: usize, flag: u8) -> Option<usize> {
    let rest = dirty.get(from..)?;
    let has_one = |chunk: &[u8]| chunk.iter().fold(0, |all, dirty| all | dirty) & flag != 0;
    let start = rest.chunks(PAGES_AT_ONCE).position(has_one)? * PAGES_AT_ONCE;
    let distance = rest[start..].iter().position(|dirty| dirty & flag != 0)?;
    Some(from + start + distance)
}
