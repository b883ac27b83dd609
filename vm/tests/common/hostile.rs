//! Hostile guests, whose drivers break the rules of their devices, and inputs at any time.

use super::{
    BLK, ECALL, NET, NOP, RAM, RNG, RTC, SEED, SEPC, SIE, SRET, SSTATUS, STVEC, TIME, UART, WFI, addi, csrrs, csrrw,
    elf_of_bytes, jal, li, load, r_type, small_config, store,
};
use vm::{Event, MachineConfig, PACKET_BYTES_MAX};

const RAM_END: u64 = RAM + (4 << 20);
const PLIC: u64 = 0x0c00_0000;
const CLINT: u64 = 0x200_0000;
/// (device, number) of each queue: two of the network device, one of the disk, and one of the
/// entropy device.
const QUEUES: [(u64, u64); 4] = [(NET, 0), (NET, 1), (BLK, 0), (RNG, 0)];
/// Offsets of descriptor table, available and used ring of each queue, which a guest mostly uses.
const RINGS: [[u64; 3]; 4] = [
    [0x3_0000, 0x3_2000, 0x3_3000],
    [0x3_1000, 0x3_2800, 0x3_4000],
    [0x3_5000, 0x3_6000, 0x3_7000],
    [0x3_9000, 0x3_a000, 0x3_b000],
];
/// Offset of the headers of requests to the disk.
const HEADERS: u64 = 0x3_8000;
/// One past the last of all this.
const TABLES_END: u64 = 0x3_c000;
pub(crate) const DISK_BYTES: u64 = 32 << 10;
const DATA: u64 = RAM + 0x10_0000;

/// SplitMix64, written out so that a seed gives the same guest in every release.
pub(crate) struct Random {
    pub(crate) state: u64,
    /// How rarely a guest breaks its own rings: one that always does stops early.
    pub(crate) care: u64,
}

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn slips(&mut self, n: u64) -> bool {
        self.one_in(n * self.care)
    }

    fn register(&mut self) -> u32 {
        u32::try_from(self.below(32)).unwrap()
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// An address that is likely to make an access or a request fail.
    fn address(&mut self) -> u64 {
        let edge = self.pick(&[
            RAM,
            RAM_END,
            UART,
            UART + 8,
            NET,
            NET + 0x100,
            BLK,
            BLK + 0x118,
            BLK + 0x1000,
            PLIC,
            PLIC + 0x60_0000,
            CLINT,
            CLINT + 0x4000,
            CLINT + 0xbff8,
            RTC,
            RTC + 0x24,
            RNG + 0x100,
        ]);
        match self.below(6) {
            0 => self.next(),
            1 => u64::MAX - self.below(16),
            2 => DATA + self.below(0x1000),
            3 => RAM + 0x3_0000 + self.below(TABLES_END - 0x3_0000),
            _ => edge.wrapping_add(self.below(32)).wrapping_sub(16),
        }
    }

    /// A value for a register of a device.
    fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.next() >> 32,
            1 => self.pick(&[u64::from(u32::MAX), 1 << 31, 0xffff, 0x8000, 256, 257]),
            _ => self.below(17),
        }
    }
}

/// A guest under construction: its code, and how many buffers each queue has been offered.
struct Guest<'a> {
    random: &'a mut Random,
    code: Vec<u32>,
    available: [u64; QUEUES.len()],
}

impl Guest<'_> {
    fn write(&mut self, address: u64, value: u64, funct3: u32) {
        self.code.extend([li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat());
    }

    fn register(&mut self, device: u64, register: u64, value: u64) {
        self.write(device + register, value, 2);
    }

    /// Sets a queue up, mostly as a correct driver would.
    fn queue(&mut self, queue: usize) {
        let (device, number) = QUEUES[queue];
        self.register(device, 0x30, number);
        if self.random.one_in(3) {
            self.register(device, 0x44, 0);
        }
        let usual = if device == BLK { 32 } else { 8 };
        let size = if self.random.slips(8) { self.random.value() } else { self.random.pick(&[usual, usual, 256]) };
        self.register(device, 0x38, size);
        for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(RINGS[queue]) {
            let address = if self.random.slips(20) { self.random.address() } else { RAM + part };
            self.register(device, register, address & 0xffff_ffff);
            self.register(device, register + 4, address >> 32);
        }
        self.register(device, 0x44, 1);
    }

    /// Sets a device up, mostly as a correct driver would.
    fn device(&mut self, device: u64) {
        for (register, value) in [(0x70, 0), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.register(device, register, value);
        }
        for queue in (0..QUEUES.len()).filter(|queue| QUEUES[*queue].0 == device) {
            self.queue(queue);
            self.available[queue] = 0;
            self.write(RAM + RINGS[queue][1] + 2, 0, 1);
        }
        self.register(device, 0x70, 15);
    }

    fn offer(&mut self, queue: usize) {
        let more = if self.random.slips(40) { self.random.below(70_000) } else { self.random.below(5) };
        self.offer_more(queue, more);
    }

    fn offer_more(&mut self, queue: usize, more: u64) {
        self.available[queue] += more;
        self.write(RAM + RINGS[queue][1] + 2, self.available[queue] & 0xffff, 1);
    }

    /// Offers a few requests to the disk and notifies it.
    fn disk_requests(&mut self) {
        let more = if self.random.slips(60) { self.random.below(10) } else { self.random.below(3) };
        self.offer_more(2, more);
        self.register(BLK, 0x50, 0);
    }

    fn firmware_call(&mut self) {
        let extension = self.random.pick(&[0x4442_434e, 0x4442_434e, 0x4442_434e, 0x5449_4d45, 0, 1, 0x10, u64::MAX]);
        let arguments = [
            self.random.pick(&[0, 1, 256, 5000, u64::MAX, 1 << 63]),
            self.random.address(),
            self.random.pick(&[0, 0, 0, u64::MAX]),
        ];
        for (register, value) in (10..).zip(arguments) {
            self.code.extend(li(register, value));
        }
        let function = self.random.below(4);
        self.code.extend([li(16, function), li(17, extension), vec![ECALL]].concat());
    }

    fn access(&mut self) {
        let (address, rd) = (self.random.address(), self.random.register());
        let width = u32::try_from(self.random.below(8)).unwrap();
        let offset = i32::try_from(self.random.below(16)).unwrap() - 8;
        let atomic = self.random.pick(&[0b00010, 0b00011, 0b00001, 0b00000, 0b11100]) << 2;
        let instruction = match self.random.below(3) {
            0 => load(width, rd, 5, offset),
            1 => store(width & 3, rd, 5, offset),
            _ => r_type(0x2f, 2 + (width & 1), atomic, rd, 5, if atomic == 0b00010 << 2 { 0 } else { 6 }),
        };
        self.code.extend(li(5, address));
        self.code.push(instruction);
    }

    fn gadget(&mut self) {
        match self.random.below(24) {
            0..=2 => self.offer(1),
            3..=4 => self.offer(0),
            5..=7 => {
                let queue = self.random.below(3);
                self.register(NET, 0x50, queue);
            }
            8 => {
                let queue = self.random.pick(&[0, 1, 2, 3]);
                self.queue(queue);
            }
            9 if self.random.one_in(3) => {
                let device = self.random.pick(&[NET, BLK, RNG]);
                self.device(device);
            }
            10 if self.random.slips(1) => {
                let (register, value) = (self.random.below(0x41) * 4, self.random.value());
                let width = self.random.pick(&[2, 2, 2, 2, 0, 1, 3]);
                let device = self.random.pick(&[NET, BLK, RNG]);
                self.write(device + register, value, width);
            }
            11 => {
                let register = self.random.pick(&[4, 40, 0x1000, 0x2080, 0x2084, 0x20_1000, 0x20_1004]);
                let value = self.random.value();
                self.write(PLIC + register, value, 2);
            }
            12 => {
                let (register, value) = (self.random.below(10), self.random.below(256));
                self.write(UART + register, value, 0);
            }
            13 => self.firmware_call(),
            14 => {
                let (csr, value) = (self.random.pick(&[SIE, SSTATUS, STVEC + 0x3c, 0x140]), self.random.next());
                self.code.extend(li(6, value));
                self.code.push(csrrw(0, csr, 6));
            }
            15 => {
                let register = self.random.register();
                self.code.push(self.random.pick(&[WFI, WFI, csrrs(register, TIME, 0), csrrw(7, SEED, 0)]));
            }
            16 | 17 => self.access(),
            18 => {
                let word = self.random.next().to_le_bytes();
                self.code.push(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            }
            19 | 20 => self.disk_requests(),
            21 => {
                self.offer(3);
                self.register(RNG, 0x50, 0);
            }
            22 => {
                let (register, value) = (self.random.below(10) * 4, self.random.value());
                self.write(RTC + register, value, 2);
            }
            _ => self.code.push(NOP),
        }
    }
}

/// A descriptor of a request to the disk, which has three: header, data, status.
fn disk_descriptor(random: &mut Random, index: u64) -> [u8; 16] {
    let data = DATA + random.below(0x8000);
    let length = random.pick(&[512, 512, 1024, 4096, 20, 0]);
    let (address, bytes, flags) = match index % 3 {
        0 => (RAM + HEADERS + 16 * index, 16, 1),
        1 if random.one_in(2) => (data, length, 3),
        // Writes code to the disk: other memory is mostly zero.
        1 => (RAM + random.below(0x8000), length, 1),
        _ => (data, 1, 2),
    };
    let address = if random.slips(120) { random.address() } else { address };
    let bytes: u32 = if random.slips(120) { random.pick(&[0, 15, 2 << 20, u32::MAX]) } else { bytes };
    let flags = if random.slips(120) { flags ^ 2 } else { flags };
    let next = if random.slips(120) { random.below(0x1_0000) } else { index + 1 };
    packed(address, bytes, flags, u16::try_from(next).unwrap())
}

fn packed(address: u64, bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    descriptor
}

/// The header of a request to the disk: kind and sector.
fn header(random: &mut Random) -> [u8; 16] {
    let kind: u32 = random.pick(&[0, 0, 0, 1, 1, 1, 1, 4, 8, u32::MAX]);
    let sector = if random.one_in(8) { random.next() } else { random.below(DISK_BYTES / 512 + 1) };
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn descriptor(random: &mut Random, queue: usize, index: u64) -> [u8; 16] {
    let address = if random.slips(60) { random.address() } else { DATA + random.below(0x8000) };
    let bytes: u32 = if random.slips(60) { u32::MAX } else { random.pick(&[0, 1, 12, 26, 72, 1526, 1527, 2000]) };
    // What the device writes: received packets and random bytes.
    let right = u16::from(QUEUES[queue].1 == 0) * 2;
    let direction = if random.slips(60) { 2 - right } else { right };
    let chained = u16::from(random.one_in(3) && index % 8 < 7);
    let next = if random.slips(30) { random.below(0x1_0000) } else { index + 1 };
    let next = u16::try_from(next).unwrap();
    packed(address, bytes, direction | chained, next)
}

/// The configuration for hostile guests, with a small disk.
pub(crate) fn config() -> MachineConfig {
    MachineConfig { disk_bytes: DISK_BYTES, ..small_config() }
}

/// The image of a hostile guest.
pub(crate) fn image(random: &mut Random) -> Vec<u8> {
    // The handler skips the instruction that trapped.
    let handler = [csrrs(30, SEPC, 0), addi(30, 30, 4), csrrw(0, SEPC, 30), SRET];
    let set_up = [li(31, RAM + 4), vec![csrrw(0, STVEC, 31)]].concat();
    let mut guest =
        Guest { random, code: [vec![jal(0, 20)], handler.to_vec(), set_up].concat(), available: [0; QUEUES.len()] };
    guest.device(NET);
    guest.device(BLK);
    guest.device(RNG);
    (0..4).for_each(|_| guest.disk_requests());
    while guest.code.len() < 10_000 {
        guest.gadget();
    }
    let Guest { random, code, .. } = guest;
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(usize::try_from(TABLES_END).unwrap(), 0);
    let mut put = |place: u64, value: &[u8]| {
        let place = usize::try_from(place).unwrap();
        bytes[place..place + value.len()].copy_from_slice(value);
    };
    for (queue, [table, available, _]) in RINGS.into_iter().enumerate() {
        for index in 0..256 {
            let is_disk = QUEUES[queue].0 == BLK;
            let descriptor = if is_disk { disk_descriptor(random, index) } else { descriptor(random, queue, index) };
            put(table + 16 * index, &descriptor);
            let head = if is_disk && !random.slips(60) { 3 * random.below(10) } else { random.below(8) };
            put(available + 4 + 2 * index, &u16::try_from(head).unwrap().to_le_bytes());
        }
    }
    (0..256).for_each(|index| put(HEADERS + 16 * index, &header(random)));
    elf_of_bytes(&bytes)
}

/// Events for a hostile guest, each with its instruction count.
pub(crate) fn events(random: &mut Random, limit: u64) -> Vec<(u64, Event)> {
    let (mut count, mut number) = (0, 0);
    let mut events = Vec::new();
    while count < limit {
        count += random.below(300);
        let event = match random.below(17) {
            0..=8 => {
                number += 1 + random.below(3);
                let length = random.below(PACKET_BYTES_MAX as u64 + 1);
                Event::Packet { number, packet: random.bytes(length) }
            }
            9 | 10 => {
                let length = random.below(200);
                Event::ConsoleInput { bytes: random.bytes(length) }
            }
            11 => Event::TimerInterrupt,
            12 => Event::ClockRead { ticks: random.next() },
            13 => Event::WallClock { ns: random.next() },
            14 => Event::Alarm,
            15 => Event::RandomBytes { bytes: vec![9; 64] },
            _ => Event::Entropy { bits: 7 },
        };
        events.push((count, event));
    }
    events
}
