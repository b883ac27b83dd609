//! The address map: which part of the machine answers at which address.
//!
//! A subset of QEMU's `virt` board at the same addresses, so that the same guest runs on both. RAM
//! takes accesses of any alignment; devices only naturally aligned ones, and each says which widths
//! it takes. Everything else is an access fault.

use crate::config::BootMode;
use crate::device::clint::Clint;
use crate::device::finisher;
use crate::device::plic::{Context, Plic};
use crate::device::rtc::Rtc;
use crate::device::uart::Uart;
use crate::device::virtio::blk::Blk;
use crate::device::virtio::net::Net;
use crate::device::virtio::rng::Rng;
use crate::device::virtio::{BadRing, mmio};
use crate::exit::StopReason;
use crate::fault::{DeviceFault, VirtioDevice};
use crate::isa::address::GuestPhysAddr;
use crate::isa::trap::Interrupt;
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
/// The real-time clock's registers.
pub(crate) const RTC: Region = Region { base: 0x0010_1000, bytes: 0x1000 };
/// The core-local interruptor's registers: timer and software interrupts of M-mode.
pub(crate) const CLINT: Region = Region { base: 0x0200_0000, bytes: 0x1_0000 };
/// The interrupt controller's registers.
pub(crate) const PLIC: Region = Region { base: 0x0c00_0000, bytes: 0x0060_0000 };
/// The console's registers.
pub(crate) const UART: Region = Region { base: 0x1000_0000, bytes: 0x100 };
/// The virtio-mmio transports: [`SLOTS`] of them, each with [`SLOT_BYTES`] of registers. Those
/// without a device say so.
const VIRTIO: Region = Region { base: 0x1000_1000, bytes: SLOTS * SLOT_BYTES };
const SLOTS: u64 = 8;
const SLOT_BYTES: u64 = 0x1000;

/// A virtio-mmio slot, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u64);

impl Slot {
    /// Its registers.
    pub(crate) const fn region(self) -> Region {
        Region { base: VIRTIO.base + self.0 * SLOT_BYTES, bytes: SLOT_BYTES }
    }

    /// Its interrupt source at the PLIC.
    #[expect(clippy::cast_possible_truncation, reason = "there are eight slots")]
    pub(crate) const fn interrupt(self) -> u32 {
        self.0 as u32 + 1
    }
}

/// The slots of the virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) net: Slot,
    pub(crate) disk: Option<Slot>,
    pub(crate) rng: Slot,
}

impl Slots {
    /// The network device is in the first slot and the disk in the second. Without firmware it is
    /// the other way round: kernels for M-mode expect their disk in the first, which QEMU calls
    /// `virtio-mmio-bus.0`. The entropy device is in the third.
    pub(crate) const fn of(boot: BootMode, has_disk: bool) -> Self {
        let (net, disk) = match (boot, has_disk) {
            (_, false) => (Slot(0), None),
            (BootMode::Firmware, true) => (Slot(0), Some(Slot(1))),
            (BootMode::Bare, true) => (Slot(1), Some(Slot(0))),
        };
        Self { net, disk, rng: Slot(2) }
    }
}

/// The console's interrupt source at the PLIC.
pub(crate) const UART_IRQ: u32 = 10;
/// The real-time clock's interrupt source at the PLIC.
pub(crate) const RTC_IRQ: u32 = 11;

/// A clock of the host that an access to a device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The guest's clock, which CSR `time` reads too.
    Ticks,
    /// The time of day.
    Wall,
}

/// RAM, devices, and the queue of outputs.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) ram: Ram,
    pub(crate) uart: Uart,
    pub(crate) net: Net,
    pub(crate) rng: Rng,
    pub(crate) rtc: Rtc,
    pub(crate) outputs: Outputs,
    blk: Option<Blk>,
    /// Not state.
    slots: Slots,
    clint: Clint,
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
    Clint(u64),
    Plic(u64),
    Uart(u64),
    Net(u64),
    Blk(u64),
    Rng(u64),
    Rtc(u64),
    /// A slot without a device.
    Vacant(u64),
}

impl Bus {
    /// A bus with its devices as after reset.
    pub(crate) fn new(ram: Ram, disk: Option<Disk>, mac: [u8; 6], boot: BootMode) -> Self {
        Self {
            slots: Slots::of(boot, disk.is_some()),
            ram,
            uart: Uart::new(),
            net: Net::new(mac),
            rng: Rng::new(),
            rtc: Rtc::new(),
            outputs: Outputs::default(),
            blk: disk.map(Blk::new),
            clint: Clint::new(),
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

    /// The clock that a load or store of `width` bytes at `address` needs: a load of `mtime`, or
    /// an access to the real-time clock.
    #[inline]
    pub(crate) fn clock_of(address: GuestPhysAddr, width: usize, is_store: bool) -> Option<Clock> {
        if let Some(offset) = CLINT.offset(address.0) {
            return (!is_store && Clint::is_clock(offset, width)).then_some(Clock::Ticks);
        }
        RTC.offset(address.0).filter(|offset| Rtc::needs_time(*offset, width, is_store)).map(|_| Clock::Wall)
    }

    /// The deadline of M-mode's timer, register `mtimecmp`, in clock ticks.
    pub(crate) const fn machine_timer(&self) -> u64 {
        self.clint.timecmp()
    }

    /// Updates the interrupt lines and flushes console output that is due at `count`. `ticks` is
    /// the latest clock value that the guest can know. Returns the hart's interrupt lines, as bits
    /// of `mip`.
    pub(crate) fn settle(&mut self, count: u64, ticks: u64) -> u64 {
        self.touched = false;
        self.plic.set_level(UART_IRQ, self.uart.interrupts());
        self.plic.set_level(self.slots.net.interrupt(), self.net.interrupts());
        if let (Some(blk), Some(slot)) = (&self.blk, self.slots.disk) {
            self.plic.set_level(slot.interrupt(), blk.interrupts());
        }
        self.plic.set_level(self.slots.rng.interrupt(), self.rng.interrupts());
        self.plic.set_level(RTC_IRQ, self.rtc.interrupts());
        self.outputs.settle(count);
        let lines = [
            (Interrupt::MachineExternal, self.plic.notifies(Context::Machine)),
            (Interrupt::SupervisorExternal, self.plic.notifies(Context::Supervisor)),
            (Interrupt::MachineTimer, ticks >= self.clint.timecmp()),
            (Interrupt::MachineSoftware, self.clint.software()),
        ];
        lines.into_iter().fold(0, |lines, (interrupt, level)| if level { lines | interrupt.mask() } else { lines })
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

    /// The core-local interruptor.
    pub(crate) const fn clint(&self) -> &Clint {
        &self.clint
    }

    /// The interrupt controller.
    pub(crate) const fn plic(&self) -> &Plic {
        &self.plic
    }

    /// The disk's device, if there is one.
    pub(crate) const fn blk(&self) -> Option<&Blk> {
        self.blk.as_ref()
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

    /// Hands random bytes to the entropy device.
    pub(crate) fn receive_random(&mut self, bytes: &[u8]) {
        let filled = self.rng.fill(&mut self.ram, bytes);
        self.note(VirtioDevice::Rng, filled);
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
        let Self { ram, uart, net, rng, rtc, outputs, blk, slots: _, clint, plic, stop, fault: _, touched: _ } = self;
        writer.u64(ram.end());
        writer.u64(self.disk().map_or(0, Disk::length));
        uart.write_to(writer);
        net.write_to(writer);
        rng.write_to(writer);
        rtc.write_to(writer);
        outputs.write_to(writer);
        if let Some(blk) = blk {
            blk.write_to(writer);
        }
        clint.write_to(writer);
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
        boot: BootMode,
        count: u64,
    ) -> Result<Self, RestoreError> {
        let end = reader.u64()?;
        reader.require(end == ram.end(), "RAM has another size")?;
        let length = reader.u64()?;
        reader.require(length == disk.as_ref().map_or(0, Disk::length), "the disk has another size")?;
        Ok(Self {
            slots: Slots::of(boot, disk.is_some()),
            ram,
            uart: Uart::read_from(reader)?,
            net: Net::read_from(reader, mac)?,
            rng: Rng::read_from(reader)?,
            rtc: Rtc::read_from(reader)?,
            outputs: Outputs::read_from(reader, count)?,
            blk: disk.map(|disk| Blk::read_from(reader, disk)).transpose()?,
            clint: Clint::read_from(reader)?,
            plic: Plic::read_from(reader)?,
            stop: if reader.bool()? { Some(StopReason::read_from(reader)?) } else { None },
            fault: None,
            touched: false,
        })
    }

    /// Reads the register of the real-time clock at `address`, which it has.
    pub(crate) fn load_rtc(&mut self, address: GuestPhysAddr) -> u64 {
        self.load_device(address.0, 4).expect("the register needs a clock, so it exists")
    }

    /// Writes the low 32 bits of `value` to the register of the real-time clock at `address`, which
    /// it has.
    pub(crate) fn store_rtc(&mut self, address: GuestPhysAddr, value: u64) {
        self.store_device(address.0, value & 0xffff_ffff, 4).expect("the register needs a clock, so it exists");
    }

    /// The device at `address`; `None` if there is none or the access isn't naturally aligned.
    fn target(&self, address: u64, width: usize) -> Option<Target> {
        if !address.is_multiple_of(width as u64) {
            return None;
        }
        let plic = PLIC.offset(address).map(Target::Plic);
        plic.or_else(|| UART.offset(address).map(Target::Uart))
            .or_else(|| VIRTIO.offset(address).map(|offset| self.virtio_target(offset)))
            .or_else(|| CLINT.offset(address).map(Target::Clint))
            .or_else(|| RTC.offset(address).map(Target::Rtc))
            .or_else(|| FINISHER.offset(address).map(Target::Finisher))
    }

    /// The device in the slot at `offset` from the first one.
    fn virtio_target(&self, offset: u64) -> Target {
        let (slot, offset) = (Slot(offset / SLOT_BYTES), offset % SLOT_BYTES);
        if slot == self.slots.net {
            Target::Net(offset)
        } else if self.slots.disk == Some(slot) {
            Target::Blk(offset)
        } else if slot == self.slots.rng {
            Target::Rng(offset)
        } else {
            Target::Vacant(offset)
        }
    }

    #[cold]
    fn load_device(&mut self, address: u64, width: usize) -> Option<u64> {
        let target = self.target(address, width)?;
        self.touched = true;
        match target {
            Target::Clint(offset) => self.clint.load(offset, width),
            Target::Plic(offset) => self.plic.load(offset, width).map(u64::from),
            Target::Uart(offset) => self.uart.load(offset, width).map(u64::from),
            Target::Net(offset) => self.net.load(offset, width).map(u64::from),
            Target::Blk(offset) => self.blk.as_ref()?.load(offset, width).map(u64::from),
            Target::Rng(offset) => self.rng.load(offset, width).map(u64::from),
            Target::Rtc(offset) => self.rtc.load(offset, width).map(u64::from),
            Target::Vacant(offset) => mmio::load_vacant(offset, width).map(u64::from),
            Target::Finisher(offset) => finisher::load(offset, width).map(u64::from),
        }
    }

    #[cold]
    fn store_device(&mut self, address: u64, value: u64, width: usize) -> Option<()> {
        let target = self.target(address, width)?;
        self.touched = true;
        if let Target::Clint(offset) = target {
            return self.clint.store(offset, value, width);
        }
        // No other device has a register wider than this.
        let value = u32::try_from(value).ok()?;
        match target {
            Target::Clint(_) => unreachable!("it has been dealt with above"),
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
            Target::Blk(offset) => {
                let done = self.blk.as_mut()?.store(offset, value, width, &mut self.ram)?;
                self.note(VirtioDevice::Disk, done);
                Some(())
            }
            Target::Rng(offset) => {
                let done = self.rng.store(offset, value, width, &self.ram)?;
                self.note(VirtioDevice::Rng, done);
                Some(())
            }
            Target::Rtc(offset) => self.rtc.store(offset, value, width),
            Target::Vacant(_) => mmio::store_vacant(width),
            Target::Finisher(offset) => {
                if let Some(reason) = finisher::store(offset, value, width)? {
                    self.stop(reason);
                }
                Some(())
            }
        }
    }
}
