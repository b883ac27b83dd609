//! Drivers that do anything to the network device, the disk and the entropy device, with any rings
//! and descriptors; legacy ones, which don't accept VERSION_1, among them.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::hostile;
use common::{BLK, NET, RAM, RNG, elf_of_bytes, jal, li, store};
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
        device: u8,
        size: u8,
        /// Without VERSION_1.
        legacy: bool,
    },
    /// Writes a register.
    Register {
        device: u8,
        register: u8,
        value: u32,
    },
    /// Makes descriptors available up to here.
    Offer {
        queue: u8,
        index: u16,
    },
    Notify {
        device: u8,
        queue: u8,
    },
    /// A packet arrives.
    Packet {
        length: u16,
    },
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Whether the guest begins by setting all devices up.
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

/// The devices, and (number, index in memory) of the queues of each.
const DEVICES: [(u64, &[(u64, u64)]); 3] = [(NET, &[(0, 0), (1, 1)]), (BLK, &[(0, 2)]), (RNG, &[(0, 3)])];
const QUEUES: u64 = 4;

fn set_up(code: &mut Vec<u32>, index: u8, size: u8, legacy: bool) {
    let (device, queues) = DEVICES[usize::from(index) % DEVICES.len()];
    for (register, value) in [(0x70, 0), (0x24, 1), (0x20, u64::from(!legacy)), (0x70, 11)] {
        write(code, device + register, value, 2);
    }
    for (number, queue) in queues.iter().copied() {
        write(code, device + 0x30, number, 2);
        write(code, device + 0x38, 1 << (size % 6), 2);
        for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts(queue)) {
            write(code, device + register, part, 2);
        }
        write(code, device + 0x44, 1, 2);
    }
    write(code, device + 0x70, 15, 2);
}

fn device(index: u8) -> u64 {
    DEVICES[usize::from(index) % DEVICES.len()].0
}

/// Takes the outputs of both machines, and gives the entropy device of both what it waits for:
/// `false` unless `exit` is one of these.
fn served(exit: Exit, machines: [&mut Machine; 2]) -> bool {
    let [fast, plain] = machines;
    match exit {
        Exit::Output => {
            while let Some(output) = fast.take_output() {
                assert_eq!(plain.take_output(), Some(output));
            }
        }
        Exit::RandomBytesNeeded => {
            let bytes = vec![0x5e; fast.random_bytes_needed()];
            let event = Event::RandomBytes { bytes };
            assert_eq!((fast.apply(&event), plain.apply(&event)), (Ok(()), Ok(())));
        }
        _ => return false,
    }
    true
}

fuzz_target!(|input: Input<'_>| {
    let mut code = Vec::new();
    let mut packets = Vec::new();
    if input.begins {
        (0..3).for_each(|device| set_up(&mut code, device, 5, false));
    }
    for action in input.actions.iter().take(36) {
        match *action {
            Action::SetUp { device, size, legacy } => set_up(&mut code, device, size, legacy),
            Action::Register { device: index, register, value } => {
                write(&mut code, device(index) + 4 * u64::from(register), value.into(), 2);
            }
            Action::Offer { queue, index } => {
                write(&mut code, parts(u64::from(queue) % QUEUES)[1] + 2, index.into(), 1)
            }
            Action::Notify { device: index, queue } => write(&mut code, device(index) + 0x50, u64::from(queue % 4), 2),
            Action::Packet { length } => packets.push((code.len() as u64, usize::from(length % 1515))),
        }
    }
    code.push(jal(0, 0));
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(bytes.len() as u64 <= RINGS, "{} bytes of code", bytes.len());
    bytes.resize(0x1_5000, 0);
    for (index, (address, length, flags, next)) in input.descriptors.iter().enumerate().take(64) {
        // Mostly in RAM, sometimes just outside.
        let address = RAM + u64::from(address % (5 << 20));
        let flags = u64::from(flags % 8) | u64::from(*next) << 16;
        for queue in 0..QUEUES {
            let place = usize::try_from(RINGS + 0x1000 * queue).unwrap() + 16 * index;
            bytes[place..place + 8].copy_from_slice(&address.to_le_bytes());
            bytes[place + 8..place + 16].copy_from_slice(&(u64::from(*length) | flags << 32).to_le_bytes());
        }
    }
    for (index, head) in input.available.iter().enumerate() {
        for queue in 0..QUEUES {
            let place = usize::try_from(RINGS + 0x1000 * queue).unwrap() + 0x804 + 2 * index;
            bytes[place..place + 2].copy_from_slice(&head.to_le_bytes());
        }
    }
    let data = &input.data[..input.data.len().min(0x1000)];
    bytes[0x1_4000..0x1_4000 + data.len()].copy_from_slice(data);

    let image = elf_of_bytes(&bytes);
    let [mut fast, mut plain] = [(); 2].map(|()| Machine::new(&hostile::config(), &image).unwrap());
    let end = code.len() as u64 + 10;
    packets.push((end, 60));
    for (number, (at, length)) in (1..).zip(packets) {
        loop {
            let limit = InstructionCount(at);
            let exit = fast.run(limit);
            assert_eq!(exit, plain.run_plain(limit));
            if !served(exit, [&mut fast, &mut plain]) {
                break;
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
