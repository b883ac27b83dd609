//! Pre-copy: a guest's memory is copied while it runs on, and what little is left in the end while it stands still.
//!
//! ```text
//!   round 0   every page that isn't zero          the guest runs, and writes pages again
//!   round n   what was written meanwhile
//!   rest      what is left                        the guest stands still
//! ```
//! Source: Clark et al., "Live Migration of Virtual Machines" (2005).

use logchannel::snapshot::{PAGES_MAX, Pages};
use vm::{Machine, PageCopy};

/// So few pages are left for the guest's standing still: well below a millisecond.
const REST_PAGES: usize = 256;

/// After so many rounds the guest has to stand still for what is left: it writes faster than it can be copied.
const ROUNDS_MAX: u32 = 16;

/// A copy of a machine's memory on its way.
#[derive(Clone, Debug, Hash)]
pub(crate) struct PageCopying {
    copy: PageCopy,
    round: u32,
    /// The page to go on from.
    next: u64,
}

impl PageCopying {
    /// Begins a copy of all of the memory.
    pub(crate) fn begin(copy: PageCopy, machine: &mut Machine) -> Self {
        machine.begin_copy(copy);
        Self { copy, round: 0, next: 0 }
    }

    /// Gives `pages_max` pages to `take`, or fewer at the end of a round. `true` if it is time for the rest.
    pub(crate) fn copy_some(&mut self, machine: &mut Machine, pages_max: usize, take: impl FnMut(Pages)) -> bool {
        if self.copy_round(machine, pages_max, take) {
            return false;
        }
        self.round += 1;
        self.round >= ROUNDS_MAX || machine.pages_to_take(self.copy) <= REST_PAGES
    }

    /// Gives all that is left to `take`: the copy is whole as long as the guest stands still.
    pub(crate) fn copy_rest(mut self, machine: &mut Machine, take: impl FnMut(Pages)) {
        self.next = 0;
        self.copy_round(machine, usize::MAX, take);
    }

    /// `false` if the round is at its end; the next call begins the next one.
    fn copy_round(&mut self, machine: &mut Machine, pages_max: usize, mut take: impl FnMut(Pages)) -> bool {
        let mut piece = Pages { first: self.next, bytes: Vec::new() };
        for _ in 0..pages_max {
            let Some((index, page)) = machine.take_page(self.copy, self.next) else {
                self.next = 0;
                break;
            };
            if index != self.next || piece.count() == PAGES_MAX {
                let next = Pages { first: index, bytes: Vec::new() };
                give(std::mem::replace(&mut piece, next), &mut take);
            }
            piece.bytes.extend_from_slice(page);
            self.next = index + 1;
        }
        give(piece, &mut take);
        self.next != 0
    }
}

fn give(piece: Pages, take: &mut impl FnMut(Pages)) {
    if piece.count() > 0 {
        take(piece);
    }
}
