//! The firmware: SBI calls, which the guest makes by an ECALL from S-mode.
//!
//! Base, TIME, SRST and DBCN of SBI 2.0, and the legacy calls; every other call returns that it
//! isn't supported. A call is one step and completes at once.

use crate::bus::Bus;
use crate::event::CONSOLE_BYTES_MAX;
use crate::exit::StopReason;
use crate::hart::Hart;
use crate::isa::address::GuestPhysAddr;
use alloc::vec::Vec;

const EXTENSION_LEGACY_SET_TIMER: u64 = 0x00;
const EXTENSION_LEGACY_PUTCHAR: u64 = 0x01;
const EXTENSION_LEGACY_GETCHAR: u64 = 0x02;
const EXTENSION_LEGACY_CLEAR_IPI: u64 = 0x03;
const EXTENSION_LEGACY_SEND_IPI: u64 = 0x04;
const EXTENSION_LEGACY_REMOTE_FENCE_I: u64 = 0x05;
const EXTENSION_LEGACY_REMOTE_SFENCE_VMA: u64 = 0x06;
const EXTENSION_LEGACY_REMOTE_SFENCE_VMA_ASID: u64 = 0x07;
const EXTENSION_LEGACY_SHUTDOWN: u64 = 0x08;
const EXTENSION_BASE: u64 = 0x10;
const EXTENSION_TIME: u64 = 0x5449_4d45;
const EXTENSION_SYSTEM_RESET: u64 = 0x5352_5354;
const EXTENSION_DEBUG_CONSOLE: u64 = 0x4442_434e;

const EXTENSIONS: [u64; 13] = [
    EXTENSION_LEGACY_SET_TIMER,
    EXTENSION_LEGACY_PUTCHAR,
    EXTENSION_LEGACY_GETCHAR,
    EXTENSION_LEGACY_CLEAR_IPI,
    EXTENSION_LEGACY_SEND_IPI,
    EXTENSION_LEGACY_REMOTE_FENCE_I,
    EXTENSION_LEGACY_REMOTE_SFENCE_VMA,
    EXTENSION_LEGACY_REMOTE_SFENCE_VMA_ASID,
    EXTENSION_LEGACY_SHUTDOWN,
    EXTENSION_BASE,
    EXTENSION_TIME,
    EXTENSION_SYSTEM_RESET,
    EXTENSION_DEBUG_CONSOLE,
];

/// 2.0: major in bits 30:24, minor in bits 23:0.
const SPECIFICATION_VERSION: u64 = 2 << 24;
/// No registered implementation: "FTVM".
const IMPLEMENTATION_ID: u64 = 0x4654_564d;
const IMPLEMENTATION_VERSION: u64 = 1;

/// What a legacy getchar returns if nothing has been received.
const NO_CHARACTER: u64 = u64::MAX;

/// An error code, as `a0` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
enum SbiError {
    NotSupported = -2,
    InvalidParameter = -3,
    InvalidAddress = -5,
}

/// Executes the call that the hart has just made. The firmware has no state: its timer is the
/// supervisor's.
pub(crate) fn call(hart: &mut Hart, bus: &mut Bus) {
    let [a0, a1, a2, _, _, _, function, extension] = hart.firmware_arguments();
    if extension <= EXTENSION_LEGACY_SHUTDOWN {
        let result = legacy(hart, bus, extension, a0);
        return hart.set_firmware_result(result, None);
    }
    let result = match (extension, function) {
        (EXTENSION_BASE, _) => base(function, a0),
        (EXTENSION_TIME, 0) => {
            hart.set_supervisor_timer(a0);
            Ok(0)
        }
        (EXTENSION_SYSTEM_RESET, 0) => match reset_reason(a0, a1) {
            Some(reason) => return bus.stop(reason),
            None => Err(SbiError::InvalidParameter),
        },
        (EXTENSION_DEBUG_CONSOLE, 0) => console_write(bus, a0, buffer_address(a1, a2)),
        (EXTENSION_DEBUG_CONSOLE, 1) => console_read(bus, a0, buffer_address(a1, a2)),
        (EXTENSION_DEBUG_CONSOLE, 2) => {
            bus.outputs.push_console_byte(low_byte(a0));
            Ok(0)
        }
        _ => Err(SbiError::NotSupported),
    };
    let (error, value) = match result {
        Ok(value) => (0, value),
        Err(error) => (error as i64, 0),
    };
    hart.set_firmware_result(error.cast_unsigned(), Some(value));
}

/// Executes a legacy call, which has no function number. Returns a0, its only result.
fn legacy(hart: &mut Hart, bus: &mut Bus, extension: u64, argument: u64) -> u64 {
    match extension {
        EXTENSION_LEGACY_SET_TIMER => hart.set_supervisor_timer(argument),
        EXTENSION_LEGACY_PUTCHAR => bus.outputs.push_console_byte(low_byte(argument)),
        EXTENSION_LEGACY_GETCHAR => return bus.uart.take_received(1).next().map_or(NO_CHARACTER, u64::from),
        EXTENSION_LEGACY_CLEAR_IPI => hart.set_software_pending(false),
        EXTENSION_LEGACY_SEND_IPI => {
            // The address of a bitmap of harts, or 0 for all of them.
            let harts = if argument == 0 { Some(1) } else { hart.load_for_firmware(bus, argument) };
            let Some(harts) = harts else { return (SbiError::InvalidAddress as i64).cast_unsigned() };
            if harts & 1 == 1 {
                hart.set_software_pending(true);
            }
        }
        EXTENSION_LEGACY_SHUTDOWN => bus.stop(StopReason::PowerOff { code: 0 }),
        // Remote fences: there is no other hart, and fences have nothing to do on this one.
        _ => {}
    }
    0
}

fn base(function: u64, argument: u64) -> Result<u64, SbiError> {
    match function {
        0 => Ok(SPECIFICATION_VERSION),
        1 => Ok(IMPLEMENTATION_ID),
        2 => Ok(IMPLEMENTATION_VERSION),
        3 => Ok(u64::from(EXTENSIONS.contains(&argument))),
        // mvendorid, marchid, mimpid: 0 is a legal value of each.
        4..=6 => Ok(0),
        _ => Err(SbiError::NotSupported),
    }
}

/// The reason for the machine to stop, by reset type (0 shutdown, 1 cold reboot, 2 warm reboot) and
/// reset reason (0 none, else a failure).
const fn reset_reason(kind: u64, reason: u64) -> Option<StopReason> {
    match (kind, reason) {
        (0, 0) => Some(StopReason::PowerOff { code: 0 }),
        (0, _) => Some(StopReason::PowerOff { code: 1 }),
        (1 | 2, _) => Some(StopReason::Reboot),
        _ => None,
    }
}

/// The address of which a call gives the low and the high XLEN bits; the high ones must be zero on
/// RV64.
fn buffer_address(low: u64, high: u64) -> Result<GuestPhysAddr, SbiError> {
    if high == 0 { Ok(GuestPhysAddr(low)) } else { Err(SbiError::InvalidParameter) }
}

/// Writes at most [`CONSOLE_BYTES_MAX`] bytes of the buffer to the console; returns how many.
fn console_write(bus: &mut Bus, bytes: u64, address: Result<GuestPhysAddr, SbiError>) -> Result<u64, SbiError> {
    let address = address?;
    // The whole buffer has to be RAM, even if only a part is written.
    bus.ram.slice(address, bytes).ok_or(SbiError::InvalidParameter)?;
    let written = bytes.min(CONSOLE_BYTES_MAX as u64);
    let text = bus.ram.slice(address, written).ok_or(SbiError::InvalidParameter)?.to_vec();
    bus.outputs.push_console_bytes(text);
    Ok(written)
}

/// Reads received console bytes into the buffer, as many as fit; returns how many.
fn console_read(bus: &mut Bus, bytes: u64, address: Result<GuestPhysAddr, SbiError>) -> Result<u64, SbiError> {
    let address = address?;
    bus.ram.slice(address, bytes).ok_or(SbiError::InvalidParameter)?;
    let received: Vec<u8> = bus.uart.take_received(usize::try_from(bytes).unwrap_or(usize::MAX)).collect();
    bus.ram.write(address, &received).ok_or(SbiError::InvalidParameter)?;
    Ok(received.len() as u64)
}

#[expect(clippy::cast_possible_truncation, reason = "a character is the low byte of its register")]
const fn low_byte(register: u64) -> u8 {
    register as u8
}
