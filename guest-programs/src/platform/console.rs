//! The console, through the firmware.
//!
//! A line is written by one SBI DBCN call, so that it is one output operation of the machine
//! instead of one for each byte. Firmware without DBCN (OpenSBI before 1.3, and so QEMU before 8.1)
//! gets it byte by byte through the legacy call. Neither depends on a UART, so the guest runs on
//! any board with an SBI.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use sbi_rt::{Console as DebugConsole, Physical};

/// Prints to the console, with a line feed at the end.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::platform::console::print_line(::core::format_args!($($argument)*))
    };
}

const UNKNOWN: u8 = 0;
const DEBUG_CONSOLE: u8 = 1;
const LEGACY: u8 = 2;

static INTERFACE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Prints `text` and a line feed.
pub fn print_line(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_BYTES], used: 0 };
    // A `Line` never fails, and a `Display` that fails has cut only its own text short.
    let _ = line.write_fmt(text);
    let _ = line.write_char('\n');
    line.flush();
}

const LINE_BYTES: usize = 256;

/// A line being collected; one that is longer than the buffer is written in pieces. It is on the
/// stack, so that a panic needs no heap to print.
struct Line {
    bytes: [u8; LINE_BYTES],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        write(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.used == LINE_BYTES {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

fn write(mut bytes: &[u8]) {
    if !has_debug_console() {
        write_bytewise(bytes);
        return;
    }
    while !bytes.is_empty() {
        let result = sbi_rt::console_write(Physical::new(bytes.len(), bytes.as_ptr().addr(), 0));
        // A console that takes no bytes now won't take them on a second try.
        if result.is_err() || result.value == 0 {
            return;
        }
        bytes = bytes.get(result.value..).unwrap_or_default();
    }
}

#[expect(deprecated, reason = "the only way to the console that firmware without DBCN offers")]
fn write_bytewise(bytes: &[u8]) {
    for byte in bytes {
        sbi_rt::legacy::console_putchar(usize::from(*byte));
    }
}

fn has_debug_console() -> bool {
    if INTERFACE.load(Ordering::Relaxed) == UNKNOWN {
        let found = if sbi_rt::probe_extension(DebugConsole).is_available() { DEBUG_CONSOLE } else { LEGACY };
        INTERFACE.store(found, Ordering::Relaxed);
    }
    INTERFACE.load(Ordering::Relaxed) == DEBUG_CONSOLE
}
