//! Hand-picked: every flag, every kind of special value.

use super::{MODES, computed};
use crate::hart::float::compare::{classify, compare, inject_sign, select};
use crate::hart::float::convert::{resize, to_integer};
use crate::hart::float::format::{Double, Format, Single};
use crate::hart::float::native::by_integers;
use crate::hart::float::soft::flag::{DZ, NV, NX, OF, UF};
use crate::hart::float::soft::{multiply_add, square_root};
use crate::isa::float::{BinaryOp, Comparison, Extreme, IntegerKind, Rounding, SignOp};
use BinaryOp::{Add, Divide, Multiply, Subtract};
use IntegerKind::{Long, LongUnsigned, Word, WordUnsigned};
use Rounding::{Down, NearestAway, NearestEven, Up, Zero};

const ONE: u64 = 0x3ff0_0000_0000_0000;
const TWO: u64 = 0x4000_0000_0000_0000;
const MINUS: u64 = Double::SIGN;
const INFINITY: u64 = Double::INFINITY;
const MAX: u64 = INFINITY - 1;
const MIN_NORMAL: u64 = Double::MIN_NORMAL;
const NAN: u64 = Double::NAN;
const SIGNALING: u64 = INFINITY + 1;
const OTHER_QUIET: u64 = NAN | MINUS | 0x1234;

#[test]
fn special_values_and_flags() {
    const CASES: &[(BinaryOp, u64, u64, Rounding, u64, u8)] = &[
        (Add, ONE, ONE, NearestEven, TWO, 0),
        (Add, 0, MINUS, NearestEven, 0, 0),
        (Add, 0, MINUS, Down, MINUS, 0),
        (Add, MINUS, MINUS, Up, MINUS, 0),
        (Add, ONE, ONE | MINUS, Zero, 0, 0),
        (Add, ONE, ONE | MINUS, Down, MINUS, 0),
        (Subtract, ONE, ONE, Down, MINUS, 0),
        (Subtract, 0, 0, NearestAway, 0, 0),
        (Subtract, MINUS, 0, Up, MINUS, 0),
        (Add, INFINITY, INFINITY | MINUS, NearestEven, NAN, NV),
        (Subtract, INFINITY, INFINITY, NearestEven, NAN, NV),
        (Add, INFINITY, MAX | MINUS, NearestEven, INFINITY, 0),
        (Add, OTHER_QUIET, ONE, NearestEven, NAN, 0),
        (Subtract, ONE, OTHER_QUIET, NearestEven, NAN, 0),
        (Add, ONE, SIGNALING, NearestEven, NAN, NV),
        (Multiply, OTHER_QUIET, SIGNALING, NearestEven, NAN, NV),
        (Add, ONE, 1, NearestEven, ONE, NX),
        (Add, ONE, 1, Up, ONE + 1, NX),
        (Subtract, ONE, 1, Zero, ONE - 1, NX),
        (Add, 1, 1, NearestEven, 2, 0),
        (Add, MAX, MAX, NearestEven, INFINITY, OF | NX),
        (Add, MAX, MAX, Zero, MAX, OF | NX),
        (Add, MAX, MAX, Down, MAX, OF | NX),
        (Add, MAX | MINUS, MAX | MINUS, Down, INFINITY | MINUS, OF | NX),
        (Add, MAX | MINUS, MAX | MINUS, Up, MAX | MINUS, OF | NX),
        (Add, MAX, 1, NearestEven, MAX, NX),
        (Add, MAX, 1, Up, INFINITY, OF | NX),
        (Multiply, 0, INFINITY, NearestEven, NAN, NV),
        (Multiply, INFINITY, ONE | MINUS, NearestEven, INFINITY | MINUS, 0),
        (Multiply, 0, ONE | MINUS, NearestEven, MINUS, 0),
        (Multiply, 1, 1, NearestEven, 0, UF | NX),
        (Multiply, 1, 1, Up, 1, UF | NX),
        (Multiply, 1, 1 | MINUS, Up, MINUS, UF | NX),
        (Multiply, 1, 1 | MINUS, Down, 1 | MINUS, UF | NX),
        (Multiply, 1, TWO, NearestEven, 2, 0),
        // Half the smallest subnormal: a tie.
        (Multiply, 1, ONE - MIN_NORMAL, NearestEven, 0, UF | NX),
        (Multiply, 1, ONE - MIN_NORMAL, NearestAway, 1, UF | NX),
        (Divide, ONE, 0, NearestEven, INFINITY, DZ),
        (Divide, ONE | MINUS, 0, NearestEven, INFINITY | MINUS, DZ),
        (Divide, ONE, MINUS, Zero, INFINITY | MINUS, DZ),
        (Divide, INFINITY, 0, NearestEven, INFINITY, 0),
        (Divide, 0, 0, NearestEven, NAN, NV),
        (Divide, INFINITY, INFINITY, NearestEven, NAN, NV),
        (Divide, ONE, INFINITY | MINUS, NearestEven, MINUS, 0),
        (Divide, OTHER_QUIET, 0, NearestEven, NAN, 0),
        (Divide, ONE, 0x4008_0000_0000_0000, NearestEven, 0x3fd5_5555_5555_5555, NX),
        (Divide, ONE, 0x4008_0000_0000_0000, Up, 0x3fd5_5555_5555_5556, NX),
        (Divide, MAX, 1, NearestEven, INFINITY, OF | NX),
        (Divide, 1, MAX, NearestEven, 0, UF | NX),
    ];
    for &(op, a, b, rounding, result, flags) in CASES {
        let ours = computed(rounding, |context| by_integers::<Double>(op, a, b, context));
        assert_eq!(ours, (result, flags), "{op:?} {a:#x} {b:#x} {rounding:?}");
    }
}

/// Between the largest subnormal number and the smallest normal one, what is tiny is decided with
/// the precision of normal numbers.
#[test]
fn tininess_is_detected_after_rounding() {
    // (1 - 2^-53) * 2^-1022: one bit too many for a subnormal number, a tie; not too many for a
    // normal one.
    let just_below =
        |rounding| computed(rounding, |context| by_integers::<Double>(Multiply, MIN_NORMAL, ONE - 1, context));
    assert_eq!(just_below(NearestEven), (MIN_NORMAL, UF | NX));
    assert_eq!(just_below(NearestAway), (MIN_NORMAL, UF | NX));
    assert_eq!(just_below(Up), (MIN_NORMAL, UF | NX));
    assert_eq!(just_below(Down), (MIN_NORMAL - 1, UF | NX));
    // (1 + 2^-52) * (1 - 2^-53) * 2^-1022 is above.
    let above = computed(NearestEven, |context| by_integers::<Double>(Multiply, MIN_NORMAL + 1, ONE - 1, context));
    assert_eq!(above, (MIN_NORMAL, NX));
    // (1 - 2^-106) * 2^-1022: any upward rounding makes it a normal number, with its own precision
    // too.
    let closer = |rounding| {
        computed(rounding, |context| multiply_add::<Double>(1 | MINUS, ONE - (54 << 52), MIN_NORMAL, context))
    };
    assert_eq!(closer(NearestEven), (MIN_NORMAL, NX));
    assert_eq!(closer(Up), (MIN_NORMAL, NX));
    assert_eq!(closer(NearestAway), (MIN_NORMAL, NX));
    assert_eq!(closer(Zero), (MIN_NORMAL - 1, UF | NX));
    // The same when a double becomes a single: (1 - 2^-25) and (1 - 2^-24) times 2^-126.
    let narrowed = |bits, rounding| computed(rounding, |context| resize::<Double, Single>(bits, context));
    let smallest = 0x3810_0000_0000_0000;
    assert_eq!(narrowed(smallest - (1 << 28), NearestEven), (0x80_0000, NX));
    assert_eq!(narrowed(smallest - (1 << 29), NearestEven), (0x80_0000, UF | NX));
    assert_eq!(narrowed(smallest - (1 << 29), Zero), (0x7f_ffff, UF | NX));
    assert_eq!(narrowed(smallest - (1 << 30), NearestEven), (0x7f_ffff, 0));
}

#[test]
fn fused_operations() {
    let run = |a, b, c, rounding| computed(rounding, |context| multiply_add::<Double>(a, b, c, context));
    assert_eq!(run(INFINITY, 0, OTHER_QUIET, NearestEven), (NAN, NV));
    assert_eq!(run(0, INFINITY, ONE, NearestEven), (NAN, NV));
    assert_eq!(run(OTHER_QUIET, 0, SIGNALING, NearestEven), (NAN, NV));
    assert_eq!(run(ONE, ONE, OTHER_QUIET, NearestEven), (NAN, 0));
    assert_eq!(run(INFINITY, ONE, INFINITY | MINUS, NearestEven), (NAN, NV));
    assert_eq!(run(ONE, ONE, INFINITY | MINUS, NearestEven), (INFINITY | MINUS, 0));
    assert_eq!(run(MAX, MAX, INFINITY | MINUS, NearestEven), (INFINITY | MINUS, 0));
    assert_eq!(run(0, ONE, MINUS, NearestEven), (0, 0));
    assert_eq!(run(0, ONE, MINUS, Down), (MINUS, 0));
    assert_eq!(run(ONE, ONE, ONE | MINUS, Down), (MINUS, 0));
    assert_eq!(run(0, ONE, 1, Up), (1, 0));
    // (1 + 2^-52)^2 - (1 + 2^-51) = 2^-104, which a product rounded by itself hasn't.
    assert_eq!(run(ONE + 1, ONE + 1, (ONE + 2) | MINUS, NearestEven), (ONE - (104 << 52), 0));
    // The product alone would overflow.
    assert_eq!(run(MAX, TWO, MAX | MINUS, NearestEven), (MAX, 0));
    // The addend's last bit is decided by a product that is nothing beside it.
    assert_eq!(run(1, 1, ONE, Up), (ONE + 1, NX));
    assert_eq!(run(1, 1 | MINUS, ONE, Zero), (ONE - 1, NX));
}

#[test]
fn square_roots() {
    let run = |bits, rounding| computed(rounding, |context| square_root::<Double>(bits, context));
    for rounding in MODES {
        assert_eq!(run(MINUS, rounding), (MINUS, 0));
        assert_eq!(run(0, rounding), (0, 0));
        assert_eq!(run(INFINITY, rounding), (INFINITY, 0));
        assert_eq!(run(INFINITY | MINUS, rounding), (NAN, NV));
        assert_eq!(run(1 | MINUS, rounding), (NAN, NV));
        assert_eq!(run(OTHER_QUIET, rounding), (NAN, 0));
        assert_eq!(run(SIGNALING, rounding), (NAN, NV));
        assert_eq!(run(0x4022_0000_0000_0000, rounding), (0x4008_0000_0000_0000, 0));
        // 2^-1074, whose root is 2^-537.
        assert_eq!(run(1, rounding), (ONE - (537 << 52), 0));
    }
    assert_eq!(run(TWO, NearestEven), (0x3ff6_a09e_667f_3bcd, NX));
    assert_eq!(run(TWO, Down), (0x3ff6_a09e_667f_3bcc, NX));
    assert_eq!(run(MAX, Up), (0x5ff0_0000_0000_0000, NX));
}

#[test]
fn integers_at_their_limits() {
    let cases: &[(f64, IntegerKind, Rounding, u64, u8)] = &[
        (2_147_483_647.0, Word, NearestEven, 0x7fff_ffff, 0),
        (2_147_483_647.5, Word, NearestEven, 0x7fff_ffff, NV),
        (2_147_483_647.5, Word, Zero, 0x7fff_ffff, NX),
        (2_147_483_648.0, Word, Zero, 0x7fff_ffff, NV),
        (-2_147_483_648.0, Word, Zero, 0xffff_ffff_8000_0000, 0),
        (-2_147_483_648.5, Word, NearestEven, 0xffff_ffff_8000_0000, NX),
        (-2_147_483_648.5, Word, NearestAway, 0xffff_ffff_8000_0000, NV),
        (-2_147_483_649.0, Word, Zero, 0xffff_ffff_8000_0000, NV),
        (4_294_967_295.0, WordUnsigned, Zero, u64::MAX, 0),
        (4_294_967_295.5, WordUnsigned, Up, u64::MAX, NV),
        (4_294_967_296.0, WordUnsigned, Zero, u64::MAX, NV),
        (2_147_483_648.0, WordUnsigned, Zero, 0xffff_ffff_8000_0000, 0),
        (-0.5, WordUnsigned, NearestEven, 0, NX),
        (-0.5, WordUnsigned, Zero, 0, NX),
        (-0.5, WordUnsigned, NearestAway, 0, NV),
        (-0.25, LongUnsigned, Down, 0, NV),
        (-1.0, LongUnsigned, Zero, 0, NV),
        (-0.0, LongUnsigned, Down, 0, 0),
        (9_223_372_036_854_774_784.0, Long, Up, 0x7fff_ffff_ffff_fc00, 0),
        (9_223_372_036_854_775_808.0, Long, Zero, i64::MAX as u64, NV),
        (-9_223_372_036_854_775_808.0, Long, Zero, 1 << 63, 0),
        (-9_223_372_036_854_777_856.0, Long, Zero, 1 << 63, NV),
        (18_446_744_073_709_549_568.0, LongUnsigned, Zero, 0xffff_ffff_ffff_f800, 0),
        (18_446_744_073_709_551_616.0, LongUnsigned, Zero, u64::MAX, NV),
        (f64::MAX, Long, Zero, i64::MAX as u64, NV),
        (f64::INFINITY, WordUnsigned, Zero, u64::MAX, NV),
        (f64::NEG_INFINITY, Word, Zero, 0xffff_ffff_8000_0000, NV),
        (f64::NEG_INFINITY, LongUnsigned, Zero, 0, NV),
        (f64::NAN, Word, Zero, 0x7fff_ffff, NV),
        (-f64::NAN, WordUnsigned, Zero, u64::MAX, NV),
        (-f64::NAN, Long, Zero, i64::MAX as u64, NV),
        (f64::NAN, LongUnsigned, Zero, u64::MAX, NV),
        (2.5, Long, NearestEven, 2, NX),
        (2.5, Long, NearestAway, 3, NX),
        (-2.5, Long, Down, 0u64.wrapping_sub(3), NX),
        (-2.5, Long, Up, 0u64.wrapping_sub(2), NX),
        (f64::from_bits(1), Long, Up, 1, NX),
        (f64::from_bits(1), Long, NearestAway, 0, NX),
    ];
    for &(value, kind, rounding, result, flags) in cases {
        let ours = computed(rounding, |context| to_integer::<Double>(value.to_bits(), kind, context));
        assert_eq!(ours, (result, flags), "{value} {kind:?} {rounding:?}");
    }
}

#[test]
fn minimum_and_maximum() {
    let run = |extreme, a, b| {
        let mut flags = 0;
        (select::<Double>(extreme, a, b, &mut flags), flags)
    };
    let cases = [
        (0, MINUS, MINUS, 0, 0),
        (ONE, TWO, ONE, TWO, 0),
        (ONE | MINUS, TWO | MINUS, TWO | MINUS, ONE | MINUS, 0),
        (ONE, OTHER_QUIET, ONE, ONE, 0),
        (ONE, SIGNALING, ONE, ONE, NV),
        (OTHER_QUIET, OTHER_QUIET, NAN, NAN, 0),
        (SIGNALING, OTHER_QUIET, NAN, NAN, NV),
        (INFINITY | MINUS, INFINITY, INFINITY | MINUS, INFINITY, 0),
    ];
    for (a, b, minimum, maximum, flags) in cases {
        for (a, b) in [(a, b), (b, a)] {
            assert_eq!(run(Extreme::Minimum, a, b), (minimum, flags), "{a:#x} {b:#x}");
            assert_eq!(run(Extreme::Maximum, a, b), (maximum, flags), "{a:#x} {b:#x}");
        }
    }
}

#[test]
fn comparisons() {
    let run = |a, b| {
        [Comparison::LessOrEqual, Comparison::Less, Comparison::Equal].map(|comparison| {
            let mut flags = 0;
            (compare::<Double>(comparison, a, b, &mut flags), flags)
        })
    };
    let (yes, no, invalid) = ((true, 0), (false, 0), (false, NV));
    assert_eq!(run(0, MINUS), [yes, no, yes]);
    assert_eq!(run(MINUS, 0), [yes, no, yes]);
    assert_eq!(run(ONE, ONE), [yes, no, yes]);
    assert_eq!(run(ONE | MINUS, ONE), [yes, yes, no]);
    assert_eq!(run(ONE, ONE | MINUS), [no, no, no]);
    assert_eq!(run(TWO | MINUS, ONE | MINUS), [yes, yes, no]);
    assert_eq!(run(INFINITY, INFINITY), [yes, no, yes]);
    assert_eq!(run(1, 0), [no, no, no]);
    assert_eq!(run(NAN, ONE), [invalid, invalid, no]);
    assert_eq!(run(ONE, OTHER_QUIET), [invalid, invalid, no]);
    assert_eq!(run(SIGNALING, ONE), [invalid, invalid, invalid]);
}

#[test]
fn classes() {
    let doubles = [
        INFINITY | MINUS,
        ONE | MINUS,
        1 | MINUS,
        MINUS,
        0,
        MIN_NORMAL - 1,
        MIN_NORMAL,
        INFINITY,
        SIGNALING | MINUS,
        OTHER_QUIET,
    ];
    for (class, bits) in doubles.into_iter().enumerate() {
        assert_eq!(classify::<Double>(bits), 1 << class, "{bits:#x}");
    }
    assert_eq!(classify::<Single>(0x8000_0001), 1 << 2);
    assert_eq!(classify::<Single>(0x7f80_0001), 1 << 8);
    assert_eq!(classify::<Single>(Single::unbox(0x3f80_0000)), 1 << 9, "a single that isn't boxed");
}

#[test]
fn signs() {
    assert_eq!(inject_sign::<Double>(SignOp::Copy, ONE, MINUS), ONE | MINUS);
    assert_eq!(inject_sign::<Double>(SignOp::CopyNegated, ONE | MINUS, MINUS), ONE);
    assert_eq!(inject_sign::<Double>(SignOp::Xor, SIGNALING | MINUS, MINUS), SIGNALING);
    let boxed = |bits| Single::unbox(Single::boxed(bits));
    assert_eq!(inject_sign::<Single>(SignOp::CopyNegated, boxed(0x3f80_0000), boxed(0)), 0xbf80_0000);
    assert_eq!(inject_sign::<Single>(SignOp::Copy, Single::unbox(0x3f80_0000), boxed(0x8000_0000)), 0xffc0_0000);
}
