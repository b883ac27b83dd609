//! `tohost`: how a guest without firmware speaks to whoever runs it.
//!
//! A doubleword of RAM whose address the image names, as in the RISC-V conformance suites. A value with bit 0 set ends the
//! guest: the other bits are 0 if it has passed, or the number of the test that failed. Device 1, command 1 (bits 63:48)
//! prints its low byte, and the doubleword is cleared for the next one. Everything else stays there and means nothing.

use super::Hart;
use crate::bus::Bus;
use crate::exit::StopReason;
use crate::mmu::GuestPhysAddr;

/// Its length.
const TOHOST_BYTES: u64 = 8;

/// Device 1, command 1, in bits 63:48.
const CONSOLE_WRITE: u64 = 0x0101;

impl Hart {
    /// Deals with a store that has just written the `length` bytes at `address`.
    #[inline]
    pub(super) fn notice_tohost(&self, bus: &mut Bus, address: GuestPhysAddr, length: u64) {
        if let Some(tohost) = self.tohost
            && address.0 < tohost.0.saturating_add(TOHOST_BYTES)
            && tohost.0 < address.0.saturating_add(length)
        {
            read_tohost(bus, tohost);
        }
    }
}

#[cold]
fn read_tohost(bus: &mut Bus, tohost: GuestPhysAddr) {
    let Some(value) = bus.ram.load(tohost).map(u64::from_le_bytes) else { return };
    let [low, ..] = value.to_le_bytes();
    if value >> 48 == CONSOLE_WRITE {
        bus.outputs.push_console_byte(low);
        bus.ram.store(tohost, [0; 8]).expect("it has just been read");
        bus.touch();
    } else if value & 1 == 1 {
        bus.stop(StopReason::PowerOff { code: u32::try_from(value >> 1).unwrap_or(u32::MAX) });
        bus.touch();
    }
}
