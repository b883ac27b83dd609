//! Random snippets of RV64IMAC code: a few dozen units of one or a few instructions that belong
//! together.
//!
//! What may differ between correct machines is left out: counters, reserved values in `stvec`,
//! stores between LR and SC, `misa`, fields of `sstatus` that depend on extensions. So is what QEMU
//! 7.2 gets wrong: bit 0 of `sepc` stays set there, misaligned atomics don't fault, an AMO's fault
//! has a load's cause, and a misaligned access to an unmapped address reports the aligned address.

use super::assembler::{Assembler, EBREAK, Label};
use super::units::Writer;
use crate::random::Random;

/// The scratch memory, in words of eight bytes.
pub const SCRATCH_WORDS: u8 = 64;

/// Registers with an address of the scratch memory: its start in the first two, its middle in the
/// last. Snippets only read them, as bases of loads and stores.
pub(super) const BASES: [u32; 3] = [STACK, SHORT_BASE, MIDDLE];
pub(super) const STACK: u32 = 2;
const SHORT_BASE: u32 = 8;
pub(super) const MIDDLE: u32 = 31;
/// The register with the address of the runtime's variables. Snippets don't use it.
pub(super) const VARIABLES_REGISTER: u32 = 30;
/// Registers that a trap changes.
pub(super) const HANDLER_REGISTERS: [u32; 2] = [27, 28];

/// Values at the limits of arithmetic.
const EDGE_VALUES: [u64; 12] = [
    0,
    1,
    2,
    u64::MAX,
    u64::MAX - 1,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0xffff_ffff_8000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x0123_4567_89ab_cdef,
];

/// The mode in which a snippet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// U-mode.
    User,
    /// S-mode.
    Supervisor,
}

/// A snippet and its initial state, a function of its seed.
#[derive(Clone, Debug)]
pub struct Snippet {
    /// The seed.
    pub seed: u64,
    /// The mode in which it begins.
    pub mode: Mode,
    /// Registers x0 to x31; the runtime sets those with a meaning of their own.
    pub registers: [u64; 32],
    /// The scratch memory.
    pub scratch: [u64; SCRATCH_WORDS as usize],
    units: usize,
}

impl Snippet {
    /// Generates a snippet of `units` units.
    #[must_use]
    pub fn new(seed: u64, units: usize) -> Self {
        let mut random = Random::new(seed);
        let mode = if random.one_in(4) { Mode::User } else { Mode::Supervisor };
        let mut value =
            || if random.one_in(2) { random.pick(&EDGE_VALUES) } else { random.next_u64() >> random.below(64) };
        let mut registers = std::array::from_fn(|_| value());
        let scratch = std::array::from_fn(|_| value());
        for register in HANDLER_REGISTERS.into_iter().chain([0]) {
            registers[register as usize] = 0;
        }
        Self { seed, mode, registers, scratch, units }
    }

    /// Appends the snippet to `code`; returns the address of the EBREAK after it.
    pub fn assemble(&self, code: &mut Assembler) -> u64 {
        self.assemble_units(code, |_, _| {})
    }

    /// The code, a line of halfwords for each unit, without what depends on later addresses.
    #[must_use]
    pub fn listing(&self) -> String {
        let mut lines = String::new();
        let mut code = Assembler::new(0);
        self.assemble_units(&mut code, |kind, halves| {
            let halves: Vec<String> = halves.iter().map(|half| format!("{half:04x}")).collect();
            lines += &format!("    {kind:<22} {}\n", halves.join(" "));
        });
        lines
    }

    fn assemble_units(&self, code: &mut Assembler, mut note: impl FnMut(&'static str, &[u16])) -> u64 {
        // Another sequence than that of the state, so that the two are independent.
        let mut random = Random::new(!self.seed);
        let starts: Vec<Label> = (0..=self.units).map(|_| code.label()).collect();
        for unit in 0..self.units {
            code.place(starts[unit]);
            let from = code.here();
            let kind = Writer { code, random: &mut random, starts: &starts, unit, mode: self.mode }.write();
            note(kind, code.since(from));
        }
        code.place(starts[self.units]);
        let end = code.here();
        code.word(EBREAK);
        end
    }
}
