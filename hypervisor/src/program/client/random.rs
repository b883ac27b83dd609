//! Pseudo-random numbers for clients and tests: the same seed gives the same numbers.

/// A generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        let scaled = ((self.next_u64() >> 32) * u64::from(limit)) >> 32;
        u32::try_from(scaled).expect("less than the limit")
    }

    /// An index below `limit`, which is not 0.
    pub fn index(&mut self, limit: usize) -> usize {
        let scaled = (u128::from(self.next_u64()) * limit as u128) >> 64;
        usize::try_from(scaled).expect("less than the limit")
    }

    /// `true` with probability 1/`of`.
    pub fn one_in(&mut self, of: u32) -> bool {
        self.below(of) == 0
    }

    /// One of `from`, which is not empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}
