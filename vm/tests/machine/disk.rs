//! The disk as machine state: a guest's writes are in digests and snapshots, and the same on every
//! replica.

use crate::common::{
    self, BLK, FINISHER, NET, RAM, RAM_PAGES, STVEC, WFI, drive, elf, elf_of_bytes, li, load, machine, restored,
    run_by, run_on, small_config, store, take_pages,
};
use vm::{
    DeviceFault, Exit, Image, InstructionCount, LoadError, Machine, MachineConfig, PAGE_BYTES, PageCopy, Restoration,
    RestoreError, StopReason, VirtioDevice,
};

const PLIC: u64 = 0x0c00_0000;
const DISK_BYTES: u64 = 64 << 10;
const DISK_PAGES: u64 = DISK_BYTES / PAGE_BYTES as u64;

const IN: u32 = 0;
const OUT: u32 = 1;

/// Offsets in RAM of the descriptor table, the available and the used ring, and the requests'
/// headers, statuses and data.
const TABLE: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const HEADERS: u64 = 0x1_3000;
const STATUSES: u64 = 0x1_4000;
const DATA: u64 = 0x2_0000;
const DATA_BYTES: u64 = 0x1_0000;

/// ([`IN`] or [`OUT`], first sector, offset of the data in [`DATA`], bytes)
type Request = (u32, u64, u64, u32);

fn config() -> MachineConfig {
    MachineConfig { disk_bytes: DISK_BYTES, ..small_config() }
}

fn write(address: u64, value: u64, width: u32) -> Vec<u32> {
    [li(5, address), li(6, value), vec![store(width, 6, 5, 0)]].concat()
}

fn blk(register: u64, value: u64) -> Vec<u32> {
    write(BLK + register, value, 2)
}

/// The byte at `offset` in [`DATA`] before the guest runs.
fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).to_le_bytes()[0]
}

fn patterns(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(pattern).collect()
}

/// A guest that makes these requests one after the other, claims the interrupt of the last into
/// x20, and powers off.
fn image(requests: &[Request]) -> Vec<u8> {
    image_with(requests, &[])
}

/// Like [`image`], and executes `then` after the last request.
fn image_with(requests: &[Request], then: &[u32]) -> Vec<u8> {
    let mut code = [blk(0x70, 3), blk(0x24, 1), blk(0x20, 1), blk(0x70, 11), blk(0x38, 256)].concat();
    for (register, part) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED)] {
        code.extend(blk(register, RAM + part));
    }
    code.extend([blk(0x44, 1), blk(0x70, 15), write(PLIC + 8, 1, 2), write(PLIC + 0x2080, 1 << 2, 2)].concat());
    for count in 1..=requests.len() as u64 {
        code.extend([write(RAM + AVAILABLE + 2, count, 1), blk(0x50, 0)].concat());
    }
    code.extend(then);
    code.extend([li(5, PLIC + 0x20_1004), vec![load(2, 20, 5, 0)], write(FINISHER, 0x5555, 2)].concat());

    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(bytes.len() as u64 <= TABLE && requests.len() <= 64);
    bytes.resize(usize::try_from(DATA).unwrap(), 0);
    bytes.extend(patterns(0, DATA_BYTES));
    let mut put = |offset: u64, value: &[u8]| {
        let offset = usize::try_from(offset).unwrap();
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    for (index, (kind, sector, data, length)) in (0_u16..).zip(requests) {
        let (head, place) = (3 * index, u64::from(index));
        let (header, status) = (HEADERS + 16 * place, STATUSES + place);
        put(header, &kind.to_le_bytes());
        put(header + 8, &sector.to_le_bytes());
        put(status, &[0xee]);
        put(AVAILABLE + 4 + 2 * place, &head.to_le_bytes());
        let written = if *kind == OUT { 0 } else { 2 };
        let parts = [(header, 16, 1), (DATA + data, *length, 1 | written), (status, 1, 2)];
        for (descriptor, (address, length, flags)) in (head..).zip(parts) {
            let place = TABLE + 16 * u64::from(descriptor);
            put(place, &(RAM + address).to_le_bytes());
            put(place + 8, &length.to_le_bytes());
            put(place + 12, &u16::to_le_bytes(flags));
            put(place + 14, &(descriptor + 1).to_le_bytes());
        }
    }
    elf_of_bytes(&bytes)
}

fn guest(requests: &[Request]) -> Machine {
    Machine::new(&config(), &image(requests)).unwrap()
}

/// Writes to the first, the second and the last page, a read of sectors never written, a read of
/// written ones, and a write out of range.
const REQUESTS: [Request; 6] = [
    (OUT, 1, 0x100, 1024),
    (OUT, 7, 0x3000, 1024),
    (OUT, DISK_BYTES / 512 - 1, 7, 512),
    (IN, 64, 0x5000, 4096),
    (IN, 1, 0x8000, 512 * 8),
    (OUT, DISK_BYTES / 512 - 1, 7, 1024),
];

/// What [`REQUESTS`] leave on the disk.
fn disk_after_requests() -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    disk[0x200..0x600].copy_from_slice(&patterns(0x100, 1024));
    disk[0xe00..0x1200].copy_from_slice(&patterns(0x3000, 1024));
    let last = disk.len() - 512;
    disk[last..].copy_from_slice(&patterns(7, 512));
    disk
}

fn run_to_end(machine: &mut Machine) {
    assert_eq!(run_on(machine), Exit::Stopped(StopReason::PowerOff { code: 0 }));
}

#[test]
fn a_guest_reads_what_it_wrote() {
    let mut machine = guest(&REQUESTS);
    assert_eq!(machine.disk(0, DISK_BYTES), Some(&vec![0; usize::try_from(DISK_BYTES).unwrap()][..]));
    run_to_end(&mut machine);
    let disk = disk_after_requests();
    assert_eq!(machine.disk(0, DISK_BYTES), Some(&disk[..]));
    assert_eq!(machine.disk(1, DISK_BYTES), None);
    assert_eq!(machine.memory(RAM + STATUSES, 7), Some(&[0, 0, 0, 0, 0, 1, 0][..]));
    assert_eq!(machine.memory(RAM + DATA + 0x5000, 4096), Some(&[0; 4096][..]));
    assert_eq!(machine.memory(RAM + DATA + 0x8000, 4096), Some(&disk[0x200..0x1200]));
    assert_eq!(machine.registers()[20], 2, "the disk's interrupt source");
}

#[test]
fn a_disk_begins_with_what_the_image_has_for_it() {
    let kernel = image(&[(IN, 0, 0, 4096), (OUT, 0, 0x1000, 512)]);
    let contents = patterns(0x4000, 3000);
    let packed = Image { kernel: &kernel, initrd: None, disk: Some(&contents) }.pack();
    let mut machine = Machine::new(&config(), &packed).unwrap();
    assert_ne!(machine.digest(), Machine::new(&config(), &kernel).unwrap().digest());
    assert_eq!(restored(&config(), &mut machine).digest(), machine.digest());
    run_to_end(&mut machine);
    assert_eq!(machine.memory(RAM + DATA, 4096), Some(&[&contents[..], &[0; 1096]].concat()[..]));
    assert_eq!(machine.disk(0, 3000), Some(&[&patterns(0x1000, 512), &contents[512..]].concat()[..]));

    let too_small = MachineConfig { disk_bytes: 0, ..config() };
    assert!(matches!(Machine::new(&too_small, &packed), Err(LoadError::Config(_))));
}

#[test]
fn a_request_is_done_within_its_step_however_the_run_is_sliced() {
    let mut whole = guest(&REQUESTS);
    run_to_end(&mut whole);
    for slice in [1, 7] {
        let mut sliced = guest(&REQUESTS);
        drive(&mut sliced, u64::MAX, slice);
        assert_eq!(sliced.digest(), whole.digest(), "slices of {slice}");
    }
    let mut stepped = guest(&REQUESTS);
    let mut writes = 0;
    let mut before = stepped.disk(0, DISK_BYTES).unwrap().to_vec();
    while !matches!(run_by(&mut stepped, 1), Exit::Stopped(_)) {
        let now = stepped.disk(0, DISK_BYTES).unwrap();
        writes += usize::from(now != before);
        before = now.to_vec();
    }
    assert_eq!(writes, 3, "no write is seen half done");
}

#[test]
fn a_snapshot_anywhere_has_the_disk() {
    let requests = &REQUESTS[..3];
    let mut original = guest(requests);
    run_to_end(&mut original);
    for at in (0..=original.instruction_count().0).step_by(3) {
        let mut snapshotted = guest(requests);
        drive(&mut snapshotted, at, u64::MAX);
        let mut restored = restored(&config(), &mut snapshotted);
        assert_eq!(restored.digest(), snapshotted.digest(), "at {at}");
        assert_eq!(restored.disk(0, DISK_BYTES), snapshotted.disk(0, DISK_BYTES), "at {at}");
        run_to_end(&mut restored);
        assert_eq!(restored.digest(), original.digest(), "at {at}");
    }
}

#[test]
fn pages_of_the_disk_follow_those_of_ram_and_are_taken_again_when_written() {
    let mut machine = guest(&REQUESTS);
    machine.begin_copy(PageCopy::Backup);
    machine.begin_copy(PageCopy::Log);
    assert!(take_pages(&mut machine, PageCopy::Backup).iter().all(|page| *page < RAM_PAGES), "the disk is empty");
    run_to_end(&mut machine);
    let on_disk = |pages: Vec<u64>| -> Vec<u64> { pages.into_iter().filter(|page| *page >= RAM_PAGES).collect() };
    let written = [RAM_PAGES, RAM_PAGES + 1, RAM_PAGES + DISK_PAGES - 1];
    let (index, page) = machine.take_page(PageCopy::Backup, RAM_PAGES).unwrap();
    let page = page.to_vec();
    assert_eq!((index, Some(&page[..])), (RAM_PAGES, machine.disk(0, 4096)));
    let left = machine.pages_to_take(PageCopy::Backup);
    let taken_then = take_pages(&mut machine, PageCopy::Backup);
    assert_eq!((taken_then.len(), on_disk(taken_then)), (left, written[1..].to_vec()));
    assert_eq!(on_disk(take_pages(&mut machine, PageCopy::Log)), written, "one copy doesn't take the pages of another");
    machine.begin_copy(PageCopy::Log);
    assert_eq!(
        on_disk(take_pages(&mut machine, PageCopy::Log)),
        written,
        "what isn't zero is taken from the beginning on"
    );
    assert_eq!(machine.take_page(PageCopy::Backup, RAM_PAGES + DISK_PAGES), None);
}

#[test]
fn the_digest_sees_the_disk() {
    let mut machine = guest(&REQUESTS);
    run_to_end(&mut machine);
    machine.begin_copy(PageCopy::Backup);
    let mut pages = Vec::new();
    while let Some((index, page)) = machine.take_page(PageCopy::Backup, 0) {
        pages.push((index, page.to_vec()));
    }
    // Restores the machine with its pages changed, left out (`None`) or moved by `change`.
    let restored = |change: &dyn Fn(u64, &mut Vec<u8>) -> Option<u64>| {
        let mut restoration = Restoration::new(&config()).unwrap();
        for (index, page) in &pages {
            let mut page = page.clone();
            if let Some(index) = change(*index, &mut page) {
                restoration.put_pages(index, &page).unwrap();
            }
        }
        restoration.finish(&machine.state()).unwrap().digest()
    };
    let unchanged = restored(&|index, _| Some(index));
    let flipped = restored(&|index, page| {
        page[4095] ^= u8::from(index == RAM_PAGES + DISK_PAGES - 1);
        Some(index)
    });
    let lost = restored(&|index, _| (index != RAM_PAGES).then_some(index));
    let moved = restored(&|index, _| Some(if index == RAM_PAGES { index + 3 } else { index }));
    let digest = machine.digest();
    assert_eq!(unchanged, digest);
    assert!([flipped, lost, moved].iter().all(|other| *other != digest));
}

#[test]
fn pages_that_follow_each_other_may_come_together_across_the_end_of_ram() {
    let mut restoration = Restoration::new(&config()).unwrap();
    let pages: Vec<u8> = (1..=4).flat_map(|byte| [byte; PAGE_BYTES]).collect();
    restoration.put_pages(RAM_PAGES - 2, &pages).unwrap();
    restoration.put_pages(RAM_PAGES + DISK_PAGES - 1, &[9; PAGE_BYTES]).unwrap();
    let machine_pages = RAM_PAGES + DISK_PAGES;
    for (first, pages) in [(machine_pages, 1), (machine_pages - 1, 2), (u64::MAX, 1), (RAM_PAGES, 17)] {
        let refused = restoration.put_pages(first, &vec![7; pages * PAGE_BYTES]);
        assert_eq!(refused, Err(RestoreError::NoSuchPages { first, pages, machine_pages }));
    }
    let state = guest(&REQUESTS).state();
    let restored = restoration.finish(&state).unwrap();
    assert_eq!(restored.memory(RAM + (4 << 20) - 8192, 8192), Some(&pages[..8192]));
    assert_eq!(restored.disk(0, 3 * 4096), Some(&[&pages[8192..], &[0; 4096]].concat()[..]));
    assert_eq!(restored.disk(DISK_BYTES - 4096, 4096), Some(&[9; 4096][..]));
}

#[test]
fn a_state_with_another_disk_is_refused() {
    let with = |disk_bytes| MachineConfig { disk_bytes, ..config() };
    let states = [0, 4096, DISK_BYTES].map(|bytes| Machine::new(&with(bytes), &image(&[])).unwrap().state());
    for (index, bytes) in [0, 4096, DISK_BYTES].into_iter().enumerate() {
        for (other, state) in states.iter().enumerate() {
            let restored = Restoration::new(&with(bytes)).unwrap().finish(state);
            let refused = matches!(restored, Err(RestoreError::Impossible { what: "the disk has another size", .. }));
            assert_eq!(refused, index != other, "{bytes} bytes, state {other}");
        }
    }
    for bytes in [1, 512, 4097, (1 << 30) + 4096, u64::MAX, u64::MAX - 4095] {
        assert!(matches!(Machine::new(&with(bytes), &image(&[])), Err(LoadError::Config(_))), "{bytes}");
        assert!(matches!(Restoration::new(&with(bytes)), Err(LoadError::Config(_))), "{bytes}");
    }
    assert!(Restoration::new(&with(1 << 30)).is_ok());
}

#[test]
fn without_a_disk_its_slot_holds_no_device() {
    let read = |offset: i32, rd| vec![load(2, rd, 5, offset)];
    let code = [
        li(5, BLK),
        read(0, 10),
        read(4, 11),
        read(8, 12),
        read(0x70, 13),
        read(0x100, 14),
        blk(0x70, 3),
        read(0x70, 15),
    ];
    let code = code.concat();
    let mut machine = machine(&code);
    run_by(&mut machine, code.len() as u64);
    assert_eq!(machine.registers()[10..=15], [0x7472_6976, 2, 0, 0, 0, 0], "virtio, version 2, no device");
    assert_eq!(machine.pc(), RAM + 4 * code.len() as u64, "no access has trapped");
    assert_eq!(machine.disk(0, 0), None);
    for (address, width) in [(BLK, 3), (NET + 0x8000, 2)] {
        let handler =
            [li(5, RAM + 0x800), vec![common::csrrw(0, STVEC, 5)], li(5, address), vec![load(width, 10, 5, 0)]];
        let mut machine = Machine::new(&small_config(), &elf(&handler.concat())).unwrap();
        run_by(&mut machine, handler.concat().len() as u64);
        assert_eq!(machine.pc(), RAM + 0x800, "an access fault at {address:#x}");
    }
}

/// The first request's data is outside RAM: the device stops until its driver resets it.
#[test]
fn a_drivers_mistake_is_reported_once_and_the_guest_goes_on() {
    let mut guest = guest(&[(IN, 0, 0x4000_0000, 512), (OUT, 0, 0, 512)]);
    run_to_end(&mut guest);
    let fault = DeviceFault { device: VirtioDevice::Disk, queue: 0, descriptor: Some(1) };
    assert_eq!((guest.take_device_fault(), guest.take_device_fault()), (Some(fault), None));
    assert_eq!(fault.to_string(), "virtio-blk queue 0: bad descriptor 1");
    assert_eq!(guest.memory(RAM + STATUSES, 2), Some(&[0xee; 2][..]), "no request is served any more");
    assert_eq!(guest.registers()[20], 2, "the configuration interrupt");
    let mut restored = restored(&config(), &mut guest);
    assert_eq!((restored.digest(), restored.take_device_fault()), (guest.digest(), None));
}

/// A read of 2.5 MiB behind a short write, for a machine of [`long_config`].
const LONG: [Request; 2] = [(OUT, 0, 0x100, 1024), (IN, 0, 0xe_0000, 5 << 19)];
/// Where the read's data goes.
const LONG_DATA: u64 = RAM + DATA + 0xe_0000;

fn long_config() -> MachineConfig {
    MachineConfig { disk_bytes: 4 << 20, ..small_config() }
}

fn long_guest(then: &[u32]) -> Machine {
    Machine::new(&long_config(), &image_with(&LONG, then)).unwrap()
}

/// The status of the last request, and the first byte of its data.
fn seen(machine: &Machine) -> (u8, u8) {
    let byte = |address| machine.memory(address, 1).unwrap()[0];
    (byte(RAM + STATUSES + 1), byte(LONG_DATA))
}

#[test]
fn a_long_request_is_done_over_steps_however_the_machine_is_run() {
    let mut whole = long_guest(&[]);
    run_to_end(&mut whole);
    assert_eq!(whole.memory(LONG_DATA, 1024), Some(&patterns(0x100, 1024)[..]));
    let mut plain = long_guest(&[]);
    assert_eq!(plain.run_plain(InstructionCount(u64::MAX)), Exit::Stopped(StopReason::PowerOff { code: 0 }));
    assert_eq!(plain.digest(), whole.digest());

    // Runs step by step, and restores a snapshot after each step with the read in service.
    let mut stepped = long_guest(&[]);
    let mut in_service = 0;
    while seen(&stepped) != (0, pattern(0x100)) {
        assert_eq!(run_by(&mut stepped, 1), Exit::LimitReached);
        if seen(&stepped) == (0xee, pattern(0x100)) {
            in_service += 1;
            let mut restored = restored(&long_config(), &mut stepped);
            assert_eq!(restored.digest(), stepped.digest());
            run_to_end(&mut restored);
            assert_eq!(restored.digest(), whole.digest());
        }
    }
    assert_eq!(
        in_service, 2,
        "one megabyte with the notification, one with the step behind it, and the rest with the next"
    );
    run_to_end(&mut stepped);
    assert_eq!(stepped.digest(), whole.digest());

    let mut about = long_guest(&[]);
    while about.run_about(about.instruction_count().plus(3)) == Exit::LimitReached {}
    assert_eq!(about.digest(), whole.digest());
}

/// Sleep doesn't advance the count, so a device with work left keeps its guest awake.
#[test]
fn a_guest_does_not_sleep_while_a_request_is_in_service() {
    let mut machine = long_guest(&[WFI, WFI]);
    assert_eq!(run_on(&mut machine), Exit::WaitForInterrupt);
    assert_eq!(seen(&machine).0, 0, "done");
    let restored = restored(&long_config(), &mut machine).digest();
    assert_eq!(restored, machine.digest());
}
