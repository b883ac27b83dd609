//! HTIF: `tohost` and `fromhost`, by which a guest without firmware reports to the hypervisor.
//!
//! Doublewords of RAM whose addresses are symbols of the image, as in the RISC-V conformance
//! suites. A value of `tohost` with bit 0 set stops the guest: the other bits are 0 if it has
//! passed, or the number of the test that failed. Device 1, command 1 (bits 63:48) prints its low
//! byte. Device 0, command 0 with an even value, the address of 8 doublewords, is a system call, as
//! the benchmarks of riscv-tests and newlib's libgloss make them: number and arguments are in the
//! doublewords, the result replaces the number, and `fromhost` becomes 1. After an answer `tohost`
//! is cleared; any other value stays there without effect.

use super::Hart;
use crate::bus::Bus;
use crate::event::CONSOLE_BYTES_MAX;
use crate::exit::StopReason;
use crate::isa::address::GuestPhysAddr;
use crate::ram::pages::PAGE_BYTES;

/// Length of `tohost` and of `fromhost`.
const TOHOST_BYTES: u64 = 8;

/// Device 1, command 1, in bits 63:48.
const CONSOLE_WRITE: u64 = 0x0101;

/// The doublewords of a system call.
const CALL_WORDS: usize = 8;
const CALL_BYTES: u64 = CALL_WORDS as u64 * 8;

/// The most bytes that one system call writes, because a step is bounded. The caller writes the
/// rest again.
const WRITE_BYTES_MAX: u64 = 64 << 10;

/// Numbers of the system calls that exist, as in Linux and newlib.
mod number {
    pub(super) const WRITE: u64 = 64;
    pub(super) const EXIT: u64 = 93;
    pub(super) const EXIT_GROUP: u64 = 94;
}

/// Error codes of system calls.
#[derive(Clone, Copy, Debug)]
#[repr(i64)]
enum SystemError {
    BadDescriptor = -9,
    BadAddress = -14,
    NoSuchCall = -38,
}

/// Physical addresses of `tohost` and, if the image has it, `fromhost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) tohost: GuestPhysAddr,
    pub(crate) fromhost: Option<GuestPhysAddr>,
}

impl Hart {
    /// Acts on `tohost` if a store has just written it; the store was of the `length` bytes at
    /// `address`.
    #[inline]
    pub(super) fn notice_tohost(&self, bus: &mut Bus, address: GuestPhysAddr, length: u64) {
        if let Some(port) = self.host_port
            && address.0 < port.tohost.0.saturating_add(TOHOST_BYTES)
            && port.tohost.0 < address.0.saturating_add(length)
        {
            read_tohost(bus, port);
        }
    }

    /// `true` if a store to the page of `address` may write `tohost`.
    pub(crate) fn shares_page_with_tohost(&self, address: GuestPhysAddr) -> bool {
        let page = |address: u64| address / PAGE_BYTES as u64;
        self.host_port.is_some_and(|HostPort { tohost: GuestPhysAddr(tohost), .. }| {
            let pages = page(tohost)..=page(tohost.saturating_add(TOHOST_BYTES - 1));
            pages.contains(&page(address.0))
        })
    }
}

#[cold]
fn read_tohost(bus: &mut Bus, port: HostPort) {
    let Some(value) = bus.ram.load(port.tohost).map(u64::from_le_bytes) else { return };
    let [low, ..] = value.to_le_bytes();
    if value >> 48 == CONSOLE_WRITE {
        bus.outputs.push_console_byte(low);
        bus.ram.store(port.tohost, [0; 8]).expect("it has just been read");
        bus.touch();
    } else if value & 1 == 1 {
        exit(bus, value >> 1);
        bus.touch();
    } else if value >> 48 == 0 {
        call(bus, port, GuestPhysAddr(value));
    }
}

/// Stops the guest.
fn exit(bus: &mut Bus, code: u64) {
    bus.stop(StopReason::PowerOff { code: u32::try_from(code).unwrap_or(u32::MAX) });
}

/// Executes the system call whose doublewords are at `address`, if that is in RAM.
fn call(bus: &mut Bus, port: HostPort, address: GuestPhysAddr) {
    let Some(bytes) = bus.ram.slice(address, CALL_BYTES) else { return };
    let mut words = [0; CALL_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let [number, first, second, third, ..] = words;
    let result = match number {
        number::WRITE => write(bus, first, GuestPhysAddr(second), third),
        number::EXIT | number::EXIT_GROUP => {
            exit(bus, first);
            Ok(0)
        }
        _ => Err(SystemError::NoSuchCall),
    };
    let result = result.unwrap_or_else(|error| (error as i64).cast_unsigned());
    bus.ram.store(address, result.to_le_bytes()).expect("it has just been read");
    bus.ram.store(port.tohost, [0; 8]).expect("it has just been read");
    if let Some(fromhost) = port.fromhost {
        // A program whose `fromhost` isn't in RAM never sees an answer.
        let _ = bus.ram.store(fromhost, 1_u64.to_le_bytes());
    }
    bus.touch();
}

/// Writes to standard output or standard error, both of which are the console. Returns how many
/// bytes were written.
fn write(bus: &mut Bus, descriptor: u64, address: GuestPhysAddr, bytes: u64) -> Result<u64, SystemError> {
    if !matches!(descriptor, 1 | 2) {
        return Err(SystemError::BadDescriptor);
    }
    let written = bytes.min(WRITE_BYTES_MAX);
    let text = bus.ram.slice(address, written).ok_or(SystemError::BadAddress)?;
    for piece in text.chunks(CONSOLE_BYTES_MAX) {
        bus.outputs.push_console_bytes(piece.to_vec());
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use crate::bus::Bus;
    use crate::config::BootMode;
    use crate::event::OutputOperation;
    use crate::exit::StopReason;
    use crate::hart::{Hart, HostPort, Pause};
    use crate::isa::address::GuestPhysAddr;
    use crate::ram::{RAM_BASE, Ram};
    use crate::state::{StateReader, StateWriter};

    const TOHOST: u64 = RAM_BASE + 0x1000;
    const FROMHOST: u64 = RAM_BASE + 0x1040;
    const CALL: u64 = RAM_BASE + 0x2000;
    const TEXT: u64 = RAM_BASE + 0x2800;

    /// A hart that stores x6 with `word`, x5 being `TOHOST + offset`, and what it pauses for.
    fn stored(word: u32, offset: u64, value: u64) -> (Bus, Option<Pause>) {
        stored_in(Bus::new(Ram::new(4 << 12), None, [0; 6], BootMode::Bare), word, offset, value)
    }

    /// As [`stored`], on this bus.
    fn stored_in(mut bus: Bus, word: u32, offset: u64, value: u64) -> (Bus, Option<Pause>) {
        bus.ram.store(GuestPhysAddr(RAM_BASE), word.to_le_bytes()).unwrap();
        let port = HostPort { tohost: GuestPhysAddr(TOHOST), fromhost: Some(GuestPhysAddr(FROMHOST)) };
        let mut hart = Hart::new(BootMode::Bare, RAM_BASE, 0, Some(port));
        hart.x[5] = TOHOST.wrapping_add(offset);
        hart.x[6] = value;
        // A restored hart knows the address, too.
        let mut writer = StateWriter::default();
        hart.write_to(&mut writer);
        let bytes = writer.into_bytes();
        let mut hart = Hart::read_from(&mut StateReader::new(&bytes), BootMode::Bare).unwrap();
        let pause = hart.step(&mut bus);
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
        bus.settle(1, 0);
        assert_eq!(bus.outputs.take().map(|(_, output)| output), Some(OutputOperation::Console(b"\n".to_vec())));
    }

    /// Makes a system call.
    fn called(number: u64, arguments: [u64; 3]) -> (Bus, Option<Pause>) {
        let mut bus = Bus::new(Ram::new(4 << 12), None, [0; 6], BootMode::Bare);
        bus.ram.write(GuestPhysAddr(TEXT), b"dear diary").unwrap();
        for (word, value) in [number].into_iter().chain(arguments).enumerate() {
            bus.ram.store(GuestPhysAddr(CALL + 8 * word as u64), value.to_le_bytes()).unwrap();
        }
        stored_in(bus, SD, 0, CALL)
    }

    #[test]
    fn system_calls_are_answered() {
        let word = |bus: &Bus, address| bus.ram.load(GuestPhysAddr(address)).map(u64::from_le_bytes).unwrap();
        for (number, arguments, result, written) in [
            (64, [1, TEXT, 10], 10, &b"dear diary"[..]),
            (64, [2, TEXT, 4], 4, b"dear"),
            (64, [1, TEXT, 0], 0, b""),
            (64, [0, TEXT, 10], -9, b""),
            (64, [1, RAM_BASE + (4 << 12) - 9, 10], -14, b""),
            (64, [1, TEXT, u64::MAX], -14, b""),
            (63, [0, TEXT, 10], -38, b""),
        ] {
            let (mut bus, pause) = called(number, arguments);
            assert_eq!((bus.stopped(), pause), (None, Some(Pause::DeviceTouched)), "{number} {arguments:?}");
            assert_eq!(word(&bus, CALL), i64::cast_unsigned(result), "{number} {arguments:?}");
            assert_eq!((word(&bus, TOHOST), word(&bus, FROMHOST)), (0, 1));
            let output = bus.outputs.take().map(|(_, output)| output.bytes().to_vec());
            assert_eq!(output.unwrap_or_default(), written);
        }
        for (code, told) in [(0, 0), (3, 3), (u64::MAX, u32::MAX)] {
            assert_eq!(called(93, [code, 0, 0]).0.stopped(), Some(StopReason::PowerOff { code: told }));
        }
    }

    #[test]
    fn what_one_call_writes_is_bounded() {
        let mut bus = Bus::new(Ram::new(64 << 12), None, [0; 6], BootMode::Bare);
        for (word, value) in [64, 1, RAM_BASE, 100 << 10].into_iter().enumerate() {
            bus.ram.store(GuestPhysAddr(CALL + 8 * word as u64), u64::to_le_bytes(value)).unwrap();
        }
        let (mut bus, _) = stored_in(bus, SD, 0, CALL);
        assert_eq!(bus.ram.load(GuestPhysAddr(CALL)), Some(65_536_u64.to_le_bytes()));
        assert_eq!(core::iter::from_fn(|| bus.outputs.take()).count(), 16);
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
