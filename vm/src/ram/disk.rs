//! The contents of the disk: part of the machine's state, like RAM.
//!
//! Every replica has its own, and the same events give the same contents, so nothing is shared and
//! no write has to wait for another replica. Source: Scales et al. 2010, §4.1 "Shared vs.
//! Non-shared Disk".

use super::pages::{PAGE_BYTES, Pages, is_zero};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The unit in which a guest reads and writes, in bytes.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// Contiguous storage, a multiple of [`PAGE_BYTES`] long.
pub(crate) struct Disk {
    bytes: Vec<u8>,
    pages: Pages,
}

impl Disk {
    /// A disk of `bytes` bytes whose pages follow the machine's first `first_page` pages. It begins
    /// with `contents`, which are no longer than it, and is zero after them.
    pub(crate) fn new(bytes: usize, first_page: u64, contents: &[u8]) -> Self {
        let mut disk = Self { bytes: vec![0; bytes], pages: Pages::new(first_page, bytes) };
        // Zero pages aren't written: they cost neither memory nor time.
        for (page, offset) in
            contents.chunks(PAGE_BYTES).zip((0..).step_by(PAGE_BYTES)).filter(|(page, _)| !is_zero(page))
        {
            disk.write(offset, page).expect("the contents are no longer than the disk");
        }
        disk
    }

    /// Its length, in bytes.
    pub(crate) const fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The `length` bytes at `offset`; `None` if the disk doesn't have all of them.
    pub(crate) fn slice(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        self.bytes.get(offset..offset.checked_add(length)?)
    }

    /// Writes `bytes` at `offset`; `None` if they don't fit on the disk, and then nothing is
    /// written.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get_mut(offset..offset.checked_add(bytes.len())?)?.copy_from_slice(bytes);
        self.pages.mark_range(offset, bytes.len());
        Some(())
    }

    /// Its pages.
    pub(crate) const fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Its pages and its contents.
    pub(crate) fn paged(&mut self) -> (&mut Pages, &[u8]) {
        (&mut self.pages, &self.bytes)
    }
}

/// Without the contents, which are too long for a log.
impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Disk;
    use crate::ram::pages::{PAGE_BYTES, PageCopy};
    use alloc::vec;
    use alloc::vec::Vec;

    fn digest(disk: &mut Disk) -> u128 {
        let (pages, contents) = disk.paged();
        pages.digest(contents)
    }

    fn taken(disk: &mut Disk) -> Vec<u64> {
        let (pages, contents) = disk.paged();
        pages.begin_copy(PageCopy::Log);
        core::iter::from_fn(|| pages.take(PageCopy::Log, 0, contents).map(|(index, _)| index)).collect()
    }

    #[test]
    fn accesses_end_at_the_bounds() {
        let mut disk = Disk::new(2 * PAGE_BYTES, 0, &[1; 3]);
        let length = disk.length();
        assert_eq!(disk.slice(0, 4), Some(&[1, 1, 1, 0][..]), "behind the contents it is zero");
        assert_eq!(disk.slice(0, length).map(<[u8]>::len), Some(2 * PAGE_BYTES));
        for (offset, length) in [(0, length + 1), (length, 1), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            assert_eq!(disk.slice(offset, length), None, "{length} at {offset}");
        }
        assert_eq!(disk.write(length - 1, &[7; 2]), None);
        assert_eq!(disk.slice(length - 1, 1), Some(&[0][..]), "a refused write writes nothing");
        assert_eq!(disk.write(u64::MAX, &[7; 2]), None);
        assert_eq!(disk.write(length - 1, &[7]), Some(()));
        assert_eq!(disk.slice(length - 1, 1), Some(&[7][..]));
    }

    #[test]
    fn empty_pages_of_the_contents_are_like_pages_never_written() {
        let mut contents = vec![0; 5 * PAGE_BYTES + 10];
        contents[PAGE_BYTES] = 1;
        contents[5 * PAGE_BYTES + 9] = 1;
        let mut disk = Disk::new(8 * PAGE_BYTES, 100, &contents);
        assert_eq!(disk.pages().to_take(PageCopy::Backup), 2);
        assert_eq!(taken(&mut disk), [101, 105]);
        let mut written = Disk::new(8 * PAGE_BYTES, 100, &[]);
        assert_eq!(digest(&mut written), 0);
        written.write(0, &contents).unwrap();
        assert_eq!(digest(&mut written), digest(&mut disk));
    }

    #[test]
    fn a_page_cleared_again_is_not_copied_once_the_digest_has_seen_it() {
        for (digest_looks, expected) in [(false, &[0, 1][..]), (true, &[1])] {
            let mut disk = Disk::new(4 * PAGE_BYTES, 0, &[]);
            disk.write(PAGE_BYTES as u64 - 1, &[1, 1]).unwrap();
            digest(&mut disk);
            disk.write(0, &[0; PAGE_BYTES]).unwrap();
            if digest_looks {
                digest(&mut disk);
            }
            assert_eq!(taken(&mut disk), expected);
        }
    }

    #[test]
    fn the_digest_tells_the_pages_of_the_machine_apart() {
        let (mut at_0, mut at_1) = (Disk::new(PAGE_BYTES, 0, &[1]), Disk::new(PAGE_BYTES, 1, &[1]));
        assert_ne!(digest(&mut at_0), digest(&mut at_1));
    }
}
