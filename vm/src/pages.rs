//! Which pages of a memory were written: for the digest of its contents, and for those who copy it.
//!
//! RAM and the disk have one of these each. Their pages have one row of indices, RAM's first, so that whoever carries pages
//! needn't know which is which.

use alloc::vec;
use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The unit in which writes are tracked and memory is copied, in bytes.
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
    /// The copy that is kept with a log.
    Log,
}

impl PageCopy {
    const fn dirty_flag(self) -> u8 {
        match self {
            Self::Backup => 1 << 1,
            Self::Log => 1 << 2,
        }
    }
}

/// The written pages of a memory, which keeps its contents itself, is zero at first, and says where it was written.
///
/// Invariant: `digest_sum` is the wrapping sum of `page_digests`, and `page_digests[i]` is right for every page that isn't
/// dirty for the digest.
pub(crate) struct Pages {
    /// The index of the memory's first page among the machine's.
    first: u64,
    dirty: Vec<u8>,
    page_digests: Vec<u128>,
    digest_sum: u128,
}

impl Pages {
    /// Of a memory of `bytes` bytes, a multiple of [`PAGE_BYTES`], behind `first` pages of the machine.
    pub(crate) fn new(first: u64, bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE_BYTES), "a memory consists of whole pages");
        let pages = bytes / PAGE_BYTES;
        Self { first, dirty: vec![0; pages], page_digests: vec![0; pages], digest_sum: 0 }
    }

    /// One past the last page, among the machine's.
    pub(crate) const fn end(&self) -> u64 {
        self.first + self.dirty.len() as u64
    }

    /// `N` bytes were written at `offset`; at least one, and at most a page of them.
    #[inline]
    pub(crate) fn mark<const N: usize>(&mut self, offset: usize) {
        self.dirty[offset >> PAGE_SHIFT] = DIRTY_FOR_ALL;
        self.dirty[(offset + (N - 1)) >> PAGE_SHIFT] = DIRTY_FOR_ALL;
    }

    /// `length` bytes were written at `offset`.
    pub(crate) fn mark_range(&mut self, offset: usize, length: usize) {
        if let Some(last) = length.checked_sub(1) {
            self.dirty[offset >> PAGE_SHIFT..=(offset + last) >> PAGE_SHIFT].fill(DIRTY_FOR_ALL);
        }
    }

    /// The digest of the contents: a function of them alone, however often and whenever it was asked for.
    ///
    /// It is the wrapping sum over all pages that aren't all zero of the xxh3-128 of the page, seeded with its index; a page
    /// that was never written costs nothing.
    pub(crate) fn digest(&mut self, contents: &[u8]) -> u128 {
        let mut from = 0;
        while let Some(index) = first_dirty(&self.dirty, from, DIRTY_FOR_DIGEST) {
            self.dirty[index] &= !DIRTY_FOR_DIGEST;
            let page = page(contents, index);
            let fresh = if is_zero(page) { 0 } else { xxh3_128_with_seed(page, self.first + index as u64) };
            self.digest_sum = self.digest_sum.wrapping_sub(self.page_digests[index]).wrapping_add(fresh);
            self.page_digests[index] = fresh;
            from = index + 1;
        }
        self.digest_sum
    }

    /// Every page that isn't all zero is to be taken by `copy`.
    pub(crate) fn begin_copy(&mut self, copy: PageCopy, contents: &[u8]) {
        let pages = contents.chunks_exact(PAGE_BYTES).zip(&mut self.dirty).zip(&self.page_digests);
        for ((page, dirty), page_digest) in pages {
            // Where the digest has looked the page needn't be: for a large disk that is the difference between a millisecond and
            // twenty, in which the guest stands still.
            let zero = match *dirty & (EVER_WRITTEN | DIRTY_FOR_DIGEST) {
                0 => true,
                EVER_WRITTEN => *page_digest == 0,
                _ => is_zero(page),
            };
            if zero {
                *dirty &= !copy.dirty_flag();
            } else {
                *dirty |= copy.dirty_flag();
            }
        }
    }

    /// Takes the first page at or after the machine's page `from` that is dirty for `copy`, with its index.
    pub(crate) fn take<'a>(&mut self, copy: PageCopy, from: u64, contents: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let from = usize::try_from(from.saturating_sub(self.first)).ok()?;
        let index = first_dirty(&self.dirty, from, copy.dirty_flag())?;
        self.dirty[index] &= !copy.dirty_flag();
        Some((self.first + index as u64, page(contents, index)))
    }

    /// How many pages are dirty for `copy`.
    pub(crate) fn to_take(&self, copy: PageCopy) -> usize {
        self.dirty.iter().filter(|dirty| **dirty & copy.dirty_flag() != 0).count()
    }
}

/// Whether this page, or part of one, is all zero.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZERO_PAGE[..page.len()]
}

fn page(contents: &[u8], index: usize) -> &[u8] {
    &contents[index * PAGE_BYTES..][..PAGE_BYTES]
}

/// The first page at or after `from` that has `flag` among its flags. Most don't, so many are looked at together.
fn first_dirty(dirty: &[u8], from: usize, flag: u8) -> Option<usize> {
    let rest = dirty.get(from..)?;
    let has_one = |chunk: &[u8]| chunk.iter().fold(0, |all, dirty| all | dirty) & flag != 0;
    let start = rest.chunks(PAGES_AT_ONCE).position(has_one)? * PAGES_AT_ONCE;
    let place = rest[start..].iter().position(|dirty| dirty & flag != 0)?;
    Some(from + start + place)
}
