//! Special values and ordinary ones.

use crate::random::Random;

/// Integers at the limits of arithmetic.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0x7fff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_7fff_ffff,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// An integer: a limit, one near it, few bits, many bits, or a floating-point number.
pub(super) fn integer(random: &mut Random) -> u64 {
    match random.below(8) {
        0 | 1 => random.pick(&EDGES),
        2 => random.pick(&EDGES).wrapping_add(random.next_u64() % 7).wrapping_sub(3),
        3 => random.next_u64() >> random.below(64),
        4 => (random.next_u64().cast_signed() >> random.below(64)).cast_unsigned(),
        5 => float(random),
        _ => random.next_u64(),
    }
}

/// The content of a floating-point register: a double, a boxed single, or a badly boxed one.
pub(super) fn float(random: &mut Random) -> u64 {
    match random.below(8) {
        0..4 => double(random),
        4 => random.next_u64() << 32 | u64::from(single(random)),
        _ => 0xffff_ffff << 32 | u64::from(single(random)),
    }
}

/// The bits of a floating-point number.
fn number(random: &mut Random, exponent_bits: u32, fraction_bits: u32) -> u64 {
    let exponent_max = (1 << exponent_bits) - 1;
    let bias = exponent_max >> 1;
    let fraction_mask = (1 << fraction_bits) - 1;
    let near =
        |random: &mut Random, spread: u32| u64::from(random.below(2 * spread + 1)).wrapping_sub(u64::from(spread));
    let exponent = match random.below(12) {
        // Zero and subnormal numbers; infinities and NaNs.
        0 | 1 => 0,
        2 => exponent_max,
        3 => 1 + u64::from(random.below(3)),
        4 => exponent_max - 1 - u64::from(random.below(3)),
        // The limits of integers.
        5 => bias + random.pick(&[7, 8, 15, 16, 30, 31, 32, 62, 63, 64]),
        // Where the ranges of the two formats end.
        6 => (bias.wrapping_add(random.pick(&[127_i64, 128, -126, -127, -149, -150]).cast_unsigned())) & exponent_max,
        7 => random.next_u64() & exponent_max,
        // Close to each other, so that sums cancel and products don't overflow.
        _ => bias.wrapping_add(near(random, 30)),
    };
    let fraction = match random.below(8) {
        0 => 0,
        1 => 1,
        2 => fraction_mask,
        3 => 1 << (fraction_bits - 1),
        4 => fraction_mask << random.below(fraction_bits),
        5 => 1 << random.below(fraction_bits),
        _ => random.next_u64(),
    };
    let sign = random.next_u64() & 1;
    (sign << (exponent_bits + fraction_bits)) | (exponent & exponent_max) << fraction_bits | fraction & fraction_mask
}

fn double(random: &mut Random) -> u64 {
    number(random, 11, 52)
}

fn single(random: &mut Random) -> u32 {
    u32::try_from(number(random, 8, 23)).expect("32 bits")
}
