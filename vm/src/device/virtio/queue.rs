//! A split virtqueue, from the device's side.
//!
//! ```text
//!   descriptor table   16 bytes each: address u64, length u32, flags u16, next u16
//!   available ring     flags u16, idx u16, heads [u16; size]
//!   used ring          flags u16, idx u16, elements [(head u32, written u32); size]
//! ```
//!
//! Everything is little-endian in guest RAM. Indirect descriptors and the event index are not
//! offered.

use super::BadRing;
use crate::isa::address::GuestPhysAddr;
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::vec::Vec;

/// The greatest number of descriptors in a queue.
pub(crate) const QUEUE_SIZE_MAX: u16 = 256;

const DESCRIPTOR_BYTES: u64 = 16;
const DESCRIPTOR_NEXT: u16 = 1 << 0;
const DESCRIPTOR_WRITE: u16 = 1 << 1;
const DESCRIPTOR_INDIRECT: u16 = 1 << 2;

const AVAIL_NO_INTERRUPT: u16 = 1 << 0;

/// Which side writes the buffers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver wrote them, the device reads them.
    ToDevice,
    /// The device writes them.
    FromDevice,
    /// Each chain has first buffers that the driver wrote, then buffers that the device writes.
    Both,
}

impl Direction {
    /// The number that stands for it in the machine's state.
    const fn code(self) -> u8 {
        match self {
            Self::ToDevice => 0,
            Self::FromDevice => 1,
            Self::Both => 2,
        }
    }
}

/// A piece of guest RAM that lies within RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) address: GuestPhysAddr,
    pub(crate) bytes: u32,
}

/// A chain of descriptors that the driver has made available.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    /// What the device reads.
    pub(crate) readable: Vec<Buffer>,
    /// What the device writes.
    pub(crate) writable: Vec<Buffer>,
}

impl Chain {
    /// How many descriptors it has.
    pub(crate) const fn descriptors(&self) -> usize {
        self.readable.len() + self.writable.len()
    }
}

/// Length of all buffers together.
pub(crate) fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.bytes)).sum()
}

/// The address and length of each piece of the `length` bytes at `offset` of all buffers together.
/// Fewer bytes if the buffers end before.
pub(crate) fn pieces(buffers: &[Buffer], offset: u64, length: u64) -> impl Iterator<Item = (GuestPhysAddr, u64)> {
    let (mut skip, mut left) = (offset, length);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.bytes.into());
        let taken = left.min(u64::from(buffer.bytes) - skipped);
        skip -= skipped;
        left -= taken;
        (taken > 0).then_some((GuestPhysAddr(buffer.address.0 + skipped), taken))
    })
}

/// Writes `bytes` to the `room` bytes at `offset` of the buffers, as many as fit. Returns how many
/// were written.
pub(crate) fn scatter(ram: &mut Ram, buffers: &[Buffer], offset: u64, room: u64, bytes: &[u8]) -> u64 {
    let mut rest = bytes;
    for (address, length) in pieces(buffers, offset, room) {
        let length = usize::try_from(length).map_or(rest.len(), |length| length.min(rest.len()));
        let (piece, after) = rest.split_at(length);
        ram.write(address, piece).expect("the queue has checked the buffer");
        rest = after;
    }
    (bytes.len() - rest.len()) as u64
}

/// The addresses of a queue's three parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueAddresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// One queue: how the driver has set it up, and how far the device has come.
#[derive(Debug)]
pub(crate) struct Queue {
    index: u16,
    direction: Direction,
    size: u16,
    ready: bool,
    addresses: QueueAddresses,
    /// Chains taken, modulo 2^16.
    next_available: u16,
    /// Chains returned, modulo 2^16.
    next_used: u16,
    /// Chains that the driver has notified of and that are still to be served, the next steps'
    /// work; at most `size`.
    chains_left: u16,
    /// How much of the first of these chains is done, in the device's own measure; 0 unless
    /// `chains_left`.
    done: u64,
}

impl Queue {
    /// Queue number `index` of its device, not set up.
    pub(crate) fn new(index: u16, direction: Direction) -> Self {
        let addresses = QueueAddresses::default();
        Self {
            index,
            direction,
            size: 0,
            ready: false,
            addresses,
            next_available: 0,
            next_used: 0,
            chains_left: 0,
            done: 0,
        }
    }

    /// As after reset.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.index, self.direction);
    }

    /// `true` if the driver has set it ready.
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Sets the number of descriptors: a power of two up to [`QUEUE_SIZE_MAX`]. Anything else is
    /// ignored.
    pub(crate) fn set_size(&mut self, size: u32) {
        if let Ok(size) = u16::try_from(size)
            && !self.ready
            && is_queue_size(size)
        {
            self.size = size;
        }
    }

    /// The addresses, while the driver may still set them.
    pub(crate) const fn addresses_mut(&mut self) -> Option<&mut QueueAddresses> {
        if self.ready { None } else { Some(&mut self.addresses) }
    }

    /// Sets the queue ready or not ready. A queue without a size doesn't become ready.
    pub(crate) const fn set_ready(&mut self, ready: bool) {
        self.ready = ready && self.size > 0;
        if !self.ready {
            self.rest();
        }
    }

    /// Whether there are chains that the driver has notified of and that are still to be served.
    pub(crate) const fn is_busy(&self) -> bool {
        self.chains_left > 0
    }

    /// Forgets the chains that are still to be served.
    pub(crate) const fn rest(&mut self) {
        self.chains_left = 0;
        self.done = 0;
    }

    /// Adds the chains that are available now to those to be served.
    ///
    /// # Errors
    /// [`BadRing`] if the ring is outside RAM, or has more chains than there are descriptors.
    pub(crate) fn notify(&mut self, ram: &Ram) -> Result<(), BadRing> {
        self.chains_left = self.waiting(ram)?;
        Ok(())
    }

    /// How much of the first chain is done.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    /// Sets how much of the first chain is done; the rest is for the next step.
    pub(crate) const fn set_done(&mut self, done: u64) {
        self.done = done;
    }

    /// How many chains are available.
    fn waiting(&self, ram: &Ram) -> Result<u16, BadRing> {
        let waiting = self.load_u16(ram, self.addresses.available, 2)?.wrapping_sub(self.next_available);
        if waiting > self.size { Err(self.bad_ring()) } else { Ok(waiting) }
    }

    /// Walks the next available chain, without taking it.
    ///
    /// # Errors
    /// [`BadRing`] if the ring or the chain is outside RAM, loops, is too long, or has a buffer of
    /// the wrong direction.
    pub(crate) fn peek(&self, ram: &Ram) -> Result<Option<Chain>, BadRing> {
        if self.waiting(ram)? == 0 {
            return Ok(None);
        }
        let slot = self.next_available % self.size;
        let head = self.load_u16(ram, self.addresses.available, 4 + 2 * u64::from(slot))?;
        self.walk(ram, head).map(Some)
    }

    /// Takes the chain that [`Self::peek`] has shown, and returns it to the driver with `written`
    /// bytes written.
    ///
    /// # Errors
    /// [`BadRing`] if the used ring is outside RAM.
    pub(crate) fn complete(&mut self, ram: &mut Ram, head: u16, written: u32) -> Result<(), BadRing> {
        let slot = self.next_used % self.size;
        let next_used = self.next_used.wrapping_add(1);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        self.store(ram, self.addresses.used, 4 + 8 * u64::from(slot), element)?;
        self.store(ram, self.addresses.used, 2, next_used.to_le_bytes())?;
        self.next_available = self.next_available.wrapping_add(1);
        self.next_used = next_used;
        self.chains_left = self.chains_left.saturating_sub(1);
        self.done = 0;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was returned.
    ///
    /// # Errors
    /// [`BadRing`] if the available ring is outside RAM.
    pub(crate) fn wants_interrupt(&self, ram: &Ram) -> Result<bool, BadRing> {
        Ok(self.load_u16(ram, self.addresses.available, 0)? & AVAIL_NO_INTERRUPT == 0)
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { index, direction, size, ready, addresses, next_available, next_used, chains_left, done } = self;
        let QueueAddresses { descriptors, available, used } = addresses;
        writer.u16(*index);
        writer.u8(direction.code());
        writer.u16(*size);
        writer.bool(*ready);
        writer.u64(*descriptors);
        writer.u64(*available);
        writer.u64(*used);
        writer.u16(*next_available);
        writer.u16(*next_used);
        writer.u16(*chains_left);
        writer.u64(*done);
    }

    /// Reads the queue whose state after reset is `reset`.
    pub(crate) fn read_from(reader: &mut StateReader<'_>, reset: &Self) -> Result<Self, RestoreError> {
        let (index, direction) = (reader.u16()?, reader.u8()?);
        let same_queue = index == reset.index && direction == reset.direction.code();
        reader.require(same_queue, "a virtqueue is another one")?;
        let (size, ready) = (reader.u16()?, reader.bool()?);
        let in_range = if size == 0 { !ready } else { is_queue_size(size) };
        reader.require(in_range, "the size of a virtqueue is out of range")?;
        let addresses = QueueAddresses { descriptors: reader.u64()?, available: reader.u64()?, used: reader.u64()? };
        let (next_available, next_used) = (reader.u16()?, reader.u16()?);
        let (chains_left, done) = (reader.u16()?, reader.u64()?);
        let possible = if ready { chains_left <= size } else { chains_left == 0 } && (chains_left > 0 || done == 0);
        reader.require(possible, "a virtqueue has work left that it can't have")?;
        let direction = reset.direction;
        Ok(Self { index, direction, size, ready, addresses, next_available, next_used, chains_left, done })
    }

    fn walk(&self, ram: &Ram, head: u16) -> Result<Chain, BadRing> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut index = head;
        // A chain that is longer than the table has a loop in it.
        for _ in 0..self.size {
            let bad = self.bad_descriptor(index);
            if index >= self.size {
                return Err(bad);
            }
            let offset = DESCRIPTOR_BYTES * u64::from(index);
            let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] =
                ram.load(at(self.addresses.descriptors, offset)).ok_or(bad)?;
            let buffer = Buffer {
                address: GuestPhysAddr(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
                bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            };
            let flags = u16::from_le_bytes([f0, f1]);
            let is_writable = flags & DESCRIPTOR_WRITE != 0;
            let right_direction = match self.direction {
                Direction::ToDevice => !is_writable,
                Direction::FromDevice => is_writable,
                Direction::Both => is_writable || chain.writable.is_empty(),
            };
            if flags & DESCRIPTOR_INDIRECT != 0 || !right_direction {
                return Err(bad);
            }
            ram.slice(buffer.address, u64::from(buffer.bytes)).ok_or(bad)?;
            if is_writable { &mut chain.writable } else { &mut chain.readable }.push(buffer);
            if flags & DESCRIPTOR_NEXT == 0 {
                return Ok(chain);
            }
            index = u16::from_le_bytes([n0, n1]);
        }
        Err(self.bad_descriptor(head))
    }

    /// The error for a queue whose `descriptor` is at fault.
    pub(crate) const fn bad_descriptor(&self, descriptor: u16) -> BadRing {
        BadRing { queue: self.index, descriptor: Some(descriptor) }
    }

    const fn bad_ring(&self) -> BadRing {
        BadRing { queue: self.index, descriptor: None }
    }

    fn load_u16(&self, ram: &Ram, base: u64, offset: u64) -> Result<u16, BadRing> {
        ram.load(at(base, offset)).map(u16::from_le_bytes).ok_or(self.bad_ring())
    }

    fn store<const N: usize>(&self, ram: &mut Ram, base: u64, offset: u64, value: [u8; N]) -> Result<(), BadRing> {
        ram.store(at(base, offset), value).ok_or(self.bad_ring())
    }
}

/// `true` if a queue can have this many descriptors.
const fn is_queue_size(size: u16) -> bool {
    size.is_power_of_two() && size <= QUEUE_SIZE_MAX
}

/// Address of a field. An address that wraps is outside RAM like any other, so wrapping is no error
/// here.
const fn at(base: u64, offset: u64) -> GuestPhysAddr {
    GuestPhysAddr(base.wrapping_add(offset))
}
