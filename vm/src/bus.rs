//! The address map: which part of the machine answers at which address.
//!
//! A subset of QEMU's `virt` board at the same addresses, so that the same guest runs on both. RAM
//! takes accesses of any alignment; devices only naturally aligned ones, and each says which widths
//! it takes. Everything else is an access fault.

use crate::device::finisher;
use crate::device::plic::Plic;
use crate::device::uart::Uart;
use crate::device::virtio::blk::Blk;
use crate::device::virtio::net::Net;
use crate::device::virtio::{BadRing, mmio};
use crate::exit::StopReason;
use crate::fault::{DeviceFault, VirtioDevice};
use crate::isa::address::GuestPhysAddr;
use crate::output::Outputs;
use crate::ram::Ram;
use crate::ram::disk::Disk;
use crate::ram::pages::Pages;
use crate::state::{RestoreError, StateReader, StateWriter};

/// A range of bus addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
}

impl Region {
    const fn offset(self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.base);
        if offset < self.bytes { Some(offset) } else { None }
    }
}

/// The test finisher's registers.
pub(crate) const FINISHER: Region = Region { base: 0x0010_0000, bytes: 0x1000 };
/// The interrupt controller's registers.
pub(crate) const PLIC: Region = Region { base: 0x0c00_0000, bytes: 0x0060_0000 };
/// The console's registers.
pub(crate) const UART: Region = Region { base: 0x1000_0000, bytes: 0x100 };
/// The network device's registers.
pub(crate) const NET: Region = Region { base: 0x1000_1000, bytes: 0x1000 };

/// The disk's registers; without a disk, those of a virtio-mmio slot without a device.
pub(crate) const BLK: Region = Region { base: 0x1000_2000, bytes: 0x1000 };

/// The network device's interrupt source at the PLIC.
pub(crate) const NET_IRQ: u32 = 1;
/// The disk's interrupt source at the PLIC.
pub(crate) const BLK_IRQ: u32 = 2;
/// The console's interrupt source at the PLIC.
pub(crate) const UART_IRQ: u32 = 10;

/// RAM, devices, and the queue of outputs.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) ram: Ram,
    pub(crate) uart: Uart,
    pub(crate) net: Net,
    pub(crate) outputs: Outputs,
    blk: Option<Blk>,
    plic: Plic,
    stop: Option<StopReason>,
    /// The last driver's mistake, until [`Self::take_fault`]. Not state.
    fault: Option<DeviceFault>,
    /// A device was accessed since [`Self::settle`]. Invariant: `false` whenever the machine is at
    /// rest.
    touched: bool,
}

/// A device and the offset of an access in its registers.
#[derive(Clone, Copy, Debug)]
enum Target {
    Finisher(u64),
    Plic(u64),
    Uart(u64),
    Net(u64),
    Blk(u64),
}

impl Bus {
    /// A bus with its devices as after reset.
    pub(crate) fn new(ram: Ram, disk: Option<Disk>, mac: [u8; 6]) -> Self {
        Self {
            ram,
            uart: Uart::new(),
            net: Net::new(mac),
            outputs: Outputs::default(),
            blk: disk.map(Blk::new),
            plic: Plic::new(),
            stop: None,
            fault: None,
            touched: false,
        }
    }

    /// Reads `N` bytes, 1, 2, 4 or 8; `None` is an access fault.
    #[inline]
    pub(crate) fn load<const N: usize>(&mut self, address: GuestPhysAddr) -> Option<[u8; N]> {
        match self.ram.load(address) {
            Some(bytes) => Some(bytes),
            None => self.load_device(address.0, N)?.to_le_bytes().first_chunk().copied(),
        }
    }

    /// Writes `N` bytes, 1, 2, 4 or 8; `None` is an access fault, and nothing has been written.
    #[inline]
    pub(crate) fn store<const N: usize>(&mut self, address: GuestPhysAddr, bytes: [u8; N]) -> Option<()> {
        match self.ram.store(address, bytes) {
            Some(()) => Some(()),
            None => {
                let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                self.store_device(address.0, value, N)
            }
        }
    }

    /// `true` if a device was accessed since [`Self::settle`]: interrupt lines, outputs and the end
    /// of the guest may have changed.
    #[inline]
    pub(crate) const fn touched(&self) -> bool {
        self.touched
    }

    /// Records that something other than a device access produced output or ended the guest.
    pub(crate) const fn touch(&mut self) {
        self.touched = true;
    }

    /// Sets the interrupt lines as the devices want them and flushes console output that is due at
    /// `count`. Returns the level of the hart's external interrupt line.
    pub(crate) fn settle(&mut self, count: u64) -> bool {
        self.touched = false;
        self.plic.set_level(UART_IRQ, self.uart.interrupts());
        self.plic.set_level(NET_IRQ, self.net.interrupts());
        if let Some(blk) = &self.blk {
            self.plic.set_level(BLK_IRQ, blk.interrupts());
        }
        self.outputs.settle(count);
        self.plic.notifies()
    }

    /// Stops the guest for `reason`. If it has stopped already, the first reason stays.
    pub(crate) fn stop(&mut self, reason: StopReason) {
        self.outputs.flush_console();
        self.stop.get_or_insert(reason);
    }

    /// The reason why the guest has stopped; `None` while it runs.
    pub(crate) const fn stopped(&self) -> Option<StopReason> {
        self.stop
    }

    /// The disk, if there is one.
    pub(crate) const fn disk(&self) -> Option<&Disk> {
        match &self.blk {
            Some(blk) => Some(blk.disk()),
            None => None,
        }
    }

    /// The memories that consist of pages, with their contents, in the order of page indices: RAM,
    /// then the disk.
    pub(crate) fn memories(&mut self) -> impl Iterator<Item = (&mut Pages, &[u8])> {
        let disk = self.blk.as_mut().map(|blk| blk.disk_mut().paged());
        core::iter::once(self.ram.paged()).chain(disk)
    }

    /// Hands a received packet to the network device.
    pub(crate) fn receive_packet(&mut self, packet: &[u8]) {
        let received = self.net.receive(&mut self.ram, packet);
        self.note(VirtioDevice::Net, received);
    }

    /// `true` if a device has work left for the next step.
    pub(crate) fn is_busy(&self) -> bool {
        self.net.is_busy() || self.blk.as_ref().is_some_and(Blk::is_busy)
    }

    /// Lets the devices do as much of their remaining work as one step may.
    pub(crate) fn work(&mut self) {
        let worked = self.net.work(&mut self.ram, &mut self.outputs);
        self.note(VirtioDevice::Net, worked);
        if let Some(blk) = &mut self.blk {
            let worked = blk.work(&mut self.ram);
            self.note(VirtioDevice::Disk, worked);
        }
    }

    /// Takes the last driver's mistake that made a device need a reset.
    pub(crate) const fn take_fault(&mut self) -> Option<DeviceFault> {
        self.fault.take()
    }

    /// Keeps a driver's mistake for [`Self::take_fault`].
    fn note(&mut self, device: VirtioDevice, result: Result<(), BadRing>) {
        if let Err(BadRing { queue, descriptor }) = result {
            self.fault = Some(DeviceFault { device, queue, descriptor });
        }
    }

    /// Writes all of the state but the contents of RAM and of the disk.
    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        // `touched` is false whenever the machine is at rest.
        let Self { ram, uart, net, outputs, blk, plic, stop, fault: _, touched: _ } = self;
        writer.u64(ram.end());
        writer.u64(self.disk().map_or(0, Disk::length));
        uart.write_to(writer);
        net.write_to(writer);
        outputs.write_to(writer);
        if let Some(blk) = blk {
            blk.write_to(writer);
        }
        plic.write_to(writer);
        writer.bool(stop.is_some());
        if let Some(reason) = stop {
            reason.write_to(writer);
        }
    }

    /// Reads the bus of a machine with this RAM, disk and MAC address, at instruction count
    /// `count`.
    pub(crate) fn read_from(
        reader: &mut StateReader<'_>,
        ram: Ram,
        disk: Option<Disk>,
        mac: [u8; 6],
        count: u64,
    ) -> Result<Self, RestoreError> {
        let end = reader.u64()?;
        reader.require(end == ram.end(), "RAM has another size")?;
        let length = reader.u64()?;
        reader.require(length == disk.as_ref().map_or(0, Disk::length), "the disk has another size")?;
        Ok(Self {
            ram,
            uart: Uart::read_from(reader)?,
            net: Net::read_from(reader, mac)?,
            outputs: Outputs::read_from(reader, count)?,
            blk: disk.map(|disk| Blk::read_from(reader, disk)).transpose()?,
            plic: Plic::read_from(reader)?,
            stop: if reader.bool()? { Some(StopReason::read_from(reader)?) } else { None },
            fault: None,
            touched: false,
        })
    }

    /// The device at `address`; `None` if there is none or the access isn't naturally aligned.
    fn target(address: u64, width: usize) -> Option<Target> {
        if !address.is_multiple_of(width as u64) {
            return None;
        }
        let plic = PLIC.offset(address).map(Target::Plic);
        plic.or_else(|| UART.offset(address).map(Target::Uart))
            .or_else(|| NET.offset(address).map(Target::Net))
            .or_else(|| BLK.offset(address).map(Target::Blk))
            .or_else(|| FINISHER.offset(address).map(Target::Finisher))
    }

    #[cold]
    fn load_device(&mut self, address: u64, width: usize) -> Option<u64> {
        let target = Self::target(address, width)?;
        self.touched = true;
        match target {
            Target::Plic(offset) => self.plic.load(offset, width).map(u64::from),
            Target::Uart(offset) => self.uart.load(offset, width).map(u64::from),
            Target::Net(offset) => self.net.load(offset, width).map(u64::from),
            Target::Blk(offset) => match &self.blk {
                Some(blk) => blk.load(offset, width),
                None => mmio::load_vacant(offset, width),
            }
            .map(u64::from),
            Target::Finisher(offset) => finisher::load(offset, width).map(u64::from),
        }
    }

    #[cold]
    fn store_device(&mut self, address: u64, value: u64, width: usize) -> Option<()> {
        let target = Self::target(address, width)?;
        // No device has a register wider than this.
        let value = u32::try_from(value).ok()?;
        self.touched = true;
        match target {
            Target::Plic(offset) => self.plic.store(offset, value, width),
            Target::Uart(offset) => {
                if let Some(sent) = self.uart.store(offset, value, width)? {
                    self.outputs.push_console_byte(sent);
                }
                Some(())
            }
            Target::Net(offset) => {
                let done = self.net.store(offset, value, width, &mut self.ram, &mut self.outputs)?;
                self.note(VirtioDevice::Net, done);
                Some(())
            }
            Target::Blk(offset) => match &mut self.blk {
                Some(blk) => {
                    let done = blk.store(offset, value, width, &mut self.ram)?;
                    self.note(VirtioDevice::Disk, done);
                    Some(())
                }
                None => mmio::store_vacant(width),
            },
            Target::Finisher(offset) => {
                if let Some(reason) = finisher::store(offset, value, width)? {
                    self.stop(reason);
                }
                Some(())
            }
        }
    }
}
