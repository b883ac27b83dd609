//! The disk as a driver sees it, a hostile one among them.

use super::{DATA, NEXT, RAM_BYTES, SIZE, WRITE};
use crate::device::virtio::BadRing;
use crate::device::virtio::blk::Blk;
use crate::ram::disk::Disk;
use crate::ram::{RAM_BASE, Ram};
use crate::state::{StateReader, StateWriter};
use alloc::vec;
use alloc::vec::Vec;

const SECTORS: u64 = 4096;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const HEADER: u64 = RAM_BASE + 0x6_0000;
const STATUS: u64 = RAM_BASE + 0x7_0000;
/// No status that a device gives.
const UNTOUCHED: u8 = 0xee;

impl super::Device for Blk {
    const QUEUES: u32 = 1;

    fn load(&self, offset: u64, width: usize) -> Option<u32> {
        self.load(offset, width)
    }

    fn store(&mut self, offset: u64, value: u32, ram: &mut Ram) -> Option<Result<(), BadRing>> {
        self.store(offset, value, 4, ram)
    }

    fn work(&mut self, ram: &mut Ram) -> bool {
        let is_busy = self.is_busy();
        self.work(ram).unwrap();
        is_busy
    }
}

type Driver = super::Driver<Blk>;

/// The contents that the disk begins with: no two sectors are alike.
fn contents() -> Vec<u8> {
    (0..SECTORS * 64).flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

fn sectors(first: u64, count: u64) -> Vec<u8> {
    let range = usize::try_from(first * 512).unwrap()..usize::try_from((first + count) * 512).unwrap();
    contents()[range].to_vec()
}

impl Driver {
    fn new() -> Self {
        Self::with_size(SIZE)
    }

    fn with_size(size: u64) -> Self {
        Self::over(Ram::new(RAM_BYTES), size)
    }

    fn over(ram: Ram, size: u64) -> Self {
        let contents = contents();
        Self::in_ram(Blk::new(Disk::new(contents.len(), 0, &contents)), ram, 1 << 9, size)
    }

    fn notify(&mut self) -> Result<(), BadRing> {
        self.try_set(0x50, 0)
    }

    fn write_header(&mut self, address: u64, kind: u32, sector: u64) {
        self.poke(address, &kind.to_le_bytes());
        self.poke(address + 4, &[0xff; 4]);
        self.poke(address + 8, &sector.to_le_bytes());
    }

    /// Describes a request of one header, one buffer and one status from descriptor 0 on, and
    /// offers it.
    fn offer_request(&mut self, kind: u32, sector: u64, address: u64, bytes: u32) {
        self.write_header(HEADER, kind, sector);
        self.poke(STATUS, &[UNTOUCHED]);
        self.describe(0, 0, HEADER, 16, NEXT, 1);
        self.describe(0, 1, address, bytes, NEXT | if kind == OUT { 0 } else { WRITE }, 2);
        self.describe(0, 2, STATUS, 1, WRITE, 0);
        self.offer(0, 0);
    }

    fn status(&self) -> u8 {
        self.peek(STATUS, 1)[0]
    }

    /// Makes a request and gives its status, and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, address: u64, bytes: u32) -> (u8, u32) {
        let count = self.used_idx(0);
        self.offer_request(kind, sector, address, bytes);
        self.notify().unwrap();
        assert_eq!(self.used_idx(0), count.wrapping_add(1));
        (self.status(), self.used_bytes(0, count))
    }

    fn on_disk(&self, first: u64, count: u64) -> Vec<u8> {
        self.device.disk().slice(first * 512, count * 512).unwrap().to_vec()
    }
}

#[test]
fn registers_identify_the_device() {
    let mut driver = Driver::new();
    assert_eq!([0, 4, 8].map(|offset| driver.get(offset)), [0x7472_6976, 2, 2]);
    let config = [0x100, 0x104, 0x108, 0x10c, 0x110, 0x114, 0x118, 0x120].map(|offset| driver.get(offset));
    assert_eq!(config, [4096, 0, 4096, 254, 0, 512, 0, 0], "capacity, size_max, seg_max, geometry, blk_size, nothing");
    assert_eq!(driver.device.load(0x10c, 1), Some(254));
    assert_eq!(driver.device.load(0x10c, 8), None);
    driver.set(0x14, 0);
    assert_eq!(driver.get(0x10), 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9);
    driver.set(0x14, 1);
    assert_eq!(driver.get(0x10), 1);
    driver.set(0x100, 7);
    assert_eq!(driver.get(0x100), 4096, "the configuration space can't be written");
}

#[test]
fn reads_and_writes_sectors() {
    let mut driver = Driver::new();
    assert_eq!(driver.request(IN, 7, DATA, 1024), (0, 1025));
    assert_eq!(driver.peek(DATA, 1024), sectors(7, 2));
    assert!(driver.device.interrupts());
    driver.set(0x64, 1);
    assert!(!driver.device.interrupts());

    driver.poke(DATA, &[0xa5; 512]);
    assert_eq!(driver.request(OUT, SECTORS - 1, DATA, 512), (0, 1));
    assert_eq!(driver.on_disk(SECTORS - 1, 1), [0xa5; 512]);
    assert_eq!(driver.on_disk(SECTORS - 3, 2), sectors(SECTORS - 3, 2), "the neighbours are as they were");
    assert_eq!(driver.request(IN, SECTORS - 2, DATA + 0x1000, 1024), (0, 1025));
    assert_eq!(driver.peek(DATA + 0x1000, 1024), [sectors(SECTORS - 2, 1), vec![0xa5; 512]].concat());
    assert_eq!(driver.request(IN, 3, DATA, 0), (0, 1), "nothing is whole sectors, too");
}

#[test]
fn flushes_and_says_its_name() {
    let mut driver = Driver::new();
    driver.write_header(HEADER, FLUSH, 0);
    driver.poke(STATUS, &[UNTOUCHED]);
    driver.describe(0, 0, HEADER, 16, NEXT, 1);
    driver.describe(0, 1, STATUS, 1, WRITE, 0);
    driver.offer(0, 0);
    driver.notify().unwrap();
    assert_eq!((driver.status(), driver.used_bytes(0, 0)), (0, 1));

    driver.poke(DATA, &[0xff; 32]);
    assert_eq!(driver.request(GET_ID, 0, DATA, 20), (0, 21));
    assert_eq!(driver.peek(DATA, 21), *b"ftvm-disk\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(driver.request(GET_ID, 0, DATA, 4), (0, 5), "as much as there is room for");
    assert_eq!(driver.request(GET_ID, 0, DATA, 4096), (0, 21), "and no more than there is");
    assert_eq!(driver.peek(STATUS, 1), [0]);
}

#[test]
fn what_does_not_exist_is_refused_and_changes_nothing() {
    let mut driver = Driver::new();
    driver.poke(DATA, &[0x77; 4096]);
    for kind in [IN, OUT] {
        let beyond = [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (1 << 55, 512), (u64::MAX / 512, 4096)];
        for (sector, bytes) in beyond.into_iter().chain([(0, 1), (0, 511), (0, 513)]) {
            assert_eq!(driver.request(kind, sector, DATA, bytes), (1, 1), "{bytes} bytes at {sector}, {kind}");
        }
    }
    for kind in [2, 3, 5, 9, 11, 13, u32::MAX] {
        assert_eq!(driver.request(kind, 0, DATA, 512), (2, 1), "{kind}");
    }
    assert_eq!(driver.peek(DATA, 4096), [0x77; 4096]);
    assert_eq!(driver.device.disk().slice(0, SECTORS * 512), Some(&contents()[..]));
}

#[test]
fn a_request_may_be_cut_into_buffers_anywhere() {
    // A read: the header in pieces, one of them empty, and the status behind data in one buffer.
    let mut driver = Driver::new();
    driver.write_header(HEADER, IN, 2);
    driver.poke(DATA + 1024, &[UNTOUCHED; 2]);
    driver.describe(0, 5, HEADER, 3, NEXT, 1);
    driver.describe(0, 1, HEADER + 3, 0, NEXT, 6);
    driver.describe(0, 6, HEADER + 3, 13, NEXT, 0);
    driver.describe(0, 0, DATA, 513, NEXT | WRITE, 7);
    driver.describe(0, 7, DATA + 513, 512, WRITE, 0);
    driver.offer(0, 5);
    driver.notify().unwrap();
    assert_eq!(driver.used_bytes(0, 0), 1025);
    assert_eq!(driver.peek(DATA, 1026), [sectors(2, 2), vec![0, UNTOUCHED]].concat());

    // A write: data behind the header in one buffer, more of it in others, and the status behind an
    // empty one.
    driver.write_header(HEADER, OUT, 2);
    driver.poke(HEADER + 16, &[0x3c; 4]);
    driver.poke(DATA, &[0x3c; 1020]);
    driver.poke(STATUS, &[UNTOUCHED; 2]);
    driver.describe(0, 5, HEADER, 20, NEXT, 1);
    driver.describe(0, 1, DATA, 509, NEXT, 6);
    driver.describe(0, 6, DATA + 509, 511, NEXT, 0);
    driver.describe(0, 0, STATUS, 0, NEXT | WRITE, 7);
    driver.describe(0, 7, STATUS, 1, WRITE, 0);
    driver.offer(0, 5);
    driver.notify().unwrap();
    assert_eq!((driver.peek(STATUS, 2), driver.used_bytes(0, 1)), (vec![0, UNTOUCHED], 1));
    assert_eq!(driver.on_disk(1, 4), [sectors(1, 1), vec![0x3c; 1024], sectors(4, 1)].concat());
}

#[test]
fn requests_of_one_notification_are_done_in_order() {
    let mut driver = Driver::with_size(16);
    // Sector 9 goes to DATA, from there to sector 10, and from there to DATA + 0x1000.
    let requests = [(IN, 9, DATA), (OUT, 10, DATA), (IN, 10, DATA + 0x1000)];
    for (index, (kind, sector, address)) in (0_u16..).zip(requests) {
        let (header, status, head) = (HEADER + 16 * u64::from(index), STATUS + u64::from(index), 3 * index);
        driver.write_header(header, kind, sector);
        driver.poke(status, &[UNTOUCHED]);
        driver.describe(0, head.into(), header, 16, NEXT, head + 1);
        driver.describe(0, u64::from(head) + 1, address, 512, NEXT | if kind == OUT { 0 } else { WRITE }, head + 2);
        driver.describe(0, u64::from(head) + 2, status, 1, WRITE, 0);
        driver.offer_of(16, 0, head);
    }
    driver.notify().unwrap();
    assert_eq!(driver.used_idx(0), 3);
    assert_eq!(driver.peek(STATUS, 3), [0; 3]);
    assert_eq!(driver.on_disk(10, 1), sectors(9, 1));
    assert_eq!(driver.peek(DATA + 0x1000, 512), sectors(9, 1));
}

/// A request as long as a driver may make it that keeps to what the configuration says is done at
/// once.
#[test]
fn the_longest_request_of_the_configuration_is_one_step() {
    let mut driver = Driver::with_size(256);
    driver.write_header(HEADER, IN, 0);
    driver.describe(0, 0, HEADER, 16, NEXT, 1);
    for segment in 1..=254_u16 {
        driver.describe(0, segment.into(), DATA, 4096, NEXT | WRITE, segment + 1);
    }
    driver.describe(0, 255, STATUS, 1, WRITE, 0);
    driver.offer_of(256, 0, 0);
    driver.notify().unwrap();
    assert_eq!((driver.status(), driver.finish()), (0, 0), "seg_max buffers of size_max");
    assert_eq!(driver.peek(DATA, 4096), sectors(253 * 8, 8), "the last of them, as all are the same");
}

/// A driver that doesn't care about size_max gets its data, 1 MiB in a step.
#[test]
fn longer_requests_are_served_over_steps() {
    const BYTES: u32 = 1 << 20;
    for kind in [IN, OUT] {
        let mut driver = Driver::over(Ram::new(8 << 20), SIZE);
        let data = RAM_BASE + (2 << 20);
        driver.poke(data, &[0xa5; 5 << 20]);
        // One megabyte and a half in one buffer, then a short request, in one notification.
        let flags = NEXT | if kind == OUT { 0 } else { WRITE };
        for (head, at, sector, bytes) in [(0_u16, data, 8, BYTES * 3 / 2), (3, data + (4 << 20), 4088, 4096)] {
            let header = HEADER + 16 * u64::from(head);
            driver.write_header(header, kind, sector);
            driver.describe(0, head.into(), header, 16, NEXT, head + 1);
            driver.describe(0, u64::from(head) + 1, at, bytes, flags, head + 2);
            driver.describe(0, u64::from(head) + 2, STATUS + u64::from(head), 1, WRITE, 0);
            driver.offer(0, head);
        }
        driver.poke(STATUS, &[UNTOUCHED; 4]);
        driver.notify().unwrap();
        assert_eq!((driver.status(), driver.used_idx(0), driver.device.interrupts()), (UNTOUCHED, 0, false));
        assert_eq!(driver.finish(), 1);
        assert_eq!((driver.peek(STATUS, 4), driver.used_idx(0)), (vec![0, UNTOUCHED, UNTOUCHED, 0], 2));
        assert!(driver.device.interrupts());
        if kind == IN {
            assert_eq!(driver.used_bytes(0, 0), BYTES * 3 / 2 + 1);
            assert_eq!(driver.peek(data, u64::from(BYTES) * 3 / 2), sectors(8, 3072));
            assert_eq!(driver.peek(data + u64::from(BYTES) * 3 / 2, 1), [0xa5], "and no more");
            assert_eq!(driver.peek(data + (4 << 20), 4096), sectors(4088, 8));
        } else {
            assert_eq!(driver.used_bytes(0, 0), 1);
            assert_eq!(driver.on_disk(0, 8), sectors(0, 8));
            assert!(driver.on_disk(8, 3072).iter().all(|byte| *byte == 0xa5));
            assert_eq!(driver.on_disk(8 + 3072, 8), sectors(8 + 3072, 8));
        }
    }
}

/// What is left of a request is state, and a driver that changes it meanwhile harms itself alone.
#[test]
fn a_request_in_the_middle_is_saved_restored_and_cut_off() {
    let begun = || {
        let mut driver = Driver::over(Ram::new(8 << 20), SIZE);
        driver.offer_request(IN, 0, RAM_BASE + (2 << 20), 3 << 19);
        driver.notify().unwrap();
        assert!(driver.device.is_busy());
        driver
    };
    let mut driver = begun();
    let mut writer = StateWriter::default();
    driver.device.write_to(&mut writer);
    let state = writer.into_bytes();
    let disk = Disk::new(contents().len(), 0, &contents());
    driver.device = Blk::read_from(&mut StateReader::new(&state), disk).unwrap();
    assert_eq!((driver.finish(), driver.status()), (1, 0));
    assert_eq!(driver.peek(RAM_BASE + (2 << 20), 3 << 19), sectors(0, 3072));

    // Shorter than what has been moved already; and not at all a request.
    let mut driver = begun();
    driver.describe(0, 1, RAM_BASE + (2 << 20), 512, NEXT | WRITE, 2);
    assert_eq!((driver.finish(), driver.status()), (1, 1), "an I/O error");
    let mut driver = begun();
    driver.describe(0, 1, 0, 512, NEXT | WRITE, 2);
    assert_eq!(driver.device.work(&mut driver.ram), Err(BadRing { queue: 0, descriptor: Some(1) }));
    driver.assert_needs_reset(0);
    let mut driver = begun();
    driver.set(0x70, 0);
    assert_eq!((driver.finish(), driver.status()), (0, UNTOUCHED), "a reset ends it");
}

#[test]
fn a_chain_without_room_for_header_or_status_is_no_request() {
    // (bytes, flags) of the buffers.
    let chains: [&[(u32, u16)]; 5] =
        [&[(16, 0)], &[(15, 0), (1, WRITE)], &[(600, WRITE)], &[(16, 0), (512, 0)], &[(16, 0), (0, WRITE)]];
    for chain in chains {
        let mut driver = Driver::new();
        driver.write_header(HEADER, IN, 0);
        for (index, (bytes, flags)) in (0_u16..).zip(chain) {
            let next = if usize::from(index) + 1 < chain.len() { NEXT } else { 0 };
            driver.describe(0, u64::from(index) + 3, HEADER, *bytes, flags | next, index + 4);
        }
        driver.offer(0, 3);
        assert_eq!(driver.notify(), Err(BadRing { queue: 0, descriptor: Some(3) }), "{chain:?}");
        driver.assert_needs_reset(0);
    }
}

#[test]
fn hostile_descriptors_are_named() {
    let end = RAM_BASE + RAM_BYTES as u64;
    // (address, length, flags, next) of descriptor 1, behind the header, and which one is at fault.
    let cases = [
        (end - 10, 20, WRITE | NEXT, 2, 1),
        (0, 512, WRITE | NEXT, 2, 1),
        (u64::MAX, u32::MAX, WRITE | NEXT, 2, 1),
        (DATA, 512, WRITE | NEXT | 4, 2, 1),
        (DATA, 512, WRITE | NEXT, 0, 0),
        (DATA, 512, WRITE | NEXT, 3, 3),
        (DATA, 512, WRITE | NEXT, 1, 0),
        (DATA, 512, WRITE | NEXT, 8, 8),
        (DATA, 512, WRITE | NEXT, u16::MAX, u16::MAX),
    ];
    for (address, bytes, flags, next, descriptor) in cases {
        let mut driver = Driver::new();
        driver.write_header(HEADER, IN, 0);
        driver.describe(0, 0, HEADER, 16, NEXT, 1);
        driver.describe(0, 1, address, bytes, flags, next);
        driver.describe(0, 2, STATUS, 1, WRITE, 0);
        // What is to be read comes before what is to be written.
        driver.describe(0, 3, HEADER, 16, NEXT, 2);
        driver.offer(0, 0);
        let bad = BadRing { queue: 0, descriptor: Some(descriptor) };
        assert_eq!(driver.notify(), Err(bad), "{address:#x} {bytes} {flags} {next}");
        assert_eq!(driver.used_idx(0), 0);
        driver.assert_needs_reset(0);
    }
}

#[test]
fn hostile_rings_are_refused() {
    let ring = Err(BadRing { queue: 0, descriptor: None });
    let mut driver = Driver::new();
    driver.poke(Driver::available(0) + 2, &9_u16.to_le_bytes());
    assert_eq!(driver.notify(), ring, "more available than there are descriptors");
    driver.assert_needs_reset(0);

    for register in [0x90, 0xa0] {
        let mut driver = Driver::new();
        driver.set(0x44, 0);
        driver.set(register, 0x1000);
        driver.set(0x44, 1);
        driver.offer_request(IN, 0, DATA, 512);
        assert_eq!(driver.notify(), ring, "register {register:#x}");
    }
    for queue in [1, 2, u32::MAX] {
        let mut driver = Driver::new();
        driver.offer_request(IN, 0, DATA, 512);
        assert_eq!(driver.try_set(0x50, queue), Ok(()));
        assert_eq!(driver.status(), UNTOUCHED, "there is no queue {queue}");
    }
}

#[test]
fn data_over_the_rings_and_the_status_comes_to_an_end() {
    // Reads over the used ring, the available ring, the descriptors, the header, the status.
    for target in [Driver::used(0), Driver::available(0), Driver::descriptors(0), HEADER, STATUS - 100] {
        let mut driver = Driver::new();
        driver.offer_request(IN, 5, target, 4096);
        // Whatever it comes to, it comes to an end.
        let _ = driver.notify();
        let _ = driver.notify();
        assert_eq!(driver.device.disk().slice(0, SECTORS * 512), Some(&contents()[..]));
    }
}
