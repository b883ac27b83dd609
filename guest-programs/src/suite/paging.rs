//! Sv39: translation, permissions, page faults.

use super::checker::Checker;
use super::probe::{Seen, probe};
use crate::println;
use core::arch::asm;
use riscv::register::{satp, sstatus};

const PAGE_BYTES: usize = 4096;
const SV39: usize = 8 << 60;

const VALID: usize = 1;
const READ: usize = 1 << 1;
const WRITE: usize = 1 << 2;
const EXECUTE: usize = 1 << 3;
const USER: usize = 1 << 4;
/// Accessed and dirty, set in all leaves because a hart may set them or leave that to a fault.
const ACCESSED_DIRTY: usize = 3 << 6;

const INSTRUCTION_PAGE_FAULT: usize = 12;
const LOAD_PAGE_FAULT: usize = 13;
const STORE_PAGE_FAULT: usize = 15;

/// RAM, mapped to itself by one leaf of 1 GiB.
const RAM: usize = 0x8000_0000;
/// Address of the test's pages; nothing else is in that GiB.
const TEST_REGION: usize = 0xc000_0000;
/// The first 2 MiB of the region have single pages; the next 2 MiB have one leaf.
const SUPERPAGE: usize = TEST_REGION + 0x20_0000;
const BROKEN_SUPERPAGE: usize = TEST_REGION + 0x40_0000;
/// The lowest address whose upper bits don't equal bit 38, as Sv39 requires.
const NOT_CANONICAL: usize = 1 << 38;

#[repr(align(4096))]
struct Page<T>(T);

type Table = Page<[usize; 512]>;

static mut ROOT: Table = Page([0; 512]);
static mut MIDDLE: Table = Page([0; 512]);
static mut LEAVES: Table = Page([0; 512]);
static mut FRAMES: Page<[[u32; PAGE_BYTES / 4]; 2]> = Page([[0; PAGE_BYTES / 4]; 2]);

/// Permissions of the test region's single pages in their order; all map the same frame.
const PERMISSIONS: [(&str, usize); 8] = [
    ("---", 0),
    ("r--", VALID | READ),
    ("rw-", VALID | READ | WRITE),
    ("r-x", VALID | READ | EXECUTE),
    ("--x", VALID | EXECUTE),
    ("-w- (reserved)", VALID | WRITE),
    ("-wx (reserved)", VALID | WRITE | EXECUTE),
    ("rwxu", VALID | READ | WRITE | EXECUTE | USER),
];

/// `ret`, the frame's first word, so that a fetch that succeeds returns.
const RETURN: u32 = 0x0000_8067;
const OTHER_WORD: u32 = 0x1234_5678;

pub(super) fn run(checker: &mut Checker) {
    build_tables();
    let value = SV39 | (address_of(&raw const ROOT) / PAGE_BYTES);
    // SAFETY: RAM is mapped to itself, readable, writable and executable.
    unsafe { set_satp(value) };
    if satp::read().bits() != value {
        println!("paging: no Sv39");
        return;
    }
    check_permissions(checker);
    check_superpages(checker);
    check_page_crossing(checker);
    check_remapping(checker);
    // SAFETY: RAM has the same addresses without translation.
    unsafe { set_satp(0) };
}

fn address_of<T>(pointer: *const T) -> usize {
    pointer.addr()
}

/// # Safety
/// Code and stack must have the same addresses under the new value.
unsafe fn set_satp(value: usize) {
    // SAFETY: passed on to the caller.
    unsafe { asm!("csrw satp, {}", "sfence.vma", in(reg) value, options(nostack)) };
}

/// The physical page number of an address, at its position in a page-table entry.
fn page_number(physical: usize) -> usize {
    (physical / PAGE_BYTES) << 10
}

fn leaf(physical: usize, permissions: usize) -> usize {
    page_number(physical) | permissions | ACCESSED_DIRTY
}

fn frame(index: usize) -> usize {
    address_of(&raw const FRAMES) + index * PAGE_BYTES
}

/// Maps page `page` of the test region to a frame. The hart may still cache the old translation.
fn map(page: usize, physical: usize, permissions: usize) {
    let entry = if permissions == 0 { 0 } else { leaf(physical, permissions) };
    // SAFETY: only this module changes the tables, on the only thread.
    unsafe { (&raw mut LEAVES.0[page]).write_volatile(entry) };
}

fn flush() {
    // SAFETY: only discards cached translations.
    unsafe { asm!("sfence.vma", options(nostack)) };
}

fn build_tables() {
    let middle = address_of(&raw const MIDDLE);
    let leaves = address_of(&raw const LEAVES);
    let everything = VALID | READ | WRITE | EXECUTE;
    // SAFETY: only this module uses tables and frames, on the only thread.
    unsafe {
        ROOT.0[RAM >> 30] = leaf(RAM, everything);
        ROOT.0[TEST_REGION >> 30] = page_number(middle) | VALID;
        MIDDLE.0[0] = page_number(leaves) | VALID;
        MIDDLE.0[1] = leaf(frame(0) & !0x1f_ffff, everything);
        MIDDLE.0[2] = leaf((frame(0) & !0x1f_ffff) + PAGE_BYTES, everything);
        FRAMES.0[0][0] = RETURN;
        FRAMES.0[1][0] = OTHER_WORD;
    }
    for (page, (_, permissions)) in PERMISSIONS.into_iter().enumerate() {
        map(page, frame(0), permissions);
    }
}

/// Which of load, store and fetch succeed at an address: a letter for each, or `-` for a page fault
/// with that address in `stval`.
fn accesses(checker: &mut Checker, what: &str, address: usize) -> [u8; 3] {
    // The last byte of the first word is zero, so that the store changes nothing.
    let last_byte = address + 3;
    // Each access has an empty TLB, because QEMU before 8.0 uses a load's entry for a fetch that
    // isn't permitted.
    let probe_flushed = |access: fn(usize) -> Option<Seen>, address| {
        flush();
        access(address)
    };
    let outcomes = [
        (b'r', LOAD_PAGE_FAULT, address, probe_flushed(|address| probe!("lw a0, 0(a0)", address).1, address)),
        (b'w', STORE_PAGE_FAULT, last_byte, probe_flushed(|address| probe!("sb zero, 0(a0)", address).1, last_byte)),
        (b'x', INSTRUCTION_PAGE_FAULT, address, probe_flushed(|address| probe!("jalr ra, 0(a0)", address).1, address)),
    ];
    outcomes.map(|(letter, fault, target, seen)| {
        let Some(seen) = seen else { return letter };
        let access = char::from(letter);
        checker.check(format_args!("{what}: {access}: cause"), seen.cause as u64, fault as u64);
        checker.check(format_args!("{what}: {access}: stval"), seen.value as u64, target as u64);
        b'-'
    })
}

fn check_accesses(checker: &mut Checker, what: &str, address: usize, expected: &str) {
    let actual = accesses(checker, what, address);
    let actual = core::str::from_utf8(&actual).unwrap_or_default();
    println!("paging: {what}: {actual}");
    checker.check(format_args!("{what}: {expected}"), u64::from(actual == expected), 1);
}

fn check_permissions(checker: &mut Checker) {
    let expected = ["---", "r--", "rw-", "r-x", "--x", "---", "---", "---"];
    for (page, ((name, _), expected)) in PERMISSIONS.into_iter().zip(expected).enumerate() {
        check_accesses(checker, name, TEST_REGION + page * PAGE_BYTES, expected);
    }
    // SAFETY: permits more accesses, and no code relies on faults.
    unsafe { sstatus::set_mxr() };
    check_accesses(checker, "--x with MXR", TEST_REGION + 4 * PAGE_BYTES, "r-x");
    // SAFETY: as it was before.
    unsafe { sstatus::clear_mxr() };
    // SAFETY: as for MXR.
    unsafe { sstatus::set_sum() };
    check_accesses(checker, "rwxu with SUM", TEST_REGION + 7 * PAGE_BYTES, "rw-");
    // SAFETY: as it was before.
    unsafe { sstatus::clear_sum() };
    check_accesses(checker, "unmapped GiB", 0, "---");
    check_accesses(checker, "not canonical", NOT_CANONICAL, "---");
}

fn check_superpages(checker: &mut Checker) {
    check_accesses(checker, "2 MiB page", SUPERPAGE + (frame(0) & 0x1f_ffff), "rwx");
    check_accesses(checker, "misaligned 2 MiB page", BROKEN_SUPERPAGE, "---");
}

/// An access across the boundary to an unmapped page faults with that page's address, and has no
/// effect.
fn check_page_crossing(checker: &mut Checker) {
    const FIRST: usize = 10;
    let boundary = TEST_REGION + (FIRST + 1) * PAGE_BYTES;
    map(FIRST, frame(0), VALID | READ | WRITE);
    flush();
    let faulted = |seen: Option<Seen>| seen.map(|seen| (seen.cause, seen.value));
    let (_, load) = probe!("ld a0, 0(a0)", boundary - 4);
    checker.check("load over the end", u64::from(faulted(load) == Some((LOAD_PAGE_FAULT, boundary))), 1);
    let (_, store) = probe!("sd a0, 0(a0)", boundary - 4);
    checker.check("store over the end", u64::from(faulted(store) == Some((STORE_PAGE_FAULT, boundary))), 1);
    // SAFETY: the page before the boundary is mapped.
    let last_word = unsafe { ((boundary - 4) as *const u32).read_volatile() };
    checker.check("nothing stored before the end", u64::from(last_word), 0);

    // The same across a boundary between two pages whose frames are in the opposite order.
    map(FIRST, frame(1), VALID | READ | WRITE);
    map(FIRST + 1, frame(0), VALID | READ | WRITE);
    flush();
    let (_, store) = probe!("sd a0, 0(a0)", boundary - 3);
    checker.check("store over a boundary", u64::from(store.is_none()), 1);
    let stored = (boundary - 3).to_le_bytes();
    // SAFETY: only this module uses the frames.
    let (low, high) = unsafe {
        let frames = (&raw const FRAMES.0).cast::<u8>();
        (frames.add(2 * PAGE_BYTES - 3).cast::<[u8; 3]>().read(), frames.cast::<[u8; 5]>().read())
    };
    checker.check("both halves stored", u64::from(low[..] == stored[..3] && high[..] == stored[3..]), 1);
}

/// SFENCE.VMA makes the hart see a changed table.
fn check_remapping(checker: &mut Checker) {
    const PAGE: usize = 20;
    let address = (TEST_REGION + PAGE * PAGE_BYTES) as *const u32;
    // SAFETY: both frames are this module's.
    unsafe { (&raw mut FRAMES.0[0][0]).write_volatile(RETURN) };
    for (physical, word) in [(frame(0), RETURN), (frame(1), OTHER_WORD), (frame(0), RETURN)] {
        map(PAGE, physical, VALID | READ);
        flush();
        // SAFETY: the page has just been mapped.
        let seen = unsafe { address.read_volatile() };
        checker.check("load after a remapping", u64::from(seen), u64::from(word));
    }
}
