//! The `sieve` program: the sieve of Eratosthenes, one segment at a time.

use super::mix;
use alloc::{vec, vec::Vec};

/// Odd numbers in a segment, one byte each.
const SEGMENT: usize = 1 << 16;
/// Segments after which the sieve starts over, because the base primes reach no further.
const SEGMENTS: u64 = 128;
/// End of the base primes: its square is the end of the last segment.
const BASE_END: usize = 4096;

/// Sieves one segment for each unit of work.
pub(super) fn run(size: u64) -> u64 {
    let base = base_primes();
    let mut segment = vec![true; SEGMENT];
    let mut checksum = base.len() as u64;
    for unit in 0..size {
        let (primes, sum) = sieve(&base, &mut segment, unit % SEGMENTS);
        checksum = mix(checksum ^ sum).wrapping_add(primes);
    }
    checksum
}

/// The odd primes below [`BASE_END`].
fn base_primes() -> Vec<usize> {
    let mut composite = vec![false; BASE_END];
    let mut primes = Vec::new();
    for number in (3..BASE_END).step_by(2) {
        if !composite[number] {
            primes.push(number);
            (number * number..BASE_END).step_by(2 * number).for_each(|multiple| composite[multiple] = true);
        }
    }
    primes
}

/// The number of odd primes in a segment, and the sum of their indices. 1 is counted as a prime.
fn sieve(base: &[usize], segment: &mut [bool], number: u64) -> (u64, u64) {
    segment.fill(true);
    // Index p of the segment is the odd number 2 * (start + p) + 1.
    let start = usize::try_from(number).unwrap_or_default() * SEGMENT;
    for prime in base {
        // The index of the prime's square in the first segment; from there on, every prime-th index
        // is a multiple.
        let square = prime * prime / 2;
        let mut index = if square >= start { square - start } else { (prime - (start - square) % prime) % prime };
        while index < SEGMENT {
            segment[index] = false;
            index += prime;
        }
    }
    let (mut primes, mut sum) = (0, 0);
    for (index, is_prime) in segment.iter().enumerate() {
        if *is_prime {
            primes += 1;
            sum += index as u64;
        }
    }
    (primes, sum)
}

#[cfg(test)]
mod tests {
    use super::{SEGMENT, base_primes, sieve};
    use alloc::vec;

    /// There are 12251 primes below 2^17, and 10749 more below 2^18. The sieve leaves out 2 and
    /// counts 1.
    #[test]
    fn finds_all_primes() {
        let base = base_primes();
        assert_eq!(base.len(), 563);
        let mut segment = vec![false; SEGMENT];
        assert_eq!(sieve(&base, &mut segment, 0).0, 12251);
        assert_eq!(sieve(&base, &mut segment, 1).0, 10749);
        // The last segment ends at 2^24, below which there are 1077871 primes.
        let primes: u64 = (0..super::SEGMENTS).map(|number| sieve(&base, &mut segment, number).0).sum();
        assert_eq!(primes, 1_077_871);
    }
}
