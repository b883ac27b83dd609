//! Loops of one construct each.

use crate::common::{
    ECALL, RAM, SATP, SCAUSE, SEPC, SRET, SSCRATCH, SSTATUS, STVEC, addi, amo, branch, csrrs, csrrw, elf, elf_of_bytes,
    i_type, jal, jalr, li, load, r_type, store,
};

/// Where the loops have their data, behind all code.
pub(crate) const DATA: u64 = RAM + 0x10_0000;

const OP_IMM: u32 = 0x13;
const OP: u32 = 0x33;
const OP_32: u32 = 0x3b;

/// Times that a body comes before the loop's jump.
const COPIES: usize = 16;

/// The constructs, by name, and an image of each.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("alu", alu()),
        ("loads_stores", loads_stores()),
        ("branches", branches()),
        ("indirect_jumps", indirect_jumps()),
        ("calls", calls()),
        ("multiply_divide", multiply_divide()),
        ("compressed", compressed()),
        ("atomics", atomics()),
        ("user_environment_call", user_environment_call()),
        ("illegal_instruction", illegal_instruction()),
        ("firmware_call", firmware_call()),
        ("csr", csr()),
        ("page_table_switch", page_table_switch()),
    ]
}

/// `setup`, and then [`COPIES`] of `body` for ever.
fn looped(setup: &[u32], body: &[u32]) -> Vec<u8> {
    let body = body.repeat(COPIES);
    let back = 4 * i32::try_from(body.len()).unwrap();
    elf(&[setup, &body, &[jal(0, -back)]].concat())
}

fn data_setup() -> Vec<u32> {
    [li(5, DATA), li(6, 0x0123_4567_89ab_cdef), li(7, 3)].concat()
}

pub(crate) fn alu() -> Vec<u8> {
    let body = [
        addi(8, 8, 5),
        r_type(OP, 0, 0, 9, 8, 6),            // add
        r_type(OP, 4, 0, 10, 9, 8),           // xor
        i_type(OP_IMM, 1, 11, 10, 7),         // slli
        r_type(OP, 3, 0, 12, 11, 9),          // sltu
        r_type(OP_32, 0, 0x20, 13, 11, 12),   // subw
        i_type(OP_IMM, 5, 14, 13, 0x400 | 9), // srai
        i_type(OP_IMM, 7, 15, 14, 0x7f),      // andi
    ];
    looped(&data_setup(), &body)
}

fn loads_stores() -> Vec<u8> {
    let body = [
        store(3, 6, 5, 0),
        load(3, 8, 5, 0),
        store(2, 8, 5, 72),
        load(6, 9, 5, 72), // lwu
        store(1, 9, 5, 130),
        load(1, 10, 5, 130),
        store(0, 10, 5, 257),
        load(4, 11, 5, 257), // lbu
    ];
    looped(&data_setup(), &body)
}

/// One that is taken every other time, one never, one always.
fn branches() -> Vec<u8> {
    let body = [
        addi(8, 8, 1),
        i_type(OP_IMM, 7, 9, 8, 1), // andi
        branch(0, 9, 0, 8),
        addi(10, 10, 1),
        branch(1, 0, 0, 8),
        branch(4, 0, 7, 8),
        addi(10, 10, 1),
    ];
    looped(&data_setup(), &body)
}

/// 128 blocks that each load the address of the next, which is never the one behind.
fn indirect_jumps() -> Vec<u8> {
    const BLOCKS: u64 = 128;
    const STRIDE: u64 = 37;
    let setup = li(5, DATA);
    let first = RAM + 4 * setup.len() as u64;
    let mut code = setup;
    for block in 0..BLOCKS {
        code.extend([load(3, 6, 5, i32::try_from(8 * block).unwrap()), jalr(0, 6, 0)]);
    }
    let mut image: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(usize::try_from(DATA - RAM).unwrap(), 0);
    for block in 0..BLOCKS {
        image.extend((first + 8 * ((block + STRIDE) % BLOCKS)).to_le_bytes());
    }
    elf_of_bytes(&image)
}

/// Calls of a function behind the loop.
fn calls() -> Vec<u8> {
    let calls = 16;
    let mut code = Vec::new();
    for call in 0..calls {
        code.extend([addi(10, 10, 1), jal(1, 4 * (2 * (calls - call)))]);
    }
    code.push(jal(0, -8 * calls));
    code.extend([r_type(OP, 4, 0, 11, 11, 10), jalr(0, 1, 0)]);
    elf(&code)
}

fn multiply_divide() -> Vec<u8> {
    let body = [
        r_type(OP, 0, 1, 8, 6, 7),     // mul
        r_type(OP, 1, 1, 9, 8, 6),     // mulh
        r_type(OP, 3, 1, 10, 9, 8),    // mulhu
        r_type(OP, 5, 1, 11, 6, 7),    // divu
        r_type(OP, 6, 1, 12, 8, 7),    // rem
        r_type(OP_32, 0, 1, 13, 8, 6), // mulw
        r_type(OP_32, 4, 1, 14, 6, 7), // divw
        addi(7, 7, 2),
    ];
    looped(&data_setup(), &body)
}

/// c.addi a0, 1; c.mv a1, a0; c.add a2, a1; c.slli a2, 3; c.xor a3, a1; c.sub a3, a0; c.sd a3,
/// 0(s0); c.ld a4, 0(s0).
fn compressed() -> Vec<u8> {
    const BODY: [u16; 8] = [0x0505, 0x85aa, 0x962e, 0x060e, 0x8ead, 0x8e89, 0xe014, 0x6018];
    let mut bytes: Vec<u8> = li(8, DATA).iter().flat_map(|word| word.to_le_bytes()).collect();
    let body = BODY.repeat(COPIES);
    bytes.extend(body.iter().flat_map(|half| half.to_le_bytes()));
    bytes.extend(jal(0, -2 * i32::try_from(body.len()).unwrap()).to_le_bytes());
    elf_of_bytes(&bytes)
}

fn atomics() -> Vec<u8> {
    let body = [
        amo(0b00000, 3, 8, 5, 7),  // amoadd.d
        amo(0b00001, 2, 9, 5, 7),  // amoswap.w
        amo(0b00010, 3, 10, 5, 0), // lr.d
        amo(0b00011, 3, 11, 5, 8), // sc.d
        amo(0b10100, 3, 12, 5, 8), // amomax.d
    ];
    looped(&data_setup(), &body)
}

/// A trap handler that goes on behind the instruction, at the start of the image, and the jump over
/// it.
fn handler() -> Vec<u32> {
    let handler = [csrrs(30, SEPC, 0), addi(30, 30, 4), csrrw(0, SEPC, 30), SRET];
    let set_up = [li(31, RAM + 4), vec![csrrw(0, STVEC, 31)]].concat();
    [vec![jal(0, 20)], handler.to_vec(), set_up].concat()
}

/// An environment call from U-mode, the handler, and back: five instructions.
fn user_environment_call() -> Vec<u8> {
    const PREVIOUS_MODE: u64 = 1 << 8;
    const CLEAR: u32 = 3;
    let clear_previous_mode = [li(6, PREVIOUS_MODE), vec![crate::common::csr(CLEAR, 0, SSTATUS, 6)]].concat();
    // AUIPC, ADDI, CSRRW, SRET: what comes behind them is in U-mode.
    let to_user = vec![crate::common::auipc(7, 0), addi(7, 7, 16), csrrw(0, SEPC, 7), SRET];
    looped(&[handler(), clear_previous_mode, to_user].concat(), &[ECALL])
}

fn illegal_instruction() -> Vec<u8> {
    looped(&handler(), &[0xffff_ffff])
}

/// The firmware's version, asked for again and again.
fn firmware_call() -> Vec<u8> {
    const BASE: i32 = 0x10;
    looped(&[], &[addi(17, 0, BASE), addi(16, 0, 0), ECALL])
}

fn csr() -> Vec<u8> {
    let body =
        [csrrw(8, SSCRATCH, 7), csrrs(9, SSCRATCH, 6), csrrs(10, SSTATUS, 0), csrrw(0, SCAUSE, 7), csrrs(11, SEPC, 0)];
    looped(&data_setup(), &body)
}

/// Two tables that map RAM onto itself, in turn, with a load, a store and some work under each.
fn page_table_switch() -> Vec<u8> {
    const SV39: u64 = 8 << 60;
    const TABLES: [u64; 2] = [DATA + 0x1000, DATA + 0x2000];
    /// Valid, read, write, execute, accessed, dirty.
    const LEAF: u64 = 0b1100_1111;
    let leaf = RAM >> 12 << 10 | LEAF;
    let offset = i32::try_from(8 * (RAM >> 30)).unwrap();
    let mut setup = [li(5, DATA), li(6, leaf)].concat();
    for (register, table) in [8, 9].into_iter().zip(TABLES) {
        setup.extend([li(register, table), vec![store(3, 6, register, offset)]].concat());
    }
    for (register, table) in [8, 9].into_iter().zip(TABLES) {
        setup.extend(li(register, SV39 | table >> 12));
    }
    let under = |register| vec![csrrw(0, SATP, register), load(3, 10, 5, 0), addi(10, 10, 1), store(3, 10, 5, 0)];
    looped(&setup, &[under(8), under(9)].concat())
}
