//! Against a port of LLVM's APFloat, in all modes.
//!
//! It keeps the payloads of NaNs; calls a result tiny if it is subnormal after rounding; and
//! doesn't call it an overflow if rounding gives the largest number. These flags of results that
//! are the smallest normal number or the largest one are left to the other tests.

use rustc_apfloat::ieee::{Double as LibraryDouble, Single as LibrarySingle};
use rustc_apfloat::{Float, FloatConvert, Round, Status, StatusAnd};

use super::{MODES, Random, computed};
use crate::hart::float::convert;
use crate::hart::float::format::{Double, Format, Single};
use crate::hart::float::native;
use crate::hart::float::soft::{self, flag};
use crate::isa::float::{BinaryOp, IntegerKind, Rounding};

const ROUNDS: u32 = 100_000;

const fn round_of(rounding: Rounding) -> Round {
    match rounding {
        Rounding::NearestEven => Round::NearestTiesToEven,
        Rounding::Zero => Round::TowardZero,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::NearestAway => Round::NearestTiesToAway,
    }
}

fn flags_of(status: Status) -> u8 {
    [
        (Status::INEXACT, flag::NX),
        (Status::UNDERFLOW, flag::UF),
        (Status::OVERFLOW, flag::OF),
        (Status::DIV_BY_ZERO, flag::DZ),
        (Status::INVALID_OP, flag::NV),
    ]
    .into_iter()
    .filter(|(theirs, _)| status.contains(*theirs))
    .fold(0, |flags, (_, ours)| flags | ours)
}

fn assert_same<F: Format, L: Float>(ours: (u64, u8), theirs: StatusAnd<L>, what: &dyn core::fmt::Debug) {
    let bits = if theirs.value.is_nan() { F::NAN } else { u64::try_from(theirs.value.to_bits()).unwrap() };
    let compared = match F::magnitude(bits) {
        magnitude if magnitude == F::MIN_NORMAL => !flag::UF,
        magnitude if magnitude == F::INFINITY - 1 => !flag::OF,
        _ => !0,
    };
    assert_eq!((ours.0, ours.1 & compared), (bits, flags_of(theirs.status) & compared), "{what:x?}");
}

fn arithmetic<F: Format, L: Float>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..ROUNDS {
        let [a, b, c] = core::array::from_fn(|_| random.operand::<F>());
        let [x, y, z] = [a, b, c].map(|bits| L::from_bits(bits.into()));
        for rounding in MODES {
            let round = round_of(rounding);
            for op in [BinaryOp::Add, BinaryOp::Subtract, BinaryOp::Multiply, BinaryOp::Divide] {
                let ours = computed(rounding, |context| native::by_integers::<F>(op, a, b, context));
                let theirs = match op {
                    BinaryOp::Add => x.add_r(y, round),
                    BinaryOp::Subtract => x.sub_r(y, round),
                    BinaryOp::Multiply => x.mul_r(y, round),
                    BinaryOp::Divide => x.div_r(y, round),
                };
                assert_same::<F, L>(ours, theirs, &(op, a, b, rounding));
            }
            let ours = computed(rounding, |context| soft::multiply_add::<F>(a, b, c, context));
            assert_same::<F, L>(ours, x.mul_add_r(y, z, round), &(a, b, c, rounding));
        }
    }
}

#[test]
fn arithmetic_is_the_librarys() {
    arithmetic::<Single, LibrarySingle>(0x51);
    arithmetic::<Double, LibraryDouble>(0xd1);
}

/// Addends near the product, which cancel, or are just too far away to.
#[test]
fn close_sums_are_the_librarys() {
    let mut random = Random::new(0xc1);
    for _ in 0..ROUNDS {
        let [a, b] = core::array::from_fn(|_| random.operand::<Double>());
        let (product, _) = computed(Rounding::NearestEven, |context| soft::multiply::<Double>(a, b, context));
        let shift = random.below(110).wrapping_sub(55) << 52;
        let c =
            [product ^ 1 << 63, product.wrapping_add(random.below(3)), product.wrapping_add(shift)][random.index(3)];
        let [x, y, z] = [a, b, c].map(|bits| LibraryDouble::from_bits(bits.into()));
        for rounding in MODES {
            let ours = computed(rounding, |context| soft::multiply_add::<Double>(a, b, c, context));
            assert_same::<Double, _>(ours, x.mul_add_r(y, z, round_of(rounding)), &(a, b, c, rounding));
        }
    }
}

#[test]
fn narrowing_is_the_librarys() {
    let mut random = Random::new(0x5d);
    for _ in 0..ROUNDS {
        // Doubles that are near singles, and all others.
        let double = match random.below(4) {
            0 => random.operand::<Double>(),
            _ => {
                let single = Single::to_host(random.operand::<Single>()).to_bits();
                single ^ random.below(3) << 28 ^ random.below(2) << random.below(29)
            }
        };
        for rounding in MODES {
            let ours = computed(rounding, |context| convert::resize::<Double, Single>(double, context));
            let theirs: StatusAnd<LibrarySingle> =
                LibraryDouble::from_bits(double.into()).convert_r(round_of(rounding), &mut false);
            assert_same::<Single, _>(ours, theirs, &(double, rounding));
        }
    }
}

fn widening<L: FloatConvert<LibraryDouble>>(bits: u64) {
    for rounding in MODES {
        let ours = computed(rounding, |context| convert::resize::<Single, Double>(bits, context));
        let theirs = L::from_bits(bits.into()).convert_r(round_of(rounding), &mut false);
        assert_same::<Double, _>(ours, theirs, &(bits, rounding));
    }
}

#[test]
fn widening_is_the_librarys() {
    let mut random = Random::new(0xd5);
    for _ in 0..ROUNDS {
        widening::<LibrarySingle>(random.operand::<Single>());
    }
}

fn integers<F: Format, L: Float>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..ROUNDS {
        let integer = random.next() >> random.below(64) << random.below(8);
        let near = F::from_host_signed(random.next().cast_signed() >> random.below(64));
        let bits = [random.operand::<F>(), near.wrapping_add(random.below(5)).wrapping_sub(2)][random.index(2)];
        for rounding in MODES {
            let round = round_of(rounding);
            for kind in [IntegerKind::Word, IntegerKind::WordUnsigned, IntegerKind::Long, IntegerKind::LongUnsigned] {
                let ours = computed(rounding, |context| convert::from_integer::<F>(integer, kind, context));
                assert_same::<F, L>(ours, library_from_integer(integer, kind, round), &(integer, kind, rounding));
                let ours = computed(rounding, |context| convert::to_integer::<F>(bits, kind, context));
                let theirs = library_to_integer(L::from_bits(bits.into()), kind, round);
                assert_eq!(ours, theirs, "{bits:x} {kind:?} {rounding:?}");
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "words are the low half")]
fn library_from_integer<L: Float>(integer: u64, kind: IntegerKind, round: Round) -> StatusAnd<L> {
    match kind {
        IntegerKind::Word => L::from_i128_r((integer as i32).into(), round),
        IntegerKind::WordUnsigned => L::from_u128_r((integer as u32).into(), round),
        IntegerKind::Long => L::from_i128_r(integer.cast_signed().into(), round),
        IntegerKind::LongUnsigned => L::from_u128_r(integer.into(), round),
    }
}

/// The library's NaN becomes zero, ours the largest integer.
#[expect(clippy::cast_possible_truncation, reason = "words are sign-extended from the low half")]
#[expect(clippy::cast_sign_loss, reason = "a register has no sign")]
fn library_to_integer<L: Float>(value: L, kind: IntegerKind, round: Round) -> (u64, u8) {
    let (width, is_signed) = match kind {
        IntegerKind::Word => (32, true),
        IntegerKind::WordUnsigned => (32, false),
        IntegerKind::Long => (64, true),
        IntegerKind::LongUnsigned => (64, false),
    };
    if value.is_nan() {
        let largest = u64::MAX >> (64 - width + usize::from(is_signed));
        return (if kind == IntegerKind::WordUnsigned { u64::MAX } else { largest }, flag::NV);
    }
    let (integer, status) = if is_signed {
        let StatusAnd { value, status } = value.to_i128_r(width, round, &mut false);
        (value as u64, status)
    } else {
        let StatusAnd { value, status } = value.to_u128_r(width, round, &mut false);
        (value as u64, status)
    };
    (if width == 32 { integer as i32 as u64 } else { integer }, flags_of(status))
}

#[test]
fn integers_are_the_librarys() {
    integers::<Single, LibrarySingle>(0x15);
    integers::<Double, LibraryDouble>(0x1d);
}
