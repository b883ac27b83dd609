//! The disk: a block device whose contents are part of the machine's state.
//!
//! A request is done within the step that notifies of it, or, if it is a long one, within that step
//! and those that follow: what is left of it is state. So nothing depends on a host, not in a
//! snapshot, and not when a backup goes live. What is written is as durable as the machine itself,
//! so there is nothing to flush.
//!
//! ```text
//!   request   readable: type u32, reserved u32, sector u64, data to be written
//!             writable: data read, status u8
//! ```
//! Deliberately absent: more than one queue, discarding, topology.

use super::BadRing;
use super::mmio::{CONFIG, Notified, Served, Transport, load_config};
use super::queue::{Buffer, Chain, Direction, QUEUE_SIZE_MAX, pieces, scatter, total};
use crate::ram::Ram;
use crate::ram::disk::{Disk, SECTOR_BYTES};
use crate::state::{RestoreError, StateReader, StateWriter};

const DEVICE_ID: u32 = 2;
const FEATURE_SIZE_MAX: u64 = 1 << 1;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;

/// Features offered beside VERSION_1.
const FEATURES: u64 = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH;

const REQUESTS: usize = 0;
const DIRECTIONS: [Direction; 1] = [Direction::Both];

const HEADER_BYTES: usize = 16;

/// `size_max`: the longest buffer of a driver that keeps to the configuration space.
const SEGMENT_BYTES_MAX: u32 = 4096;

/// `seg_max`: the most data buffers of a request; header and status have descriptors of their own.
const SEGMENTS_MAX: u16 = QUEUE_SIZE_MAX - 2;

/// The answer to GET_ID, padded with zeros.
const ID: [u8; 20] = *b"ftvm-disk\0\0\0\0\0\0\0\0\0\0\0";

mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
}

mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const IO_ERROR: u8 = 1;
    pub(super) const UNSUPPORTED: u8 = 2;
}

/// The block device and its disk.
#[derive(Debug)]
pub(crate) struct Blk {
    transport: Transport<1>,
    disk: Disk,
}

impl Blk {
    /// As after reset.
    pub(crate) fn new(disk: Disk) -> Self {
        Self { transport: Transport::new(DEVICE_ID, FEATURES, DIRECTIONS), disk }
    }

    /// The disk.
    pub(crate) const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The disk.
    pub(crate) const fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// The level of its interrupt line.
    pub(crate) const fn interrupts(&self) -> bool {
        self.transport.interrupts()
    }

    /// Reads a register.
    pub(crate) fn load(&self, offset: u64, width: usize) -> Option<u32> {
        let Some(config_offset) = offset.checked_sub(CONFIG) else { return self.transport.load(offset, width) };
        // Capacity in sectors, size_max, seg_max, geometry, blk_size.
        let mut config = [0; 24];
        config[..8].copy_from_slice(&(self.disk.length() / SECTOR_BYTES).to_le_bytes());
        config[8..12].copy_from_slice(&SEGMENT_BYTES_MAX.to_le_bytes());
        config[12..14].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        config[20..22].copy_from_slice(&512_u16.to_le_bytes());
        load_config(&config, config_offset, width)
    }

    /// Writes a register; notifying the queue does what is in it. The configuration space can't be
    /// written.
    ///
    /// The inner result is [`BadRing`] if the queue can't be worked with, or a chain has no room
    /// for a header and a status: the device needs a reset then.
    pub(crate) fn store(
        &mut self,
        offset: u64,
        value: u32,
        width: usize,
        ram: &mut Ram,
    ) -> Option<Result<(), BadRing>> {
        if offset >= CONFIG {
            return (width <= 4).then_some(Ok(()));
        }
        let notified = self.transport.store(offset, value, width)?;
        if notified.is_none_or(|Notified { queue }| usize::try_from(queue) != Ok(REQUESTS)) {
            return Some(Ok(()));
        }
        let Self { transport, disk } = self;
        Some(transport.notify(REQUESTS, ram, |ram, chain, done, left| serve(disk, ram, chain, done, left)))
    }

    /// `true` if a request has to go on in the next step.
    pub(crate) fn is_busy(&self) -> bool {
        self.transport.is_busy(REQUESTS)
    }

    /// Goes on with the requests that are left, as far as one step may.
    ///
    /// # Errors
    /// As in [`Self::store`].
    pub(crate) fn work(&mut self, ram: &mut Ram) -> Result<(), BadRing> {
        let Self { transport, disk } = self;
        transport.serve(REQUESTS, ram, |ram, chain, done, left| serve(disk, ram, chain, done, left))
    }

    /// Writes all of the state but the contents of the disk.
    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { transport, disk: _ } = self;
        transport.write_to(writer);
    }

    /// The device in front of this disk.
    pub(crate) fn read_from(reader: &mut StateReader<'_>, disk: Disk) -> Result<Self, RestoreError> {
        let transport = Transport::read_from(reader, Transport::new(DEVICE_ID, FEATURES, DIRECTIONS))?;
        Ok(Self { transport, disk })
    }
}

/// Executes one request, or goes on with it after the `done` bytes that earlier steps have moved.
fn serve(disk: &mut Disk, ram: &mut Ram, chain: &Chain, done: u64, bytes_left: &mut u64) -> Served {
    let Some(written_max) = total(&chain.writable).checked_sub(1) else { return Served::Senseless };
    let Some(read_max) = total(&chain.readable).checked_sub(HEADER_BYTES as u64) else { return Served::Senseless };
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header(ram, &chain.readable);
    let sector = u64::from_le_bytes(sector);
    let (status, written) = match u32::from_le_bytes([t0, t1, t2, t3]) {
        request::IN => {
            match read(disk, ram, &chain.writable, Transfer { sector, length: written_max, done }, bytes_left) {
                Some(Moved::All) => (status::OK, written_max),
                Some(Moved::UpTo(done)) => return Served::Partly(done),
                None => (status::IO_ERROR, 0),
            }
        }
        request::OUT => {
            match write(disk, ram, &chain.readable, Transfer { sector, length: read_max, done }, bytes_left) {
                Some(Moved::All) => (status::OK, 0),
                Some(Moved::UpTo(done)) => return Served::Partly(done),
                None => (status::IO_ERROR, 0),
            }
        }
        request::FLUSH => (status::OK, 0),
        request::GET_ID => (status::OK, scatter(ram, &chain.writable, 0, written_max, &ID)),
        _ => (status::UNSUPPORTED, 0),
    };
    for (address, _) in pieces(&chain.writable, written_max, 1) {
        ram.write(address, &[status]).expect("the queue has checked the buffer");
    }
    u32::try_from(written + 1).map_or(Served::Senseless, Served::Whole)
}

/// Reads the header of a request that is long enough to have one. It may be split over buffers like
/// all data.
fn header(ram: &Ram, readable: &[Buffer]) -> [u8; HEADER_BYTES] {
    let bytes = pieces(readable, 0, HEADER_BYTES as u64)
        .flat_map(|(address, length)| ram.slice(address, length).expect("the queue has checked the buffer"));
    let mut header = [0; HEADER_BYTES];
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    header
}

/// The data of a request: `length` bytes from `sector` on, of which the first `done` have been
/// moved.
#[derive(Clone, Copy)]
struct Transfer {
    sector: u64,
    length: u64,
    done: u64,
}

/// The progress of a transfer.
enum Moved {
    All,
    UpTo(u64),
}

impl Transfer {
    /// The offset on the disk at which the transfer begins; `None` if it isn't of whole sectors
    /// that exist, or the driver has changed the request since its first step.
    fn disk_offset(self, disk: &Disk) -> Option<u64> {
        let Self { sector, length, done } = self;
        let offset = sector.checked_mul(SECTOR_BYTES).filter(|_| length.is_multiple_of(SECTOR_BYTES))?;
        disk.slice(offset, length)?;
        (done <= length).then_some(offset)
    }

    /// How many bytes this step moves if it may move `bytes_left`, and the progress after that.
    fn step(self, bytes_left: &mut u64) -> (u64, Moved) {
        let rest = self.length.saturating_sub(self.done);
        let bytes = rest.min(*bytes_left);
        *bytes_left -= bytes;
        (bytes, if bytes == rest { Moved::All } else { Moved::UpTo(self.done + bytes) })
    }
}

/// From the disk to RAM; `None` is an I/O error.
fn read(disk: &Disk, ram: &mut Ram, writable: &[Buffer], transfer: Transfer, bytes_left: &mut u64) -> Option<Moved> {
    let offset = transfer.disk_offset(disk)?;
    let (bytes, moved) = transfer.step(bytes_left);
    scatter(ram, writable, transfer.done, bytes, disk.slice(offset + transfer.done, bytes)?);
    Some(moved)
}

/// From RAM to the disk; `None` is an I/O error.
fn write(disk: &mut Disk, ram: &Ram, readable: &[Buffer], transfer: Transfer, bytes_left: &mut u64) -> Option<Moved> {
    let mut offset = transfer.disk_offset(disk)? + transfer.done;
    let (bytes, moved) = transfer.step(bytes_left);
    for (address, length) in pieces(readable, HEADER_BYTES as u64 + transfer.done, bytes) {
        let piece = ram.slice(address, length).expect("the queue has checked the buffer");
        disk.write(offset, piece)?;
        offset += length;
    }
    Some(moved)
}
