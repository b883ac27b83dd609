//! What Miri is to see of the unsafe code, in programs of a few instructions and a few pages of
//! RAM. Whether the fast path does the right thing is tested at length elsewhere; here it is held
//! against the plain interpreter by the way.

use super::Fast;
use crate::bus::Bus;
use crate::config::BootMode;
use crate::hart::Hart;
use crate::isa::address::GuestPhysAddr;
use crate::ram::pages::PAGE_BYTES;
use crate::ram::{RAM_BASE, Ram};
use crate::state::StateWriter;
use alloc::boxed::Box;
use alloc::vec::Vec;

const PAGE: u64 = PAGE_BYTES as u64;
const SATP: u32 = 0x180;
const MSTATUS: u32 = 0x300;
const MPRV_TO_SUPERVISOR: u64 = 1 << 17 | 1 << 11;

fn i_type(opcode: u32, funct3: u32, rd: u32, rs1: u32, immediate: i32) -> u32 {
    immediate.cast_unsigned() << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

fn addi(rd: u32, rs1: u32, immediate: i32) -> u32 {
    i_type(0x13, 0, rd, rs1, immediate)
}

fn load(rd: u32, rs1: u32, offset: i32) -> u32 {
    i_type(0x03, 3, rd, rs1, offset)
}

fn store(funct3: u32, rs2: u32, rs1: u32, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (offset & 0x1f) << 7 | 0x23
}

fn branch_if_different(rs1: u32, rs2: u32, offset: i32) -> u32 {
    let o = offset.cast_unsigned();
    (o >> 12 & 1) << 31
        | (o >> 5 & 0x3f) << 25
        | rs2 << 20
        | rs1 << 15
        | 1 << 12
        | (o >> 1 & 0xf) << 8
        | (o >> 11 & 1) << 7
        | 0x63
}

fn jal(rd: u32, offset: i32) -> u32 {
    let o = offset.cast_unsigned();
    (o >> 20 & 1) << 31 | (o >> 1 & 0x3ff) << 21 | (o >> 11 & 1) << 20 | (o >> 12 & 0xff) << 12 | rd << 7 | 0x6f
}

/// A hart and its bus, at the start of RAM in M-mode.
struct Pair {
    hart: Hart,
    bus: Bus,
    fast: Fast,
}

impl Pair {
    /// With `code` at offsets in RAM, and registers.
    fn new(pages: usize, code: &[(u64, &[u32])], registers: &[(usize, u64)]) -> Self {
        let mut bus = Bus::new(Ram::new(pages * PAGE_BYTES), None, [2, 0, 0, 0, 0, 1], BootMode::Bare);
        for (offset, words) in code {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bus.ram.write(GuestPhysAddr(RAM_BASE + offset), &bytes).expect("code is in RAM");
        }
        let mut hart = Hart::new(BootMode::Bare, RAM_BASE, 0, None);
        for (register, value) in registers {
            hart.x[*register] = *value;
        }
        Self { hart, bus, fast: Fast::new() }
    }

    fn run_fast(&mut self, until: u64) {
        while self.hart.count < until {
            self.fast.run(&mut self.hart, &mut self.bus, until);
            if self.hart.count < until {
                assert_eq!(self.hart.step(&mut self.bus), None);
            }
        }
    }

    fn run_plain(&mut self, until: u64) {
        while self.hart.count < until {
            assert_eq!(self.hart.step(&mut self.bus), None);
        }
    }

    fn state(&mut self) -> (Vec<u8>, u128) {
        let mut writer = StateWriter::default();
        self.hart.write_to(&mut writer);
        let (pages, contents) = self.bus.ram.paged();
        (writer.into_bytes(), pages.digest(contents))
    }
}

/// Runs what `make` makes by both ways, the fast one in slices, and compares at the end. Gives the
/// fast one.
fn both(make: impl Fn() -> Pair, steps: u64, slice: u64) -> Pair {
    let (mut fast, mut plain) = (make(), make());
    while fast.hart.count() < steps {
        let until = steps.min(fast.hart.count() + slice);
        fast.run_fast(until);
    }
    plain.run_plain(steps);
    assert_eq!(fast.state(), plain.state());
    fast
}

/// A loop over two pages of data: loads, stores, and straight code over the end of a page.
fn summing() -> Pair {
    let start = [jal(0, 0xff0)];
    let across = [
        load(6, 5, 0),
        addi(7, 7, 3),
        store(3, 7, 5, 8),
        store(0, 7, 5, -3),
        // Here is the page's end.
        load(8, 5, 5),
        addi(5, 5, 248),
        branch_if_different(5, 9, -24),
        addi(5, 9, -8 * 248),
        jal(0, -0x1010),
    ];
    let data = RAM_BASE + 2 * PAGE + 16;
    Pair::new(5, &[(0, &start), (0xff0, &across)], &[(5, data), (9, data + 8 * 248)])
}

#[test]
fn loads_stores_and_jumps_over_pages() {
    for slice in [1, 7, 1000] {
        both(summing, 120, slice);
    }
}

#[test]
fn machines_may_be_moved_and_looked_at_between_runs() {
    let mut plain = summing();
    plain.run_plain(90);
    let mut fast = summing();
    fast.run_fast(30);
    let mut fast = Box::new(fast);
    let _ = fast.state();
    fast.run_fast(60);
    let Pair { hart, bus, fast } = *fast;
    let mut fast = Pair { hart, bus, fast };
    fast.run_fast(90);
    assert_eq!(fast.state(), plain.state());
}

#[test]
fn code_that_is_written_while_it_runs_is_decoded_again() {
    // Each turn writes another constant into the instruction behind the store.
    let code = [
        addi(10, 10, 0),
        i_type(0x13, 1, 6, 10, 20),
        i_type(0x13, 6, 6, 6, 0x13 | 7 << 7),
        store(2, 6, 5, 16),
        addi(7, 0, 0),
        addi(10, 10, 1),
        jal(0, -24),
    ];
    for slice in [1, 1000] {
        let fast = both(|| Pair::new(2, &[(0, &code)], &[(5, RAM_BASE)]), 7 * 10, slice);
        assert_eq!(fast.hart.x[7], 9, "the newest instruction");
    }
}

#[test]
fn pages_of_code_are_dropped_when_there_are_too_many() {
    let page = [addi(5, 5, 1), store(3, 5, 6, 0), jal(0, 0xff8)];
    let last = [addi(5, 5, 1), jal(0, -0x5004)];
    let mut code: Vec<(u64, &[u32])> = (0..5).map(|index| (index * PAGE, &page[..])).collect();
    code.push((5 * PAGE, &last));
    assert!(code.len() > super::code::PAGES_MAX, "more pages than are kept");
    for slice in [5, 1000] {
        both(|| Pair::new(7, &code, &[(6, RAM_BASE + 6 * PAGE)]), 17 * 6, slice);
    }
}

/// Loads and stores as the supervisor by way of a gigapage, among them one to the table itself.
#[test]
fn tables_that_are_written_again_and_again_use_up_all_numbers() {
    const TABLE: u64 = RAM_BASE + PAGE;
    let entry = RAM_BASE >> 2 | 0xcf;
    let code = [
        i_type(0x73, 1, 0, 6, SATP.cast_signed()),
        i_type(0x73, 1, 0, 7, MSTATUS.cast_signed()),
        load(9, 5, 24),
        store(3, 8, 10, 0),
        store(3, 8, 5, 16),
        addi(8, 8, 0),
        jal(0, -16),
    ];
    let make = || {
        let registers =
            [(5, TABLE), (6, 8 << 60 | TABLE >> 12), (7, MPRV_TO_SUPERVISOR), (8, entry), (10, RAM_BASE + 2 * PAGE)];
        let mut pair = Pair::new(3, &[(0, &code)], &registers);
        pair.bus.ram.store(GuestPhysAddr(TABLE + 16), entry.to_le_bytes()).expect("the table is in RAM");
        pair
    };
    // Three numbers of 511 each time.
    both(make, 2 + 5 * 200, 1000);
}

#[test]
fn caches_that_were_never_used_or_outlive_their_ram_are_dropped() {
    drop(summing());
    let mut pair = summing();
    pair.run_fast(50);
    let Pair { hart: _, bus, fast } = pair;
    drop(bus);
    drop(fast);
}
