//! The units of snippets.

use super::assembler::control::{SCAUSE, SEPC, SIE, SIP, SSCRATCH, STATUS, STVAL, TRAP_VECTOR};
use super::assembler::{
    Assembler, CSRRC, CSRRS, CSRRW, EBREAK, ECALL, Label, SFENCE_VMA, SRET, WFI, addi, csr, i_type, opcode, r_type,
    s_type, u_type,
};
use super::snippet::{HANDLER_REGISTERS, MIDDLE, Mode, SCRATCH_WORDS, STACK};
use crate::random::Random;

/// Registers that snippets compute on.
const REGISTERS: [u32; 25] =
    [1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 29];
/// The registers that compressed instructions encode in three bits.
const SHORT_REGISTERS: [u32; 7] = [9, 10, 11, 12, 13, 14, 15];

/// The upper five bits of LR and SC.
const LOAD_RESERVED: u32 = 2;
const STORE_CONDITIONAL: u32 = 3;

/// An address that is unmapped on both machines.
const NOWHERE: u32 = 0x0800_0000;

/// Writes one unit's code.
pub(super) struct Writer<'a> {
    pub(super) code: &'a mut Assembler,
    pub(super) random: &'a mut Random,
    /// The start of every unit, and the end.
    pub(super) starts: &'a [Label],
    pub(super) unit: usize,
    pub(super) mode: Mode,
}

impl Writer<'_> {
    /// Writes a unit; returns its kind.
    pub(super) fn write(&mut self) -> &'static str {
        /// Weight, kind, and writer.
        type Unit<W> = (u32, &'static str, fn(&mut W));
        let units: [Unit<Self>; 17] = [
            (24, "register operation", Self::register_operation),
            (14, "immediate operation", Self::immediate_operation),
            (3, "upper immediate", Self::upper_immediate),
            (12, "load or store", Self::load_or_store),
            (8, "branch or jump", Self::branch_or_jump),
            (2, "indirect jump", Self::indirect_jump),
            (5, "AMO", Self::amo),
            (4, "LR and SC", Self::reservation),
            (14, "compressed", Self::compressed),
            (5, "compressed memory", Self::compressed_memory),
            (4, "trap register", Self::trap_register),
            (2, "status register", Self::status_register),
            (1, "trap vector", Self::trap_vector),
            (1, "interrupt registers", Self::interrupt_registers),
            (3, "random encoding", Self::random_encoding),
            (3, "trap", Self::trap),
            (1, "SRET", Self::supervisor_return),
        ];
        let mut choice = self.random.below(units.iter().map(|(weight, ..)| weight).sum());
        for (weight, kind, write) in units {
            if choice < weight {
                write(self);
                return kind;
            }
            choice -= weight;
        }
        unreachable!("the choice is less than the sum of the weights")
    }

    fn register(&mut self) -> u32 {
        self.random.pick(&REGISTERS)
    }

    fn short_register(&mut self) -> u32 {
        self.random.pick(&SHORT_REGISTERS)
    }

    /// A register to read, perhaps x0.
    fn source(&mut self) -> u32 {
        if self.random.one_in(16) { 0 } else { self.register() }
    }

    /// A register to write, perhaps x0.
    fn destination(&mut self) -> u32 {
        self.source()
    }

    fn immediate(&mut self) -> i32 {
        i32::try_from(self.random.below(1 << 12)).expect("12 bits") - (1 << 11)
    }

    fn register_operation(&mut self) {
        let word = self.random.one_in(3);
        let funct3 = if word { self.random.pick(&[0, 1, 4, 5, 6, 7]) } else { self.random.below(8) };
        // 0: I, 1: M, 0x20: subtraction and arithmetic shift.
        let funct7 = match (funct3, word) {
            (0 | 5, _) => self.random.pick(&[0, 1, 0x20]),
            (1, true) => 0,
            (_, true) => 1,
            (_, false) => self.random.below(2),
        };
        let opcode = if word { opcode::OP_32 } else { opcode::OP };
        let (rd, rs1, rs2) = (self.destination(), self.source(), self.source());
        self.code.word(r_type(opcode, funct3, funct7, rd, rs1, rs2));
    }

    fn immediate_operation(&mut self) {
        let (rd, rs1) = (self.destination(), self.source());
        let word = self.random.one_in(3);
        let funct3 = if word { self.random.pick(&[0, 1, 5]) } else { self.random.below(8) };
        let immediate = match funct3 {
            // Shifts: an upper bit selects the kind, the lower ones the distance.
            1 | 5 => {
                let amount = self.random.below(if word { 32 } else { 64 });
                let arithmetic = if funct3 == 5 { self.random.below(2) << 10 } else { 0 };
                (amount | arithmetic).cast_signed()
            }
            _ => self.immediate(),
        };
        let opcode = if word { opcode::OP_IMM_32 } else { opcode::OP_IMM };
        self.code.word(i_type(opcode, funct3, rd, rs1, immediate));
    }

    fn upper_immediate(&mut self) {
        let (rd, upper) = (self.destination(), self.random.below(1 << 20));
        let opcode = self.random.pick(&[opcode::LUI, opcode::AUIPC]);
        self.code.word(u_type(opcode, rd, upper));
    }

    /// A load or store at any alignment within the scratch memory.
    fn load_or_store(&mut self) {
        let bytes = i32::from(SCRATCH_WORDS) * 8;
        // Leaves room for eight bytes, whatever the width.
        let offset = self.random.below(bytes.cast_unsigned() - 7).cast_signed();
        let (base, offset) = self.random.pick(&[(STACK, offset), (MIDDLE, offset - bytes / 2)]);
        if self.random.one_in(2) {
            let (funct3, rd) = (self.random.below(7), self.destination());
            self.code.word(i_type(opcode::LOAD, funct3, rd, base, offset));
        } else {
            let (funct3, rs2) = (self.random.below(4), self.source());
            self.code.word(s_type(funct3, base, rs2, offset));
        }
    }

    /// The start of one of the next units, or the end: only forward, so that every snippet ends.
    fn target(&mut self) -> Label {
        let ahead = 1 + self.random.index(6);
        self.starts[(self.unit + ahead).min(self.starts.len() - 1)]
    }

    fn branch_or_jump(&mut self) {
        let target = self.target();
        match self.random.below(8) {
            0 => {
                let rd = self.destination();
                self.code.jump(rd, target);
            }
            1 => self.code.short_jump(target),
            2 | 3 => {
                let (not_zero, register) = (self.random.one_in(2), self.short_register());
                self.code.short_branch(not_zero, register, target);
            }
            _ => {
                let (funct3, rs1, rs2) = (self.random.pick(&[0, 1, 4, 5, 6, 7]), self.source(), self.source());
                self.code.branch(funct3, rs1, rs2, target);
            }
        }
    }

    /// JALR, C.JR or C.JALR; JALR ignores bit 0 of its target.
    fn indirect_jump(&mut self) {
        let (target, rs1) = (self.target(), self.register());
        self.code.address(rs1, target);
        let number = u16::try_from(rs1).expect("five bits");
        match self.random.below(3) {
            0 => self.code.half(0x8002 | number << 7),
            1 => self.code.half(0x9002 | number << 7),
            _ => {
                let (rd, odd) = (self.destination(), self.random.below(2).cast_signed());
                self.code.word(i_type(opcode::JALR, 0, rd, rs1, odd));
            }
        }
    }

    /// Makes a register point into the scratch memory, aligned for atomics of `width` (2: word, 3:
    /// double).
    fn point(&mut self, width: u32) -> u32 {
        let (pointer, places) = (self.register(), (8 * u32::from(SCRATCH_WORDS)) >> width);
        let offset = (self.random.below(places) << width).cast_signed();
        self.code.word(addi(pointer, STACK, offset));
        pointer
    }

    fn atomic(&mut self, funct5: u32, width: u32, rd: u32, rs1: u32, rs2: u32) {
        let ordering = self.random.below(4);
        self.code.word(r_type(opcode::AMO, width, funct5 << 2 | ordering, rd, rs1, rs2));
    }

    fn amo(&mut self) {
        let width = 2 + self.random.below(2);
        let pointer = self.point(width);
        let funct5 = self.random.pick(&[0x00, 0x01, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x1c]);
        let (rd, rs2) = (self.destination(), self.source());
        self.atomic(funct5, width, rd, pointer, rs2);
    }

    /// LR and SC at the same or different addresses, perhaps with a second SC or without LR.
    fn reservation(&mut self) {
        let width = 2 + self.random.below(2);
        let pointer = self.point(width);
        let pick_other = |writer: &mut Self| loop {
            let register = writer.register();
            if register != pointer {
                return register;
            }
        };
        let (loaded, result, value) = (pick_other(self), pick_other(self), self.source());
        let variant = self.random.below(4);
        if variant != 0 {
            self.atomic(LOAD_RESERVED, width, loaded, pointer, 0);
        }
        if variant == 1 {
            // Moves the pointer by one width, within the memory.
            self.code.word(i_type(opcode::OP_IMM, 4, pointer, pointer, 1 << width));
        }
        self.atomic(STORE_CONDITIONAL, width, result, pointer, value);
        if variant == 2 {
            let rd = self.destination();
            self.atomic(STORE_CONDITIONAL, width, rd, pointer, value);
        }
    }

    /// A compressed instruction that computes; also HINTs and reserved encodings.
    fn compressed(&mut self) {
        loop {
            let half = u16::try_from(self.random.below(1 << 16)).expect("16 bits");
            let (quadrant, funct3) = (half & 3, half >> 13);
            let (rd, short_rd) = (u32::from(half >> 7 & 31), u32::from(8 + (half >> 2 & 7)));
            let rd_is_free = rd == 0 || REGISTERS.contains(&rd);
            let allowed = match (quadrant, funct3) {
                // C.ADDI4SPN makes an address, which is the same on both machines.
                (0, 0) => SHORT_REGISTERS.contains(&short_rd),
                // Reserved, and floating point.
                (0, 1 | 4 | 5) | (2, 1 | 5) => true,
                // C.ADDI16SP is tested with its inverse, below.
                (1, 0..=3) => rd_is_free,
                (1, 4) => SHORT_REGISTERS.contains(&(8 + (rd & 7))),
                (2, 0) => rd_is_free,
                // C.JR and C.JALR are indirect jumps; C.EBREAK has them both zero.
                (2, 4) => rd_is_free && (half >> 2 & 31 != 0 || rd == 0),
                _ => false,
            };
            let reads_handler_register =
                (quadrant, funct3) == (2, 4) && HANDLER_REGISTERS.contains(&u32::from(half >> 2 & 31));
            if allowed && !reads_handler_register {
                return self.code.half(half);
            }
        }
    }

    /// Loads and stores of the C extension, and additions to the stack pointer that cancel out.
    fn compressed_memory(&mut self) {
        if self.random.one_in(8) {
            self.code.half(0x6141); // c.addi16sp 16
            let store = self.random.pick(&[0xc002_u16, 0xe002]) | self.short_source_field();
            self.code.half(store);
            self.code.half(0x717d); // c.addi16sp -16
            return;
        }
        let register = u16::try_from(self.short_register() - 8).expect("three bits");
        let immediate = u16::try_from(self.random.below(1 << 13)).expect("13 bits");
        let half = match self.random.below(8) {
            // c.lw, c.ld, c.sw, c.sd: the offset's bits in 12:10 and 6:5, the base in 9:7.
            funct3 @ 0..4 => {
                let funct3 = u16::try_from([2, 3, 6, 7][funct3 as usize]).expect("three bits");
                funct3 << 13 | immediate & 0x1c60 | register << 2
            }
            // c.lwsp, c.ldsp: the offset's bits in 12 and 6:2.
            funct3 @ 4..6 => {
                let rd = u16::try_from(self.destination()).expect("five bits");
                let wide = u16::try_from(funct3 - 4).expect("one bit");
                // Up to 255 and 511.
                (2 + wide) << 13 | (immediate & 0x1000) | rd << 7 | (immediate & 31) << 2 | 2
            }
            // c.swsp, c.sdsp: the offset's bits in 12:7.
            funct3 => {
                let wide = u16::try_from(funct3 - 6).expect("one bit");
                (6 + wide) << 13 | immediate & 0x1f80 | self.short_source_field() | 2
            }
        };
        self.code.half(half);
    }

    /// A source register in bits 6:2.
    fn short_source_field(&mut self) -> u16 {
        u16::try_from(self.source()).expect("five bits") << 2
    }

    /// Any CSR instruction on a register that keeps what is written to it.
    fn trap_register(&mut self) {
        let number = self.random.pick(&[SSCRATCH, SSCRATCH, SEPC, SCAUSE, STVAL]);
        let (operation, rd) = (self.random.pick(&[CSRRW, CSRRS, CSRRC]), self.destination());
        if self.random.one_in(3) {
            // An even immediate, for `sepc`.
            let immediate = self.random.below(16) << 1;
            return self.code.word(csr(operation + 4, rd, number, immediate));
        }
        let source = self.register();
        if number == SEPC {
            self.code.word(i_type(opcode::OP_IMM, 7, source, source, -2));
        }
        self.code.word(csr(operation, rd, number, source));
    }

    /// Writes and reads fields of `sstatus` that both machines have. No interrupt is enabled.
    fn status_register(&mut self) {
        let [fields, source] = self.two_registers();
        self.code.words(&[u_type(opcode::LUI, fields, 0xc0), i_type(opcode::OP_IMM, 6, fields, fields, 0x122)]);
        self.code.word(r_type(opcode::OP, 7, 0, source, source, fields));
        let (first, second) = (self.random.pick(&[CSRRS, CSRRC]), self.random.pick(&[CSRRS, CSRRC]));
        let [a, _] = HANDLER_REGISTERS;
        for operation in [first, second] {
            self.code.words(&[csr(operation, a, STATUS, source), r_type(opcode::OP, 7, 0, source, a, fields)]);
        }
        self.forget_handler_registers();
    }

    fn two_registers(&mut self) -> [u32; 2] {
        let first = self.register();
        loop {
            let second = self.register();
            if second != first {
                return [first, second];
            }
        }
    }

    /// Clears the registers that the handler changes: U-mode traps where S-mode doesn't.
    fn forget_handler_registers(&mut self) {
        HANDLER_REGISTERS.iter().for_each(|register| self.code.word(addi(*register, 0, 0)));
    }

    /// Sets `stvec` to both of its modes, and restores it.
    fn trap_vector(&mut self) {
        let [source, rd] = self.two_registers();
        let [_, kept] = HANDLER_REGISTERS;
        if self.mode == Mode::User {
            return self.code.word(csr(CSRRW, rd, TRAP_VECTOR, source));
        }
        self.code.word(i_type(opcode::OP_IMM, 7, source, source, -3));
        self.code.words(&[csr(CSRRW, kept, TRAP_VECTOR, source), csr(CSRRW, rd, TRAP_VECTOR, kept)]);
        self.forget_handler_registers();
    }

    /// `sie` and the one bit of `sip` that software writes; all is masked again after it. The
    /// timer's bit depends on what firmware left in `stimecmp`.
    fn interrupt_registers(&mut self) {
        let [source, rd] = self.two_registers();
        let [other, _] = HANDLER_REGISTERS;
        self.code.words(&[csr(CSRRW + 4, 0, STATUS, 0), csr(CSRRW, 0, SIE, source), csr(CSRRW, rd, SIE, 0)]);
        self.code.words(&[csr(CSRRS + 4, 0, SIP, 2), csr(CSRRC + 4, other, SIP, 2), csr(CSRRS, source, SIP, 0)]);
        self.code.word(i_type(opcode::OP_IMM, 7, other, other, 2));
        self.code.words(&[i_type(opcode::OP_IMM, 7, source, source, 2), r_type(opcode::OP, 6, 0, rd, rd, other)]);
        self.forget_handler_registers();
    }

    /// An encoding that may be no instruction: the machines must agree on that.
    fn random_encoding(&mut self) {
        let (rd, rs1, rs2) = (self.destination(), self.source(), self.source());
        let (funct3, funct7) = (self.random.below(8), self.random.below(128));
        let word = match self.random.below(9) {
            0 => r_type(opcode::OP, funct3, funct7, rd, rs1, rs2),
            1 => r_type(opcode::OP_32, funct3, funct7, rd, rs1, rs2),
            2 => r_type(opcode::OP_IMM, funct3, funct7, rd, rs1, self.random.below(32)),
            3 => r_type(opcode::OP_IMM_32, funct3, funct7, rd, rs1, self.random.below(32)),
            4 => i_type(opcode::LOAD, funct3, rd, STACK, self.random.below(504).cast_signed()),
            5 => {
                // The start of the scratch memory is aligned for every width. An LR with a second
                // source isn't one: its reservation would still be there at the next stores.
                let rs2 = if funct7 >> 2 == LOAD_RESERVED { rs2.max(1) } else { rs2 };
                r_type(opcode::AMO, funct3, funct7, rd, STACK, rs2)
            }
            6 => r_type(opcode::MISC_MEM, funct3, funct7, rd, rs1, rs2),
            7 => r_type(opcode::SYSTEM, 4, funct7, rd, rs1, rs2),
            _ => s_type(funct3, STACK, rs2, self.random.below(504).cast_signed()),
        };
        self.code.word(word);
    }

    fn trap(&mut self) {
        let (rd, pointer) = (self.destination(), self.register());
        let offset = self.immediate() & -8;
        self.code.word(u_type(opcode::LUI, pointer, NOWHERE >> 12));
        match self.random.below(9) {
            0 => {
                let funct3 = self.random.below(7);
                self.code.word(i_type(opcode::LOAD, funct3, rd, pointer, offset));
            }
            1 => {
                let funct3 = self.random.below(4);
                self.code.word(s_type(funct3, pointer, rd, offset));
            }
            // x1 has the return address.
            2 => self.code.word(i_type(opcode::JALR, 0, 1, pointer, 0)),
            3 => self.code.word(EBREAK),
            4 => self.code.half(0x9002), // c.ebreak
            5..=7 if self.mode == Mode::User => {
                let word = self.random.pick(&[ECALL, SRET, WFI, SFENCE_VMA]);
                self.code.word(word);
            }
            // CSRs of M-mode, numbers without a CSR, and read-only CSRs.
            _ => {
                let number = self.random.pick(&[0x300, 0x305, 0x341, 0x5c0, 0x7c0, 0xf11, 0xc00, 0xc02]);
                let operation = if number == 0xc00 || number == 0xc02 { CSRRW } else { CSRRS };
                self.code.word(csr(operation, rd, number, pointer));
            }
        }
    }

    /// Goes to the next unit by SRET; into U-mode if SPP isn't set. U-mode doesn't return before
    /// the end.
    fn supervisor_return(&mut self) {
        if self.mode == Mode::User {
            return self.code.word(SRET);
        }
        let [target, mode] = self.two_registers();
        let next = self.starts[self.unit + 1];
        self.code.address(target, next);
        self.code.words(&[csr(CSRRW, 0, SEPC, target), addi(mode, 0, 0x100)]);
        let operation = if self.random.one_in(8) { CSRRC } else { CSRRS };
        self.code.words(&[csr(operation, 0, STATUS, mode), SRET]);
    }
}
