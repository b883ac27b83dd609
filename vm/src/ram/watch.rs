//! Which pages of RAM something was derived from that a store makes invalid.
//!
//! Translations and decoded instructions are cached (`fast`), and the caches are invisible
//! to the guest: they behave as if every access walked the page table and every step decoded
//! memory. So whoever caches something says here what it was derived from, every store looks here,
//! and before the hart runs on it drops what is no longer true.
//!
//! Nothing of this is state of the machine.

use super::pages::PAGE_BYTES;
use alloc::vec;
use alloc::vec::Vec;

/// Instructions in this page are decoded; which ones, `code_lines` says.
const CODE: u8 = 1 << 0;
/// Translations were read from this page.
const TABLE: u8 = 1 << 1;
/// Stores to this page may have been made without looking here since it was last watched.
const STORES_CACHED: u8 = 1 << 2;

/// What a store has to ask about.
const WATCHED: u8 = CODE | TABLE;

/// Decoded instructions are watched by lines of this many bytes; 64 of them are a page.
pub(crate) const LINE_BYTES: usize = 64;
const LINES: usize = PAGE_BYTES / LINE_BYTES;

/// What is watched, and what has become invalid.
#[derive(Debug)]
pub(crate) struct Watches {
    flags: Vec<u8>,
    /// A bit per line of each page.
    code_lines: Vec<u64>,
    tables: Vec<usize>,
    changed_code: Vec<usize>,
    tables_changed: bool,
    /// To any page, since they were last revoked from all.
    stores_cached: bool,
    stores_revoked: bool,
}

/// What has become invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// A page table that translations were read from was written.
    pub(crate) tables: bool,
    /// Some page to which stores were cached is watched now, or its being written must be seen
    /// again.
    pub(crate) stores: bool,
}

impl Watches {
    /// Nothing is watched in RAM of so many pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            flags: vec![0; pages],
            code_lines: vec![0; pages],
            tables: Vec::new(),
            changed_code: Vec::new(),
            tables_changed: false,
            stores_cached: false,
            stores_revoked: false,
        }
    }

    /// `bytes` bytes were written at `offset` in RAM.
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

    /// Translations were read from `page`.
    pub(crate) fn watch_table(&mut self, page: usize) {
        if self.flags[page] & TABLE == 0 {
            self.tables.push(page);
            self.watch(page, TABLE);
        }
    }

    /// Instructions in these lines of `page` are decoded.
    pub(crate) fn watch_code(&mut self, page: usize, lines: u64) {
        self.code_lines[page] |= lines;
        self.watch(page, CODE);
    }

    /// Whether stores to `page` may be made without looking here from now on, until the next news.
    pub(crate) fn allow_stores(&mut self, page: usize) -> bool {
        let allowed = self.flags[page] & WATCHED == 0;
        if allowed {
            self.flags[page] |= STORES_CACHED;
            self.stores_cached = true;
        }
        allowed
    }

    /// The next store to each page has to be seen.
    #[inline]
    pub(crate) const fn revoke_stores(&mut self) {
        self.stores_revoked |= self.stores_cached;
        self.stores_cached = false;
    }

    /// Whether something has become invalid.
    #[inline]
    pub(crate) const fn has_news(&self) -> bool {
        self.tables_changed || self.stores_revoked || !self.changed_code.is_empty()
    }

    /// No instruction is decoded any more.
    pub(crate) fn forget_code(&mut self) {
        self.code_lines.fill(0);
        self.changed_code.clear();
        for flags in &mut self.flags {
            *flags &= !CODE;
        }
    }

    /// What has become invalid since the last call. Who asks drops it.
    #[inline]
    pub(crate) fn take_news(&mut self) -> News {
        let news = News { tables: self.tables_changed, stores: self.stores_revoked };
        if news.tables {
            for page in self.tables.drain(..) {
                self.flags[page] &= !TABLE;
            }
        }
        self.tables_changed = false;
        self.stores_revoked = false;
        news
    }

    /// A page whose decoded instructions have changed; none of them are watched any more.
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
