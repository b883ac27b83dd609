use super::{DATA, Device, Driver, NEXT, RAM_BASE, RAM_BYTES, SIZE, WRITE};
use crate::device::virtio::BadRing;
use crate::device::virtio::rng::Rng;
use crate::event::RANDOM_BYTES_MAX;
use crate::ram::Ram;
use alloc::vec;
use alloc::vec::Vec;

impl Device for Rng {
    const QUEUES: u32 = 1;

    fn load(&self, offset: u64, width: usize) -> Option<u32> {
        self.load(offset, width)
    }

    fn store(&mut self, offset: u64, value: u32, ram: &mut Ram) -> Option<Result<(), BadRing>> {
        self.store(offset, value, 4, ram)
    }

    fn work(&mut self, _: &mut Ram) -> bool {
        false
    }
}

impl Driver<Rng> {
    fn wanted(&self) -> usize {
        self.device.wanted(&self.ram)
    }

    fn fill(&mut self, bytes: &[u8]) -> Result<(), BadRing> {
        self.device.fill(&mut self.ram, bytes)
    }
}

fn driver() -> Driver<Rng> {
    Driver::of(Rng::new(), 0, SIZE)
}

#[test]
fn it_says_what_it_is() {
    let driver = driver();
    assert_eq!((driver.get(0x08), driver.get(0x34), driver.get(0x100)), (4, 256, 0));
}

#[test]
fn buffers_are_filled_one_after_the_other_once_the_driver_notifies() {
    let mut driver = driver();
    driver.describe(0, 0, DATA, 40, WRITE | NEXT, 1);
    driver.describe(0, 1, DATA + 0x100, 24, WRITE, 0);
    driver.describe(0, 2, DATA + 0x200, 4096, WRITE, 0);
    driver.offer(0, 0);
    driver.offer(0, 2);
    assert!(!driver.device.is_waiting(), "nobody has notified");
    driver.set(0x50, 0);
    assert!(driver.device.is_waiting());
    assert_eq!((driver.wanted(), driver.used_idx(0), driver.device.interrupts()), (64, 0, false));
    let bytes: Vec<u8> = (0..64).collect();
    driver.fill(&bytes).unwrap();
    assert_eq!([driver.peek(DATA, 40), driver.peek(DATA + 0x100, 24)].concat(), bytes);
    assert_eq!((driver.used_idx(0), driver.used_bytes(0, 0), driver.device.interrupts()), (1, 64, true));
    assert_eq!(driver.wanted(), RANDOM_BYTES_MAX, "as much as one event has");
    driver.fill(&[7; RANDOM_BYTES_MAX]).unwrap();
    assert_eq!((driver.used_bytes(0, 1), driver.peek(DATA + 0x200, 257)[255..].to_vec()), (256, vec![7, 0]));
    assert!(!driver.device.is_waiting());
    assert_eq!(driver.wanted(), 0);
}

#[test]
fn a_buffer_that_the_device_may_not_write_makes_it_need_a_reset() {
    for (address, bytes, flags) in [(DATA, 8, 0), (RAM_BASE + RAM_BYTES as u64 - 7, 8, WRITE)] {
        let mut driver = driver();
        driver.describe(0, 3, address, bytes, flags, 0);
        driver.offer(0, 3);
        driver.set(0x50, 0);
        assert_eq!((driver.device.is_waiting(), driver.wanted()), (true, 0));
        assert_eq!(driver.fill(&[]), Err(BadRing { queue: 0, descriptor: Some(3) }));
        assert!(!driver.device.is_waiting());
        driver.assert_needs_reset(0);
    }
}

#[test]
fn a_ring_that_is_too_full_makes_it_need_a_reset_at_once() {
    let mut driver = driver();
    (0..=SIZE).for_each(|_| driver.offer(0, 0));
    assert_eq!(driver.try_set(0x50, 0), Err(BadRing { queue: 0, descriptor: None }));
    assert!(!driver.device.is_waiting());
    driver.assert_needs_reset(0);
}

#[test]
fn chains_that_are_taken_back_are_forgotten() {
    let mut driver = driver();
    driver.describe(0, 0, DATA, 8, WRITE, 0);
    driver.offer(0, 0);
    driver.set(0x50, 0);
    driver.poke(Driver::<Rng>::available(0) + 2, &[0, 0]);
    assert_eq!(driver.wanted(), 0);
    driver.fill(&[]).unwrap();
    assert_eq!((driver.device.is_waiting(), driver.used_idx(0)), (false, 0));
}
