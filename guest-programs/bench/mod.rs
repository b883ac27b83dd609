//! Programs to measure a machine's speed by: each does work of a size that it is told, and ends
//! with a checksum.
//!
//! | program | what it strains |
//! |---|---|
//! | `sieve` | stores and branches of short loops |
//! | `calls` | calls and returns, direct, recursive and through a table |
//! | `bytecode` | the indirect jumps of an interpreter, here one that sorts |
//! | `hash` | loads that depend on each other, all over two mebibytes |
//!
//! A program knows neither machine nor host, so the same code says on a host what the checksum must
//! be.

mod bytecode;
mod calls;
mod hash;
mod sieve;

/// The programs, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Finds primes.
    Sieve,
    /// Calls functions.
    Calls,
    /// Interprets a sort.
    Bytecode,
    /// Walks through a hash table.
    Hash,
}

/// What the boot arguments ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which program.
    pub program: Program,
    /// How much of it: a unit is about a million instructions. With 0 there is nothing but the
    /// program's start.
    pub size: u64,
    /// With Sv39 translation by pages of 4 KiB, and with timer interrupts.
    pub paged: bool,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sieve, Self::Calls, Self::Bytecode, Self::Hash];

    /// As in the boot arguments.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sieve => "sieve",
            Self::Calls => "calls",
            Self::Bytecode => "bytecode",
            Self::Hash => "hash",
        }
    }

    /// Does work of `size` units, and gives its checksum.
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
    /// Reads a command line like `program=sieve size=100 paged`; `None` if it names no program, or
    /// a size that is none.
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

/// SplitMix64: numbers that are the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// One of `0..end`, by the value's remainder.
fn index(value: u64, end: usize) -> usize {
    // What is less than a `usize` is one.
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

    /// The work is a function of the size, and all of it counts.
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
