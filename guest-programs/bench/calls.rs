//! The `calls` program: recursive calls, and calls through a table of functions.

use super::{Random, index, mix};
use core::hint::black_box;

/// The index whose Fibonacci number one unit computes by recursion, in 28656 calls.
const DEPTH: u64 = 21;
/// Calls through the table in one unit of work.
const INDIRECT_CALLS: u64 = 16_000;

type Operation = fn(u64, u64) -> u64;

/// The functions of the table, of which the next one depends on the result of the last.
const OPERATIONS: [Operation; 8] = [add, subtract, exclusive_or, rotate, multiply, either, spread, count];

/// Does a recursion and a walk through the table for each unit of work.
pub(super) fn run(size: u64) -> u64 {
    // Hidden from the compiler, which might otherwise inline the functions.
    let operations: &[Operation; 8] = black_box(&OPERATIONS);
    let mut random = Random(1);
    let mut checksum = 1;
    for unit in 0..size {
        checksum = mix(checksum ^ fibonacci(DEPTH, unit));
        for _ in 0..INDIRECT_CALLS {
            let number = random.next();
            checksum = operations[index(number, OPERATIONS.len())](checksum, number);
        }
    }
    checksum
}

/// The sequence that begins with `first` and 1, by recursion.
#[inline(never)]
fn fibonacci(index: u64, first: u64) -> u64 {
    match index {
        0 => first,
        1 => 1,
        _ => fibonacci(index - 1, first).wrapping_add(fibonacci(index - 2, black_box(first))),
    }
}

fn add(left: u64, right: u64) -> u64 {
    left.wrapping_add(right)
}

fn subtract(left: u64, right: u64) -> u64 {
    left.wrapping_sub(right)
}

fn exclusive_or(left: u64, right: u64) -> u64 {
    left ^ right
}

fn rotate(left: u64, right: u64) -> u64 {
    left.rotate_left(7) ^ right
}

fn multiply(left: u64, right: u64) -> u64 {
    left.wrapping_mul(right | 1)
}

fn either(left: u64, right: u64) -> u64 {
    if left > right { left.wrapping_sub(right) } else { right ^ left }
}

fn spread(left: u64, right: u64) -> u64 {
    mix(left) ^ right
}

fn count(left: u64, right: u64) -> u64 {
    left ^ (left >> 5).wrapping_add(right)
}

#[cfg(test)]
mod tests {
    use super::fibonacci;

    #[test]
    fn fibonacci_numbers() {
        assert_eq!([0, 1, 2, 3, 10, 21].map(|index| fibonacci(index, 0)), [0, 1, 1, 2, 55, 10946]);
        assert_eq!([0, 1, 2, 3, 4].map(|index| fibonacci(index, 5)), [5, 1, 6, 7, 13]);
    }
}
