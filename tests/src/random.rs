//! Pseudo-random numbers for tests: the same seed gives the same test.

pub use hypervisor::program::client::random::Random;

/// The seed of a run: the value of `FT_SEED`, or one that differs from run to run. Prints the
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

/// The arguments of `cargo test` that select the calling test: cargo names the executable after the
/// test target, and libtest the thread after the test.
fn this_test() -> String {
    let executable = std::env::current_exe().ok();
    let name = executable.as_ref().and_then(|path| path.file_stem()?.to_str()?.rsplit_once('-'));
    let thread = std::thread::current();
    // With a single test thread, tests run on the main thread.
    let test = thread.name().filter(|name| *name != "main").map(|name| format!(" {name}"));
    name.map_or_else(String::new, |(target, _)| format!(" --test {target}{}", test.unwrap_or_default()))
}
