//! Numbers and byte strings in datagrams: little-endian, and lengths in two bytes.

use alloc::vec::Vec;

/// Reads a datagram. Each method returns `None` if the datagram is too short.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    /// A byte string of at most `bytes_max` bytes.
    pub(crate) fn string(&mut self, bytes_max: usize) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length));
        let (string, rest) = rest.split_at_checked(length).filter(|_| length <= bytes_max)?;
        self.0 = rest;
        Some(string)
    }

    /// The remaining bytes.
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Returns `value` if the datagram ends here.
    pub(crate) fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Writes a datagram.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// A byte string.
    ///
    /// # Panics
    /// If it is longer than 65,535 bytes: every service limits its strings to far less.
    pub(crate) fn string(mut self, string: &[u8]) -> Self {
        let length = u16::try_from(string.len()).expect("strings are limited to less than a datagram");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.raw(string)
    }

    /// Bytes up to the datagram's end.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}
