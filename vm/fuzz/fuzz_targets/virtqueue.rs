//! Drivers that do anything to the network device and the disk, with any rings and descriptors.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::hostile;
use common::{BLK, NET, RAM, elf_of_bytes, jal, li, store};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vm::{Event, Exit, InstructionCount, Machine};

/// Where the rings are: whatever is written there comes from the input.
const RINGS: u64 = 0x1_0000;

/// What a driver does.
#[derive(Arbitrary, Debug)]
enum Action {
    /// Sets a device up in order; its queue is of this size.
    SetUp {
        disk: bool,
        size: u8,
    },
    /// Writes a register.
    Register {
        disk: bool,
        register: u8,
        value: u32,
    },
    /// Makes descriptors available up to here.
    Offer {
        queue: u8,
        index: u16,
    },
    Notify {
        disk: bool,
        queue: u8,
    },
    /// A packet arrives.
    Packet {
        length: u16,
    },
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Whether the guest begins by setting both devices up.
    begins: bool,
    /// Address in RAM, length, flags and next of descriptors.
    descriptors: Vec<(u32, u16, u8, u8)>,
    /// Heads, and whatever else a ring may begin with.
    available: [u16; 16],
    actions: Vec<Action>,
    data: &'a [u8],
}

fn write(code: &mut Vec<u32>, address: u64, value: u64, funct3: u32) {
    code.extend([li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat());
}

/// Descriptor table, available ring and used ring of each queue.
fn parts(queue: u64) -> [u64; 3] {
    [0, 0x800, 0xc00].map(|part| RAM + RINGS + 0x1000 * queue + part)
}

fn set_up(code: &mut Vec<u32>, device: u64, size: u8) {
    for (register, value) in [(0x70, 0), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(code, device + register, value, 2);
    }
    for (number, queue) in if device == BLK { vec![(0, 2)] } else { vec![(0, 0), (1, 1)] } {
        write(code, device + 0x30, number, 2);
        write(code, device + 0x38, 1 << (size % 6), 2);
        for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts(queue)) {
            write(code, device + register, part, 2);
        }
        write(code, device + 0x44, 1, 2);
    }
    write(code, device + 0x70, 15, 2);
}

fn device(disk: bool) -> u64 {
    if disk { BLK } else { NET }
}

fuzz_target!(|input: Input<'_>| {
    let mut code = Vec::new();
    let mut packets = Vec::new();
    if input.begins {
        set_up(&mut code, NET, 5);
        set_up(&mut code, BLK, 5);
    }
    for action in input.actions.iter().take(40) {
        match *action {
            Action::SetUp { disk, size } => set_up(&mut code, device(disk), size),
            Action::Register { disk, register, value } => {
                write(&mut code, device(disk) + 4 * u64::from(register), value.into(), 2);
            }
            Action::Offer { queue, index } => write(&mut code, parts(u64::from(queue % 3))[1] + 2, index.into(), 1),
            Action::Notify { disk, queue } => write(&mut code, device(disk) + 0x50, u64::from(queue % 4), 2),
            Action::Packet { length } => packets.push((code.len() as u64, usize::from(length % 1515))),
        }
    }
    code.push(jal(0, 0));
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(bytes.len() as u64 <= RINGS, "{} bytes of code", bytes.len());
    bytes.resize(0x1_4000, 0);
    for (index, (address, length, flags, next)) in input.descriptors.iter().enumerate().take(64) {
        // Mostly in RAM, sometimes just outside.
        let address = RAM + u64::from(address % (5 << 20));
        let flags = u64::from(flags % 8) | u64::from(*next) << 16;
        for queue in 0..3 {
            let place = usize::try_from(RINGS + 0x1000 * queue).unwrap() + 16 * index;
            bytes[place..place + 8].copy_from_slice(&address.to_le_bytes());
            bytes[place + 8..place + 16].copy_from_slice(&(u64::from(*length) | flags << 32).to_le_bytes());
        }
    }
    for (index, head) in input.available.iter().enumerate() {
        for queue in 0..3 {
            let place = usize::try_from(RINGS + 0x1000 * queue).unwrap() + 0x804 + 2 * index;
            bytes[place..place + 2].copy_from_slice(&head.to_le_bytes());
        }
    }
    let data = &input.data[..input.data.len().min(0x1000)];
    bytes[0x1_3000..0x1_3000 + data.len()].copy_from_slice(data);

    let image = elf_of_bytes(&bytes);
    let [mut fast, mut plain] = [(); 2].map(|()| Machine::new(&hostile::config(), &image).unwrap());
    let end = code.len() as u64 + 10;
    packets.push((end, 60));
    for (number, (at, length)) in (1..).zip(packets) {
        loop {
            let limit = InstructionCount(at);
            let exit = fast.run(limit);
            assert_eq!(exit, plain.run_plain(limit));
            if exit != Exit::Output {
                break;
            }
            while let Some(output) = fast.take_output() {
                assert_eq!(plain.take_output(), Some(output));
            }
        }
        let event = Event::Packet { number, packet: vec![7; length] };
        assert_eq!(fast.apply(&event), plain.apply(&event));
        while let Some(output) = fast.take_output() {
            assert_eq!(plain.take_output(), Some(output));
        }
        assert_eq!(fast.digest(), plain.digest());
    }
});
