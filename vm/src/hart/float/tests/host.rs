//! Against the host's arithmetic, which rounds to nearest even, and against exact arithmetic in a
//! wider format.

use super::{MODES, Random, computed};
use crate::hart::float::convert;
use crate::hart::float::format::{Double, Format, Single};
use crate::hart::float::native;
use crate::hart::float::soft::{self, Context, flag};
use crate::isa::float::{BinaryOp, IntegerKind, Rounding};

const ROUNDS: u32 = 1_000_000;
const OPERATIONS: [BinaryOp; 4] = [BinaryOp::Add, BinaryOp::Subtract, BinaryOp::Multiply, BinaryOp::Divide];

fn canonical<F: Format>(bits: u64) -> u64 {
    if F::is_nan(bits) { F::NAN } else { bits }
}

fn single(bits: u64) -> f32 {
    f32::from_bits(u32::try_from(bits).unwrap())
}

fn operations<F: Format>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..ROUNDS {
        let [a, b] = core::array::from_fn(|_| random.operand::<F>());
        for op in OPERATIONS {
            let (result, _) = computed(Rounding::NearestEven, |context| native::by_integers::<F>(op, a, b, context));
            assert_eq!(result, canonical::<F>(F::on_host(op, a, b)), "{op:?} {a:#x} {b:#x}");
        }
    }
}

#[test]
fn operations_are_the_hosts() {
    operations::<Single>(0x5_1);
    operations::<Double>(0xd_1);
}

#[test]
fn square_roots_and_fused_operations_are_the_hosts() {
    let mut random = Random::new(0xf0);
    for _ in 0..ROUNDS / 4 {
        let [a, b, c] = core::array::from_fn(|_| random.operand::<Double>());
        let [x, y, z] = [a, b, c].map(f64::from_bits);
        let (root, _) = computed(Rounding::NearestEven, |context| soft::square_root::<Double>(a, context));
        assert_eq!(root, canonical::<Double>(x.sqrt().to_bits()), "{a:#x}");
        let (sum, _) = computed(Rounding::NearestEven, |context| soft::multiply_add::<Double>(a, b, c, context));
        assert_eq!(sum, canonical::<Double>(x.mul_add(y, z).to_bits()), "{a:#x} {b:#x} {c:#x}");

        let [a, b, c] = core::array::from_fn(|_| random.operand::<Single>());
        let [x, y, z] = [a, b, c].map(single);
        let (root, _) = computed(Rounding::NearestEven, |context| soft::square_root::<Single>(a, context));
        assert_eq!(root, canonical::<Single>(x.sqrt().to_bits().into()), "{a:#x}");
        let (sum, _) = computed(Rounding::NearestEven, |context| soft::multiply_add::<Single>(a, b, c, context));
        assert_eq!(sum, canonical::<Single>(x.mul_add(y, z).to_bits().into()), "{a:#x} {b:#x} {c:#x}");
    }
}

/// The short cuts are taken only when inexact is set: everything has to be the same with and
/// without.
fn short_cut<F: Format, Other: Format>(seed: u64) {
    let mut random = Random::new(seed);
    let both = |rounding, operation: &dyn Fn(&mut Context) -> u64, what: &dyn core::fmt::Debug| {
        let (result, flags) = computed(rounding, operation);
        let mut context = Context { rounding, flags: flag::NX };
        assert_eq!((operation(&mut context), context.flags), (result, flags | flag::NX), "{what:x?} {rounding:?}");
    };
    for _ in 0..ROUNDS {
        let [a, b] = core::array::from_fn(|_| random.operand::<F>());
        let integer = random.next() >> random.below(64);
        for rounding in [Rounding::NearestEven, MODES[1 + random.index(4)]] {
            for op in OPERATIONS {
                let (result, flags) = computed(rounding, |context| native::by_integers::<F>(op, a, b, context));
                let mut context = Context { rounding, flags: flag::NX };
                let answer = native::binary::<F>(op, a, b, &mut context);
                assert_eq!((answer, context.flags), (result, flags | flag::NX), "{op:?} {a:#x} {b:#x} {rounding:?}");
            }
            both(rounding, &|context| convert::resize::<F, Other>(a, context), &a);
            for kind in [IntegerKind::Word, IntegerKind::WordUnsigned, IntegerKind::Long, IntegerKind::LongUnsigned] {
                both(rounding, &|context| convert::from_integer::<F>(integer, kind, context), &(integer, kind));
            }
        }
    }
}

#[test]
fn short_cuts_change_nothing() {
    short_cut::<Single, Double>(0x5f);
    short_cut::<Double, Single>(0xdf);
}

/// What single-precision arithmetic has to make of a result that a double has exactly: of the two
/// neighbours among singles, the one that the mode asks for.
fn rounded_neighbour(exact: f64, rounding: Rounding) -> (f32, u8) {
    let magnitude = exact.abs();
    let is_down = match rounding {
        Rounding::Zero => true,
        Rounding::Down => exact > 0.0,
        Rounding::Up => exact < 0.0,
        Rounding::NearestEven | Rounding::NearestAway => false,
    };
    let is_nearest = matches!(rounding, Rounding::NearestEven | Rounding::NearestAway);
    // Infinity stands for 2^128 where distances are compared.
    let value = |single: f32| if single.is_infinite() { 128_f64.exp2() } else { f64::from(single) };
    #[expect(clippy::cast_possible_truncation, reason = "it is only a place to look from")]
    let near = magnitude as f32;
    if f64::from(near) == magnitude {
        return (near.copysign(single_sign(exact)), 0);
    }
    let below = if f64::from(near) > magnitude { near.next_down() } else { near };
    let above = below.next_up();
    let rest = magnitude - value(below);
    let half = (value(above) - value(below)) / 2.0;
    let tie_is_up = rounding == Rounding::NearestAway || below.to_bits() & 1 == 1;
    let is_up = if is_nearest { rest > half || rest == half && tie_is_up } else { !is_down };
    let unbounded = rounded_to_24_bits(exact, rounding).abs();
    let mut flags = flag::NX;
    if unbounded >= 128_f64.exp2() {
        flags |= flag::OF;
    }
    if unbounded < (-126_f64).exp2() {
        flags |= flag::UF;
    }
    (if is_up { above } else { below }.copysign(single_sign(exact)), flags)
}

const fn single_sign(value: f64) -> f32 {
    if value.is_sign_negative() { -1.0 } else { 1.0 }
}

/// Rounds to the precision of a single, but not to its exponents: drops the 29 bits that a double
/// has more.
fn rounded_to_24_bits(value: f64, rounding: Rounding) -> f64 {
    const HALF: u64 = 1 << 28;
    let rest = value.to_bits() & (2 * HALF - 1);
    let toward_zero = value.to_bits() - rest;
    let is_away = rest != 0
        && match rounding {
            Rounding::Zero => false,
            Rounding::Down => value < 0.0,
            Rounding::Up => value > 0.0,
            Rounding::NearestAway => rest >= HALF,
            Rounding::NearestEven => rest > HALF || rest == HALF && toward_zero & (2 * HALF) != 0,
        };
    f64::from_bits(if is_away { toward_zero + 2 * HALF } else { toward_zero })
}

/// A product of singles is exact in double precision, and so is a sum of singles with exponents
/// that aren't far apart.
#[test]
fn singles_round_as_exact_doubles_do() {
    let mut random = Random::new(0x5d);
    let mut seen = 0;
    for _ in 0..ROUNDS {
        let [a, b] = core::array::from_fn(|_| random.operand::<Single>());
        if Single::is_nan(a) || Single::is_nan(b) || Single::INFINITY == Single::magnitude(a).max(Single::magnitude(b))
        {
            continue;
        }
        let (x, y) = (Single::to_host(a), Single::to_host(b));
        let are_close = (a >> 23 & 0xff).abs_diff(b >> 23 & 0xff) < 28;
        for rounding in MODES {
            if x * y != 0.0 {
                let (expected, flags) = rounded_neighbour(x * y, rounding);
                let ours = computed(rounding, |context| soft::multiply::<Single>(a, b, context));
                assert_eq!(ours, (expected.to_bits().into(), flags), "{a:#x} * {b:#x} {rounding:?}");
                seen |= flags;
            }
            if are_close && x + y != 0.0 {
                let (expected, flags) = rounded_neighbour(x + y, rounding);
                let ours = computed(rounding, |context| soft::add::<Single>(a, b, context));
                assert_eq!(ours, (expected.to_bits().into(), flags), "{a:#x} + {b:#x} {rounding:?}");
            }
        }
    }
    assert_eq!(seen, flag::NX | flag::UF | flag::OF, "the operands never came to some flag");
}

/// The square of the root rounded down isn't above the number, that of its neighbour is; the modes
/// agree with that.
#[test]
fn square_roots_bracket() {
    let mut random = Random::new(0x50);
    let significand = |root: u64| u128::from(root & ((1 << 52) - 1) | 1 << 52);
    for _ in 0..ROUNDS / 4 {
        // Between 1 and 4, where the significands of a root and its number are in a fixed ratio.
        let bits = (random.next() >> 11) + (0x3ff << 52);
        let bits = if random.below(8) == 0 { bits & u64::MAX << random.below(53) } else { bits };
        let [even, zero, down, up, away] =
            MODES.map(|rounding| computed(rounding, |context| soft::square_root::<Double>(bits, context)));
        let number = significand(bits) << (52 + ((bits >> 52) - 0x3ff));
        assert!(significand(down.0).pow(2) <= number, "{bits:#x}");
        if down.1 == 0 {
            assert_eq!(significand(down.0).pow(2), number, "{bits:#x}");
            assert!([even, zero, up, away].iter().all(|root| *root == down), "{bits:#x}");
            continue;
        }
        assert_eq!(up.0, down.0 + 1, "{bits:#x}");
        let above = if up.0 == 2 << 61 { 1 << 53 } else { significand(up.0) };
        assert!(above.pow(2) > number, "{bits:#x}");
        assert_eq!((zero, away), (down, even), "{bits:#x}");
        // Halfway is (2 down + 1) / 2.
        let is_up = (2 * significand(down.0) + 1).pow(2) < 4 * number;
        assert_eq!(even.0, if is_up { up.0 } else { down.0 }, "{bits:#x}");
        assert!([even, zero, down, up, away].iter().all(|root| root.1 == flag::NX), "{bits:#x}");
    }
}
