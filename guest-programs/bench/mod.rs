//! Benchmark programs: each does work of a given size and returns a checksum of it.
//!
//! | program | measures |
//! |---|---|
//! | `sieve` | stores and branches of short loops |
//! | `calls` | calls and returns, direct, recursive and through a table |
//! | `bytecode` | the indirect jumps of an interpreter, here one that sorts |
//! | `hash` | loads that depend on each other, all over two mebibytes |
//!
//! The programs depend on neither machine nor host, so a host computes the expected checksum with
//! the same code.

mod bytecode;
mod calls;
mod hash;
mod sieve;

/// A benchmark program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Finds primes with the sieve of Eratosthenes.
    Sieve,
    /// Calls functions.
    Calls,
    /// Interprets a bytecode that sorts.
    Bytecode,
    /// Walks through a hash table.
    Hash,
}

/// A benchmark run, as the boot arguments describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The program to run.
    pub program: Program,
    /// Units of work, each of about a million instructions. 0 measures the program's start alone.
    pub size: u64,
    /// `true` to run with Sv39 translation by 4 KiB pages, and with timer interrupts.
    pub paged: bool,
}

impl Program {
    /// All programs.
    pub const ALL: [Self; 4] = [Self::Sieve, Self::Calls, Self::Bytecode, Self::Hash];

    /// The program's name in the boot arguments.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sieve => "sieve",
            Self::Calls => "calls",
            Self::Bytecode => "bytecode",
            Self::Hash => "hash",
        }
    }

    /// Does `size` units of work; returns a checksum of the results.
    #[must_use]
    pub fn run(self, size: u64) -> u64 {
        match self {
            Self::Sieve => sieve::run(size),
            Self::Calls => calls::run(size),
            Self::Bytecode => bytecode::run(size),
            Self::Hash => hash::run(size),
        }
    }
}

impl Task {
    /// Parses a command line like `program=sieve size=100 paged`; `None` if the program or the size
    /// is missing or invalid.
    #[must_use]
    pub fn parse(command_line: &str) -> Option<Self> {
        let value =
            |key: &str| command_line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let name = value("program")?;
        Some(Self {
            program: Program::ALL.into_iter().find(|program| program.name() == name)?,
            size: value("size").map_or(Some(0), |size| size.parse().ok())?,
            paged: command_line.split_whitespace().any(|word| word == "paged"),
        })
    }
}

/// SplitMix64, written out so that host and guest get the same numbers.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// An index in `0..end`: the remainder of `value`.
fn index(value: u64, end: usize) -> usize {
    // The remainder is less than a `usize`, so the conversion can't fail.
    usize::try_from(value % end as u64).unwrap_or_default()
}

/// Makes every bit of the result depend on every bit of `value`.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Program, Task};
    use alloc::format;

    #[test]
    fn command_lines() {
        for program in Program::ALL {
            for paged in [false, true] {
                let line = format!("program={} size=17{}", program.name(), if paged { " paged" } else { "" });
                assert_eq!(Task::parse(&line), Some(Task { program, size: 17, paged }));
            }
        }
        assert_eq!(Task::parse("quiet program=hash").map(|task| task.size), Some(0));
        for line in ["", "size=1", "program=", "program=sieves", "program=sieve size=x", "program=sieve size=-1"] {
            assert_eq!(Task::parse(line), None, "{line:?}");
        }
    }

    /// No unit of work can be skipped without changing the checksum.
    #[test]
    fn every_unit_of_work_changes_the_checksum() {
        for program in Program::ALL {
            let checksums = [0, 1, 2, 3].map(|size| program.run(size));
            assert_eq!(checksums, [0, 1, 2, 3].map(|size| program.run(size)), "{program:?}");
            for (index, checksum) in checksums.iter().enumerate() {
                assert!(!checksums[..index].contains(checksum), "{program:?}: {checksums:x?}");
            }
        }
    }
}
