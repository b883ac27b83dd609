//! Copying the guest's memory for a joining backup. Source: Scales et al. 2010, §2.3.

use crate::pair::Pair;
use crate::world::{MS, vm_id};
use vm::PAGE_BYTES;

#[test]
fn a_guest_is_copied_while_it_writes_and_the_copy_is_the_guest() {
    let mut pair = Pair::alone().with_memory(PAGES);
    pair.connect();
    let mut pieces = 0;
    while pair.primary.wants_copy() {
        pair.copy_piece();
        pieces += 1;
        (0..3).for_each(|_| _ = pair.output());
    }
    assert!(pieces > 4, "{pieces}");
    // The digest in the snapshot is that of the primary's whole state, including RAM.
    pair.exchange();
    assert!(pair.primary.is_protected());
    pair.output();
    pair.exchange();
    pair.replay();
    assert_eq!(pair.backup.cursors().1, pair.primary.appended());
}

/// Copies a guest that would write `pages` pages between two pieces. Returns the most pages that
/// were sent at once, and all pages sent.
fn copied(pages: u64) -> (usize, usize) {
    let mut pair = Pair::alone().with_memory(PAGES);
    pair.connect();
    let (mut largest, mut copied) = (0, 0);
    while pair.primary.wants_copy() {
        pair.copy_piece();
        let piece = pair.to_backup.len() / PAGE_BYTES;
        (largest, copied) = (largest.max(piece), copied + piece);
        pair.to_backup.lose_behind(0);
        assert!(copied < 100_000, "a copy without end");
        pair.write_pages_if_allowed(pages);
    }
    assert!(!pair.primary.is_copying());
    (largest, copied)
}

/// The guests' pages.
pub(crate) const PAGES: u32 = 512;

#[test]
fn what_is_copied_with_the_guest_standing_still_is_little_however_fast_it_writes() {
    for pages in [0, 1, 7, 16, 100, 3000] {
        let (largest, copied) = copied(pages);
        assert!(largest <= 16 + 256, "{largest} pages copied with the guest standing still, if it writes {pages}");
        assert!(copied <= 3 * PAGES as usize + 256, "{copied} pages copied if it writes {pages}");
    }
}

#[test]
fn a_guest_that_writes_less_than_half_as_fast_as_it_is_copied_is_not_slowed() {
    let mut pair = Pair::alone().with_memory(PAGES);
    pair.connect();
    while pair.primary.wants_copy() {
        pair.copy_piece();
        pair.to_backup.lose_behind(0);
        assert_eq!(pair.primary.steps_allowed(56, &pair.machine), Some(56));
        pair.write_pages(7);
    }
    assert!(!pair.primary.is_copying());
}

#[test]
fn a_guest_that_writes_faster_stands_still_for_few_pages_at_a_time() {
    let mut pair = Pair::alone().with_memory(PAGES);
    pair.connect();
    let (mut slowed, mut stands, mut longest) = (0, 0, 0);
    while pair.primary.wants_copy() {
        pair.copy_piece();
        pair.to_backup.lose_behind(0);
        let allowed = pair.primary.steps_allowed(5000, &pair.machine);
        slowed += u32::from(allowed != Some(5000));
        let must_stand = allowed.is_none();
        stands = if must_stand { stands + 1 } else { 0 };
        longest = longest.max(stands);
        pair.write_pages_if_allowed(3000);
    }
    // A slice of 100 steps that writes two pages must be followed by two copied pages for each.
    assert!(slowed > 10 && longest <= 7, "slowed {slowed} times, stood still for {longest} pieces");
}

/// The driver copies without locking the role, which handles other inputs meanwhile.
#[test]
fn the_role_goes_on_while_a_piece_is_copied() {
    let mut pair = Pair::alone().with_memory(PAGES);
    pair.connect();
    let copy = pair.primary.poll_copy().unwrap();
    assert!(!pair.primary.wants_copy() && pair.primary.is_copying() && pair.primary.poll_copy().is_none());
    let mut bytes = Vec::new();
    pair.primary.poll_outgoing(&mut bytes);
    pair.now_ns += 60 * MS;
    pair.primary.handle_tick(pair.now_ns);
    pair.primary.poll_outgoing(&mut bytes);
    assert!(!bytes.is_empty(), "no heartbeat");
    // The backup is lost and another joins: the piece isn't for that one.
    pair.primary.handle_disconnect("gone");
    pair.primary.handle_join(pair.now_ns, &vm_id()).unwrap();
    bytes.clear();
    pair.primary.poll_outgoing(&mut bytes);
    let mut copy = copy;
    copy.copy_piece(&mut pair.machine);
    pair.primary.handle_copy(pair.now_ns, copy);
    assert!(!pair.primary.has_outgoing() && pair.primary.wants_copy());
    pair.copy();
    assert!(!pair.primary.is_copying());
}

#[test]
fn no_more_is_copied_than_the_channel_takes() {
    let mut pair = Pair::alone().with_memory(512);
    pair.connect();
    // No bytes are sent.
    while pair.primary.wants_copy() {
        pair.primary.copy_snapshot(pair.now_ns, &mut pair.machine);
    }
    assert!(pair.primary.is_copying(), "a guest of 2 MiB of memory");
    let mut bytes = Vec::new();
    pair.primary.poll_outgoing(&mut bytes);
    assert!(bytes.len() < 2 << 20, "{} bytes wait in memory", bytes.len());
    assert!(pair.primary.wants_copy(), "there is room again");
}
