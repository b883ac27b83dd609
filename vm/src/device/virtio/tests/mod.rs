//! A driver, a hostile one among them, with its rings at fixed places.

mod blk;
mod net;
mod rng;

use super::BadRing;
use crate::isa::address::GuestPhysAddr;
use crate::ram::{RAM_BASE, Ram};
use alloc::vec::Vec;

const SIZE: u64 = 8;
const RAM_BYTES: usize = 1 << 20;
const DATA: u64 = RAM_BASE + 0x8_0000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// A device with its registers.
trait Device {
    const QUEUES: u32;
    fn load(&self, offset: u64, width: usize) -> Option<u32>;
    fn store(&mut self, offset: u64, value: u32, ram: &mut Ram) -> Option<Result<(), BadRing>>;
    /// The device's part of the next step: `false` if it has none.
    fn work(&mut self, ram: &mut Ram) -> bool;
}

struct Driver<D> {
    device: D,
    ram: Ram,
    available: [u16; 2],
}

impl<D: Device> Driver<D> {
    fn descriptors(queue: u64) -> u64 {
        RAM_BASE + 0x1_0000 * (queue + 1)
    }

    fn available(queue: u64) -> u64 {
        Self::descriptors(queue) + 0x1000
    }

    fn used(queue: u64) -> u64 {
        Self::descriptors(queue) + 0x2000
    }

    /// A driver that has accepted these features beside version 1 and has set the device up to
    /// DRIVER_OK, with queues of so many descriptors.
    fn of(device: D, features: u32, size: u64) -> Self {
        Self::in_ram(device, Ram::new(RAM_BYTES), features, size)
    }

    /// As [`Self::of`].
    fn in_ram(device: D, ram: Ram, features: u32, size: u64) -> Self {
        let mut driver = Self { device, ram, available: [0; 2] };
        driver.negotiate(1, features);
        assert_eq!(driver.get(0x70), 11, "FEATURES_OK sticks");
        for queue in 0..D::QUEUES {
            driver.set(0x30, queue);
            driver.set(0x38, u32::try_from(size).unwrap());
            let queue = queue.into();
            let parts = [(0x80, Self::descriptors(queue)), (0x90, Self::available(queue)), (0xa0, Self::used(queue))];
            for (register, address) in parts {
                driver.set(register, u32::try_from(address).unwrap());
                driver.set(register + 4, 0);
            }
            driver.set(0x44, 1);
        }
        driver.set(0x70, 15);
        driver
    }

    fn negotiate(&mut self, high: u32, low: u32) {
        self.set(0x70, 0);
        self.set(0x70, 3);
        for (half, features) in [(1, high), (0, low)] {
            self.set(0x24, half);
            self.set(0x20, features);
        }
        self.set(0x70, 11);
    }

    fn get(&self, offset: u64) -> u32 {
        self.device.load(offset, 4).unwrap()
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.try_set(offset, value).unwrap();
    }

    fn try_set(&mut self, offset: u64, value: u32) -> Result<(), BadRing> {
        self.device.store(offset, value, &mut self.ram).unwrap()
    }

    /// Has the device do what is left, step by step, and gives how many steps it took.
    fn finish(&mut self) -> usize {
        (0..10_000).take_while(|_| self.device.work(&mut self.ram)).count()
    }

    /// Asserts that the driver has made a mistake: the device says so, does nothing any more, and
    /// works again after a reset.
    #[track_caller]
    fn assert_needs_reset(&mut self, queue: u32) {
        assert_eq!((self.get(0x70), self.get(0x60) & 2), (15 | 0x40, 2), "the driver is told, and interrupted");
        self.set(0x70, 15);
        assert_eq!(self.get(0x70), 15 | 0x40, "the driver can't take it back");
        let used = self.used_idx(queue.into());
        assert_eq!(self.try_set(0x50, queue), Ok(()), "nothing is looked at any more");
        assert!(!self.device.work(&mut self.ram));
        assert_eq!(self.used_idx(queue.into()), used);
        self.set(0x70, 0);
        assert_eq!((self.get(0x70), self.get(0x60)), (0, 0));
        self.negotiate(1, 0);
        assert_eq!(self.get(0x70), 11);
        self.set(0x70, 0x40 | 15);
        assert_eq!(self.get(0x70), 15, "it isn't the driver's to say");
    }

    fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.ram.write(GuestPhysAddr(address), bytes).unwrap();
    }

    fn peek(&self, address: u64, length: u64) -> Vec<u8> {
        self.ram.slice(GuestPhysAddr(address), length).unwrap().to_vec()
    }

    fn describe(&mut self, queue: u64, index: u64, address: u64, bytes: u32, flags: u16, next: u16) {
        let place = Self::descriptors(queue) + 16 * index;
        self.poke(place, &address.to_le_bytes());
        self.poke(place + 8, &bytes.to_le_bytes());
        self.poke(place + 12, &flags.to_le_bytes());
        self.poke(place + 14, &next.to_le_bytes());
    }

    /// Offers a chain in a queue of [`SIZE`] descriptors.
    fn offer(&mut self, queue: u64, head: u16) {
        self.offer_of(SIZE, queue, head);
    }

    fn offer_of(&mut self, size: u64, queue: u64, head: u16) {
        let count = &mut self.available[usize::try_from(queue).unwrap()];
        let slot = u64::from(*count) % size;
        *count = count.wrapping_add(1);
        let idx = *count;
        self.poke(Self::available(queue) + 4 + 2 * slot, &head.to_le_bytes());
        self.poke(Self::available(queue) + 2, &idx.to_le_bytes());
    }

    fn used_idx(&self, queue: u64) -> u16 {
        self.ram.load(GuestPhysAddr(Self::used(queue) + 2)).map(u16::from_le_bytes).unwrap()
    }

    /// How much was written to the chain that was returned as number `count`, from 0 on, to a queue
    /// of [`SIZE`].
    fn used_bytes(&self, queue: u64, count: u16) -> u32 {
        let place = Self::used(queue) + 4 + 8 * (u64::from(count) % SIZE) + 4;
        self.ram.load(GuestPhysAddr(place)).map(u32::from_le_bytes).unwrap()
    }
}
