//! The network device: virtio-net over virtio-mmio, as a smoltcp device.
//!
//! A receive buffer goes back to the device when the next packet is asked for. Transmitting doesn't
//! wait: sent buffers are collected when another one is needed, without an interrupt.

use super::DeviceTree;
use crate::network::PACKET_BYTES_MAX;
use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::{boxed::Box, vec::Vec};
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Descriptors, and buffers, of each of the two queues.
const QUEUE_SIZE: usize = 64;
/// Bytes of a buffer: a packet and the virtio header before it, rounded up.
const BUFFER_BYTES: usize = 1536;

type PacketBuffer = Box<[u8; BUFFER_BYTES]>;
/// The buffers that the device owns, by the token of their descriptor.
type BuffersByToken = [Option<PacketBuffer>; QUEUE_SIZE];

/// The network device.
pub struct Nic {
    driver: VirtIONetRaw<PhysicalMemory, MmioTransport<'static>, QUEUE_SIZE>,
    interrupt: u32,
    receiving: BuffersByToken,
    /// The buffer of the packet that was handed out last, which goes back to the device next.
    handed_out: Option<PacketBuffer>,
    transmitting: BuffersByToken,
    transmit_free: Vec<PacketBuffer>,
}

impl Nic {
    /// Finds and starts the first working network device of the device tree, if there is one.
    ///
    /// May be called once only: a second driver would take the queues from the first.
    #[must_use]
    pub fn find(device_tree: &DeviceTree) -> Option<Self> {
        device_tree.virtio_slots().find_map(|slot| {
            let header = slot.registers.cast::<VirtIOHeader>();
            // SAFETY: the device tree says that there are virtio registers, and they stay for as
            // long as the guest runs. A slot without a device has an id that makes this fail.
            let transport = unsafe { MmioTransport::new(header, slot.bytes) }.ok()?;
            if transport.device_type() != DeviceType::Network {
                return None;
            }
            Some(Self::new(VirtIONetRaw::new(transport).ok()?, slot.interrupt?))
        })
    }

    fn new(driver: VirtIONetRaw<PhysicalMemory, MmioTransport<'static>, QUEUE_SIZE>, interrupt: u32) -> Self {
        let mut nic = Self {
            driver,
            interrupt,
            receiving: [const { None }; QUEUE_SIZE],
            handed_out: None,
            transmitting: [const { None }; QUEUE_SIZE],
            transmit_free: (0..QUEUE_SIZE).map(|_| new_buffer()).collect(),
        };
        for _ in 0..QUEUE_SIZE {
            nic.offer(new_buffer());
        }
        nic
    }

    /// The device's address.
    #[must_use]
    pub fn mac_address(&self) -> [u8; 6] {
        self.driver.mac_address()
    }

    /// The interrupt source at the platform-level interrupt controller.
    #[must_use]
    pub fn interrupt(&self) -> u32 {
        self.interrupt
    }

    /// `true` if a packet has arrived.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        self.driver.poll_receive().is_some()
    }

    /// Acknowledges the device's interrupt.
    pub fn acknowledge_interrupt(&mut self) {
        self.driver.ack_interrupt();
    }

    /// Asks the device to interrupt, or not to, when it has used a buffer. It may interrupt in any
    /// case.
    pub fn want_interrupts(&mut self, wanted: bool) {
        if wanted {
            self.driver.enable_interrupts();
        } else {
            self.driver.disable_interrupts();
        }
    }

    /// Gives the device a buffer to receive into.
    fn offer(&mut self, mut buffer: PacketBuffer) {
        // SAFETY: the buffer stays in `receiving`, untouched, until the device has used it.
        let token = unsafe { self.driver.receive_begin(&mut buffer[..]) }
            .expect("the receive queue has a descriptor for each of the buffers");
        self.receiving[usize::from(token)] = Some(buffer);
    }

    /// The next packet that has arrived: its buffer, and the packet's start and length in it.
    /// Buffers without a valid packet are dropped.
    fn take_packet(&mut self) -> Option<(PacketBuffer, usize, usize)> {
        while let Some(token) = self.driver.poll_receive() {
            let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
            // SAFETY: this is the buffer that `receive_begin` gave this token for.
            match unsafe { self.driver.receive_complete(token, &mut buffer[..]) } {
                Ok((header, length)) if header + length <= BUFFER_BYTES => {
                    return Some((buffer, header, header + length));
                }
                Ok(_) | Err(_) => self.offer(buffer),
            }
        }
        None
    }

    /// Collects the buffers that the device has sent.
    fn collect_transmitted(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let Some(buffer) = self.transmitting.get_mut(usize::from(token)).and_then(Option::take) else { return };
            // SAFETY: this is the buffer that `transmit_begin` gave this token for.
            unsafe { self.driver.transmit_complete(token, &buffer[..]) }
                .expect("the used ring's next token is the one just seen");
            self.transmit_free.push(buffer);
        }
    }

    fn can_transmit(&mut self) -> bool {
        if self.transmit_free.is_empty() {
            self.collect_transmitted();
        }
        !self.transmit_free.is_empty()
    }
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic").field("interrupt", &self.interrupt).finish_non_exhaustive()
    }
}

impl Device for Nic {
    type RxToken<'a> = Packet<'a>;
    type TxToken<'a> = Transmission<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        if let Some(buffer) = self.handed_out.take() {
            self.offer(buffer);
        }
        // A packet is received only if there is room for an answer. Otherwise the device keeps it,
        // and once its queue is full, the network does.
        if !self.can_transmit() {
            return None;
        }
        let (buffer, start, end) = self.take_packet()?;
        let Self { driver, handed_out, transmitting, transmit_free, .. } = self;
        let bytes = &handed_out.insert(buffer)[start..end];
        Some((Packet { bytes }, Transmission { driver, transmitting, free: transmit_free }))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Self::TxToken<'_>> {
        if !self.can_transmit() {
            return None;
        }
        let Self { driver, transmitting, transmit_free, .. } = self;
        Some(Transmission { driver, transmitting, free: transmit_free })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = PACKET_BYTES_MAX;
        capabilities
    }
}

/// A packet that has arrived.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.bytes)
    }
}

/// A buffer for one packet to send.
pub struct Transmission<'a> {
    driver: &'a mut VirtIONetRaw<PhysicalMemory, MmioTransport<'static>, QUEUE_SIZE>,
    transmitting: &'a mut BuffersByToken,
    free: &'a mut Vec<PacketBuffer>,
}

impl fmt::Debug for Transmission<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmission").field("free", &self.free.len()).finish_non_exhaustive()
    }
}

impl TxToken for Transmission<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut buffer = self.free.pop().expect("the token was given because there is a free buffer");
        let header = self.driver.fill_buffer_header(&mut buffer[..]).expect("the buffer is longer than a header");
        let result = f(&mut buffer[header..header + length]);
        // SAFETY: the buffer stays in `transmitting`, untouched, until the device has used it.
        let token = unsafe { self.driver.transmit_begin(&buffer[..header + length]) }
            .expect("the transmit queue has a descriptor for each of the buffers");
        self.transmitting[usize::from(token)] = Some(buffer);
        result
    }
}

fn new_buffer() -> PacketBuffer {
    Box::new([0; BUFFER_BYTES])
}

/// DMA memory: the guests use physical addresses, and devices have access to all of RAM.
#[derive(Debug)]
pub struct PhysicalMemory;

fn pages_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a virtqueue is a few pages")
}

// SAFETY: allocations are zeroed, page-aligned and exclusive.
unsafe impl Hal for PhysicalMemory {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = pages_layout(pages);
        // SAFETY: a virtqueue isn't empty, so the layout isn't.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        (memory.addr().get() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_address: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller promises that this memory came from `dma_alloc` with as many pages.
        unsafe { dealloc(memory.as_ptr(), pages_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _bytes: usize) -> NonNull<u8> {
        // Only the PCI transport calls this, and the guests don't use it.
        unreachable!("no PCI device at {address:#x}")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().addr().get() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
