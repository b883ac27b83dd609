//! Watches: which pages of RAM cached data was derived from, and what a store has made stale.
//!
//! The fast path (`fast`) caches translations and decoded instructions, and its caches are
//! invisible to the guest: the hart behaves as if every access walked the page table and every step
//! decoded memory. So the fast path registers here what it derives from a page, every store is
//! checked here, and the fast path drops what is stale before it goes on.
//!
//! Nothing of this is state of the machine.

use super::pages::PAGE_BYTES;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Decoded instructions were read from this page; `code_lines` says from which lines.
const CODE: u8 = 1 << 0;
/// Translations were read from this page.
const TABLE: u8 = 1 << 1;
/// The fast path may have written this page without notice since it was last watched.
const STORES_CACHED: u8 = 1 << 2;

/// A probe looks for writes to a part of the page.
const PROBED: u8 = 1 << 3;

/// The flags that a store has to check.
const WATCHED: u8 = CODE | TABLE | PROBED;

/// Decoded instructions are watched by lines of this many bytes, 64 of which are a page.
pub(crate) const LINE_BYTES: usize = 64;
const LINES: usize = PAGE_BYTES / LINE_BYTES;

/// What is watched, and what has become stale.
#[derive(Debug)]
pub(crate) struct Watches {
    flags: Vec<u8>,
    /// A bit per line of each page.
    code_lines: Vec<u64>,
    tables: Vec<usize>,
    changed_code: Vec<usize>,
    tables_changed: bool,
    /// Stores to some page were permitted without notice since they were last revoked.
    stores_cached: bool,
    stores_revoked: bool,
    /// Offsets in RAM to which a probe looks for writes.
    probed: Range<usize>,
    /// Writes there since they were last taken.
    writes: Vec<ProbedWrite>,
}

/// A write to probed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbedWrite {
    /// The offset in RAM of the first byte written.
    pub(crate) offset: usize,
    /// How many bytes were written.
    pub(crate) bytes: usize,
    /// A page-table entry was marked as accessed or dirty.
    pub(crate) is_mark: bool,
}

/// What has become stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invalidations {
    /// A page table that translations were read from was written.
    pub(crate) tables: bool,
    /// Stores to some page may no longer go without notice: it is watched now, or a reader of dirty
    /// pages has cleared its flag.
    pub(crate) stores: bool,
}

impl Watches {
    /// For RAM of this many pages, none of which is watched.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            flags: vec![0; pages],
            code_lines: vec![0; pages],
            tables: Vec::new(),
            changed_code: Vec::new(),
            tables_changed: false,
            stores_cached: false,
            stores_revoked: false,
            probed: 0..0,
            writes: Vec::new(),
        }
    }

    /// Records that `bytes` bytes were written at `offset` in RAM.
    #[inline]
    pub(crate) fn written(&mut self, offset: usize, bytes: usize) {
        let Some(last) = bytes.checked_sub(1) else { return };
        let (first, last) = (offset / PAGE_BYTES, (offset + last) / PAGE_BYTES);
        if self.flags[first..=last].iter().any(|flags| flags & WATCHED != 0) {
            self.watched_written(offset, bytes);
        }
    }

    #[cold]
    fn watched_written(&mut self, offset: usize, bytes: usize) {
        if offset < self.probed.end && self.probed.start < offset + bytes {
            self.writes.push(ProbedWrite { offset, bytes, is_mark: false });
        }
        for line in offset / LINE_BYTES..=(offset + bytes - 1) / LINE_BYTES {
            let page = line / LINES;
            if self.flags[page] & TABLE != 0 {
                self.tables_changed = true;
            }
            if self.code_lines[page] >> (line % LINES) & 1 == 1 {
                self.code_lines[page] = 0;
                self.flags[page] &= !CODE;
                self.changed_code.push(page);
            }
        }
    }

    /// Notes writes to these offsets in RAM from now on, and to no others.
    pub(crate) fn watch_writes(&mut self, offsets: Option<Range<usize>>) {
        self.writes.clear();
        self.flags.iter_mut().for_each(|flags| *flags &= !PROBED);
        self.probed = offsets.unwrap_or(0..0);
        if let Some(last) = self.probed.end.checked_sub(1).filter(|last| *last >= self.probed.start) {
            for page in self.probed.start / PAGE_BYTES..=last / PAGE_BYTES {
                self.watch(page, PROBED);
            }
        }
    }

    /// Notes that the last write was the mark of a page-table entry at `offset`.
    pub(crate) fn written_by_mark(&mut self, offset: usize) {
        if let Some(last) = self.writes.last_mut().filter(|last| last.offset == offset) {
            last.is_mark = true;
        }
    }

    /// Takes the writes to probed memory since the last call.
    pub(crate) fn take_writes(&mut self) -> Vec<ProbedWrite> {
        core::mem::take(&mut self.writes)
    }

    /// Watches `page`, which is a page table that translations were read from.
    pub(crate) fn watch_table(&mut self, page: usize) {
        if self.flags[page] & TABLE == 0 {
            self.tables.push(page);
            self.watch(page, TABLE);
        }
    }

    /// Watches these lines of `page`, from which instructions were decoded.
    pub(crate) fn watch_code(&mut self, page: usize, lines: u64) {
        self.code_lines[page] |= lines;
        self.watch(page, CODE);
    }

    /// Permits stores to `page` without notice, until the next invalidation; `false` if the page is
    /// watched.
    pub(crate) fn allow_stores(&mut self, page: usize) -> bool {
        let allowed = self.flags[page] & WATCHED == 0;
        if allowed {
            self.flags[page] |= STORES_CACHED;
            self.stores_cached = true;
        }
        allowed
    }

    /// Revokes all permissions: the next store to each page is noticed.
    #[inline]
    pub(crate) const fn revoke_stores(&mut self) {
        self.stores_revoked |= self.stores_cached;
        self.stores_cached = false;
    }

    /// `true` if something has become stale.
    #[inline]
    pub(crate) const fn has_invalidations(&self) -> bool {
        self.tables_changed || self.stores_revoked || !self.changed_code.is_empty()
    }

    /// Watches no decoded instructions any more.
    pub(crate) fn forget_code(&mut self) {
        self.code_lines.fill(0);
        self.changed_code.clear();
        for flags in &mut self.flags {
            *flags &= !CODE;
        }
    }

    /// Takes what has become stale since the last call; the caller drops it.
    #[inline]
    pub(crate) fn take_invalidations(&mut self) -> Invalidations {
        let invalidations = Invalidations { tables: self.tables_changed, stores: self.stores_revoked };
        if invalidations.tables {
            for page in self.tables.drain(..) {
                self.flags[page] &= !TABLE;
            }
        }
        self.tables_changed = false;
        self.stores_revoked = false;
        invalidations
    }

    /// Takes a page whose decoded instructions have changed; none of them are watched any more.
    pub(crate) fn take_changed_code(&mut self) -> Option<usize> {
        self.changed_code.pop()
    }

    fn watch(&mut self, page: usize, flag: u8) {
        self.flags[page] |= flag;
        if self.flags[page] & STORES_CACHED != 0 {
            self.flags[page] &= !STORES_CACHED;
            self.stores_revoked = true;
        }
    }
}
