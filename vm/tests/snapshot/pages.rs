//! Pages of a copy: which are taken, in which order, and what digests have to do with it.

use crate::common::{NOP, RAM, RAM_PAGES, elf, machine, small_config, take_pages};
use vm::{LoadError, Machine, MachineConfig, PAGE_BYTES, PageCopy, PageRange, Restoration, RestoreError};

#[test]
fn a_copy_begins_with_the_pages_that_are_not_zero() {
    let mut machine = machine(&[NOP]);
    let tree = RAM_PAGES - 1;
    for _ in 0..2 {
        machine.begin_copy(PageCopy::Backup);
        assert_eq!(machine.pages_to_take(PageCopy::Backup), 2);
        assert_eq!(take_pages(&mut machine, PageCopy::Backup), [0, tree], "code and device tree");
        assert_eq!(take_pages(&mut machine, PageCopy::Backup), []);
    }
    // A page that was written and is zero again must be copied only if it was copied before.
    assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
    machine.begin_copy(PageCopy::Backup);
    assert_eq!(take_pages(&mut machine, PageCopy::Backup), [0, 5, tree]);
    assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
    assert_eq!(machine.pages_to_take(PageCopy::Backup), 1);
    let (index, page) = machine.take_page(PageCopy::Backup, 0).unwrap();
    assert_eq!((index, page), (5, &[0; PAGE_BYTES][..]));
    // Only a digest finds that a written page is zero again. Beginning a copy doesn't look, because
    // the guest waits for that.
    for (digest_looks, expected) in [(false, &[0, 5, tree][..]), (true, &[0, tree])] {
        for _ in 0..2 {
            assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
        }
        if digest_looks {
            machine.digest();
        }
        machine.begin_copy(PageCopy::Backup);
        assert_eq!(machine.pages_to_take(PageCopy::Backup), expected.len());
        assert_eq!(take_pages(&mut machine, PageCopy::Backup), expected);
    }
}

#[test]
fn a_partial_digest_covers_its_range_and_ends_after_a_number_of_written_pages() {
    let mut machine = machine(&[NOP]);
    let (whole, digest) = machine.digest_some(0, usize::MAX);
    assert_eq!((whole, digest), (PageRange { first: 0, end: RAM_PAGES }, machine.digest()));
    let write = |machine: &mut Machine, page: u64| assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    for page in [3, 4, 5, 700] {
        write(&mut machine, page);
    }
    let (first, _) = machine.digest_some(2, 2);
    assert_eq!(first, PageRange { first: 2, end: 5 });
    let (second, digest) = machine.digest_some(first.end, 2);
    assert_eq!(second, PageRange { first: 5, end: 701 });
    assert_eq!(machine.digest_of(second), Some(digest));
    let (third, _) = machine.digest_some(second.end, 2);
    assert_eq!(third, PageRange { first: 701, end: RAM_PAGES });
    assert_eq!(machine.digest_some(third.end, 1).0, whole, "from the beginning again");
    for (page, changes) in [(4, false), (5, true), (700, true), (701, false)] {
        write(&mut machine, page);
        assert_eq!(machine.digest_of(second) != Some(digest), changes, "page {page}");
        write(&mut machine, page);
        assert_eq!(machine.digest_of(second), Some(digest), "page {page}");
    }
    for (first, end) in [(0, 0), (5, 4), (0, RAM_PAGES + 1), (u64::MAX, u64::MAX)] {
        assert_eq!(machine.digest_of(PageRange { first, end }), None, "{first}..{end}");
    }
}

#[test]
fn a_page_that_is_taken_is_digested_too() {
    let mut machine = machine(&[NOP]);
    for page in [3, 4, 5, 700] {
        assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    }
    machine.begin_copy(PageCopy::Log);
    take_pages(&mut machine, PageCopy::Log);
    // The guest waits for a digest: taking pages digests them, so that nothing is left to do then.
    let (range, digest) = machine.digest_some(0, 1);
    assert_eq!((range, digest), (PageRange { first: 0, end: RAM_PAGES }, machine.digest()));
    assert!(machine.flip_ram_bit(RAM + 3 * PAGE_BYTES as u64, 0));
    assert_eq!(machine.digest_some(0, 1).0, PageRange { first: 0, end: 4 });
}

#[test]
fn pages_are_taken_from_a_given_index_and_again_when_written() {
    let mut machine = machine(&[NOP]);
    machine.begin_copy(PageCopy::Log);
    take_pages(&mut machine, PageCopy::Log);
    for page in [3, 64, 65, 700] {
        assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    }
    let mut take = |from| machine.take_page(PageCopy::Log, from).map(|(index, _)| index);
    assert_eq!([take(65), take(4), take(701), take(RAM_PAGES), take(u64::MAX)], [Some(65), Some(64), None, None, None]);
    assert_eq!([take(4), take(4), take(3), take(0)], [Some(700), None, Some(3), None]);
}

#[test]
fn copies_and_digests_mark_written_pages_independently() {
    let mut machine = machine(&[NOP]);
    machine.begin_copy(PageCopy::Backup);
    machine.begin_copy(PageCopy::Log);
    assert_eq!(take_pages(&mut machine, PageCopy::Backup).len(), 2);
    assert_eq!(machine.pages_to_take(PageCopy::Log), 2);
    assert_eq!(take_pages(&mut machine, PageCopy::Log).len(), 2);
    let before = machine.digest();
    assert!(machine.flip_ram_bit(RAM + 0x9000, 0));
    assert_eq!(take_pages(&mut machine, PageCopy::Log), [9]);
    machine.begin_copy(PageCopy::Log);
    assert_eq!(machine.pages_to_take(PageCopy::Backup), 1);
    assert_ne!(machine.digest(), before);
    assert_eq!(take_pages(&mut machine, PageCopy::Backup), [9]);
}

#[test]
fn pages_outside_the_machine_and_configurations_out_of_range_are_refused() {
    let mut restoration = Restoration::new(&small_config()).unwrap();
    let page = [1; PAGE_BYTES];
    for bytes in [1, PAGE_BYTES - 1, PAGE_BYTES + 1] {
        let refused = restoration.put_pages(0, &vec![1; bytes]);
        assert_eq!(refused, Err(RestoreError::NotWholePages { bytes }));
    }
    for first in [RAM_PAGES, RAM_PAGES + 1, u64::MAX, u64::MAX / PAGE_BYTES as u64] {
        let refused = restoration.put_pages(first, &page);
        assert_eq!(refused, Err(RestoreError::NoSuchPages { first, pages: 1, machine_pages: RAM_PAGES }));
    }
    let first = RAM_PAGES - 1;
    let refused = restoration.put_pages(first, &[page, page].concat());
    assert_eq!(refused, Err(RestoreError::NoSuchPages { first, pages: 2, machine_pages: RAM_PAGES }));
    restoration.put_pages(first, &page).unwrap();

    for config in [
        MachineConfig { ram_bytes: (4 << 20) + 1, ..small_config() },
        MachineConfig { ram_bytes: 8 << 30, ..small_config() },
        MachineConfig { bootargs: "x".repeat(2049), ..small_config() },
        MachineConfig { bootargs: "a\0b".into(), ..small_config() },
    ] {
        assert!(matches!(Restoration::new(&config), Err(LoadError::Config(_))), "{config:?}");
        assert!(matches!(Machine::new(&config, &elf(&[NOP])), Err(LoadError::Config(_))), "{config:?}");
    }
}

#[test]
fn the_last_copy_of_a_page_wins_and_a_missing_page_shows_in_the_digest() {
    let mut original = machine(&[NOP]);
    original.begin_copy(PageCopy::Backup);
    let (index, page) = original.take_page(PageCopy::Backup, 0).unwrap();
    let mut restoration = Restoration::new(&small_config()).unwrap();
    restoration.put_pages(index, &[7; PAGE_BYTES]).unwrap();
    restoration.put_pages(index, page).unwrap();
    let mut restored = restoration.finish(&original.state()).unwrap();
    assert_ne!(restored.digest(), original.digest(), "the device tree is missing");
    assert_eq!(restored.memory(RAM, 4096), original.memory(RAM, 4096));
}
