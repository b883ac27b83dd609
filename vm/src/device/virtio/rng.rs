//! The entropy device: it fills the driver's buffers with random bytes of the host.
//!
//! The bytes are an input of the machine. A notification makes the device want them
//! ([`Rng::wanted`]), and the machine doesn't go on before it has got them. So what the driver has
//! put into the queue can't change between the two.

use super::BadRing;
use super::mmio::{CONFIG, Notified, Transport, load_config};
use super::queue::{Direction, scatter, total};
use crate::event::RANDOM_BYTES_MAX;
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};

const DEVICE_ID: u32 = 4;

/// No feature beside VERSION_1 exists.
const FEATURES: u64 = 0;

const REQUESTS: usize = 0;
const DIRECTIONS: [Direction; 1] = [Direction::FromDevice];

/// The entropy device.
#[derive(Debug)]
pub(crate) struct Rng {
    transport: Transport<1>,
}

impl Rng {
    /// As after reset.
    pub(crate) fn new() -> Self {
        Self { transport: Transport::new(DEVICE_ID, FEATURES, DIRECTIONS) }
    }

    /// The level of its interrupt line.
    pub(crate) const fn interrupts(&self) -> bool {
        self.transport.interrupts()
    }

    /// `true` if it waits for bytes.
    pub(crate) fn is_waiting(&self) -> bool {
        self.transport.is_busy(REQUESTS)
    }

    /// How many bytes it takes now: as many as the next buffers have room for, at most
    /// [`RANDOM_BYTES_MAX`]. 0 if the queue can't be used, which [`Self::fill`] reports.
    pub(crate) fn wanted(&self, ram: &Ram) -> usize {
        let queue = self.transport.live_queue(REQUESTS).filter(|queue| queue.is_busy());
        let Some(Ok(Some(chain))) = queue.map(|queue| queue.peek(ram)) else { return 0 };
        usize::try_from(total(&chain.writable)).map_or(RANDOM_BYTES_MAX, |bytes| bytes.min(RANDOM_BYTES_MAX))
    }

    /// Reads a register; the configuration space is empty.
    pub(crate) fn load(&self, offset: u64, width: usize) -> Option<u32> {
        let Some(config_offset) = offset.checked_sub(CONFIG) else { return self.transport.load(offset, width) };
        load_config(&[], config_offset, width)
    }

    /// Writes a register; after a notification of the queue the device waits for bytes.
    ///
    /// The inner result is [`BadRing`] if the queue can't be used: the device needs a reset then.
    pub(crate) fn store(&mut self, offset: u64, value: u32, width: usize, ram: &Ram) -> Option<Result<(), BadRing>> {
        if offset >= CONFIG {
            return (width <= 4).then_some(Ok(()));
        }
        let notified = self.transport.store(offset, value, width)?;
        if notified.is_none_or(|Notified { queue }| usize::try_from(queue) != Ok(REQUESTS)) {
            return Some(Ok(()));
        }
        Some(match self.transport.live_queue_mut(REQUESTS).map_or(Ok(()), |queue| queue.notify(ram)) {
            Ok(()) => Ok(()),
            Err(bad) => {
                self.transport.fail();
                Err(bad)
            }
        })
    }

    /// Returns the next chain with `bytes` in it, as many as [`Self::wanted`].
    ///
    /// # Errors
    /// [`BadRing`] if the queue can't be used: the device needs a reset then.
    pub(crate) fn fill(&mut self, ram: &mut Ram, bytes: &[u8]) -> Result<(), BadRing> {
        let filled = self.try_fill(ram, bytes);
        if filled.is_err() {
            self.transport.fail();
        }
        filled
    }

    fn try_fill(&mut self, ram: &mut Ram, bytes: &[u8]) -> Result<(), BadRing> {
        let Some(queue) = self.transport.live_queue_mut(REQUESTS) else { return Ok(()) };
        let Some(chain) = queue.peek(ram)? else {
            // The driver has made chains unavailable that it had notified of.
            queue.rest();
            return Ok(());
        };
        let written = scatter(ram, &chain.writable, 0, bytes.len() as u64, bytes);
        queue.complete(ram, chain.head, u32::try_from(written).expect("the caller bounds the bytes"))?;
        if queue.wants_interrupt(ram)? {
            self.transport.raise_used_buffer();
        }
        Ok(())
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { transport } = self;
        transport.write_to(writer);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let transport = Transport::read_from(reader, Transport::new(DEVICE_ID, FEATURES, DIRECTIONS))?;
        Ok(Self { transport })
    }
}
