//! A small RV64IMAC assembler: encoders for the instruction formats, and labels.
//!
//! It builds test programs at known addresses. Registers are plain numbers, 0 to 31, because the
//! encoded instruction is often random, and sometimes deliberately invalid.

/// The opcode fields of full-length instructions.
pub mod opcode {
    /// Loads.
    pub const LOAD: u32 = 0x03;
    /// Loads into floating-point registers.
    pub const LOAD_FP: u32 = 0x07;
    /// FENCE and FENCE.I.
    pub const MISC_MEM: u32 = 0x0f;
    /// Integer operations with an immediate.
    pub const OP_IMM: u32 = 0x13;
    /// AUIPC.
    pub const AUIPC: u32 = 0x17;
    /// Integer operations on words with an immediate.
    pub const OP_IMM_32: u32 = 0x1b;
    /// Stores.
    pub const STORE: u32 = 0x23;
    /// Stores from floating-point registers; it has all bits of [`STORE`].
    pub const STORE_FP: u32 = 0x27;
    /// LR, SC and AMOs.
    pub const AMO: u32 = 0x2f;
    /// Integer operations on registers.
    pub const OP: u32 = 0x33;
    /// LUI.
    pub const LUI: u32 = 0x37;
    /// Integer operations on words in registers.
    pub const OP_32: u32 = 0x3b;
    /// FMADD; the other fused operations follow in steps of 4.
    pub const FMADD: u32 = 0x43;
    /// Other floating-point operations.
    pub const OP_FP: u32 = 0x53;
    /// Conditional branches.
    pub const BRANCH: u32 = 0x63;
    /// JALR.
    pub const JALR: u32 = 0x67;
    /// JAL.
    pub const JAL: u32 = 0x6f;
    /// ECALL, SRET, CSR instructions and their like.
    pub const SYSTEM: u32 = 0x73;
}

/// The numbers of the control and status registers.
pub mod control {
    /// `sstatus`.
    pub const STATUS: u32 = 0x100;
    /// `sie`.
    pub const SIE: u32 = 0x104;
    /// `stvec`.
    pub const TRAP_VECTOR: u32 = 0x105;
    /// `sscratch`.
    pub const SSCRATCH: u32 = 0x140;
    /// `sepc`.
    pub const SEPC: u32 = 0x141;
    /// `scause`.
    pub const SCAUSE: u32 = 0x142;
    /// `stval`.
    pub const STVAL: u32 = 0x143;
    /// `sip`.
    pub const SIP: u32 = 0x144;
}

/// The numbers of M-mode's registers.
pub mod machine {
    /// `mstatus`.
    pub const MSTATUS: u32 = 0x300;
    /// `medeleg`.
    pub const MEDELEG: u32 = 0x302;
    /// `mideleg`.
    pub const MIDELEG: u32 = 0x303;
    /// `mie`.
    pub const MIE: u32 = 0x304;
    /// `mtvec`.
    pub const MTVEC: u32 = 0x305;
    /// `mcounteren`.
    pub const MCOUNTEREN: u32 = 0x306;
    /// `mscratch`.
    pub const MSCRATCH: u32 = 0x340;
    /// `mepc`.
    pub const MEPC: u32 = 0x341;
    /// `mcause`.
    pub const MCAUSE: u32 = 0x342;
    /// `mtval`.
    pub const MTVAL: u32 = 0x343;
    /// `mip`.
    pub const MIP: u32 = 0x344;
    /// `pmpcfg0`.
    pub const PMPCFG0: u32 = 0x3a0;
    /// `pmpaddr0`.
    pub const PMPADDR0: u32 = 0x3b0;
}

/// ECALL.
pub const ECALL: u32 = 0x0000_0073;
/// EBREAK.
pub const EBREAK: u32 = 0x0010_0073;
/// SRET.
pub const SRET: u32 = 0x1020_0073;
/// WFI.
pub const WFI: u32 = 0x1050_0073;
/// MRET.
pub const MRET: u32 = 0x3020_0073;
/// FENCE.I.
pub const FENCE_I: u32 = 0x0000_100f;
/// SFENCE.VMA of everything.
pub const SFENCE_VMA: u32 = 0x1200_0073;

/// `funct3` of the CSR instructions with a register; the forms with an immediate are greater by 4.
pub const CSRRW: u32 = 1;
/// As [`CSRRW`], but sets bits.
pub const CSRRS: u32 = 2;
/// As [`CSRRW`], but clears bits.
pub const CSRRC: u32 = 3;

/// An instruction with three registers.
#[must_use]
pub const fn r_type(opcode: u32, funct3: u32, funct7: u32, rd: u32, rs1: u32, rs2: u32) -> u32 {
    funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

/// An instruction with two registers and an immediate of 12 bits.
#[must_use]
pub const fn i_type(opcode: u32, funct3: u32, rd: u32, rs1: u32, immediate: i32) -> u32 {
    immediate.cast_unsigned() << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

/// A store of `rs2`.
#[must_use]
pub const fn s_type(funct3: u32, rs1: u32, rs2: u32, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (offset & 0x1f) << 7 | opcode::STORE
}

/// LUI or AUIPC with the upper 20 bits of `upper`.
#[must_use]
pub const fn u_type(opcode: u32, rd: u32, upper: u32) -> u32 {
    upper << 12 | rd << 7 | opcode
}

/// ADDI.
#[must_use]
pub const fn addi(rd: u32, rs1: u32, immediate: i32) -> u32 {
    i_type(opcode::OP_IMM, 0, rd, rs1, immediate)
}

/// LD.
#[must_use]
pub const fn ld(rd: u32, rs1: u32, offset: i32) -> u32 {
    i_type(opcode::LOAD, 3, rd, rs1, offset)
}

/// SD.
#[must_use]
pub const fn sd(rs2: u32, rs1: u32, offset: i32) -> u32 {
    s_type(3, rs1, rs2, offset)
}

/// FLD.
#[must_use]
pub const fn fld(rd: u32, rs1: u32, offset: i32) -> u32 {
    i_type(opcode::LOAD_FP, 3, rd, rs1, offset)
}

/// FSD.
#[must_use]
pub const fn fsd(rs2: u32, rs1: u32, offset: i32) -> u32 {
    s_type(3, rs1, rs2, offset) | opcode::STORE_FP
}

/// A CSR instruction; `source` is a register, or an immediate of five bits.
#[must_use]
pub const fn csr(funct3: u32, rd: u32, number: u32, source: u32) -> u32 {
    number << 20 | source << 15 | funct3 << 12 | rd << 7 | opcode::SYSTEM
}

const fn bits(value: i32, from: u32, width: u32, to: u32) -> u32 {
    (value.cast_unsigned() >> from & ((1 << width) - 1)) << to
}

/// An address in the code, which may be set later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// How an instruction encodes its target.
#[derive(Clone, Copy, Debug)]
enum Reach {
    Branch,
    Jump,
    ShortBranch,
    ShortJump,
    /// AUIPC, then ADDI.
    Address,
}

/// Collects code.
#[derive(Debug)]
pub struct Assembler {
    base: u64,
    halves: Vec<u16>,
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label, Reach)>,
}

impl Assembler {
    /// An assembler whose code will be at `base`.
    #[must_use]
    pub const fn new(base: u64) -> Self {
        Self { base, halves: Vec::new(), labels: Vec::new(), fixups: Vec::new() }
    }

    /// The address of the next instruction.
    #[must_use]
    pub fn here(&self) -> u64 {
        self.base + 2 * self.halves.len() as u64
    }

    /// The code from `address` on.
    #[must_use]
    pub fn since(&self, address: u64) -> &[u16] {
        let start = usize::try_from((address - self.base) / 2).expect("code is short");
        &self.halves[start..]
    }

    /// Appends a full-length instruction.
    pub fn word(&mut self, word: u32) {
        let [b0, b1, b2, b3] = word.to_le_bytes();
        self.halves.extend([u16::from_le_bytes([b0, b1]), u16::from_le_bytes([b2, b3])]);
    }

    /// Appends full-length instructions.
    pub fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.word(*word));
    }

    /// Appends a compressed instruction.
    pub fn half(&mut self, half: u16) {
        self.halves.push(half);
    }

    /// Appends a NOP if the next instruction's address isn't a multiple of 4.
    pub fn align(&mut self) {
        if !self.here().is_multiple_of(4) {
            self.half(0x0001);
        }
    }

    /// A label whose address is set later, by [`Self::place`].
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Sets the label's address to that of the next instruction.
    ///
    /// # Panics
    /// If its address is set.
    pub fn place(&mut self, label: Label) {
        assert_eq!(self.labels[label.0].replace(self.halves.len()), None, "a label has one place");
    }

    /// A label at the next instruction.
    pub fn place_new(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// A conditional branch by `funct3`.
    pub fn branch(&mut self, funct3: u32, rs1: u32, rs2: u32, target: Label) {
        self.fixups.push((self.halves.len(), target, Reach::Branch));
        self.word(r_type(opcode::BRANCH, funct3, 0, 0, rs1, rs2));
    }

    /// JAL.
    pub fn jump(&mut self, rd: u32, target: Label) {
        self.fixups.push((self.halves.len(), target, Reach::Jump));
        self.word(rd << 7 | opcode::JAL);
    }

    /// C.BEQZ, or C.BNEZ if `not_zero`; the register is x8 to x15.
    pub fn short_branch(&mut self, not_zero: bool, register: u32, target: Label) {
        self.fixups.push((self.halves.len(), target, Reach::ShortBranch));
        let register = u16::try_from(register - 8).expect("a short register");
        self.half(0xc001 | u16::from(not_zero) << 13 | register << 7);
    }

    /// C.J.
    pub fn short_jump(&mut self, target: Label) {
        self.fixups.push((self.halves.len(), target, Reach::ShortJump));
        self.half(0xa001);
    }

    /// Loads the address of `target`.
    pub fn address(&mut self, rd: u32, target: Label) {
        self.fixups.push((self.halves.len(), target, Reach::Address));
        self.words(&[u_type(opcode::AUIPC, rd, 0), addi(rd, rd, 0)]);
    }

    /// Loads `value`, eleven bits at a time.
    pub fn constant(&mut self, rd: u32, value: u64) {
        let chunk = |from: u32, width: u32| i32::try_from(value >> from & ((1 << width) - 1)).expect("few bits");
        self.word(addi(rd, 0, chunk(55, 9)));
        for from in [44, 33, 22, 11, 0] {
            self.word(i_type(opcode::OP_IMM, 1, rd, rd, 11));
            self.word(i_type(opcode::OP_IMM, 6, rd, rd, chunk(from, 11)));
        }
    }

    /// The code, with all labels resolved.
    ///
    /// # Panics
    /// If a used label has no address, or one out of reach.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label, reach) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].expect("a label that is used has a place");
            let distance = i32::try_from(target).expect("short code") - i32::try_from(at).expect("short code");
            self.fix(at, 2 * distance, reach);
        }
        self.halves.iter().flat_map(|half| half.to_le_bytes()).collect()
    }

    fn fix(&mut self, at: usize, offset: i32, reach: Reach) {
        let limit = match reach {
            Reach::ShortBranch => 1 << 8,
            Reach::ShortJump => 1 << 11,
            Reach::Branch => 1 << 12,
            Reach::Jump | Reach::Address => 1 << 20,
        };
        assert!((-limit..limit).contains(&offset), "{reach:?} over {offset} bytes");
        match reach {
            Reach::Branch => self.patch(at, branch_offset(offset)),
            Reach::Jump => self.patch(at, jump_offset(offset)),
            Reach::ShortBranch => self.halves[at] |= short_branch_offset(offset),
            Reach::ShortJump => self.halves[at] |= short_jump_offset(offset),
            Reach::Address => {
                // ADDI sign-extends its twelve bits; the upper part compensates for that.
                self.patch(at, (offset + 0x800).cast_unsigned() & 0xffff_f000);
                self.patch(at + 2, bits(offset, 0, 12, 20));
            }
        }
    }

    fn patch(&mut self, at: usize, field: u32) {
        let [b0, b1, b2, b3] = field.to_le_bytes();
        self.halves[at] |= u16::from_le_bytes([b0, b1]);
        self.halves[at + 1] |= u16::from_le_bytes([b2, b3]);
    }
}

fn branch_offset(offset: i32) -> u32 {
    bits(offset, 12, 1, 31) | bits(offset, 5, 6, 25) | bits(offset, 1, 4, 8) | bits(offset, 11, 1, 7)
}

fn jump_offset(offset: i32) -> u32 {
    bits(offset, 20, 1, 31) | bits(offset, 1, 10, 21) | bits(offset, 11, 1, 20) | bits(offset, 12, 8, 12)
}

fn short_branch_offset(offset: i32) -> u16 {
    let field = bits(offset, 8, 1, 12)
        | bits(offset, 3, 2, 10)
        | bits(offset, 6, 2, 5)
        | bits(offset, 1, 2, 3)
        | bits(offset, 5, 1, 2);
    u16::try_from(field).expect("13 bits")
}

fn short_jump_offset(offset: i32) -> u16 {
    let field = bits(offset, 11, 1, 12)
        | bits(offset, 4, 1, 11)
        | bits(offset, 8, 2, 9)
        | bits(offset, 10, 1, 8)
        | bits(offset, 6, 1, 7)
        | bits(offset, 7, 1, 6)
        | bits(offset, 1, 3, 3)
        | bits(offset, 5, 1, 2);
    u16::try_from(field).expect("13 bits")
}

/// A segment of an executable: its address and its content.
pub type Segment<'a> = (u64, &'a [u8]);

/// An ELF executable with `segments` whose entry point is the first one's start.
#[must_use]
pub fn elf(segments: &[Segment<'_>]) -> Vec<u8> {
    const FILE_HEADER_BYTES: u16 = 64;
    const PROGRAM_HEADER_BYTES: u16 = 56;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let count = u16::try_from(segments.len()).expect("few segments");
    let entry = segments[0].0;
    image.extend([2_u16, 243].map(u16::to_le_bytes).concat()); // ET_EXEC, EM_RISCV
    image.extend(1_u32.to_le_bytes());
    image.extend([entry, FILE_HEADER_BYTES.into(), 0].map(u64::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes()); // flags: compressed instructions
    let sizes = [FILE_HEADER_BYTES, PROGRAM_HEADER_BYTES, count, 64, 0, 0];
    image.extend(sizes.map(u16::to_le_bytes).concat());
    let mut offset = u64::from(FILE_HEADER_BYTES + count * PROGRAM_HEADER_BYTES);
    for (address, bytes) in segments {
        let length = bytes.len() as u64;
        image.extend([1_u32, 7].map(u32::to_le_bytes).concat()); // PT_LOAD, read, write and execute
        image.extend([offset, *address, *address, length, length, 4].map(u64::to_le_bytes).concat());
        offset += length;
    }
    segments.iter().for_each(|(_, bytes)| image.extend_from_slice(bytes));
    image
}

#[cfg(test)]
mod tests {
    use super::{Assembler, addi, opcode};

    /// The expected words are those of other assemblers for the same lines.
    #[test]
    fn labels_resolve_forward_and_backward() {
        let mut assembler = Assembler::new(0x8020_0000);
        let back = assembler.place_new();
        let forward = assembler.label();
        assembler.branch(1, 5, 6, forward); // bne t0, t1, +20
        assembler.jump(1, back); // jal ra, -4
        assembler.address(10, forward); // auipc a0, 0; addi a0, a0, 12
        assembler.short_jump(back); // c.j -16
        assembler.short_branch(true, 8, forward); // c.bnez s0, +2
        assembler.place(forward);
        let words: Vec<u32> = assembler
            .finish()
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("whole words")))
            .collect();
        assert_eq!(words, [0x0062_9a63, 0xffdf_f0ef, 0x0000_0517, 0x00c5_0513, 0xe009_bfc5]);
    }

    #[test]
    fn immediates_of_twelve_bits_keep_their_sign() {
        assert_eq!(addi(1, 2, -1), 0xfff1_0093);
        assert_eq!(addi(1, 2, -1) & 0x7f, opcode::OP_IMM);
    }
}
