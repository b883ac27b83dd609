//! Sv39: random tables, and loads, stores and fetches through them, also across pages, and changes
//! of the tables.
//!
//! ```text
//!   root ─► [2] middle 0 ─► [1] leaves 0: the arena onto itself: code, data, tables
//!        └► others: middle 1, 2, 1 GiB pages ─► leaves 1 to 3, 2 MiB pages ─► data 4 to 6, code 7
//! ```
//! The page numbers within an address are those of the arena, so that a larger page maps the same
//! memory: 4 to 6 are data, 7 and 8 are code, 16 is unmapped.
//!
//! Each change of a table is followed by SFENCE.VMA: QEMU's translations aren't coherent, ours are.
//! Pages that are fetched from are not loaded from, because QEMU before 8.0 uses a load's
//! translation for a fetch that isn't permitted. Also left out: AMOs, whose faults have a load's
//! cause on QEMU; tables at unmapped addresses, which cause a page fault there and not an access
//! fault; and misaligned accesses to unmapped addresses, which report the aligned address.

use super::program::{ARENA, DATA_REGISTER, InitialState, Mode, NOWHERE, PAGE, TABLES};
use super::writer::Writer;
use crate::qemu::assembler::machine::MSTATUS;
use crate::qemu::assembler::{
    CSRRC, CSRRS, CSRRW, SFENCE_VMA, addi, control, csr, i_type, ld, opcode, r_type, s_type, sd,
};
use crate::random::Random;

const UNITS: u32 = 40;
const SATP: u32 = 0x180;

const VALID: u64 = 1;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;

const SUM: u64 = 1 << 18;
const MXR: u64 = 1 << 19;
const MPRV: u64 = 1 << 17;

/// The page of code that jumps to x1.
const CODE_PAGE: u64 = 7;
/// The root's used entries, without the arena's. The last two may be pages of 1 GiB. The first
/// entry stays zero: a fetch beyond the end of the code may read it, as the second half of an
/// instruction.
const ROOTS: [u64; 7] = [4, 5, 255, 256, 511, 3, 258];
/// The entries of a middle table; in a page of 1 GiB they select the arena.
const MIDDLES: [u64; 5] = [0, 1, 2, 3, 511];
/// The entries of a table of leaves: data, code, unmapped.
const LEAVES: [u64; 6] = [4, 5, 6, 7, 8, NOTHING];
const NOTHING: u64 = 16;

pub(super) fn write(writer: &mut Writer, initial: &mut InitialState) {
    let random = &mut writer.random;
    initial.satp = 8 << 60 | TABLES >> 12;
    initial.status |= u64::from(random.below(4)) << 18;
    initial.memory.push((ARENA + CODE_PAGE * PAGE, code_page()));
    let mut tables = vec![0; 8 * 512];
    fill(random, &mut tables, writer.mode);
    initial.memory.push((TABLES, tables));
    for _ in 0..UNITS {
        writer.unit(|writer| {
            prepare(writer);
            match writer.random.below(10) {
                0..3 => load(writer),
                3..6 => store(writer),
                6 | 7 => fetch(writer),
                8 => change(writer),
                _ => status(writer),
            }
        });
    }
}

/// Two zero bytes (reserved), C.JR x1 everywhere, and the first half of a longer JALR to x1.
fn code_page() -> Vec<u64> {
    let mut words = vec![0x8082_8082_8082_8082; 512];
    words[0] &= !0xffff;
    words[511] = words[511] & (u64::MAX >> 16) | 0x8067 << 48;
    words
}

fn entry(physical: u64, flags: u64) -> u64 {
    physical >> 12 << 10 | flags
}

fn table(number: u64) -> u64 {
    TABLES + number * PAGE
}

fn fill(random: &mut Random, tables: &mut [u64], mode: Mode) {
    let mut set =
        |table: u64, index: u64, value: u64| tables[usize::try_from(table * 512 + index).expect("few")] = value;
    set(0, 2, entry(table(1), VALID));
    set(1, 1, entry(table(4), VALID));
    for index in ROOTS {
        set(0, index, root(random, index));
    }
    for middle in 1..4 {
        for index in MIDDLES {
            if (middle, index) != (1, 1) {
                set(middle, index, middle_entry(random));
            }
        }
    }
    for leaves in 5..8 {
        for index in LEAVES {
            set(leaves, index, leaf(random, 0, index));
        }
    }
    let own = if mode == Mode::User { USER } else { 0 };
    let touched = random.pick(&[0, ACCESSED, ACCESSED | DIRTY]);
    for page in 0..16 {
        let flags = match page {
            0..4 => VALID | READ | EXECUTE | own | touched,
            4 => VALID | READ | WRITE | own | ACCESSED | DIRTY,
            5..8 => continue,
            _ => VALID | READ | WRITE | touched,
        };
        set(4, page, entry(ARENA + page * PAGE, flags));
    }
    for page in [5, 6, 7, NOTHING] {
        set(4, page, leaf(random, 0, page));
    }
}

/// An entry that points to a table, sometimes with reserved bits.
fn pointer(random: &mut Random, to: u64) -> u64 {
    let flags = match random.below(24) {
        0 => 0,
        1 => VALID | random.pick(&[USER, ACCESSED, DIRTY]),
        2 => VALID | 1 << (54 + random.below(10)),
        _ => VALID | u64::from(random.below(4)) << 8,
    };
    entry(to, flags)
}

fn root(random: &mut Random, index: u64) -> u64 {
    let large = index == 3 || index == 258;
    if large && random.one_in(2) {
        return leaf(random, 2, 0);
    }
    let to = table(1 + u64::from(random.below(3)));
    pointer(random, to)
}

fn middle_entry(random: &mut Random) -> u64 {
    if random.one_in(3) {
        return leaf(random, 1, 0);
    }
    let to = table(5 + u64::from(random.below(3)));
    pointer(random, to)
}

/// A leaf at `level`; at level 0 its index selects the pages it may map. Code is never writable.
fn leaf(random: &mut Random, level: u32, index: u64) -> u64 {
    let code = level == 0 && (index == CODE_PAGE || index == CODE_PAGE + 1);
    let permissions = if code {
        random.pick(&[EXECUTE, READ | EXECUTE, READ | EXECUTE, EXECUTE, READ, WRITE, WRITE | EXECUTE, 0])
    } else if level > 0 {
        random.pick(&[EXECUTE, READ | EXECUTE, READ, READ | WRITE, READ | WRITE, WRITE])
    } else {
        let some = [READ, READ | WRITE, READ | WRITE, EXECUTE, READ | EXECUTE, WRITE, WRITE | EXECUTE, 0];
        random.pick(&some)
    };
    let physical = match level {
        0 if code => ARENA + CODE_PAGE * PAGE,
        0 if index == NOTHING => NOWHERE | if random.one_in(2) { random.next_u64() >> 8 & (0xff << 48) } else { 0 },
        0 => ARENA + u64::from(4 + random.below(3)) * PAGE,
        1 => ARENA | if random.one_in(10) { PAGE << random.below(9) } else { 0 },
        _ => ARENA & !((1 << 30) - 1) | if random.one_in(10) { PAGE << random.below(18) } else { 0 },
    };
    let mut flags = permissions | u64::from(random.below(8)) << 5 | u64::from(random.below(4)) << 8;
    flags |= if random.one_in(16) { 0 } else { VALID };
    // If the second half of an access faults, QEMU has set the accessed bit of the first half's
    // page and we haven't; both are allowed.
    flags |= match index {
        CODE_PAGE => ACCESSED,
        4 | 5 => ACCESSED | DIRTY,
        _ => 0,
    };
    flags |= if random.one_in(2) { USER } else { 0 };
    flags |= if random.one_in(24) { 1 << (54 + random.below(10)) } else { 0 };
    entry(physical, flags)
}

/// An address in the page with that number, mapped or not.
fn address(writer: &mut Writer, page: u64, offset: u64) -> u64 {
    let random = &mut writer.random;
    if random.one_in(24) {
        // The upper bits don't repeat bit 38.
        return (1 << (39 + random.below(24))) ^ (ARENA + page * PAGE + offset);
    }
    let root = if random.one_in(8) { 2 } else { random.pick(&ROOTS) };
    let middle = if root == 3 || root == 258 || random.one_in(4) { 1 } else { random.pick(&MIDDLES) };
    // After an access with MPRV in a trap QEMU 7.2 keeps its translation, so the addresses of the
    // handler are left out.
    let middle = if (root, middle) == (2, 0) { 1 } else { middle };
    let upper = if root >= 256 { u64::MAX << 39 } else { 0 };
    upper | root << 30 | middle << 21 | page << 12 | offset
}

/// M-mode's own accesses aren't translated.
fn prepare(writer: &mut Writer) {
    if writer.mode == Mode::Machine {
        writer.code.constant(5, MPRV | 3 << 11);
        writer.code.word(csr(CSRRC, 0, MSTATUS, 5));
        let mode = u64::from(writer.random.below(2));
        let fields = writer.random.next_u64() & (SUM | MXR) | MPRV | mode << 11;
        writer.code.constant(5, fields);
    }
}

/// Makes M-mode's next accesses translated as another mode's.
fn borrow(writer: &mut Writer) {
    if writer.mode == Mode::Machine {
        writer.code.word(csr(CSRRS, 0, MSTATUS, 5));
    }
}

/// The address of data in a register; returns whether any width and alignment is allowed.
fn data(writer: &mut Writer, pointer: u32) -> bool {
    let (page, offset) = match writer.random.below(8) {
        0 => (NOTHING, u64::from(writer.random.below(512)) << 3),
        1 | 2 => (4 + u64::from(writer.random.below(2)), PAGE - 1 - u64::from(writer.random.below(8))),
        _ => (4 + u64::from(writer.random.below(3)), u64::from(writer.random.below(4088))),
    };
    let address = address(writer, page, offset);
    writer.code.constant(pointer, address);
    page != NOTHING
}

fn load(writer: &mut Writer) {
    let (pointer, rd) = (10, 11 + writer.random.below(4));
    data(writer, pointer);
    borrow(writer);
    let funct3 = writer.random.below(7);
    let word = if writer.random.one_in(6) {
        i_type(opcode::LOAD_FP, 2 + funct3 % 2, rd, pointer, 0)
    } else {
        i_type(opcode::LOAD, funct3, rd, pointer, 0)
    };
    writer.code.word(word);
}

fn store(writer: &mut Writer) {
    let (pointer, source) = (10, writer.source());
    data(writer, pointer);
    borrow(writer);
    let funct3 = writer.random.below(4);
    let word = if writer.random.one_in(6) {
        s_type(2 + funct3 % 2, pointer, source, 0) | opcode::STORE_FP
    } else {
        s_type(funct3, pointer, source, 0)
    };
    writer.code.word(word);
}

/// Jumps to a page of code, which jumps back; M-mode's fetches aren't translated.
fn fetch(writer: &mut Writer) {
    if writer.mode == Mode::Machine {
        return load(writer);
    }
    let over = writer.code.label();
    let offset = match writer.random.below(4) {
        0 => PAGE - 2,
        1 => 0,
        _ => 2 * u64::from(1 + writer.random.below(2046)),
    };
    let target = address(writer, CODE_PAGE, offset);
    writer.code.constant(10, target);
    writer.code.address(1, over);
    writer.code.word(i_type(opcode::JALR, 0, 0, 10, 0));
    writer.code.place(over);
}

/// Changes an entry of a table, and executes SFENCE.VMA. U-mode can't.
fn change(writer: &mut Writer) {
    let random = &mut writer.random;
    let (place, value) = match random.below(6) {
        0 => {
            let index = random.pick(&ROOTS);
            (table(0) + 8 * index, root(random, index))
        }
        1 => {
            let (middle, index) = (2 + u64::from(random.below(2)), random.pick(&MIDDLES));
            (table(middle) + 8 * index, middle_entry(random))
        }
        _ => {
            let (leaves, index) = (5 + u64::from(random.below(3)), random.pick(&LEAVES));
            (table(leaves) + 8 * index, leaf(random, 0, index))
        }
    };
    writer.code.constant(10, place);
    writer.code.constant(11, value);
    writer.code.words(&[ld(12, 10, 0), sd(11, 10, 0), SFENCE_VMA]);
}

/// Sets SUM and MXR, or switches translation off for a while and reads the tables.
fn status(writer: &mut Writer) {
    if writer.mode == Mode::Supervisor && writer.random.one_in(2) {
        let offset = writer.data_offset();
        writer.code.words(&[csr(CSRRW, 10, SATP, 0), SFENCE_VMA, ld(11, DATA_REGISTER, offset)]);
        writer.code.words(&[csr(CSRRW, 0, SATP, 10), SFENCE_VMA]);
    }
    let fields = writer.random.next_u64() & (SUM | MXR);
    writer.code.constant(10, SUM | MXR);
    writer.code.word(csr(CSRRC, 0, control::STATUS, 10));
    writer.code.constant(10, fields);
    writer.code.word(csr(CSRRS, 0, control::STATUS, 10));
    let page = writer.random.below(8);
    writer.code.constant(10, TABLES + u64::from(page) * PAGE);
    writer.code.words(&[addi(12, 0, 0), ld(11, 10, 8), r_type(opcode::OP, 4, 0, 12, 12, 11)]);
}
