//! A 16550 UART: the console.
//!
//! The line is infinitely fast, so the transmitter is always empty, and the receive FIFO is deeper
//! than the original's 16 bytes. Trigger levels and line parameters are accepted and mean nothing:
//! any received byte interrupts.

use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::collections::VecDeque;

/// Size of the receive FIFO.
pub(crate) const RECEIVE_BYTES_MAX: usize = 1024;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

/// The registers, and the bytes received.
#[derive(Debug)]
pub(crate) struct Uart {
    received: VecDeque<u8>,
    interrupt_enable: u8,
    fifos_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The interrupt for the empty transmitter is due: the guest hasn't read or written what clears
    /// it.
    transmitter_news: bool,
}

impl Uart {
    /// As after reset.
    pub(crate) const fn new() -> Self {
        Self {
            received: VecDeque::new(),
            interrupt_enable: 0,
            fifos_enabled: false,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: [0; 2],
            transmitter_news: false,
        }
    }

    /// Free room in the receive FIFO, in bytes.
    pub(crate) fn room(&self) -> usize {
        RECEIVE_BYTES_MAX - self.received.len()
    }

    /// Receives bytes; the caller has checked that there is [`Self::room`].
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "the caller has looked at the room");
        self.received.extend(bytes);
    }

    /// Takes up to `count` received bytes, oldest first.
    pub(crate) fn take_received(&mut self, count: usize) -> impl ExactSizeIterator<Item = u8> {
        self.received.drain(..count.min(self.received.len()))
    }

    /// The level of its interrupt line.
    pub(crate) fn interrupts(&self) -> bool {
        self.interrupt_identification() != IIR_NONE
    }

    /// Reads a register.
    pub(crate) fn load(&mut self, offset: u64, width: usize) -> Option<u8> {
        if width != 1 {
            return None;
        }
        let divisor_latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        Some(match offset {
            0 if divisor_latch => self.divisor[0],
            0 => self.received.pop_front().unwrap_or(0),
            1 if divisor_latch => self.divisor[1],
            1 => self.interrupt_enable,
            2 => {
                let identification = self.interrupt_identification();
                if identification == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_news = false;
                }
                identification | if self.fifos_enabled { IIR_FIFOS_ENABLED } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => LSR_TRANSMITTER_EMPTY | if self.received.is_empty() { 0 } else { LSR_DATA_READY },
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0,
        })
    }

    /// Writes a register. The inner result is the byte transmitted, if any.
    pub(crate) fn store(&mut self, offset: u64, value: u32, width: usize) -> Option<Option<u8>> {
        let value = u8::try_from(value).ok().filter(|_| width == 1)?;
        let divisor_latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        match offset {
            0 if divisor_latch => self.divisor[0] = value,
            0 => return Some(self.transmit(value)),
            1 if divisor_latch => self.divisor[1] = value,
            1 => {
                if value & !self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_news = true;
                }
                self.interrupt_enable = value & IER_MASK;
            }
            2 => {
                self.fifos_enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.received.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & MCR_MASK,
            7 => self.scratch = value,
            _ => {}
        }
        Some(None)
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self {
            received,
            interrupt_enable,
            fifos_enabled,
            line_control,
            modem_control,
            scratch,
            divisor: [divisor_low, divisor_high],
            transmitter_news,
        } = self;
        writer.bytes(received.iter().copied());
        for register in [interrupt_enable, line_control, modem_control, scratch, divisor_low, divisor_high] {
            writer.u8(*register);
        }
        writer.bool(*fifos_enabled);
        writer.bool(*transmitter_news);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let received = reader.bytes(RECEIVE_BYTES_MAX)?.iter().copied().collect();
        let [interrupt_enable, line_control, modem_control, scratch, divisor_low, divisor_high] = reader.array()?;
        let bits_exist = interrupt_enable & !IER_MASK == 0 && modem_control & !MCR_MASK == 0;
        reader.require(bits_exist, "a register of the UART has bits that don't exist")?;
        Ok(Self {
            received,
            interrupt_enable,
            fifos_enabled: reader.bool()?,
            line_control,
            modem_control,
            scratch,
            divisor: [divisor_low, divisor_high],
            transmitter_news: reader.bool()?,
        })
    }

    /// Transmits a byte. In loopback mode it is received instead, and lost if the FIFO is full, as
    /// on a real line.
    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.transmitter_news = true;
        if self.modem_control & MCR_LOOPBACK == 0 {
            return Some(byte);
        }
        if self.room() > 0 {
            self.received.push_back(byte);
        }
        None
    }

    /// The pending interrupt of the highest priority, as register IIR shows it.
    fn interrupt_identification(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_news {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// Modem status: the other side is always ready; in loopback mode the lines are the guest's own
    /// outputs.
    fn modem_status(&self) -> u8 {
        if self.modem_control & MCR_LOOPBACK == 0 {
            return MSR_DCD | MSR_DSR | MSR_CTS;
        }
        let wire = |from, to| if self.modem_control & from != 0 { to } else { 0 };
        wire(MCR_RTS, MSR_CTS) | wire(MCR_DTR, MSR_DSR) | wire(MCR_OUT1, MSR_RI) | wire(MCR_OUT2, MSR_DCD)
    }
}

#[cfg(test)]
mod tests {
    use super::{RECEIVE_BYTES_MAX, Uart};
    use alloc::vec;

    fn read(uart: &mut Uart, offset: u64) -> u8 {
        uart.load(offset, 1).unwrap()
    }

    fn write(uart: &mut Uart, offset: u64, value: u32) -> Option<u8> {
        uart.store(offset, value, 1).unwrap()
    }

    #[test]
    fn received_bytes_come_in_order_and_interrupt_while_there_are_any() {
        let mut uart = Uart::new();
        uart.receive(b"ab");
        assert!(!uart.interrupts());
        write(&mut uart, 1, 1);
        assert!(uart.interrupts());
        assert_eq!(read(&mut uart, 2), 0x04);
        assert_eq!(
            [read(&mut uart, 5), read(&mut uart, 0), read(&mut uart, 0), read(&mut uart, 5)],
            [0x61, b'a', b'b', 0x60]
        );
        assert!(!uart.interrupts());
        assert_eq!(read(&mut uart, 0), 0, "an empty FIFO reads zero");
    }

    #[test]
    fn room_is_bounded() {
        let mut uart = Uart::new();
        uart.receive(&vec![1; RECEIVE_BYTES_MAX]);
        assert_eq!(uart.room(), 0);
        write(&mut uart, 2, 0x03);
        assert_eq!(uart.room(), RECEIVE_BYTES_MAX, "FCR clears the receiver");
        assert_eq!(read(&mut uart, 2), 0xc1);
    }

    #[test]
    fn transmitter_interrupt_is_told_once() {
        let mut uart = Uart::new();
        assert_eq!(write(&mut uart, 0, u32::from(b'x')), Some(b'x'));
        write(&mut uart, 1, 2);
        assert!(uart.interrupts());
        assert_eq!(read(&mut uart, 2), 0x02);
        assert!(!uart.interrupts());
        assert_eq!(read(&mut uart, 2), 0x01);
        write(&mut uart, 0, u32::from(b'y'));
        assert!(uart.interrupts(), "the next byte is news again");
        write(&mut uart, 1, 0);
        assert!(!uart.interrupts());
    }

    #[test]
    fn divisor_latch_hides_data_and_interrupt_enable() {
        let mut uart = Uart::new();
        write(&mut uart, 1, 5);
        write(&mut uart, 3, 0x83);
        assert_eq!(write(&mut uart, 0, 0x12), None);
        write(&mut uart, 1, 0x34);
        assert_eq!([read(&mut uart, 0), read(&mut uart, 1)], [0x12, 0x34]);
        write(&mut uart, 3, 0x03);
        assert_eq!(read(&mut uart, 1), 5);
    }

    #[test]
    fn loopback_returns_bytes_and_lines() {
        let mut uart = Uart::new();
        assert_eq!(read(&mut uart, 6), 0xb0);
        write(&mut uart, 4, 0x1a);
        assert_eq!(read(&mut uart, 6), 0x90);
        assert_eq!(write(&mut uart, 0, 7), None);
        assert_eq!(read(&mut uart, 0), 7);
        for _ in 0..=RECEIVE_BYTES_MAX {
            write(&mut uart, 0, 8);
        }
        assert_eq!(uart.room(), 0);
    }

    #[test]
    fn only_bytes() {
        let mut uart = Uart::new();
        assert_eq!(uart.load(0, 4), None);
        assert_eq!(uart.store(0, 1, 2), None);
    }
}
