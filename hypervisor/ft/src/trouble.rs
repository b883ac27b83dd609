//! Faults inside a guest that its operator should hear of: mistakes of its drivers, and a kernel
//! panic that nothing shows.

use alloc::borrow::ToOwned;
use alloc::string::String;
use vm::{DeviceFault, Machine};

/// How long a guest may be silent, without output and without sleeping, before its memory is
/// searched for a panic, in nanoseconds; also the time from one search to the next.
const FIRST_SEARCH_NS: u64 = 2_000_000_000;
const SEARCH_PERIOD_NS: u64 = 5_000_000_000;

/// The most searches in one silence: a guest that makes no output for a minute is busy with
/// something else.
const SEARCHES_MAX: u32 = 12;

/// Bytes of RAM that are searched: a kernel's log buffer is in the kernel, which is at the start of
/// RAM.
const SEARCHED_BYTES_MAX: usize = 64 << 20;

/// Bytes searched at a time, while the guest stands still: less than a millisecond.
const PIECE_BYTES: usize = 1 << 20;

/// What Linux writes to its log before the reason of a panic. The kernel has the same words as a
/// format, with `%s` behind them.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// The longest reason that is reported, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// Something that went wrong inside a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A driver has made a mistake, and its device needs a reset.
    Device {
        /// The driver's mistake.
        fault: DeviceFault,
        /// How many mistakes the driver has made so far; only the first, second, fourth, eighth ...
        /// are reported.
        times: u64,
    },
    /// The guest's kernel has panicked.
    Panic {
        /// Why, as the kernel says in its log.
        reason: String,
        /// `true` if the guest has a console that shows the panic.
        has_console: bool,
    },
}

/// Watches one guest for faults.
///
/// A kernel that has panicked waits in a loop that reads the clock: it makes no output any more,
/// and never sleeps.
#[derive(Debug)]
pub struct Watch {
    faults: u64,
    /// The number of outputs when the present silence began.
    outputs: u64,
    /// The guest has slept since.
    has_slept: bool,
    /// How many searches are left in this silence; always 0 if the guest isn't to be searched.
    searches_left: u32,
    /// When the next search begins.
    next_search_ns: u64,
    /// The offset in RAM at which a search goes on, if one has begun.
    searching_at: Option<usize>,
    /// A panic may still be found.
    searches: bool,
}

impl Watch {
    /// Watches a guest that runs from `now_ns` on.
    #[must_use]
    pub const fn live(now_ns: u64) -> Self {
        Self {
            searches_left: SEARCHES_MAX,
            next_search_ns: now_ns.saturating_add(FIRST_SEARCH_NS),
            searches: true,
            ..Self::replayed()
        }
    }

    /// Watches a guest that is replayed: its panic was told when it was recorded.
    #[must_use]
    pub const fn replayed() -> Self {
        Self {
            faults: 0,
            outputs: 0,
            has_slept: false,
            searches_left: 0,
            next_search_ns: 0,
            searching_at: None,
            searches: false,
        }
    }

    /// The next fault of `machine` to report. The time is asked for only if it matters.
    pub fn check(&mut self, machine: &mut Machine, sleeps: bool, now_ns: impl Fn() -> u64) -> Option<Trouble> {
        if let Some(fault) = machine.take_device_fault() {
            self.faults += 1;
            if self.faults.is_power_of_two() {
                return Some(Trouble::Device { fault, times: self.faults });
            }
        }
        self.has_slept |= sleeps;
        if sleeps || !self.searches {
            return None;
        }
        let outputs = machine.next_output_id().0;
        if outputs != self.outputs || core::mem::take(&mut self.has_slept) {
            (self.outputs, self.searches_left, self.searching_at) = (outputs, SEARCHES_MAX, None);
            self.next_search_ns = now_ns().saturating_add(FIRST_SEARCH_NS);
            return None;
        }
        let reason = self.search(machine.ram(), now_ns)?;
        self.searches = false;
        Some(Trouble::Panic { reason, has_console: outputs > 0 })
    }

    /// Searches a piece of `ram`, if it is time to.
    fn search(&mut self, ram: &[u8], now_ns: impl Fn() -> u64) -> Option<String> {
        let at = match self.searching_at {
            Some(at) => at,
            None if self.searches_left == 0 || now_ns() < self.next_search_ns => return None,
            None => 0,
        };
        let next = at + PIECE_BYTES;
        if next < ram.len().min(SEARCHED_BYTES_MAX) {
            self.searching_at = Some(next);
        } else {
            (self.searching_at, self.searches_left) = (None, self.searches_left - 1);
            self.next_search_ns = now_ns().saturating_add(SEARCH_PERIOD_NS);
        }
        panic_reason(ram, at)
    }
}

/// The reason of a Linux kernel's panic, if its message begins in the piece of `ram` from `start`
/// on; the message may end behind the piece.
fn panic_reason(ram: &[u8], start: usize) -> Option<String> {
    let piece = ram.get(start..)?;
    let begins = &piece[..piece.len().min(PIECE_BYTES)];
    for (at, _) in begins.iter().enumerate().filter(|(_, byte)| **byte == PANIC[0]) {
        let Some(behind) = piece[at..].strip_prefix(PANIC) else { continue };
        let reason = behind.iter().take(REASON_BYTES_MAX).take_while(|byte| matches!(byte, b' '..=b'~'));
        let reason: String = reason.map(|byte| char::from(*byte)).collect();
        if !reason.is_empty() && !reason.starts_with('%') {
            // The last line of a panic has the reason in brackets.
            return Some(reason.strip_suffix(" ]---").map_or(reason.clone(), str::to_owned));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{PANIC, PIECE_BYTES};
    use alloc::string::String;

    fn panic_reason(ram: &[u8]) -> Option<String> {
        super::panic_reason(ram, 0)
    }
    use alloc::vec;

    #[test]
    fn the_reason_of_a_panic_is_found_behind_the_format_of_all() {
        let mut ram = vec![0_u8; 10_000];
        let mut put = |at: usize, reason: &[u8]| {
            ram[at..at + PANIC.len()].copy_from_slice(PANIC);
            ram[at + PANIC.len()..at + PANIC.len() + reason.len()].copy_from_slice(reason);
            panic_reason(&ram)
        };
        assert_eq!(put(700, b"%s\n"), None, "the kernel's own text");
        assert_eq!(put(900, b"\n"), None);
        assert_eq!(put(5_000, b"Out of memory\n\0"), Some("Out of memory".into()));
        assert_eq!(panic_reason(&ram[..5_000 + PANIC.len()]), None, "cut off");
        assert_eq!(panic_reason(b"[ end Kernel panic - not syncing: x ]---\n"), Some("x".into()));
        assert_eq!(panic_reason(b"KKernel panic - not syncing: x"), Some("x".into()));
        let endless = [PANIC, &[b'x'; 300]].concat();
        assert_eq!(panic_reason(&endless).map(|reason| reason.len()), Some(200));
    }

    #[test]
    fn what_begins_in_a_piece_may_end_in_the_next_and_is_of_one_piece_only() {
        let text = [PANIC, b"why\0"].concat();
        for at in [PIECE_BYTES - text.len(), PIECE_BYTES - 5, PIECE_BYTES - 1, PIECE_BYTES] {
            let mut ram = vec![0; 2 * PIECE_BYTES];
            ram[at..at + text.len()].copy_from_slice(&text);
            let found = [0, PIECE_BYTES, 2 * PIECE_BYTES].map(|start| super::panic_reason(&ram, start).is_some());
            assert_eq!(found, [at < PIECE_BYTES, at >= PIECE_BYTES, false], "at {at}");
        }
        assert_eq!(super::panic_reason(&[0; 10], 11), None);
    }
}
