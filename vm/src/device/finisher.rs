//! The SiFive test finisher: one register with which a guest ends itself. It has no state.

use crate::exit::StopReason;

const FAIL: u32 = 0x3333;
const PASS: u32 = 0x5555;
const RESET: u32 = 0x7777;

/// Reads the register: zero.
pub(crate) const fn load(_offset: u64, width: usize) -> Option<u32> {
    if takes(width) { Some(0) } else { None }
}

/// The reason to stop that a write gives: the status is in the lower half, the exit code of a
/// failure in the upper.
pub(crate) const fn store(offset: u64, value: u32, width: usize) -> Option<Option<StopReason>> {
    if !takes(width) {
        return None;
    }
    Some(match (offset, value & 0xffff) {
        (0, FAIL) => Some(StopReason::PowerOff { code: value >> 16 }),
        (0, PASS) => Some(StopReason::PowerOff { code: 0 }),
        (0, RESET) => Some(StopReason::Reboot),
        _ => None,
    })
}

const fn takes(width: usize) -> bool {
    matches!(width, 2 | 4)
}

#[cfg(test)]
mod tests {
    use super::{StopReason, store};

    #[test]
    fn statuses() {
        assert_eq!(store(0, 0x5555, 4), Some(Some(StopReason::PowerOff { code: 0 })));
        assert_eq!(store(0, 0x0017_3333, 4), Some(Some(StopReason::PowerOff { code: 0x17 })));
        assert_eq!(store(0, 0x7777, 4), Some(Some(StopReason::Reboot)));
        assert_eq!(store(0, 0x5556, 4), Some(None), "an unknown status does nothing");
        assert_eq!(store(4, 0x5555, 4), Some(None), "only the register at 0 counts");
        assert_eq!(store(0, 0x55, 1), None, "a byte is not a status");
    }
}
