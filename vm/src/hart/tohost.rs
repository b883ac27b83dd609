//! `tohost`: how a guest without firmware speaks to whoever runs it.
//!
//! A doubleword of RAM whose address the image names, as in the RISC-V conformance suites. A value with bit 0 set ends the
//! guest: the other bits are 0 if it has passed, or the number of the test that failed. Device 1, command 1 (bits 63:48)
//! prints its low byte, and the doubleword is cleared for the next one. Everything else stays there and means nothing.

use super::Hart;
use crate::bus::Bus;
use crate::exit::StopReason;
use crate::mmu::GuestPhysAddr;
use crate::pages::PAGE_BYTES;

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

    /// Whether a store to the page of `address` may be one to `tohost`.
    pub(super) fn shares_page_with_tohost(&self, address: GuestPhysAddr) -> bool {
        let page = |address: u64| address / PAGE_BYTES as u64;
        self.tohost.is_some_and(|GuestPhysAddr(tohost)| {
            let pages = page(tohost)..=page(tohost.saturating_add(TOHOST_BYTES - 1));
            pages.contains(&page(address.0))
        })
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

#[cfg(test)]
mod tests {
    use crate::OutputOperation;
    use crate::bus::Bus;
    use crate::config::BootMode;
    use crate::exit::StopReason;
    use crate::hart::{Hart, Pause};
    use crate::mmu::GuestPhysAddr;
    use crate::ram::{RAM_BASE, Ram};
    use crate::state::{StateReader, StateWriter};

    const TOHOST: u64 = RAM_BASE + 0x1000;

    /// A hart that stores x6 with `word`, x5 being `TOHOST + offset`, and what it pauses for.
    fn stored(word: u32, offset: u64, value: u64) -> (Bus, Option<Pause>) {
        let mut bus = Bus::new(Ram::new(4 << 12), None, [0; 6]);
        bus.ram.store(GuestPhysAddr(RAM_BASE), word.to_le_bytes()).unwrap();
        let mut hart = Hart::new(BootMode::Bare, RAM_BASE, 0, Some(TOHOST));
        hart.x[5] = TOHOST.wrapping_add(offset);
        hart.x[6] = value;
        // A restored hart knows the address, too.
        let mut writer = StateWriter::default();
        hart.write_to(&mut writer);
        let bytes = writer.into_bytes();
        let mut hart = Hart::read_from(&mut StateReader::new(&bytes), BootMode::Bare).unwrap();
        let pause = hart.step_once(&mut bus);
        assert_eq!(hart.count(), 1);
        (bus, pause)
    }

    const SB: u32 = 0x0062_8023;
    const SW: u32 = 0x0062_a023;
    const SD: u32 = 0x0062_b023;
    const AMOSWAP_D: u32 = 0x0862_b02f;

    #[test]
    fn an_odd_value_ends_the_guest_with_its_other_bits() {
        for (word, offset, value, code) in [
            (SD, 0, 1, 0),
            (SW, 0, 7, 3),
            (SB, 0, 5, 2),
            (AMOSWAP_D, 0, 9, 4),
            (SD, 0_u64.wrapping_sub(4), 3 << 32, 1),
            (SD, 0, 0x1_ffff_ffff, u32::MAX),
            (SD, 0, 0x1_ffff_fffd, u32::MAX - 1),
            (SD, 0, 0x2_0000_0001, u32::MAX),
            (SD, 0, 0x7fff_0000_0000_0001, u32::MAX),
        ] {
            let (bus, pause) = stored(word, offset, value);
            assert_eq!(bus.stopped(), Some(StopReason::PowerOff { code }), "{word:#x} {value:#x}");
            assert_eq!(pause, Some(Pause::DeviceTouched));
        }
    }

    #[test]
    fn the_console_command_prints_a_byte_and_is_taken_away() {
        let (mut bus, pause) = stored(SD, 0, 0x0101 << 48 | u64::from(b'\n'));
        assert_eq!(pause, Some(Pause::DeviceTouched));
        assert_eq!(bus.stopped(), None);
        assert_eq!(bus.ram.load(GuestPhysAddr(TOHOST)), Some([0; 8]));
        bus.settle(1);
        assert_eq!(bus.outputs.take().map(|(_, output)| output), Some(OutputOperation::Console(b"\n".to_vec())));
    }

    #[test]
    fn everything_else_means_nothing() {
        for (word, offset, value) in
            [(SD, 0, 0), (SD, 0, 0x1000), (SW, 4, 1), (SD, 8, 1), (SW, 0_u64.wrapping_sub(4), 1)]
        {
            let (bus, pause) = stored(word, offset, value);
            assert_eq!((bus.stopped(), pause), (None, None), "{word:#x} {offset:#x} {value:#x}");
        }
    }
}
