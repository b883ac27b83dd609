//! Decoding of runs, and the table of decoded pages.

use super::env::Env;
use super::fusion::{Kind, Member, pair};
use super::predecode::{Decoded, halfwords, predecode, straddling};
use super::slot::{CodePagePtr, SLOTS};
use crate::ram::Ram;
use crate::ram::watch::LINE_BYTES;
use alloc::vec;
use alloc::vec::Vec;

/// The most pages of code that are decoded at a time: 64 MiB of slots. Few in this crate's own
/// tests, so that they run out.
pub(super) const PAGES_MAX: usize = if cfg!(test) { 3 } else { 2048 };

/// The decoded pages of RAM.
#[derive(Debug)]
pub(super) struct Code {
    /// Indexed by page of RAM.
    pages: Vec<Option<CodePagePtr>>,
    /// The indices of the pages that are decoded.
    decoded: Vec<usize>,
}

impl Code {
    pub(super) const fn new() -> Self {
        Self { pages: Vec::new(), decoded: Vec::new() }
    }

    /// Sets the number of RAM's pages.
    pub(super) fn set_ram_pages(&mut self, pages: usize) {
        self.pages = vec![None; pages];
    }

    /// The number of RAM's pages; 0 before [`Self::set_ram_pages`].
    pub(super) const fn ram_pages(&self) -> usize {
        self.pages.len()
    }

    /// The slots of the page at `index` in RAM. `None` if too many pages are decoded: call
    /// [`Self::drop_all`].
    pub(super) fn page(&mut self, index: usize) -> Option<CodePagePtr> {
        if let Some(page) = self.pages[index] {
            return Some(page);
        }
        if self.decoded.len() >= PAGES_MAX {
            return None;
        }
        let page = CodePagePtr::new(index);
        self.pages[index] = Some(page);
        self.decoded.push(index);
        Some(page)
    }

    /// Forgets what is decoded of the page at `index`, which was written.
    ///
    /// # Safety
    /// The hart isn't executing decoded code.
    pub(super) unsafe fn clear(&mut self, index: usize) {
        if let Some(page) = self.pages[index] {
            // SAFETY: by the caller's promise.
            unsafe { page.clear() }
        }
    }

    /// Frees all pages.
    ///
    /// # Safety
    /// The hart isn't executing decoded code, and all pointers to pages are dropped.
    pub(super) unsafe fn drop_all(&mut self) {
        for index in self.decoded.drain(..) {
            if let Some(page) = self.pages[index].take() {
                // SAFETY: by the caller's promise.
                unsafe { page.free() }
            }
        }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: nobody executes the code of a hart that is dropped.
        unsafe { self.drop_all() }
    }
}

/// Decodes the run that begins at slot number `index` of the page that is executed.
///
/// # Safety
/// As for handlers: `env` is that of the running hart.
pub(super) unsafe fn decode_run(env: *mut Env, index: usize) {
    // SAFETY: the bus is nobody else's while handlers run, and the page that is executed is one of
    // `Code`'s.
    unsafe {
        let page = CodePagePtr::of((*env).page_slots);
        decode_into(&mut (*(*env).bus).ram, page, index);
    }
}

/// An instruction of the run that is being decoded, and its slot number.
#[derive(Clone, Copy)]
struct Placed {
    index: usize,
    length: usize,
    kind: Option<Kind>,
}

/// # Safety
/// Nobody has a reference to a slot of the page.
unsafe fn decode_into(ram: &mut Ram, page: CodePagePtr, start: usize) {
    let (mut run, mut lines) = (Vec::new(), 0_u64);
    let mut index = start;
    let run_after = loop {
        // SAFETY: `index` is at most SLOTS.
        let existing = unsafe { page.slot(index).read() };
        if index == SLOTS || existing.run > 0 {
            break existing.run;
        }
        let bits = bits_at(ram, page.index(), index * 2);
        let length = halfwords(bits);
        let in_page = length.min(SLOTS - index);
        lines |= lines_of(index * 2, in_page * 2);
        let Decoded { slot, kind } = if in_page < length { straddling() } else { predecode(bits, index * 2) };
        // SAFETY: as above.
        unsafe { page.slot(index).write(slot) };
        run.push(Placed { index, length, kind });
        if kind.is_none_or(Kind::ends_run) {
            break 0;
        }
        index += length;
    };
    for (distance, instruction) in (1..).zip(run.iter().rev()) {
        // SAFETY: as above. A page has fewer instructions than a run can count.
        unsafe { (*page.slot(instruction.index)).run = run_after + distance };
    }
    // From the back: a slot may still change while the pair that it begins is looked for.
    for neighbours in run.windows(2).rev() {
        let [first, second] = neighbours else { continue };
        // SAFETY: as above.
        unsafe { pair_up(page, *first, *second) }
    }
    ram.watches_mut().watch_code(page.index(), lines);
}

/// # Safety
/// Nobody has a reference to a slot of the page.
unsafe fn pair_up(page: CodePagePtr, first: Placed, second: Placed) {
    let (Some(first_kind), Some(second_kind)) = (first.kind, second.kind) else { return };
    // SAFETY: as in `decode_into`.
    unsafe {
        let slots = [page.slot(first.index), page.slot(second.index)];
        let [first_slot, second_slot] = slots.map(|slot| slot.read());
        let first = Member { kind: first_kind, length: first.length, slot: &first_slot };
        let second = Member { kind: second_kind, length: second.length, slot: &second_slot };
        if let Some((handler, second_slot)) = pair(first, second) {
            (*slots[0]).handler = handler;
            slots[1].write(second_slot);
        }
    }
}

/// The instruction bits at `offset` in the page, which is even: 32 bits, or 16 at the page's end.
fn bits_at(ram: &Ram, page: usize, offset: usize) -> u32 {
    let bytes = ram.page(page);
    match bytes[offset..].first_chunk() {
        Some(word) => u32::from_le_bytes(*word),
        None => u32::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]])),
    }
}

/// A bit for each line that `bytes` bytes at `offset` in a page are in.
const fn lines_of(offset: usize, bytes: usize) -> u64 {
    1 << (offset / LINE_BYTES) | 1 << ((offset + bytes - 1) / LINE_BYTES)
}
