//! Choices of random programs, made from a seed or from the bytes of a fuzzer.

/// A sequence of choices. A fuzzer's bytes are used first, so that changing one byte changes one
/// choice. Then SplitMix64 goes on, so that a seed gives the same program in every release.
pub(crate) struct Choices<'a> {
    bytes: &'a [u8],
    state: u64,
}

impl<'a> Choices<'a> {
    pub(crate) const fn seeded(seed: u64) -> Self {
        Self { bytes: &[], state: seed }
    }

    pub(crate) const fn of_bytes(bytes: &'a [u8]) -> Self {
        Self { bytes, state: bytes.len() as u64 }
    }

    /// The next `count` bytes, at most 8.
    fn take(&mut self, count: usize) -> u64 {
        if let Some((taken, rest)) = self.bytes.split_at_checked(count) {
            self.bytes = rest;
            return taken.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        self.bytes = &[];
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> (64 - 8 * count)
    }

    pub(crate) fn any(&mut self) -> u64 {
        self.take(8)
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::try_from(self.take(4)).unwrap()
    }

    /// A number less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let bytes = match end {
            0..=0xff => 1,
            0x100..=0xffff => 2,
            _ => 8,
        };
        self.take(bytes) % end
    }

    /// A number in `from..end`.
    pub(crate) fn within(&mut self, from: i32, end: i32) -> i32 {
        from + i32::try_from(self.below(u64::try_from(end - from).unwrap())).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}
