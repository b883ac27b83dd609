//! Floating-point instructions as a guest sees them: decoding, registers and boxing, rounding
//! modes, flags, FS.
//!
//! What arithmetic computes is tested beside its implementation.

use crate::common::{self, NOP, RAM, SSTATUS, STVEC, csrrs, csrrw, jal, li, ran};

const FCSR: u32 = 0x003;
const FS_CLEAN: u64 = 2 << 13;
const FS_DIRTY: u64 = 3 << 13 | 1 << 63;
const FS: u64 = 3 << 13 | 1 << 63;

const BOX: u64 = 0xffff_ffff_0000_0000;
const NAN_BOXED: u64 = BOX | 0x7fc0_0000;

/// Operands that singles and doubles hold exactly.
const A: f64 = 1.5;
const B: f64 = 2.5;
const C: f64 = 0.25;

fn single(value: f32) -> u64 {
    BOX | u64::from(value.to_bits())
}

fn double(value: f64) -> u64 {
    value.to_bits()
}

fn fmv_d_x(rd: u32, rs1: u32) -> u32 {
    0xf200_0053 | rs1 << 15 | rd << 7
}

fn fmv_x_d(rd: u32, rs1: u32) -> u32 {
    0xe200_0053 | rs1 << 15 | rd << 7
}

/// Registers and flags after one instruction.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// x10, which was 7 before.
    integer: u64,
    /// f10, which was 7 before.
    float: u64,
    fcsr: u64,
    dirty: bool,
    trapped: bool,
}

/// Executes `instruction` with x11 = `integer`, f11 to f13 = `operands`, and these values of `fcsr`
/// and `sstatus`.
fn outcome(instruction: u32, integer: u64, operands: [u64; 3], fcsr: u64, status: u64) -> Outcome {
    const HANDLER: u64 = RAM + 0x800;
    let mut code = [li(5, FS_DIRTY), vec![csrrw(0, SSTATUS, 5)], li(5, HANDLER), vec![csrrw(0, STVEC, 5)]].concat();
    for (register, bits) in [(10, 7), (11, operands[0]), (12, operands[1]), (13, operands[2])] {
        code.extend([li(5, bits), vec![fmv_d_x(register, 5)]].concat());
    }
    code.extend([li(5, fcsr), vec![csrrw(0, FCSR, 5)], li(10, 7), li(11, integer)].concat());
    code.extend([li(5, status), vec![csrrw(0, SSTATUS, 5)], li(6, FS_DIRTY)].concat());
    // A trap skips what follows, so x21 shows whether there was one.
    code.extend([vec![instruction], li(21, 1)].concat());
    code.resize(0x200, NOP);
    // sstatus is read before FS is changed to read f10 and fcsr.
    code.extend([csrrs(20, SSTATUS, 0), csrrs(0, SSTATUS, 6), fmv_x_d(22, 10), csrrs(23, FCSR, 0), jal(0, 0)]);
    let machine = ran(&code);
    let x = machine.registers();
    Outcome { integer: x[10], float: x[22], fcsr: x[23], dirty: x[20] & FS == FS_DIRTY, trapped: x[21] != 1 }
}

#[test]
fn instructions_with_a_floating_point_result() {
    const NX: u64 = 1;
    let (single_operands, double_operands) = ([1.5, 2.5, 0.25].map(single), [A, B, C].map(double));
    #[rustfmt::skip]
    let cases: &[(u32, bool, u64, u64)] = &[
        // (instruction, whether its operands are singles, result, flags); the operands are 1.5, 2.5
        // and 0.25, and -3 in x11.
        (0x00c5_8553, true, single(4.0), 0),            // fadd.s fa0, fa1, fa2, rne
        (0x08c5_9553, true, single(-1.0), 0),           // fsub.s fa0, fa1, fa2, rtz
        (0x12c5_a553, false, double(3.75), 0),          // fmul.d fa0, fa1, fa2, rdn
        (0x1ac5_b553, false, 0x3fe3_3333_3333_3334, NX), // fdiv.d fa0, fa1, fa2, rup
        (0x1ac5_f553, false, 0x3fe3_3333_3333_3333, NX), // fdiv.d fa0, fa1, fa2
        (0x02c5_f553, false, double(4.0), 0),           // fadd.d fa0, fa1, fa2
        (0x0ac5_f553, false, double(-1.0), 0),          // fsub.d fa0, fa1, fa2
        (0x5805_c553, true, single(1.224_744_9), NX),   // fsqrt.s fa0, fa1, rmm
        (0x5a05_f553, false, double(1.224_744_871_391_589), NX), // fsqrt.d fa0, fa1
        (0x68c5_8543, true, single(4.0), 0),            // fmadd.s fa0, fa1, fa2, fa3, rne
        (0x6ac5_9547, false, double(3.5), 0),           // fmsub.d fa0, fa1, fa2, fa3, rtz
        (0x6ac5_f54b, false, double(-3.5), 0),          // fnmsub.d fa0, fa1, fa2, fa3
        (0x68c5_f54f, true, single(-4.0), 0),           // fnmadd.s fa0, fa1, fa2, fa3
        (0x20c5_8553, true, single(1.5), 0),            // fsgnj.s fa0, fa1, fa2
        (0x22c5_9553, false, double(-1.5), 0),          // fsgnjn.d fa0, fa1, fa2
        (0x22c5_a553, false, double(1.5), 0),           // fsgnjx.d fa0, fa1, fa2
        (0x28c5_8553, true, single(1.5), 0),            // fmin.s fa0, fa1, fa2
        (0x2ac5_9553, false, double(2.5), 0),           // fmax.d fa0, fa1, fa2
        (0xd005_f553, true, single(-3.0), 0),           // fcvt.s.w fa0, a1
        (0xd015_f553, true, single(4_294_967_296.0), NX), // fcvt.s.wu fa0, a1
        (0xd225_f553, false, double(-3.0), 0),          // fcvt.d.l fa0, a1
        (0xd235_f553, false, double(18_446_744_073_709_551_616.0), NX), // fcvt.d.lu fa0, a1
        (0xd205_8553, false, double(-3.0), 0),          // fcvt.d.w fa0, a1
        (0x4015_f553, false, single(1.5), 0),           // fcvt.s.d fa0, fa1
        (0x4205_8553, true, double(1.5), 0),            // fcvt.d.s fa0, fa1
        (0xf005_8553, true, BOX | 0xffff_fffd, 0),      // fmv.w.x fa0, a1
        (0xf205_8553, true, 0u64.wrapping_sub(3), 0),   // fmv.d.x fa0, a1
    ];
    for &(instruction, singles, float, flags) in cases {
        let operands = if singles { single_operands } else { double_operands };
        let outcome = outcome(instruction, 0u64.wrapping_sub(3), operands, 0, FS_CLEAN);
        let expected = Outcome { integer: 7, float, fcsr: flags, dirty: true, trapped: false };
        assert_eq!(outcome, Outcome { integer: outcome.integer, ..expected }, "{instruction:#010x}");
        assert_eq!(outcome.integer, 7, "{instruction:#010x}");
    }
}

#[test]
fn instructions_with_an_integer_result_make_the_state_dirty_by_their_flags_alone() {
    const NV: u64 = 1 << 4;
    const NX: u64 = 1;
    let minus_1_5 = [single(-1.5), single(2.5), 0];
    let doubles = [double(-1.5), double(-1.5), 0];
    let signaling = [0x7ff0_0000_0000_0001, double(1.0), 0];
    let cases: &[(u32, [u64; 3], u64, u64)] = &[
        (0xa0c5_8553, minus_1_5, 1, 0),                     // fle.s a0, fa1, fa2
        (0xa2c5_9553, doubles, 0, 0),                       // flt.d a0, fa1, fa2
        (0xa2c5_9553, signaling, 0, NV),                    // flt.d a0, fa1, fa2
        (0xa2c5_a553, doubles, 1, 0),                       // feq.d a0, fa1, fa2
        (0xa2c5_a553, signaling, 0, NV),                    // feq.d a0, fa1, fa2
        (0xe005_9553, minus_1_5, 1 << 1, 0),                // fclass.s a0, fa1
        (0xe205_9553, signaling, 1 << 8, 0),                // fclass.d a0, fa1
        (0xc005_9553, minus_1_5, u64::MAX, NX),             // fcvt.w.s a0, fa1, rtz
        (0xc015_9553, minus_1_5, 0, NV),                    // fcvt.wu.s a0, fa1, rtz
        (0xc225_9553, doubles, u64::MAX, NX),               // fcvt.l.d a0, fa1, rtz
        (0xc235_9553, doubles, 0, NV),                      // fcvt.lu.d a0, fa1, rtz
        (0xe005_8553, minus_1_5, 0xffff_ffff_bfc0_0000, 0), // fmv.x.w a0, fa1
        (0xe205_8553, doubles, double(-1.5), 0),            // fmv.x.d a0, fa1
    ];
    for &(instruction, operands, integer, fcsr) in cases {
        let outcome = outcome(instruction, 0, operands, 0, FS_CLEAN);
        assert_eq!(
            outcome,
            Outcome { integer, float: 7, fcsr, dirty: fcsr != 0, trapped: false },
            "{instruction:#010x}"
        );
    }
}

#[test]
fn rounding_modes_that_do_not_exist_are_illegal() {
    let operands = [A, B, C].map(double);
    let illegal = |instruction, frm: u64| outcome(instruction, 0, operands, frm << 5, FS_CLEAN).trapped;
    // fadd.d, fsqrt.d, fmadd.d, and conversions, of which the last three are always exact.
    for instruction in [
        0x02c5_8553,
        0x5a05_8553,
        0x6ac5_8543,
        0xc205_8553,
        0x4015_8553,
        0xd225_8553,
        0x4205_8553,
        0xd205_8553,
        0xd215_8553,
    ] {
        for mode in 0..8 {
            let with_mode = instruction | mode << 12;
            assert_eq!(illegal(with_mode, 0), mode == 5 || mode == 6, "{with_mode:#010x}");
            assert_eq!(illegal(with_mode, 7), mode >= 5, "{with_mode:#010x}");
            assert_eq!(illegal(instruction | 7 << 12, mode.into()), mode >= 5, "{instruction:#010x} with frm {mode}");
        }
    }
    // Instructions without a rounding mode ignore frm: fsgnj.d, feq.d, fclass.d, fmv.x.d.
    for instruction in [0x22c5_8553, 0xa2c5_a553, 0xe205_9553, 0xe205_8553] {
        assert!(!illegal(instruction, 7), "{instruction:#010x}");
    }
}

#[test]
fn the_dynamic_rounding_mode_is_frm() {
    // 1 / 3 rounds to one of two neighbours, depending on frm, which fcsr keeps.
    let operands = [double(1.0), double(3.0), 0];
    for (frm, result) in [(0, 0x5555_u64), (1, 0x5555), (2, 0x5555), (3, 0x5556), (4, 0x5555)] {
        let outcome = outcome(0x1ac5_f553, 0, operands, frm << 5, FS_CLEAN);
        assert_eq!((outcome.float, outcome.fcsr), (0x3fd5_5555_5555_0000 | result, frm << 5 | 1), "frm {frm}");
    }
}

#[test]
fn reserved_encodings_are_illegal() {
    // fsqrt.d with rs2 1, fmv.x.d with rs2 1, fsgnj.d with rm 3, fadd of formats 2 and 3, fcvt.s.s,
    // fcvt.d with sources 2 and 3, fcvt.d from integer 4, fmin with rm 2, fle with rm 3, fclass
    // with rm 2, fmv.d.x with rm 1, fmadd of format 2.
    for instruction in [
        0x5a15_f553,
        0xe215_8553,
        0x22c5_b553,
        0x04c5_f553,
        0x06c5_f553,
        0x4005_f553,
        0x4225_f553,
        0x4235_f553,
        0xd245_f553,
        0x2ac5_a553,
        0xa2c5_b553,
        0xe205_a553,
        0xf205_9553,
        0x6cc5_f543,
    ] {
        let outcome = outcome(instruction, 0, [0; 3], 0, FS_CLEAN);
        assert_eq!(
            outcome,
            Outcome { integer: 7, float: 7, fcsr: 0, dirty: false, trapped: true },
            "{instruction:#010x}"
        );
    }
}

#[test]
fn everything_is_illegal_while_the_unit_is_off() {
    // Operations, loads and stores (at a0, a valid address), compressed instructions, and accesses
    // to fcsr.
    for instruction in [
        0x02c5_f553,
        0x22c5_8553,
        0xa2c5_a553,
        0xe205_8553,
        0xf205_8553,
        0x6ac5_f543,
        0x0005_a507,
        0x0005_b507,
        0x00a5_a027,
        0x00a5_b027,
        0x0001_2188,
        0x0001_a188,
        csrrs(5, FCSR, 0),
    ] {
        assert!(outcome(instruction, RAM, [0; 3], 0, 0).trapped, "{instruction:#010x}");
        assert!(!outcome(instruction, RAM, [0; 3], 0, FS_CLEAN).trapped, "{instruction:#010x}");
    }
}

#[test]
fn singles_are_boxed() {
    let unboxed = [u64::from(1.5_f32.to_bits()), single(2.5), 0];
    let float = |instruction| outcome(instruction, 0, unboxed, 0, FS_CLEAN).float;
    let integer = |instruction| outcome(instruction, 0, unboxed, 0, FS_CLEAN).integer;
    assert_eq!(float(0x00c5_8553), NAN_BOXED, "fadd.s");
    assert_eq!(float(0x28c5_8553), single(2.5), "fmin.s");
    assert_eq!(float(0x20c5_8553), NAN_BOXED, "fsgnj.s");
    assert_eq!(float(0x4205_8553), 0x7ff8_0000_0000_0000, "fcvt.d.s");
    assert_eq!(integer(0xe005_9553), 1 << 9, "fclass.s");
    assert_eq!(integer(0xa0c5_a553), 0, "feq.s");
    assert_eq!(integer(0xc005_9553), 0x7fff_ffff, "fcvt.w.s");
    // Moves to integer registers don't check the boxing.
    assert_eq!(integer(0xe005_8553), u64::from(1.5_f32.to_bits()), "fmv.x.w");
}

#[test]
fn loads_and_stores() {
    let address = RAM + 0x1000;
    let value = 0x4009_21fb_5444_2d18_u64;
    // x11 has an address, f11 the value: fsd fa1, 8(a1); flw fa0, 8(a1); flw fa0, 12(a1); c.fld
    // fa0, 8(a1).
    let run = |instruction: u32| {
        let code = [
            [li(5, FS_CLEAN), vec![csrrw(0, SSTATUS, 5)], li(5, value), vec![fmv_d_x(11, 5)]].concat(),
            [li(11, address), vec![0x00b5_b427, instruction, fmv_x_d(20, 10)]].concat(),
            // A compressed instruction comes with a c.nop, which is one step more: the NOP makes
            // room for it.
            vec![csrrs(21, SSTATUS, 0), NOP],
        ]
        .concat();
        let machine = ran(&code);
        (machine.registers()[20], machine.registers()[21] & FS)
    };
    assert_eq!(run(0x0085_a507), (BOX | 0x5444_2d18, FS_DIRTY), "flw fa0, 8(a1)");
    assert_eq!(run(0x00c5_a507), (BOX | 0x4009_21fb, FS_DIRTY), "flw fa0, 12(a1)");
    assert_eq!(run(0x0085_b507), (value, FS_DIRTY), "fld fa0, 8(a1)");
    assert_eq!(run(0x0001_2588), (value, FS_DIRTY), "c.fld fa0, 8(a1); c.nop");
}

#[test]
fn stores_write_their_width_and_dirty_nothing() {
    let address = RAM + 0x1000;
    // f11 is all ones; fsw fa1, 4(a1) and fsd fa1, 0(a1) over zeroes; ld a0, 0(a1).
    for (instruction, expected) in [(0x00b5_a227, BOX), (0x00b5_b027, u64::MAX)] {
        let code = [
            [li(5, FS_DIRTY), vec![csrrw(0, SSTATUS, 5)], li(5, u64::MAX), vec![fmv_d_x(11, 5)]].concat(),
            [li(5, FS_CLEAN), vec![csrrw(0, SSTATUS, 5)], li(11, address), vec![instruction]].concat(),
            vec![common::load(3, 10, 11, 0), csrrs(21, SSTATUS, 0)],
        ]
        .concat();
        let machine = ran(&code);
        assert_eq!(
            (machine.registers()[10], machine.registers()[21] & FS),
            (expected, FS_CLEAN),
            "{instruction:#010x}"
        );
    }
}

#[test]
fn a_load_that_faults_changes_nothing() {
    // fld fa0, 0(a1) from an address with neither RAM nor a device.
    let outcome = outcome(0x0005_b507, 0x4000_0000, [0; 3], 0, FS_CLEAN);
    assert_eq!(outcome, Outcome { integer: 7, float: 7, fcsr: 0, dirty: false, trapped: true });
}
