//! The generators' writer: free registers, and units after which a trap's handler can go on.

use super::program::{DATA_REGISTER, Mode, NOWHERE, RESUME_REGISTER, RUNTIME_REGISTER};
use crate::qemu::assembler::{Assembler, addi, i_type, opcode, u_type};
use crate::random::Random;

/// Writes one program's code.
pub(super) struct Writer {
    pub(super) code: Assembler,
    pub(super) random: Random,
    pub(super) mode: Mode,
    /// The bit of the program's interrupt, if it has one.
    pub(super) interrupt: u64,
}

impl Writer {
    pub(super) const fn new(base: u64, random: Random, mode: Mode) -> Self {
        Self { code: Assembler::new(base), random, mode, interrupt: 0 }
    }

    /// Writes a unit: a trap in `body` goes on after it.
    pub(super) fn unit<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let next = self.code.label();
        self.code.address(RESUME_REGISTER, next);
        let result = body(self);
        self.code.place(next);
        result
    }

    /// A register that may be overwritten; not x0.
    pub(super) fn register(&mut self) -> u32 {
        loop {
            let register = 1 + self.random.below(31);
            if !is_kept(register) {
                return register;
            }
        }
    }

    /// As [`Self::register`], and a different one from `other`.
    pub(super) fn register_but(&mut self, other: u32) -> u32 {
        loop {
            let register = self.register();
            if register != other {
                return register;
            }
        }
    }

    /// One of x8 to x15, as compressed instructions name it: 0 to 7.
    pub(super) fn short_register(&mut self) -> u32 {
        self.random.below(8)
    }

    /// A destination register; sometimes x0.
    pub(super) fn destination(&mut self) -> u32 {
        if self.random.one_in(16) { 0 } else { self.register() }
    }

    /// Any register.
    pub(super) fn source(&mut self) -> u32 {
        self.random.below(32)
    }

    /// A signed immediate of 12 bits, often small.
    pub(super) fn immediate(&mut self) -> i32 {
        let immediate = self.random.below(1 << 12).cast_signed() - (1 << 11);
        immediate >> self.random.pick(&[0, 0, 0, 4, 8])
    }

    /// An offset from [`DATA_REGISTER`] to an aligned double word of data.
    pub(super) fn data_offset(&mut self) -> i32 {
        (self.random.below(512) << 3).cast_signed() - (1 << 11)
    }

    /// Loads a word of the data: an initial value, or one that was stored since.
    pub(super) fn load_value(&mut self, rd: u32) {
        let offset = self.data_offset();
        self.code.word(i_type(opcode::LOAD, 3, rd, DATA_REGISTER, offset));
    }

    /// Makes a register point at `offset` bytes from [`DATA_REGISTER`].
    pub(super) fn point(&mut self, rd: u32, offset: i32) {
        self.code.word(addi(rd, DATA_REGISTER, offset));
    }

    /// Makes `rd` an address whose access faults: unmapped, or far beyond physical addresses.
    pub(super) fn point_nowhere(&mut self, rd: u32) {
        let page = u32::try_from(NOWHERE >> 12).expect("20 bits") + self.random.below(64);
        self.code.word(u_type(opcode::LUI, rd, page));
        if self.random.one_in(2) {
            let far = self.random.pick(&[24, 30, 34]);
            self.code.words(&[addi(rd, rd, 8), i_type(opcode::OP_IMM, 1, rd, rd, far)]);
        }
    }
}

/// `true` for registers that no program writes to.
pub(super) const fn is_kept(register: u32) -> bool {
    matches!(register, DATA_REGISTER | RESUME_REGISTER | RUNTIME_REGISTER)
}
