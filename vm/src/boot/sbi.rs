//! The firmware: SBI calls, which the guest makes by an ECALL from S-mode.
//!
//! Base, TIME, SRST and DBCN of SBI 2.0, and the legacy timer and console calls that early boot
//! code uses; every other call returns that it isn't supported. A call is one step and completes at
//! once.

use crate::bus::Bus;
use crate::event::CONSOLE_BYTES_MAX;
use crate::exit::StopReason;
use crate::hart::Hart;
use crate::isa::address::GuestPhysAddr;
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::vec::Vec;

const EXTENSION_LEGACY_SET_TIMER: u64 = 0x00;
const EXTENSION_LEGACY_PUTCHAR: u64 = 0x01;
const EXTENSION_BASE: u64 = 0x10;
const EXTENSION_TIME: u64 = 0x5449_4d45;
const EXTENSION_SYSTEM_RESET: u64 = 0x5352_5354;
const EXTENSION_DEBUG_CONSOLE: u64 = 0x4442_434e;

const EXTENSIONS: [u64; 6] = [
    EXTENSION_LEGACY_SET_TIMER,
    EXTENSION_LEGACY_PUTCHAR,
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

/// The deadline with which a guest clears its timer.
const NEVER: u64 = u64::MAX;

/// An error code, as `a0` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
enum SbiError {
    NotSupported = -2,
    InvalidParameter = -3,
}

/// The state of the firmware.
#[derive(Debug, Default)]
pub(crate) struct Firmware {
    timer_deadline: Option<u64>,
}

impl Firmware {
    /// The deadline of the guest's timer in clock ticks; `None` if no timer is set.
    pub(crate) const fn timer_deadline(&self) -> Option<u64> {
        self.timer_deadline
    }

    /// Clears the deadline, which has been reached, and makes the timer interrupt pending.
    pub(crate) const fn expire_timer(&mut self, hart: &mut Hart) {
        self.timer_deadline = None;
        hart.set_timer_pending(true);
    }

    /// Executes the call that the hart has just made.
    pub(crate) fn call(&mut self, hart: &mut Hart, bus: &mut Bus) {
        let [a0, a1, a2, _, _, _, function, extension] = hart.firmware_arguments();
        let result = match (extension, function) {
            // Legacy calls have no function number, and return an error code alone.
            (EXTENSION_LEGACY_SET_TIMER, _) => {
                self.set_timer(hart, a0);
                return hart.set_firmware_result(0, None);
            }
            (EXTENSION_LEGACY_PUTCHAR, _) => {
                bus.outputs.push_console_byte(low_byte(a0));
                return hart.set_firmware_result(0, None);
            }
            (EXTENSION_BASE, _) => base(function, a0),
            (EXTENSION_TIME, 0) => {
                self.set_timer(hart, a0);
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

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { timer_deadline } = self;
        writer.optional_u64(*timer_deadline);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let timer_deadline = reader.optional_u64()?;
        reader.require(timer_deadline != Some(NEVER), "a timer is set to never")?;
        Ok(Self { timer_deadline })
    }

    /// Sets the deadline and clears the pending interrupt of the deadline before.
    fn set_timer(&mut self, hart: &mut Hart, ticks: u64) {
        self.timer_deadline = Some(ticks).filter(|ticks| *ticks != NEVER);
        hart.set_timer_pending(false);
    }
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
