//! Pre-copy of a guest's memory: most pages are copied while the guest runs, the last ones while it
//! stands still.
//!
//! ```text
//!   first pass   every page that isn't zero        the guest runs, and writes pages again
//!   then         what was written meanwhile        the guest runs, and may write less and less
//!   rest         the last REST_PAGES               the guest stands still
//! ```
//! A guest that writes pages faster than they are copied is slowed after the first pass: for every
//! two pages that are copied it may write one that wasn't waiting to be copied already
//! ([`PageCopying::pages_until_stop`]). So the number of pages that wait falls by one for two that
//! are copied, whatever the guest does; it is slowed to half the speed of the copy, and not at all
//! if it needs less. A copy gives at most three times the pages that the memory has, and a few.
//!
//! Only when the guest runs is decided here, never what it does: where it stops between two slices
//! isn't seen in its state. Source: Clark et al., "Live Migration of Virtual Machines" (2005),
//! which slows "rogue" processes by their page faults.

use crate::mutation::{Mutation, mutated};
use alloc::vec::Vec;
use logchannel::snapshot::{PAGES_MAX, Pages};
use vm::{Machine, PAGE_BYTES, PageCopy};

/// When at most this many pages are left, the guest is stopped and the rest is copied: well below a
/// millisecond.
pub const REST_PAGES: usize = 256;

/// Pages copied between two slices of the guest: some 20 microseconds in which the guest doesn't
/// run.
pub const PIECE_PAGES: usize = 16;

/// How many pages a slowed guest may write ahead of the copy. Less than [`REST_PAGES`], so that a
/// copy ends.
const AHEAD_PAGES: usize = 64;

const _: () = assert!(AHEAD_PAGES < REST_PAGES);

/// The steps of a slowed guest's shortest slice: it writes at most half as many pages, and stands
/// still until twice as many are copied.
const SLICE_STEPS_MIN: u64 = 100;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A copy of a machine's memory in progress.
#[derive(Clone, Debug, Hash)]
pub struct PageCopying {
    copy: PageCopy,
    /// The page to go on from.
    next: u64,
    /// Set after the first pass.
    slowing: Option<Slowing>,
    /// Pages given so far.
    copied: u64,
}

/// How many pages may wait to be copied.
#[derive(Clone, Copy, Debug, Hash)]
struct Slowing {
    /// Pages that waited to be copied when the first pass ended.
    waited: usize,
    /// Pages copied since then.
    copied: usize,
}

impl Slowing {
    /// How many pages may wait now. The guest stops when more do.
    const fn limit(self) -> usize {
        self.waited.saturating_sub(self.copied / 2) + AHEAD_PAGES
    }
}

impl PageCopying {
    /// Begins a copy of all of the memory.
    pub fn begin(copy: PageCopy, machine: &mut Machine) -> Self {
        machine.begin_copy(copy);
        Self { copy, next: 0, slowing: None, copied: 0 }
    }

    /// Copies up to [`PIECE_PAGES`] pages and passes them to `take`. Returns `true` when it is time
    /// for [`PageCopying::copy_rest`].
    pub fn copy_piece(&mut self, machine: &mut Machine, take: impl FnMut(Pages)) -> bool {
        self.copy_some(machine, PIECE_PAGES, take);
        machine.pages_to_take(self.copy) <= REST_PAGES
    }

    /// Passes all pages that are left to `take`. The copy is complete for as long as the guest
    /// stands still.
    ///
    /// # Panics
    /// If it isn't time for the rest: the guest would stand still for long.
    pub fn copy_rest(&mut self, machine: &mut Machine, mut take: impl FnMut(Pages)) {
        assert!(machine.pages_to_take(self.copy) <= REST_PAGES, "the rest is copied before it is small");
        while machine.pages_to_take(self.copy) > 0 {
            self.copy_some(machine, REST_PAGES, &mut take);
        }
    }

    /// How many pages that don't already wait to be copied the guest may write before more are
    /// copied; `None` if it isn't slowed.
    pub fn pages_until_stop(&self, machine: &Machine) -> Option<usize> {
        if mutated(Mutation::CopyWithoutSlowing) {
            return None;
        }
        let slowing = self.slowing?;
        Some(slowing.limit().saturating_sub(machine.pages_to_take(self.copy)))
    }

    /// Pages copied so far; a page that was copied again counts again.
    pub const fn copied(&self) -> u64 {
        self.copied
    }

    fn copy_some(&mut self, machine: &mut Machine, pages_max: usize, mut take: impl FnMut(Pages)) {
        let is_first_pass = self.slowing.is_none();
        let mut piece = Pages { first: self.next, bytes: Vec::new() };
        for _ in 0..pages_max {
            let Some((index, page)) = machine.take_page(self.copy, self.next) else {
                self.next = 0;
                self.slowing.get_or_insert(Slowing { waited: machine.pages_to_take(self.copy), copied: 0 });
                break;
            };
            self.next = index + 1;
            if let Some(slowing) = &mut self.slowing {
                slowing.copied += 1;
            }
            // Pages that are never passed on are zero in the copy.
            if is_first_pass && page == ZERO_PAGE {
                continue;
            }
            if index != piece.first + piece.count() as u64 || piece.count() == PAGES_MAX {
                give(core::mem::replace(&mut piece, Pages { first: index, bytes: Vec::new() }), &mut take);
            }
            piece.bytes.extend_from_slice(page);
            self.copied += 1;
        }
        give(piece, &mut take);
    }
}

/// How many of `steps` steps the guest may run while these copies of its memory are made; `None` if
/// it has to stand still until more is copied.
pub fn steps_allowed<'a>(
    steps: u64,
    machine: &Machine,
    copies: impl IntoIterator<Item = &'a PageCopying>,
) -> Option<u64> {
    let pages = copies.into_iter().filter_map(|copy| copy.pages_until_stop(machine)).min();
    match pages {
        None => Some(steps),
        Some(0) => None,
        // A step writes to no more pages than one, but for requests to the disk.
        Some(pages) => Some(steps.min(SLICE_STEPS_MIN.max(pages as u64))),
    }
}

fn give(piece: Pages, take: &mut impl FnMut(Pages)) {
    if piece.count() > 0 {
        take(piece);
    }
}
