//! What instructions compute: RV64I, M, A, C.

use crate::common::{
    self, LI, RAM, addi, amo, auipc, branch, i_type, jal, jalr, li, load, lui, machine, r_type, ran, run_by, store,
};
use vm::{Event, Exit};

const MINUS_ONE: u64 = u64::MAX;
const MOST_NEGATIVE: u64 = 1 << 63;

/// The result of a register-register instruction on `a` and `b`.
fn computed(opcode: u32, funct3: u32, funct7: u32, a: u64, b: u64) -> u64 {
    let code = [li(5, a), li(6, b), vec![r_type(opcode, funct3, funct7, 7, 5, 6)]].concat();
    ran(&code).registers()[7]
}

#[test]
fn register_arithmetic() {
    const CASES: &[(u32, u32, u32, u64, u64, u64)] = &[
        // opcode, funct3, funct7, a, b, result
        (0x33, 0, 0x00, MINUS_ONE, 2, 1),
        (0x33, 0, 0x20, 1, 3, MINUS_ONE - 1),
        (0x33, 1, 0x00, 1, 64 + 63, MOST_NEGATIVE),
        (0x33, 2, 0x00, MINUS_ONE, 1, 1),
        (0x33, 3, 0x00, MINUS_ONE, 1, 0),
        (0x33, 4, 0x00, 0b1100, 0b1010, 0b0110),
        (0x33, 5, 0x00, MOST_NEGATIVE, 63, 1),
        (0x33, 5, 0x20, MOST_NEGATIVE, 63, MINUS_ONE),
        (0x33, 6, 0x00, 0b1100, 0b1010, 0b1110),
        (0x33, 7, 0x00, 0b1100, 0b1010, 0b1000),
        (0x3b, 0, 0x00, 0x7fff_ffff, 1, 0xffff_ffff_8000_0000),
        (0x3b, 0, 0x20, 0, 1, MINUS_ONE),
        (0x3b, 1, 0x00, 1, 32 + 31, 0xffff_ffff_8000_0000),
        (0x3b, 5, 0x00, 0xffff_ffff_8000_0000, 31, 1),
        (0x3b, 5, 0x20, 0x0000_0000_8000_0000, 31, MINUS_ONE),
    ];
    for &(opcode, funct3, funct7, a, b, result) in CASES {
        assert_eq!(computed(opcode, funct3, funct7, a, b), result, "{opcode:#x} {funct3} {funct7:#x} {a:#x} {b:#x}");
    }
}

#[test]
fn multiplication_and_division() {
    const CASES: &[(u32, u32, u64, u64, u64)] = &[
        // opcode, funct3, a, b, result
        (0x33, 0, MINUS_ONE, 7, 0u64.wrapping_sub(7)),
        (0x33, 1, MINUS_ONE, MINUS_ONE, 0),
        (0x33, 1, MOST_NEGATIVE, 2, MINUS_ONE),
        (0x33, 2, MINUS_ONE, MINUS_ONE, MINUS_ONE),
        (0x33, 3, MINUS_ONE, MINUS_ONE, MINUS_ONE - 1),
        (0x33, 4, 0u64.wrapping_sub(7), 2, 0u64.wrapping_sub(3)),
        (0x33, 4, 7, 0, MINUS_ONE),
        (0x33, 4, MOST_NEGATIVE, MINUS_ONE, MOST_NEGATIVE),
        (0x33, 5, MINUS_ONE, 2, MINUS_ONE >> 1),
        (0x33, 5, 7, 0, MINUS_ONE),
        (0x33, 6, 0u64.wrapping_sub(7), 2, MINUS_ONE),
        (0x33, 6, 7, 0, 7),
        (0x33, 6, MOST_NEGATIVE, MINUS_ONE, 0),
        (0x33, 7, MINUS_ONE, 10, 5),
        (0x33, 7, 9, 0, 9),
        (0x3b, 0, 0x1_0000_0003, 5, 15),
        (0x3b, 4, 0x8000_0000, 0xffff_ffff, 0xffff_ffff_8000_0000),
        (0x3b, 4, 1, 0x1_0000_0000, MINUS_ONE),
        (0x3b, 5, 0xffff_fffe, 1, MINUS_ONE - 1),
        (0x3b, 6, 0x8000_0000, 0xffff_ffff, 0),
        (0x3b, 7, 0xffff_ffff, 0, MINUS_ONE),
    ];
    for &(opcode, funct3, a, b, result) in CASES {
        assert_eq!(computed(opcode, funct3, 1, a, b), result, "{opcode:#x} {funct3} {a:#x} {b:#x}");
    }
}

#[test]
fn immediate_arithmetic_and_x0() {
    let code = [
        addi(5, 0, -1),
        i_type(0x13, 2, 6, 5, 0),          // slti
        i_type(0x13, 3, 7, 0, -1),         // sltiu against the sign-extended immediate
        i_type(0x13, 4, 8, 5, 0x0f),       // xori
        i_type(0x13, 5, 9, 5, 60),         // srli
        i_type(0x13, 5, 10, 8, 0x400 | 2), // srai
        i_type(0x1b, 0, 11, 5, 1),         // addiw
        lui(12, 0x80000),
        auipc(13, 1),
        addi(0, 0, 5),
    ];
    let machine = ran(&code);
    let x = machine.registers();
    assert_eq!(x[5..14], [MINUS_ONE, 1, 1, !0x0f, 15, !0x3, 0, 0xffff_ffff_8000_0000, RAM + 32 + 0x1000]);
    assert_eq!(x[0], 0);
    assert_eq!(machine.pc(), RAM + 40);
}

#[test]
fn branches_are_taken_when_their_condition_holds() {
    type Case = (u32, fn(u64, u64) -> bool);
    const CASES: [Case; 6] = [
        (0, |a, b| a == b),
        (1, |a, b| a != b),
        (4, |a, b| a.cast_signed() < b.cast_signed()),
        (5, |a, b| a.cast_signed() >= b.cast_signed()),
        (6, |a, b| a < b),
        (7, |a, b| a >= b),
    ];
    for (funct3, condition) in CASES {
        for (a, b) in [(1, 1), (1, 2), (2, 1), (MINUS_ONE, 1), (1, MINUS_ONE)] {
            let machine = ran(&[li(5, a), li(6, b), vec![branch(funct3, 5, 6, -2048)]].concat());
            let place = RAM + 8 * LI;
            let expected = if condition(a, b) { place - 2048 } else { place + 4 };
            assert_eq!(machine.pc(), expected, "{funct3} {a:#x} {b:#x}");
        }
    }
}

#[test]
fn jumps_link() {
    let mut machine = machine(&[jal(1, 8), 0, auipc(5, 0), jalr(5, 5, 0x101)]);
    assert_eq!(run_by(&mut machine, 3), Exit::LimitReached);
    assert_eq!(machine.registers()[1], RAM + 4);
    assert_eq!(machine.registers()[5], RAM + 16, "the link is written after the target is read");
    assert_eq!(machine.pc(), RAM + 8 + 0x100, "the lowest bit of the target is cleared");
}

#[test]
fn loads_extend_and_may_be_misaligned() {
    let word = 0x8899_aabb_ccdd_eeff_u64;
    let code = [
        li(5, RAM + 0x1ffd), // across a page boundary
        li(6, word),
        vec![store(3, 6, 5, 0), store(0, 6, 5, 16), store(1, 6, 5, 19), store(2, 6, 5, 23)],
        (0..7).map(|funct3| load(funct3, 10 + funct3, 5, 0)).collect(),
        vec![load(3, 20, 5, 16), load(3, 21, 5, 19), load(3, 22, 5, 23)],
    ]
    .concat();
    let machine = ran(&code);
    assert_eq!(
        machine.registers()[10..17],
        [
            MINUS_ONE, // the byte 0xff, extended
            0xffff_ffff_ffff_eeff,
            0xffff_ffff_ccdd_eeff,
            word,
            0xff,
            0xeeff,
            0xccdd_eeff,
        ]
    );
    assert_eq!(machine.registers()[21] & 0xffff, 0xeeff);
    assert_eq!(machine.registers()[22], 0xccdd_eeff, "a word store writes four bytes");
    assert_eq!(machine.memory(RAM + 0x1ffd, 8), Some(&word.to_le_bytes()[..]));
}

#[test]
fn stores_of_every_width_may_be_misaligned() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    for funct3 in 0..4 {
        // At the last byte of a page all but the byte store cross into the next page.
        let code = [li(5, RAM + 0x1fff), li(6, VALUE), vec![store(funct3, 6, 5, 0)]].concat();
        let mut expected = [0; 10];
        let bytes = 1 << funct3;
        expected[1..=bytes].copy_from_slice(&VALUE.to_le_bytes()[..bytes]);
        assert_eq!(ran(&code).memory(RAM + 0x1ffe, 10), Some(&expected[..]), "{bytes} bytes");
    }
}

#[test]
fn atomics_return_the_old_value_and_combine() {
    const WORD: u64 = 0xffff_ffff_8000_0001;
    const CASES: &[(u32, u64, u64, u64)] = &[
        // funct5, memory, operand, memory afterwards (64 bits)
        (0x01, 5, 7, 7),
        (0x00, 5, MINUS_ONE, 4),
        (0x04, 0b1100, 0b1010, 0b0110),
        (0x0c, 0b1100, 0b1010, 0b1000),
        (0x08, 0b1100, 0b1010, 0b1110),
        (0x10, 5, MINUS_ONE, MINUS_ONE),
        (0x14, 5, MINUS_ONE, 5),
        (0x18, 5, MINUS_ONE, 5),
        (0x1c, 5, MINUS_ONE, MINUS_ONE),
    ];
    let run = |funct5, funct3, memory, operand| {
        let code = [
            li(5, RAM + 0x1000),
            li(6, memory),
            li(7, operand),
            vec![store(3, 6, 5, 0), amo(funct5, funct3, 8, 5, 7), load(3, 9, 5, 0)],
        ];
        let machine = ran(&code.concat());
        (machine.registers()[8], machine.registers()[9])
    };
    for &(funct5, memory, operand, result) in CASES {
        assert_eq!(run(funct5, 3, memory, operand), (memory, result), "{funct5:#x}");
        let (old, new) = run(funct5, 2, memory, operand);
        assert_eq!((old, new), (memory, result & 0xffff_ffff), "word {funct5:#x}");
    }
    assert_eq!(run(0x18, 2, WORD, 1), (WORD, 0xffff_ffff_0000_0001), "unsigned minimum of words, upper half untouched");
}

#[test]
fn store_conditional_needs_the_reservation() {
    const LR: u32 = 0x02;
    const SC: u32 = 0x03;
    let code = [
        li(5, RAM + 0x1000),
        li(6, 42),
        vec![
            amo(SC, 3, 10, 5, 6), // no reservation: fails
            amo(LR, 3, 11, 5, 0),
            amo(SC, 3, 12, 5, 6), // succeeds
            amo(SC, 3, 13, 5, 6), // the reservation is used up: fails
            amo(LR, 2, 14, 5, 0),
            addi(7, 5, 8),
            amo(SC, 2, 15, 7, 6), // another address: fails
            amo(SC, 2, 16, 5, 6), // that gave the reservation up: fails
        ],
    ]
    .concat();
    let machine = ran(&code);
    assert_eq!(machine.registers()[10..17], [1, 0, 0, 1, 42, 1, 1]);
    assert_eq!(machine.memory(RAM + 0x1000, 16).unwrap()[..9], [42, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_packet_between_load_reserved_and_store_conditional_takes_the_reservation() {
    let code = [li(5, RAM + 0x1000), vec![amo(0x02, 3, 6, 5, 0), amo(0x03, 3, 7, 5, 0)]].concat();
    for (packets, refused) in [(0, 0), (1, 1)] {
        let mut machine = machine(&code);
        run_by(&mut machine, LI + 1);
        for number in 1..=packets {
            machine.apply(&Event::Packet { number, packet: vec![0; 60] }).unwrap();
        }
        run_by(&mut machine, 1);
        assert_eq!(machine.registers()[7], refused, "after {packets} packets");
    }
}

#[test]
fn compressed_instructions_take_two_bytes() {
    // c.li a0, -3; c.addi a0, 10; c.slli a0, 4; c.mv a1, a0; c.add a1, a0; c.j +4; (skipped); c.nop
    let halves: [u16; 8] = [0x5575, 0x0529, 0x0512, 0x85aa, 0x95aa, 0xa011, 0x0000, 0x0001];
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let mut machine = vm::Machine::new(&common::small_config(), &common::elf_of_bytes(&bytes)).unwrap();
    assert_eq!(run_by(&mut machine, 7), Exit::LimitReached);
    assert_eq!(machine.registers()[10..12], [7 << 4, 7 << 5]);
    assert_eq!(machine.pc(), RAM + 16);
    assert_eq!(machine.instruction_count().0, 7);
}

/// Zba, Zbb and Zbs; the comparison with QEMU has the rest.
#[test]
fn bit_manipulation() {
    const REGISTERS: &[(u32, u32, u32, u64, u64, u64)] = &[
        // opcode, funct3, funct7, a, b, result
        (0x3b, 0, 0x04, 0xffff_ffff_8000_0000, 1, 0x8000_0001),
        (0x33, 2, 0x10, MOST_NEGATIVE | 3, 5, 11),
        (0x33, 6, 0x10, 3, MINUS_ONE, 23),
        (0x3b, 4, 0x10, MINUS_ONE, 1, 0x3_ffff_fffd),
        (0x33, 7, 0x20, 0b1100, 0b1010, 0b0100),
        (0x33, 6, 0x20, 0, 0b1010, !0b1010),
        (0x33, 4, 0x20, 0b1100, 0b1010, !0b0110),
        (0x33, 6, 0x05, MINUS_ONE, 1, 1),
        (0x33, 7, 0x05, MINUS_ONE, 1, MINUS_ONE),
        (0x33, 4, 0x05, MINUS_ONE, 1, MINUS_ONE),
        (0x33, 5, 0x05, MINUS_ONE, 1, 1),
        (0x33, 1, 0x30, MOST_NEGATIVE | 1, 64 + 4, 0x18),
        (0x33, 5, 0x30, 0x18, 4, MOST_NEGATIVE | 1),
        (0x3b, 1, 0x30, 0x4000_0000, 1, 0xffff_ffff_8000_0000),
        (0x3b, 5, 0x30, 1, 33, 0xffff_ffff_8000_0000),
        (0x33, 1, 0x24, MINUS_ONE, 63, !MOST_NEGATIVE),
        (0x33, 5, 0x24, MOST_NEGATIVE, 127, 1),
        (0x33, 1, 0x34, 5, 0, 4),
        (0x33, 1, 0x14, 0, 64 + 5, 32),
    ];
    const IMMEDIATES: &[(u32, u32, i32, u64, u64)] = &[
        // opcode, funct3, immediate, a, result
        (0x13, 1, 0x600, 1, 63),
        (0x13, 1, 0x600, 0, 64),
        (0x13, 1, 0x601, 0, 64),
        (0x13, 1, 0x602, 0xf0f0, 8),
        (0x1b, 1, 0x600, 0xffff_ffff_0000_0001, 31),
        (0x1b, 1, 0x601, 0xffff_ffff_0000_0000, 32),
        (0x1b, 1, 0x602, 0xffff_ffff_0000_0001, 1),
        (0x13, 1, 0x604, 0x1280, 0xffff_ffff_ffff_ff80),
        (0x13, 1, 0x605, 0x12_7fff, 0x7fff),
        (0x13, 5, 0x287, 0x0100_8000_0000_2000, 0xff00_ff00_0000_ff00),
        (0x13, 5, 0x287, 0x0080_7f01_ff00_0001, 0x00ff_ffff_ff00_00ff),
        (0x13, 5, 0x6b8, 0x0102_0304_0506_0708, 0x0807_0605_0403_0201),
        (0x3b, 4, 0x080, 0xabcd_1234_8765, 0x8765),
        (0x13, 5, 0x600 | 63, 1, 2),
        (0x1b, 5, 0x600 | 1, 1, 0xffff_ffff_8000_0000),
        (0x1b, 1, 0x080 | 40, 0xffff_ffff_0000_0001, 1 << 40),
        (0x13, 1, 0x480 | 63, MINUS_ONE, !MOST_NEGATIVE),
        (0x13, 5, 0x480 | 33, 2 << 32, 1),
        (0x13, 1, 0x680 | 2, 5, 1),
        (0x13, 1, 0x280 | 63, 0, MOST_NEGATIVE),
    ];
    for &(opcode, funct3, funct7, a, b, result) in REGISTERS {
        assert_eq!(computed(opcode, funct3, funct7, a, b), result, "{opcode:#x} {funct3} {funct7:#x} {a:#x} {b:#x}");
    }
    for &(opcode, funct3, immediate, a, result) in IMMEDIATES {
        let code = [li(5, a), vec![i_type(opcode, funct3, 7, 5, immediate)]].concat();
        assert_eq!(ran(&code).registers()[7], result, "{opcode:#x} {funct3} {immediate:#x} {a:#x}");
    }
}
