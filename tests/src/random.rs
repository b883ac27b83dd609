//! Pseudo-random numbers for tests: the same seed gives the same test.

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

    /// Whether something of which one in `of` is so is so.
    pub fn one_in(&mut self, of: u32) -> bool {
        self.below(of) == 0
    }

    /// One of `from`, which is not empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// A seed for one run: the value of `FT_SEED`, or else one that differs from run to run. Prints the
/// command that runs the calling test again with it.
///
/// # Panics
/// If `FT_SEED` is not a number.
#[must_use]
pub fn seed() -> u64 {
    let seed = match std::env::var("FT_SEED") {
        Ok(text) => text.parse().expect("FT_SEED is a decimal number"),
        Err(_) => {
            let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = hypervisor::os::entropy::seed();
            u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
        }
    };
    println!("rerun: FT_SEED={seed} cargo test -p tests{}", this_test());
    seed
}

/// The arguments of `cargo test` that select the test that runs on this thread: cargo names the
/// executable after the test target, and libtest the thread after the test.
fn this_test() -> String {
    let executable = std::env::current_exe().ok();
    let name = executable.as_ref().and_then(|path| path.file_stem()?.to_str()?.rsplit_once('-'));
    let thread = std::thread::current();
    // A test of a run with one thread is on the main thread.
    let test = thread.name().filter(|name| *name != "main").map(|name| format!(" {name}"));
    name.map_or_else(String::new, |(target, _)| format!(" --test {target}{}", test.unwrap_or_default()))
}
