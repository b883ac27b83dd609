//! The network device as a driver sees it, a hostile one among them.

use super::{DATA, NEXT, RAM_BYTES, SIZE, WRITE};
use crate::device::virtio::BadRing;
use crate::device::virtio::net::Net;
use crate::output::Outputs;
use crate::ram::{RAM_BASE, Ram};
use alloc::vec;
use alloc::vec::Vec;

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;

/// The device, and what leaves it.
struct Device {
    net: Net,
    outputs: Outputs,
}

impl super::Device for Device {
    const QUEUES: u32 = 2;

    fn load(&self, offset: u64, width: usize) -> Option<u32> {
        self.net.load(offset, width)
    }

    fn store(&mut self, offset: u64, value: u32, ram: &mut Ram) -> Option<Result<(), BadRing>> {
        self.net.store(offset, value, 4, ram, &mut self.outputs)
    }

    fn work(&mut self, ram: &mut Ram) -> bool {
        let is_busy = self.net.is_busy();
        self.net.work(ram, &mut self.outputs).unwrap();
        is_busy
    }
}

type Driver = super::Driver<Device>;

impl Driver {
    fn new() -> Self {
        let device = Device { net: Net::new([2, 0, 0, 0, 0, 7]), outputs: Outputs::default() };
        Self::of(device, 1 << 5, SIZE)
    }

    fn notify(&mut self) -> Result<(), BadRing> {
        self.try_set(0x50, 1)
    }

    fn receive(&mut self, packet: &[u8]) -> Result<(), BadRing> {
        self.device.net.receive(&mut self.ram, packet)
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        core::iter::from_fn(|| self.device.outputs.take()).map(|(_, output)| output.bytes().to_vec()).collect()
    }
}

fn packet(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

#[test]
fn registers_identify_the_device() {
    let driver = Driver::new();
    assert_eq!([0, 4, 8].map(|offset| driver.get(offset)), [0x7472_6976, 2, 1]);
    assert_eq!(driver.device.net.load(0x100, 1), Some(2));
    assert_eq!(driver.device.net.load(0x104, 2), Some(0x0700));
    assert_eq!(driver.device.net.load(0x104, 4), Some(0x0001_0700), "the link is up");
    assert_eq!(driver.device.net.load(0x108, 4), Some(0));
    assert_eq!(driver.device.net.load(0x0, 1), None, "registers are words");
}

#[test]
fn features_must_be_offered() {
    let mut driver = Driver::new();
    for (high, low) in [(0, 1), (1, 1), (3, 0)] {
        driver.negotiate(high, low);
        assert_eq!(driver.get(0x70), 3, "{high:#x} {low:#x}");
    }
    for (high, low) in [(0, 0), (0, 1 << 5), (1, 0)] {
        driver.negotiate(high, low);
        assert_eq!(driver.get(0x70), 11, "{high:#x} {low:#x}");
    }
}

/// As QEMU: a driver that doesn't know version 1 has a header without the number of buffers.
#[test]
fn a_driver_from_before_version_1_is_served() {
    let mut driver = Driver::new();
    driver.set(0x30, 0);
    driver.negotiate(0, 1 << 5);
    let features_ok = driver.get(0x70);
    for queue in 0..2_u32 {
        driver.set(0x30, queue);
        driver.set(0x38, u32::try_from(SIZE).unwrap());
        let parts = [Driver::descriptors(queue.into()), Driver::available(queue.into()), Driver::used(queue.into())];
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            driver.set(register, u32::try_from(address).unwrap());
        }
        driver.set(0x44, 1);
    }
    driver.set(0x70, 15);
    assert_eq!((features_ok, driver.get(0x70)), (11, 15));
    driver.poke(DATA + 10, &packet(60));
    driver.describe(TRANSMIT, 0, DATA, 10 + 60, 0, 0);
    driver.offer(TRANSMIT, 0);
    driver.notify().unwrap();
    assert_eq!(driver.packets(), [packet(60)]);
    driver.describe(RECEIVE, 0, DATA + 0x1000, 10 + 60, WRITE, 0);
    driver.offer(RECEIVE, 0);
    driver.receive(&packet(60)).unwrap();
    assert_eq!(driver.peek(DATA + 0x1000, 70), [vec![0; 10], packet(60)].concat());
    assert_eq!(driver.used_bytes(RECEIVE, 0), 70);
}

#[test]
fn transmits_all_available_chains_at_once_in_order() {
    let mut driver = Driver::new();
    // One packet with its header split off, one split in the middle of the header, one too short,
    // one too long.
    let long = packet(1514);
    driver.poke(DATA + 12, &long);
    driver.describe(TRANSMIT, 0, DATA, 12, NEXT, 1);
    driver.describe(TRANSMIT, 1, DATA + 12, 1514, 0, 0);
    driver.describe(TRANSMIT, 2, DATA, 5, NEXT, 3);
    driver.describe(TRANSMIT, 3, DATA + 5, 7 + 14, 0, 0);
    driver.describe(TRANSMIT, 4, DATA, 12 + 13, 0, 0);
    driver.describe(TRANSMIT, 5, DATA, 12 + 1515, 0, 0);
    for head in [0, 2, 4, 5] {
        driver.offer(TRANSMIT, head);
    }
    driver.notify().unwrap();
    assert_eq!(driver.packets(), [long.clone(), long[..14].to_vec()]);
    assert_eq!(driver.device.net.dropped(), (0, 2));
    assert_eq!(driver.used_idx(TRANSMIT), 4);
    assert!(driver.device.net.interrupts());
    driver.set(0x64, 1);
    assert!(!driver.device.net.interrupts());
    driver.notify().unwrap();
    assert!(!driver.device.net.interrupts(), "nothing was available");
}

#[test]
fn receives_across_buffers_with_a_header() {
    let mut driver = Driver::new();
    assert!(!driver.device.net.can_receive(&driver.ram));
    driver.describe(RECEIVE, 3, DATA, 20, WRITE | NEXT, 5);
    driver.describe(RECEIVE, 5, DATA + 0x1000, 1506, WRITE, 0);
    driver.offer(RECEIVE, 3);
    assert!(driver.device.net.can_receive(&driver.ram), "exactly a header and the longest frame");
    driver.receive(&packet(100)).unwrap();
    assert_eq!(driver.peek(DATA, 20), [vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], packet(8)].concat());
    assert_eq!(driver.peek(DATA + 0x1000, 93), [&packet(100)[8..], &[0]].concat());
    assert_eq!(driver.peek(Driver::used(RECEIVE), 12), [0, 0, 1, 0, 3, 0, 0, 0, 112, 0, 0, 0]);
    assert!(driver.device.net.interrupts());
    assert!(!driver.device.net.can_receive(&driver.ram));
}

#[test]
fn packets_without_a_buffer_long_enough_are_dropped() {
    let mut driver = Driver::new();
    driver.describe(RECEIVE, 0, DATA, 72, WRITE, 0);
    driver.offer(RECEIVE, 0);
    assert!(driver.device.net.can_receive(&driver.ram), "a frame that is short enough fits");
    driver.receive(&packet(61)).unwrap();
    assert!(driver.device.net.can_receive(&driver.ram), "the buffer stays for the next");
    driver.receive(&packet(60)).unwrap();
    driver.receive(&packet(60)).unwrap();
    assert_eq!(driver.device.net.dropped(), (2, 0));
    assert_eq!(driver.used_idx(RECEIVE), 1);
    // Not even for a header.
    driver.describe(RECEIVE, 1, DATA, 0, WRITE, 0);
    driver.offer(RECEIVE, 1);
    driver.receive(&packet(60)).unwrap();
    assert_eq!(driver.device.net.dropped(), (3, 0));
}

#[test]
fn the_driver_may_ask_for_no_interrupt() {
    let mut driver = Driver::new();
    driver.poke(Driver::available(TRANSMIT), &[1, 0]);
    driver.describe(TRANSMIT, 0, DATA, 12 + 60, 0, 0);
    driver.offer(TRANSMIT, 0);
    driver.notify().unwrap();
    assert_eq!(driver.packets().len(), 1);
    assert!(!driver.device.net.interrupts());
}

#[test]
fn ring_indices_wrap() {
    let mut driver = Driver::new();
    driver.describe(TRANSMIT, 0, DATA, 12 + 60, 0, 0);
    for _ in 0..70_000 {
        driver.offer(TRANSMIT, 0);
        driver.notify().unwrap();
        assert_eq!(driver.packets().len(), 1);
    }
    assert_eq!(driver.used_idx(TRANSMIT), 4464, "70_000 modulo 65_536");
}

#[test]
fn hostile_descriptors_are_named() {
    let end = RAM_BASE + RAM_BYTES as u64;
    // (address, length, flags, next) of descriptor 0, and which one is at fault.
    let cases = [
        (end - 10, 20, 0, 0, 0),
        (0, 20, 0, 0, 0),
        (u64::MAX, u32::MAX, 0, 0, 0),
        (DATA, 20, WRITE, 0, 0),
        (DATA, 20, 4, 0, 0),
        (DATA, 20, NEXT, 0, 0),
        (DATA, 20, NEXT, 8, 8),
        (DATA, 20, NEXT, u16::MAX, u16::MAX),
    ];
    for (address, bytes, flags, next, descriptor) in cases {
        let mut driver = Driver::new();
        driver.describe(TRANSMIT, 0, address, bytes, flags, next);
        driver.offer(TRANSMIT, 0);
        let bad = BadRing { queue: 1, descriptor: Some(descriptor) };
        assert_eq!(driver.notify(), Err(bad), "{address:#x} {bytes} {flags} {next}");
        driver.assert_needs_reset(1);
    }
}

#[test]
fn hostile_rings_are_refused() {
    let ring = |queue| BadRing { queue, descriptor: None };
    let mut driver = Driver::new();
    driver.poke(Driver::available(TRANSMIT) + 2, &9_u16.to_le_bytes());
    assert_eq!(driver.notify(), Err(ring(1)), "more available than there are descriptors");
    driver.assert_needs_reset(1);

    for (register, offered) in [(0x90, false), (0xa0, true)] {
        let mut driver = Driver::new();
        driver.set(0x30, 0);
        driver.set(0x44, 0);
        driver.set(register, 0x1000);
        driver.set(0x44, 1);
        if offered {
            driver.describe(RECEIVE, 0, DATA, 2000, WRITE, 0);
            driver.offer(RECEIVE, 0);
        }
        assert!(driver.device.net.can_receive(&driver.ram), "the delivery is to say what is wrong");
        assert_eq!(driver.receive(&packet(60)), Err(ring(0)), "register {register:#x}");
        assert_eq!(driver.device.net.dropped(), (1, 0), "the frame has found no place");
        assert!(!driver.device.net.can_receive(&driver.ram));
        driver.assert_needs_reset(0);
    }
}

#[test]
fn a_used_ring_over_the_available_ring_ends() {
    let mut driver = Driver::new();
    driver.set(0x44, 0);
    driver.set(0xa0, u32::try_from(Driver::available(TRANSMIT)).unwrap());
    driver.set(0x44, 1);
    driver.describe(TRANSMIT, 0, DATA, 12 + 60, 0, 0);
    for _ in 0..8 {
        driver.offer(TRANSMIT, 0);
    }
    // Whatever it comes to, it comes to an end.
    let _ = driver.notify();
    assert!(driver.packets().len() <= 8);
}

#[test]
fn chains_that_share_few_descriptors_are_served_at_once() {
    let mut driver = Driver::new();
    for index in 0..SIZE {
        let (flags, next) = if index + 1 < SIZE { (NEXT, u16::try_from(index + 1).unwrap()) } else { (0, 0) };
        driver.describe(TRANSMIT, index, DATA, 12, flags, next);
    }
    for _ in 0..SIZE {
        driver.offer(TRANSMIT, 0);
    }
    driver.notify().unwrap();
    assert_eq!((driver.used_idx(TRANSMIT), driver.finish()), (8, 0), "64 descriptors aren't dear");
}

/// 256 chains of 256 descriptors, which they share, are 65,536 to walk: 256 in a step.
#[test]
fn chains_that_share_descriptors_are_served_over_steps() {
    const SIZE: u64 = 256;
    let device = Device { net: Net::new([2, 0, 0, 0, 0, 7]), outputs: Outputs::default() };
    let mut driver = Driver::of(device, 1 << 5, SIZE);
    for index in 0..SIZE {
        let (flags, next) = if index + 1 < SIZE { (NEXT, u16::try_from(index + 1).unwrap()) } else { (0, 0) };
        driver.describe(TRANSMIT, index, DATA, 1, flags, next);
    }
    for _ in 0..SIZE {
        driver.offer_of(SIZE, TRANSMIT, 0);
    }
    driver.notify().unwrap();
    assert_eq!(driver.used_idx(TRANSMIT), 1);
    assert!(driver.device.net.is_busy());
    assert_eq!(driver.finish(), 255);
    assert_eq!((driver.used_idx(TRANSMIT), driver.packets().len()), (256, 256));
    // A queue that is taken back leaves nothing to do.
    driver.offer_of(SIZE, TRANSMIT, 0);
    driver.offer_of(SIZE, TRANSMIT, 0);
    driver.notify().unwrap();
    assert!(driver.device.net.is_busy());
    driver.set(0x30, 1);
    driver.set(0x44, 0);
    assert_eq!(driver.finish(), 0);
}

#[test]
fn queues_take_only_sizes_that_exist_and_hold_still_while_ready() {
    let mut driver = Driver::new();
    driver.set(0x70, 0);
    for size in [0, 3, 512, u32::MAX] {
        driver.set(0x38, size);
        driver.set(0x44, 1);
        assert_eq!(driver.get(0x44), 0, "size {size}");
    }
    driver.set(0x38, 256);
    driver.set(0x44, 1);
    assert_eq!(driver.get(0x44), 1);
    driver.set(0x30, 2);
    assert_eq!((driver.get(0x34), driver.get(0x44)), (0, 0), "there is no third queue");
}
