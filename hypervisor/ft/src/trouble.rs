//! What goes wrong inside a guest, for whoever runs it: mistakes of its drivers, and a panic that nobody can see.

use alloc::borrow::ToOwned;
use alloc::string::String;
use vm::{DeviceFault, Machine};

/// How long a guest may put nothing out before its memory is searched for a panic, in nanoseconds, and from one search to the next.
const FIRST_SEARCH_NS: u64 = 2_000_000_000;
const SEARCH_PERIOD_NS: u64 = 5_000_000_000;

/// How often it is searched: a guest that puts nothing out for a minute has something else to do.
const SEARCHES_MAX: u32 = 12;

/// How much of RAM is searched, in bytes: a kernel's log buffer is in the kernel, which is at the start of RAM.
const SEARCHED_BYTES_MAX: usize = 64 << 20;

/// What Linux writes to its log before the reason of a panic. The kernel has the same words as a format, with `%s` behind them.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// The most bytes that are told of the reason.
const REASON_BYTES_MAX: usize = 200;

/// Something that went wrong inside a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A driver has made a mistake, and its device needs a reset.
    Device {
        /// Which.
        fault: DeviceFault,
        /// How many mistakes there were so far; only those whose number is a power of two are told.
        times: u64,
    },
    /// The guest's kernel has panicked.
    Panic {
        /// Why, as the kernel says in its log.
        reason: String,
        /// It has a console to say so.
        has_console: bool,
    },
}

/// Watches one guest.
#[derive(Debug)]
pub struct Watch {
    faults: u64,
    /// When memory is searched for a panic next.
    next_search_ns: u64,
    searches_left: u32,
    /// Memory is searched too when a guest that has a console puts nothing out any more and doesn't sleep.
    follows: bool,
    /// How many outputs there were, and whether the guest has slept, when the time of its silence began.
    outputs: u64,
    has_slept: bool,
}

impl Watch {
    /// Watches a guest that boots at `now_ns`.
    #[must_use]
    pub const fn booting(now_ns: u64) -> Self {
        let next_search_ns = now_ns.saturating_add(FIRST_SEARCH_NS);
        Self { next_search_ns, searches_left: SEARCHES_MAX, ..Self::running() }
    }

    /// The same, and goes on when the guest has a console: a kernel that panics later waits in a loop that reads the clock, a
    /// million log entries a second. A search stops the guest for some ten milliseconds.
    #[must_use]
    pub const fn recording(now_ns: u64) -> Self {
        Self { follows: true, ..Self::booting(now_ns) }
    }

    /// Watches a guest that has run before, or whose console somebody else watches.
    #[must_use]
    pub const fn running() -> Self {
        Self { faults: 0, next_search_ns: 0, searches_left: 0, follows: false, outputs: 0, has_slept: false }
    }

    /// What there is to tell of `machine`. The time is asked for only if it matters: not of a guest that sleeps, as none does that
    /// has panicked.
    pub fn look(&mut self, machine: &mut Machine, sleeps: bool, now_ns: impl FnOnce() -> u64) -> Option<Trouble> {
        if let Some(fault) = machine.take_device_fault() {
            self.faults += 1;
            if self.faults.is_power_of_two() {
                return Some(Trouble::Device { fault, times: self.faults });
            }
        }
        self.has_slept |= sleeps;
        if self.searches_left == 0 || sleeps {
            return None;
        }
        let outputs = machine.next_output_id().0;
        if outputs > 0 && !self.follows {
            // A guest that puts something out can speak for itself.
            self.searches_left = 0;
            return None;
        }
        let now_ns = now_ns();
        if outputs > 0 && (outputs != self.outputs || core::mem::take(&mut self.has_slept)) {
            (self.outputs, self.next_search_ns) = (outputs, now_ns.saturating_add(FIRST_SEARCH_NS));
            return None;
        }
        if now_ns < self.next_search_ns {
            return None;
        }
        let reason = panic_reason(machine.ram());
        self.searches_left = if reason.is_some() { 0 } else { self.searches_left - 1 };
        self.next_search_ns = now_ns.saturating_add(SEARCH_PERIOD_NS);
        reason.map(|reason| Trouble::Panic { reason, has_console: outputs > 0 })
    }
}

/// Why the Linux kernel in `ram` has panicked, if it has.
fn panic_reason(ram: &[u8]) -> Option<String> {
    let mut rest = &ram[..ram.len().min(SEARCHED_BYTES_MAX)];
    while let Some(at) = rest.iter().position(|byte| *byte == PANIC[0]) {
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix(PANIC) {
            let reason = behind.iter().take(REASON_BYTES_MAX).take_while(|byte| matches!(byte, b' '..=b'~'));
            let reason: String = reason.map(|byte| char::from(*byte)).collect();
            if !reason.is_empty() && !reason.starts_with('%') {
                // The last line of a panic has the reason in brackets.
                return Some(reason.strip_suffix(" ]---").map_or(reason.clone(), str::to_owned));
            }
        }
        rest = &rest[1..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{PANIC, panic_reason};
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
}
