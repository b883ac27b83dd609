//! The network device: packets in, packets out, one queue each way.
//!
//! No offloads: a packet is what goes over the wire. Deliberately absent: the control queue,
//! multiqueue, mergeable buffers.

use super::BadRing;
use super::mmio::{CONFIG, FEATURE_VERSION_1, Notified, Served, Transport, load_config};
use super::queue::{Chain, Direction, pieces, scatter, total};
use crate::event::{PACKET_BYTES_MAX, PACKET_BYTES_MIN};
use crate::output::Outputs;
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::vec::Vec;

const DEVICE_ID: u32 = 1;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;

/// Features offered beside VERSION_1.
const FEATURES: u64 = FEATURE_MAC | FEATURE_STATUS;

/// The `status` field of the configuration space: the link is up.
const LINK_UP: u8 = 1;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const DIRECTIONS: [Direction; 2] = [Direction::FromDevice, Direction::ToDevice];

/// `virtio_net_hdr`, which precedes every packet: all zero but for the number of buffers, which is
/// 1 on receive. Drivers from before version 1 know it without that number. Source: virtio 1.1,
/// §5.1.6.1.
const HEADER_BYTES: usize = 12;
const HEADER_BYTES_BEFORE_VERSION_1: usize = 10;
const RECEIVE_HEADER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Header and longest packet.
const CHAIN_BYTES_MAX: usize = HEADER_BYTES + PACKET_BYTES_MAX;

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

    /// (received packets without a buffer or with one too short, transmitted packets of a length
    /// that isn't a packet's).
    pub(crate) const fn dropped(&self) -> (u64, u64) {
        (self.received_dropped, self.transmitted_dropped)
    }

    /// `true` if the driver has made a receive buffer available. Also `true` if the ring is bad:
    /// [`Self::receive`] reports that.
    ///
    /// The buffer's length doesn't matter: if packets waited for a buffer that is long enough, a
    /// driver with short buffers would never get any.
    pub(crate) fn can_receive(&self, ram: &Ram) -> bool {
        let queue = self.transport.live_queue(RECEIVE);
        queue.is_some_and(|queue| queue.peek(ram).map_or(true, |chain| chain.is_some()))
    }

    /// Receives a packet of at most [`PACKET_BYTES_MAX`] bytes into the next buffer, or drops and
    /// counts it. A buffer that is too short for it stays for the next packet, as with QEMU.
    ///
    /// # Errors
    /// [`BadRing`] if the guest's ring can't be used: the device needs a reset, and the packet is
    /// dropped.
    pub(crate) fn receive(&mut self, ram: &mut Ram, packet: &[u8]) -> Result<(), BadRing> {
        match self.deliver(ram, packet) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.received_dropped += 1;
                Ok(())
            }
            Err(bad) => {
                self.received_dropped += 1;
                self.transport.fail();
                Err(bad)
            }
        }
    }

    /// `true` if there was a buffer that is long enough.
    fn deliver(&mut self, ram: &mut Ram, packet: &[u8]) -> Result<bool, BadRing> {
        let header_bytes = self.header_bytes();
        let mut bytes = Vec::with_capacity(CHAIN_BYTES_MAX);
        bytes.extend_from_slice(&RECEIVE_HEADER[..header_bytes]);
        bytes.extend_from_slice(packet);
        let written = u32::try_from(bytes.len()).expect("the caller bounds the frame");

        let Some(queue) = self.transport.live_queue_mut(RECEIVE) else { return Ok(false) };
        let Some(chain) = queue.peek(ram)?.filter(|chain| total(&chain.writable) >= u64::from(written)) else {
            return Ok(false);
        };
        scatter(ram, &chain.writable, 0, written.into(), &bytes);
        queue.complete(ram, chain.head, written)?;
        if queue.wants_interrupt(ram)? {
            self.transport.raise_used_buffer();
        }
        Ok(true)
    }

    /// Length of the header before each packet.
    const fn header_bytes(&self) -> usize {
        if self.transport.has_accepted(FEATURE_VERSION_1) { HEADER_BYTES } else { HEADER_BYTES_BEFORE_VERSION_1 }
    }

    /// Reads a register.
    pub(crate) fn load(&self, offset: u64, width: usize) -> Option<u32> {
        let Some(config_offset) = offset.checked_sub(CONFIG) else { return self.transport.load(offset, width) };
        let [m0, m1, m2, m3, m4, m5] = self.mac;
        load_config(&[m0, m1, m2, m3, m4, m5, LINK_UP, 0], config_offset, width)
    }

    /// Writes a register; notifying the transmit queue sends what is in it. The configuration space
    /// can't be written.
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
        if !transmits {
            return Some(Ok(()));
        }
        let (header_bytes, dropped) = (self.header_bytes(), &mut self.transmitted_dropped);
        Some(
            self.transport
                .notify(TRANSMIT, ram, |ram, chain, _, _| transmit(ram, chain, header_bytes, outputs, dropped)),
        )
    }

    /// `true` if packets to be sent are left for the next step.
    pub(crate) fn is_busy(&self) -> bool {
        self.transport.is_busy(TRANSMIT)
    }

    /// Goes on with sending the packets that are left, as far as one step may.
    ///
    /// # Errors
    /// As in [`Self::store`].
    pub(crate) fn work(&mut self, ram: &mut Ram, outputs: &mut Outputs) -> Result<(), BadRing> {
        let (header_bytes, dropped) = (self.header_bytes(), &mut self.transmitted_dropped);
        self.transport.serve(TRANSMIT, ram, |ram, chain, _, _| transmit(ram, chain, header_bytes, outputs, dropped))
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
}

/// Sends the packet in a chain, or drops and counts it if its length isn't a packet's.
fn transmit(ram: &Ram, chain: &Chain, header_bytes: usize, outputs: &mut Outputs, dropped: &mut u64) -> Served {
    match gather(ram, chain, header_bytes) {
        Some(packet) => outputs.push_packet(packet),
        None => *dropped += 1,
    }
    Served::Whole(0)
}

/// The packet in a transmit chain, behind its header; `None` if its length isn't that of a packet.
fn gather(ram: &Ram, chain: &Chain, header_bytes: usize) -> Option<Vec<u8>> {
    let length = total(&chain.readable).checked_sub(header_bytes as u64)?;
    let packet_bytes =
        usize::try_from(length).ok().filter(|bytes| (PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(bytes))?;
    let mut packet = Vec::with_capacity(packet_bytes);
    // The header may be split over buffers like anything else.
    for (address, length) in pieces(&chain.readable, header_bytes as u64, length) {
        packet.extend_from_slice(ram.slice(address, length).expect("the queue has checked the buffer"));
    }
    Some(packet)
}
