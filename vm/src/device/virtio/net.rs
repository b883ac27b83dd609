//! The network device: frames in, frames out, one queue each way.
//!
//! No offloads: a frame is what goes over the wire. Deliberately absent: the control queue, multiqueue, mergeable buffers.

use super::BadRing;
use super::mmio::{CONFIG, Notified, Transport, load_config};
use super::queue::{Chain, Direction, pieces, scatter, total};
use crate::event::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};
use crate::output::Outputs;
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::vec::Vec;

const DEVICE_ID: u32 = 1;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;

/// What is offered beside version 1.
const FEATURES: u64 = FEATURE_MAC | FEATURE_STATUS;

/// The `status` field of the configuration space: the link is up.
const LINK_UP: u8 = 1;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const DIRECTIONS: [Direction; 2] = [Direction::FromDevice, Direction::ToDevice];

/// `virtio_net_hdr`, which precedes every frame: all zero but for the number of buffers, which is 1 on receive.
const HEADER_BYTES: usize = 12;
const RECEIVE_HEADER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Header and longest frame: what a receive chain has to hold for any frame to fit.
const CHAIN_BYTES_MAX: usize = HEADER_BYTES + FRAME_BYTES_MAX;

/// The network device.
#[derive(Debug)]
pub(crate) struct Net {
    transport: Transport<2>,
    mac: [u8; 6],
    received_dropped: u64,
    transmitted_dropped: u64,
}

impl Net {
    /// As after reset.
    pub(crate) fn new(mac: [u8; 6]) -> Self {
        let transport = Transport::new(DEVICE_ID, FEATURES, DIRECTIONS);
        Self { transport, mac, received_dropped: 0, transmitted_dropped: 0 }
    }

    /// The level of its interrupt line.
    pub(crate) const fn interrupts(&self) -> bool {
        self.transport.interrupts()
    }

    /// Frames that found no buffer, or one too short; and frames that the guest sent with a length that isn't a frame's.
    pub(crate) const fn dropped(&self) -> (u64, u64) {
        (self.received_dropped, self.transmitted_dropped)
    }

    /// Whether a frame of any length can be delivered now. Also `true` if the ring is bad: the delivery says so.
    pub(crate) fn can_receive(&self, ram: &Ram) -> bool {
        self.transport.live_queue(RECEIVE).is_some_and(|queue| match queue.peek(ram) {
            Ok(chain) => chain.is_some_and(|chain| total(&chain.writable) >= CHAIN_BYTES_MAX as u64),
            Err(_) => true,
        })
    }

    /// A frame of at most [`FRAME_BYTES_MAX`] bytes arrives: into the next buffer, or dropped and counted.
    ///
    /// # Errors
    /// [`BadRing`] if the guest's ring can't be worked with.
    pub(crate) fn receive(&mut self, ram: &mut Ram, frame: &[u8]) -> Result<(), BadRing> {
        let mut bytes = Vec::with_capacity(CHAIN_BYTES_MAX);
        bytes.extend_from_slice(&RECEIVE_HEADER);
        bytes.extend_from_slice(frame);
        let written = u32::try_from(bytes.len()).expect("the caller bounds the frame");

        let Some(queue) = self.transport.live_queue_mut(RECEIVE) else {
            self.received_dropped += 1;
            return Ok(());
        };
        let Some(chain) = queue.peek(ram)?.filter(|chain| total(&chain.writable) >= u64::from(written)) else {
            self.received_dropped += 1;
            return Ok(());
        };
        scatter(ram, &chain.writable, written.into(), &bytes);
        queue.complete(ram, chain.head, written)?;
        if queue.wants_interrupt(ram)? {
            self.transport.raise_used_buffer();
        }
        Ok(())
    }

    /// Reads a register.
    pub(crate) fn load(&self, offset: u64, width: usize) -> Option<u32> {
        let Some(place) = offset.checked_sub(CONFIG) else { return self.transport.load(offset, width) };
        let [m0, m1, m2, m3, m4, m5] = self.mac;
        load_config(&[m0, m1, m2, m3, m4, m5, LINK_UP, 0], place, width)
    }

    /// Writes a register; notifying the transmit queue sends what is in it. The configuration space can't be written.
    pub(crate) fn store(
        &mut self,
        offset: u64,
        value: u32,
        width: usize,
        ram: &mut Ram,
        outputs: &mut Outputs,
    ) -> Option<Result<(), BadRing>> {
        if offset >= CONFIG {
            return (width <= 4).then_some(Ok(()));
        }
        let notified = self.transport.store(offset, value, width)?;
        let transmits = notified.is_some_and(|Notified { queue }| usize::try_from(queue) == Ok(TRANSMIT));
        Some(if transmits { self.transmit(ram, outputs) } else { Ok(()) })
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { transport, mac, received_dropped, transmitted_dropped } = self;
        transport.write_to(writer);
        writer.array(*mac);
        writer.u64(*received_dropped);
        writer.u64(*transmitted_dropped);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>, mac: [u8; 6]) -> Result<Self, RestoreError> {
        let transport = Transport::read_from(reader, Transport::new(DEVICE_ID, FEATURES, DIRECTIONS))?;
        let theirs = reader.array()?;
        reader.require(mac == theirs, "the network device has another address")?;
        Ok(Self { transport, mac, received_dropped: reader.counter()?, transmitted_dropped: reader.counter()? })
    }

    /// Sends all frames that are available.
    fn transmit(&mut self, ram: &mut Ram, outputs: &mut Outputs) -> Result<(), BadRing> {
        let Self { transport, transmitted_dropped, .. } = self;
        transport.serve(TRANSMIT, ram, |ram, chain| {
            match gather(ram, chain) {
                Some(frame) => outputs.push_frame(frame),
                None => *transmitted_dropped += 1,
            }
            Some(0)
        })
    }
}

/// The frame in a transmit chain, behind its header; `None` if its length isn't that of a frame.
fn gather(ram: &Ram, chain: &Chain) -> Option<Vec<u8>> {
    let length = total(&chain.readable).checked_sub(HEADER_BYTES as u64)?;
    let frame_bytes =
        usize::try_from(length).ok().filter(|bytes| (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(bytes))?;
    let mut frame = Vec::with_capacity(frame_bytes);
    // The header may be split over buffers like anything else.
    for (address, length) in pieces(&chain.readable, HEADER_BYTES as u64, length) {
        frame.extend_from_slice(ram.slice(address, length).expect("the queue has checked the buffer"));
    }
    Some(frame)
}
