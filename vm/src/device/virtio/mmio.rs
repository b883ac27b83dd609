//! The virtio-mmio transport, version 2: the registers that all its devices have.

use super::BadRing;
use super::queue::{Chain, Direction, QUEUE_SIZE_MAX, Queue, QueueAddresses};
use crate::ram::Ram;
use crate::state::{RestoreError, StateReader, StateWriter};

/// Feature bit of every device of version 1.
pub(crate) const FEATURE_VERSION_1: u64 = 1 << 32;

/// Offset at which the registers of the transport end and the device's configuration space begins.
pub(crate) const CONFIG: u64 = 0x100;

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "QEMU", which some kernels insist on.
const VENDOR: u32 = 0x554d_4551;

const STATUS_FEATURES_OK: u32 = 1 << 3;
const STATUS_DRIVER_OK: u32 = 1 << 2;
/// DEVICE_NEEDS_RESET: the device sets it when its driver has made a mistake; the driver can't
/// write it.
const STATUS_NEEDS_RESET: u32 = 1 << 6;
const STATUS_MASK: u32 = 0xff;

const INTERRUPT_USED_BUFFER: u32 = 1 << 0;
const INTERRUPT_CONFIGURATION: u32 = 1 << 1;

/// The most data that one step moves: 40 to 80 microseconds of copying, and 760 where the host has
/// to find the memory first, as measured; no step should take a millisecond.
pub(crate) const STEP_BYTES_MAX: u64 = 1 << 20;

/// The most descriptors that one step walks: chains may share them, and 256 chains of 256 would
/// make one step take longer than the primary may be silent.
const STEP_DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

/// The result of a step's work on a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// It is done: it is returned to the driver with this many bytes written.
    Whole(u32),
    /// This much of it is done, in the device's own measure; the step's bytes are used up.
    Partly(u64),
    /// It isn't a request that the device understands.
    Senseless,
}

mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(super) const QUEUE_SELECT: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESCRIPTORS_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESCRIPTORS_HIGH: u64 = 0x084;
    pub(super) const QUEUE_AVAILABLE_LOW: u64 = 0x090;
    pub(super) const QUEUE_AVAILABLE_HIGH: u64 = 0x094;
    pub(super) const QUEUE_USED_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_USED_HIGH: u64 = 0x0a4;
    /// Length and base of the selected shared memory region; there is none, which reads as all
    /// ones.
    pub(super) const SHARED_MEMORY: core::ops::Range<u64> = 0x0b0..0x0c0;
}

/// What a register write asks the device for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notified {
    pub(crate) queue: u32,
}

/// The state of the transport of a device with `QUEUES` queues.
#[derive(Debug)]
pub(crate) struct Transport<const QUEUES: usize> {
    device_id: u32,
    offered: u64,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
    status: u32,
    interrupt_status: u32,
    queue_select: u32,
    queues: [Queue; QUEUES],
}

impl<const QUEUES: usize> Transport<QUEUES> {
    /// A device of kind `device_id` that offers `features` beside version 1, with a queue for each
    /// of `directions`.
    pub(crate) fn new(device_id: u32, features: u64, directions: [Direction; QUEUES]) -> Self {
        let mut index = 0;
        let queues = directions.map(|direction| {
            let queue = Queue::new(index, direction);
            index += 1;
            queue
        });
        Self {
            device_id,
            offered: features | FEATURE_VERSION_1,
            accepted: 0,
            offered_select: 0,
            accepted_select: 0,
            status: 0,
            interrupt_status: 0,
            queue_select: 0,
            queues,
        }
    }

    /// The level of the device's interrupt line.
    pub(crate) const fn interrupts(&self) -> bool {
        self.interrupt_status != 0
    }

    /// A buffer was returned to the driver.
    pub(crate) const fn raise_used_buffer(&mut self) {
        self.interrupt_status |= INTERRUPT_USED_BUFFER;
    }

    /// `true` if the driver has set DRIVER_OK and the device doesn't need a reset.
    const fn is_live(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// Whether the driver has accepted `feature`.
    pub(crate) const fn has_accepted(&self, feature: u64) -> bool {
        self.accepted & feature != 0
    }

    /// Queue `index`, if the device is live and the queue is ready.
    pub(crate) fn live_queue(&self, index: usize) -> Option<&Queue> {
        let is_live = self.is_live();
        self.queues.get(index).filter(|queue| is_live && queue.is_ready())
    }

    /// Like [`Self::live_queue`].
    pub(crate) fn live_queue_mut(&mut self, index: usize) -> Option<&mut Queue> {
        let is_live = self.is_live();
        self.queues.get_mut(index).filter(|queue| is_live && queue.is_ready())
    }

    /// `true` if queue `index` has work left for the next step.
    pub(crate) fn is_busy(&self, index: usize) -> bool {
        self.live_queue(index).is_some_and(Queue::is_busy)
    }

    /// Sets DEVICE_NEEDS_RESET: the driver has made a mistake. The device touches no queue until
    /// the driver resets it. Source: virtio 1.1, §2.1.2 and §4.2.2.
    pub(crate) fn fail(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt_status |= INTERRUPT_CONFIGURATION;
        }
        self.queues.iter_mut().for_each(Queue::rest);
    }

    /// The driver notifies of queue `index`: `serve` works on the chains that are available now.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub(crate) fn notify(
        &mut self,
        index: usize,
        ram: &mut Ram,
        serve: impl FnMut(&mut Ram, &Chain, u64, &mut u64) -> Served,
    ) -> Result<(), BadRing> {
        let Some(queue) = self.live_queue_mut(index) else { return Ok(()) };
        match queue.notify(ram) {
            Ok(()) => self.serve(index, ram, serve),
            Err(bad) => {
                self.fail();
                Err(bad)
            }
        }
    }

    /// Lets `serve` work on the chains that the driver has notified of in queue `index`, as far as
    /// one step may, and returns those that are done to the driver.
    ///
    /// `serve` gets the chain, how much of it earlier steps have done, and the bytes that this step
    /// may still move, from which it subtracts what it moves. A chain is walked anew in every step,
    /// so that a driver that changes it meanwhile harms itself alone.
    ///
    /// # Errors
    /// [`BadRing`] if the ring can't be used, or a chain makes no sense. The device needs a reset
    /// then.
    pub(crate) fn serve(
        &mut self,
        index: usize,
        ram: &mut Ram,
        serve: impl FnMut(&mut Ram, &Chain, u64, &mut u64) -> Served,
    ) -> Result<(), BadRing> {
        let Some(queue) = self.live_queue_mut(index) else { return Ok(()) };
        match serve_step(queue, ram, serve) {
            Ok(interrupts) => {
                if interrupts {
                    self.raise_used_buffer();
                }
                Ok(())
            }
            Err(bad) => {
                self.fail();
                Err(bad)
            }
        }
    }

    /// Reads a register below [`CONFIG`].
    pub(crate) fn load(&self, offset: u64, width: usize) -> Option<u32> {
        if width != 4 {
            return None;
        }
        Some(match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device_id,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.offered, self.offered_select),
            register::QUEUE_SIZE_MAX if self.selected().is_some() => QUEUE_SIZE_MAX.into(),
            register::QUEUE_READY => self.selected().is_some_and(Queue::is_ready).into(),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            _ if register::SHARED_MEMORY.contains(&offset) => u32::MAX,
            _ => 0,
        })
    }

    /// Writes a register below [`CONFIG`].
    pub(crate) fn store(&mut self, offset: u64, value: u32, width: usize) -> Option<Option<Notified>> {
        if width != 4 {
            return None;
        }
        match offset {
            register::DEVICE_FEATURES_SELECT => self.offered_select = value,
            register::DRIVER_FEATURES => self.accept(value),
            register::DRIVER_FEATURES_SELECT => self.accepted_select = value,
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_NOTIFY => return Some(Some(Notified { queue: value })),
            register::INTERRUPT_ACKNOWLEDGE => self.interrupt_status &= !value,
            register::STATUS => self.set_status(value),
            _ => self.store_queue_register(offset, value),
        }
        Some(None)
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self {
            device_id,
            offered,
            accepted,
            offered_select,
            accepted_select,
            status,
            interrupt_status,
            queue_select,
            queues,
        } = self;
        writer.u64(*offered);
        writer.u64(*accepted);
        for register in [device_id, offered_select, accepted_select, status, interrupt_status, queue_select] {
            writer.u32(*register);
        }
        for queue in queues {
            queue.write_to(writer);
        }
    }

    /// Reads the transport of the device whose transport after reset is `reset`.
    pub(crate) fn read_from(reader: &mut StateReader<'_>, reset: Self) -> Result<Self, RestoreError> {
        let (offered, accepted) = (reader.u64()?, reader.u64()?);
        let device_id = reader.u32()?;
        let same_device = offered == reset.offered && device_id == reset.device_id;
        reader.require(same_device, "a virtio device is another one, or offers other features")?;
        let (offered_select, accepted_select) = (reader.u32()?, reader.u32()?);
        let status = reader.u32()?;
        let agreed = status & STATUS_FEATURES_OK == 0 || agreeable(offered, accepted);
        reader.require(status & !STATUS_MASK == 0 && agreed, "the status of a virtio device is out of range")?;
        let interrupt_status = reader.u32()?;
        let bits_exist = interrupt_status & !(INTERRUPT_USED_BUFFER | INTERRUPT_CONFIGURATION) == 0;
        reader.require(bits_exist, "a virtio device interrupts for a reason that doesn't exist")?;
        let queue_select = reader.u32()?;
        let mut queues = reset.queues;
        for queue in &mut queues {
            *queue = Queue::read_from(reader, queue)?;
        }
        Ok(Self {
            device_id,
            offered,
            accepted,
            offered_select,
            accepted_select,
            status,
            interrupt_status,
            queue_select,
            queues,
        })
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn store_queue_register(&mut self, offset: u64, value: u32) {
        let Ok(index) = usize::try_from(self.queue_select) else { return };
        let Some(queue) = self.queues.get_mut(index) else { return };
        match offset {
            register::QUEUE_SIZE => return queue.set_size(value),
            register::QUEUE_READY => return queue.set_ready(value & 1 == 1),
            _ => {}
        }
        let Some(QueueAddresses { descriptors, available, used }) = queue.addresses_mut() else { return };
        match offset {
            register::QUEUE_DESCRIPTORS_LOW => set_half(descriptors, 0, value),
            register::QUEUE_DESCRIPTORS_HIGH => set_half(descriptors, 1, value),
            register::QUEUE_AVAILABLE_LOW => set_half(available, 0, value),
            register::QUEUE_AVAILABLE_HIGH => set_half(available, 1, value),
            register::QUEUE_USED_LOW => set_half(used, 0, value),
            register::QUEUE_USED_HIGH => set_half(used, 1, value),
            _ => {}
        }
    }

    /// Accepts features; ignored after FEATURES_OK.
    fn accept(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK == 0 {
            set_half(&mut self.accepted, self.accepted_select, value);
        }
    }

    /// Writes the status. 0 resets the device. FEATURES_OK sticks only if the driver accepts no
    /// more than was offered. The driver can't write DEVICE_NEEDS_RESET.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let refused = if agreeable(self.offered, self.accepted) { 0 } else { STATUS_FEATURES_OK };
        let kept = self.status & STATUS_NEEDS_RESET;
        self.status = value & STATUS_MASK & !refused & !STATUS_NEEDS_RESET | kept;
    }

    fn reset(&mut self) {
        let Self {
            device_id: _,
            offered: _,
            accepted,
            offered_select,
            accepted_select,
            status,
            interrupt_status,
            queue_select,
            queues,
        } = self;
        *accepted = 0;
        for register in [offered_select, accepted_select, status, interrupt_status, queue_select] {
            *register = 0;
        }
        queues.iter_mut().for_each(Queue::reset);
    }
}

/// Reads a device's configuration space at `offset`; it is zero after the end of `config`.
pub(crate) fn load_config(config: &[u8], offset: u64, width: usize) -> Option<u32> {
    if width > 4 {
        return None;
    }
    let bytes = config.iter().skip(usize::try_from(offset).ok()?).take(width);
    Some(bytes.rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

/// Reads a register of a slot without a device, as QEMU has them: magic, version and vendor only.
pub(crate) const fn load_vacant(offset: u64, width: usize) -> Option<u32> {
    match (offset, width) {
        (_, 8) => None,
        (register::MAGIC, 4) => Some(MAGIC),
        (register::VERSION, 4) => Some(VERSION),
        (register::VENDOR_ID, 4) => Some(VENDOR),
        _ => Some(0),
    }
}

/// Writes a register of a slot without a device, to no effect.
pub(crate) const fn store_vacant(width: usize) -> Option<()> {
    if width <= 4 { Some(()) } else { None }
}

/// `true` if a driver may accept these features of a device that offers those. Drivers that don't
/// accept VERSION_1 are served too, as QEMU does; what differs for them is in the devices.
const fn agreeable(offered: u64, accepted: u64) -> bool {
    accepted & !offered == 0
}

/// Serves the chains of `queue` as far as one step may. Returns `true` if the driver is to be
/// interrupted.
fn serve_step(
    queue: &mut Queue,
    ram: &mut Ram,
    mut serve: impl FnMut(&mut Ram, &Chain, u64, &mut u64) -> Served,
) -> Result<bool, BadRing> {
    let mut has_returned = false;
    let (mut descriptors_left, mut bytes_left) = (STEP_DESCRIPTORS_MAX, STEP_BYTES_MAX);
    while queue.is_busy() {
        let Some(chain) = queue.peek(ram)? else {
            // The driver has made chains unavailable that it had notified of.
            queue.rest();
            break;
        };
        let Some(left) = descriptors_left.checked_sub(chain.descriptors()) else { break };
        descriptors_left = left;
        match serve(ram, &chain, queue.done(), &mut bytes_left) {
            Served::Whole(written) => queue.complete(ram, chain.head, written)?,
            Served::Partly(done) => {
                queue.set_done(done);
                break;
            }
            Served::Senseless => return Err(queue.bad_descriptor(chain.head)),
        }
        has_returned = true;
    }
    Ok(has_returned && queue.wants_interrupt(ram)?)
}

/// 32-bit half number `select` of `value`; zero if `select` is neither 0 nor 1.
#[expect(clippy::cast_possible_truncation, reason = "half of it is what is asked for")]
const fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Sets 32-bit half number `select` of `value`; ignored if `select` is neither 0 nor 1.
fn set_half(value: &mut u64, select: u32, half: u32) {
    let shift = match select {
        0 => 0,
        1 => 32,
        _ => return,
    };
    *value = *value & !(u64::from(u32::MAX) << shift) | u64::from(half) << shift;
}
