//! The output that waits to be written to a stream, and what of it is dropped when its reader
//! stalls: decisions without I/O.

use std::collections::VecDeque;
use vm::OutputId;

/// A reader that takes nothing for this long, though output waits, has stalled.
pub const STALL_NS: u64 = 1_000_000_000;

/// How many bytes of the guest's console are kept for a reader that has stalled.
pub const CONSOLE_BYTES_KEPT: usize = 128 << 10;

/// When this many bytes of console output wait, the guest should wait too.
const CONSOLE_BYTES_FULL: usize = 2 * CONSOLE_BYTES_KEPT;

/// The most bytes of lines that wait. Producers of lines never wait, so beyond it a new line is
/// dropped, stalled or not.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// The most bytes written at once: a pipe takes them whole, so that a slow reader is seen to make
/// progress.
const PIECE_BYTES: usize = 4096;

/// The memory that an item counts for beyond its bytes, so that empty items are bounded too.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes of the guest's console, as they would have been written.
    pub console_bytes: u64,
    /// Whole lines of reports.
    pub lines: u64,
}

#[derive(Debug)]
struct Item {
    bytes: Vec<u8>,
    /// The id of the guest's output; `None` for a line of a report.
    output: Option<OutputId>,
}

impl Item {
    fn cost(&self) -> usize {
        self.bytes.len() + ITEM_OVERHEAD_BYTES
    }
}

/// The bounded buffer between the threads that write and the thread that passes it to the stream.
///
/// Items are written whole or dropped whole, the newest first. The guest's console is bounded by
/// the output gate, which stops the guest: a slow reader slows the guest and loses nothing. Only
/// when the reader has taken nothing for [`STALL_NS`], console output beyond [`CONSOLE_BYTES_KEPT`]
/// is dropped, and the guest goes on.
#[derive(Debug, Default)]
pub struct WriteQueue {
    items: VecDeque<Item>,
    /// How many bytes of the first item are written.
    written: usize,
    console_bytes: usize,
    line_bytes: usize,
    /// When the reader last took something, or had nothing to take.
    taken_ns: u64,
    /// One past the last console output that was pushed.
    next_console: OutputId,
    /// What was dropped since [`WriteQueue::take_lost`].
    lost: Lost,
    /// The stream ends in the middle of a line, whose rest was dropped.
    is_torn: bool,
}

impl WriteQueue {
    /// Adds output of the guest's console, or a line of a report with its line end.
    pub fn push(&mut self, now_ns: u64, output: Option<OutputId>, mut bytes: Vec<u8>) {
        if self.items.is_empty() {
            self.taken_ns = now_ns;
        }
        match output {
            Some(id) => self.next_console = self.next_console.max(id.next()),
            None if std::mem::take(&mut self.is_torn) => bytes.insert(0, b'\n'),
            None => {}
        }
        let item = Item { bytes, output };
        *self.bytes_of(&item) += item.cost();
        self.items.push_back(item);
        self.shed(now_ns);
    }

    fn bytes_of(&mut self, item: &Item) -> &mut usize {
        if item.output.is_some() { &mut self.console_bytes } else { &mut self.line_bytes }
    }

    /// Drops output for a stalled reader. Called now and then.
    pub fn shed(&mut self, now_ns: u64) {
        while self.line_bytes > LINE_BYTES_MAX && self.drop_newest(false) {}
        if self.is_stalled(now_ns) {
            while self.console_bytes > CONSOLE_BYTES_KEPT && self.drop_newest(true) {}
        }
    }

    /// Drops the newest item of its kind, unless it is written in part.
    fn drop_newest(&mut self, of_console: bool) -> bool {
        let Some(place) = self.items.iter().rposition(|item| item.output.is_some() == of_console) else { return false };
        if place == 0 && self.written > 0 {
            return false;
        }
        if let Some(item) = self.items.remove(place) {
            self.lose(&item);
        }
        true
    }

    fn lose(&mut self, item: &Item) {
        *self.bytes_of(item) -= item.cost();
        if item.output.is_some() {
            self.lost.console_bytes += item.bytes.len() as u64;
        } else {
            self.lost.lines += 1;
        }
    }

    /// `true` if the reader has stalled.
    #[must_use]
    pub fn is_stalled(&self, now_ns: u64) -> bool {
        !self.items.is_empty() && now_ns.saturating_sub(self.taken_ns) >= STALL_NS
    }

    /// When the reader last took something, or had nothing to take.
    #[must_use]
    pub const fn taken_ns(&self) -> u64 {
        self.taken_ns
    }

    /// `true` if all is written or dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// `true` if so much console output waits that the guest should wait too.
    #[must_use]
    pub const fn is_console_full(&self) -> bool {
        self.console_bytes >= CONSOLE_BYTES_FULL
    }

    /// The next piece to write: at most what a pipe takes at once.
    #[must_use]
    pub fn next_piece(&self) -> Option<&[u8]> {
        let rest = self.items.front()?.bytes.get(self.written..)?;
        Some(&rest[..rest.len().min(PIECE_BYTES)])
    }

    /// This many bytes of [`WriteQueue::next_piece`] were written.
    pub fn wrote(&mut self, now_ns: u64, bytes: usize) {
        self.taken_ns = now_ns;
        self.written += bytes;
        // Also items without bytes: an output may be empty.
        while self.items.front().is_some_and(|item| self.written >= item.bytes.len()) {
            self.written = 0;
            if let Some(item) = self.items.pop_front() {
                *self.bytes_of(&item) -= item.cost();
            }
        }
    }

    /// The stream doesn't take [`WriteQueue::next_piece`] and never will: its reader is gone, or
    /// its disk is full.
    pub fn failed(&mut self, now_ns: u64) {
        self.taken_ns = now_ns;
        let is_begun = std::mem::take(&mut self.written) > 0;
        let Some(item) = self.items.pop_front() else { return };
        self.lose(&item);
        if is_begun && item.output.is_none() {
            match self.items.iter_mut().find(|item| item.output.is_none()) {
                Some(next) => {
                    next.bytes.insert(0, b'\n');
                    self.line_bytes += 1;
                }
                None => self.is_torn = true,
            }
        }
    }

    /// All of the guest's console below this has left: it is written, or dropped.
    #[must_use]
    pub fn console_left(&self) -> OutputId {
        self.items.iter().find_map(|item| item.output).unwrap_or(self.next_console)
    }

    /// What was dropped and isn't reported yet, once the reader takes output again.
    pub fn take_lost(&mut self, now_ns: u64) -> Option<Lost> {
        if self.lost == Lost::default() || self.is_stalled(now_ns) {
            return None;
        }
        Some(std::mem::take(&mut self.lost))
    }

    /// What is lost if nothing more is written.
    #[must_use]
    pub fn not_written(&self) -> Lost {
        let rest = |item: &Item| item.bytes.len() as u64;
        let console_bytes = self.items.iter().filter(|item| item.output.is_some()).map(rest).sum::<u64>();
        let lines = self.items.iter().filter(|item| item.output.is_none()).count() as u64;
        Lost { console_bytes: self.lost.console_bytes + console_bytes, lines: self.lost.lines + lines }
    }

    /// `true` if something was dropped that isn't reported yet.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.lost != Lost::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: u64 = 5 + STALL_NS;

    fn with_console(pieces: u64, bytes: usize) -> WriteQueue {
        let mut queue = WriteQueue::default();
        (0..pieces).for_each(|id| queue.push(5, Some(OutputId(id)), vec![b'x'; bytes]));
        queue
    }

    #[test]
    fn console_output_has_left_when_it_is_written_and_not_when_it_is_queued() {
        let mut queue = with_console(2, 3);
        assert_eq!(queue.console_left(), OutputId(0));
        queue.wrote(6, 2);
        assert_eq!((queue.console_left(), queue.next_piece()), (OutputId(0), Some(&b"x"[..])));
        queue.wrote(7, 1);
        assert_eq!(queue.console_left(), OutputId(1));
        queue.wrote(8, 3);
        assert_eq!((queue.console_left(), queue.is_empty()), (OutputId(2), true));
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let mut queue = with_console(1000, 1000);
        for step in 1..=1000_u64 {
            // One piece in less than what makes it stalled.
            let now_ns = 5 + step * (STALL_NS - 1);
            queue.shed(now_ns);
            queue.wrote(now_ns, 1000);
        }
        assert!(queue.is_empty() && !queue.has_lost());
        assert_eq!(queue.console_left(), OutputId(1000));
    }

    #[test]
    fn a_stalled_reader_loses_the_newest_whole_pieces_which_count_as_left_and_are_told_once() {
        let mut queue = with_console(1000, 1000);
        queue.shed(LATER - 1);
        assert!(!queue.has_lost(), "it has not stalled yet");
        queue.push(LATER - 1, None, b"line\n".to_vec());
        queue.shed(LATER);
        assert!(queue.console_bytes <= CONSOLE_BYTES_KEPT && queue.console_bytes > CONSOLE_BYTES_KEPT - 2000);
        assert_eq!(queue.take_lost(LATER), None, "there is nobody to tell it to");
        let kept = CONSOLE_BYTES_KEPT / 1064;
        for _ in 0..kept {
            assert_eq!(queue.next_piece().map(<[u8]>::len), Some(1000));
            queue.wrote(LATER, 1000);
        }
        assert_eq!(queue.console_left(), OutputId(1000), "what is dropped is nobody's to write any more");
        assert_eq!(queue.next_piece(), Some(&b"line\n"[..]), "a line isn't the console's to give up");
        let console_bytes = (1000 - kept as u64) * 1000;
        assert_eq!(queue.take_lost(LATER), Some(Lost { console_bytes, lines: 0 }));
        assert_eq!(queue.take_lost(LATER), None);
    }

    #[test]
    fn what_is_written_in_part_is_written_to_its_end() {
        let mut queue = with_console(1, 2 * CONSOLE_BYTES_KEPT);
        queue.wrote(5, 1);
        queue.shed(LATER);
        assert!(!queue.has_lost());
        queue.wrote(LATER, 2 * CONSOLE_BYTES_KEPT - 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn lines_are_bounded_and_dropped_whole() {
        let mut queue = WriteQueue::default();
        for _ in 0..2000 {
            queue.push(0, None, vec![b'l'; 1000]);
        }
        assert!(queue.line_bytes <= LINE_BYTES_MAX);
        assert_eq!(queue.take_lost(0), Some(Lost { console_bytes: 0, lines: 2000 - (LINE_BYTES_MAX / 1064) as u64 }));
    }

    #[test]
    fn after_a_torn_line_the_next_begins_on_a_line_of_its_own() {
        for is_there in [false, true] {
            let mut queue = WriteQueue::default();
            queue.push(0, None, b"first\n".to_vec());
            queue.wrote(0, 2);
            if is_there {
                queue.push(0, None, b"next\n".to_vec());
            }
            queue.failed(0);
            if !is_there {
                queue.push(0, None, b"next\n".to_vec());
            }
            assert_eq!(queue.next_piece(), Some(&b"\nnext\n"[..]));
            queue.wrote(0, 6);
            assert_eq!((queue.line_bytes, queue.take_lost(0)), (0, Some(Lost { console_bytes: 0, lines: 1 })));
        }
    }
}
