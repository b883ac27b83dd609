//! Random instructions, mostly valid, that stress the fast interpreter's caches and fusions.

use super::super::{
    CYCLE, EBREAK, ECALL, MCAUSE, MEDELEG, MEPC, MIDELEG, MIE, MIP, MRET, MSCRATCH, MSTATUS, MTVEC, SATP, SCAUSE, SEED,
    SEPC, SFENCE_VMA, SIE, SIP, SRET, SSCRATCH, SSTATUS, STVAL, STVEC, TIME, WFI, addi, amo, auipc, branch, csr,
    i_type, jal, jalr, load, lui, r_type, store,
};
use super::choices::Choices;
use vm::BootMode;

/// Registers that hold addresses, which the trap handlers restore.
pub(crate) const STACK_POINTER: u32 = 2;
pub(crate) const DATA_POINTER: u32 = 8;
pub(crate) const CODE_POINTER: u32 = 9;
pub(crate) const TABLE_POINTER: u32 = 10;
pub(crate) const PAGE_END_POINTER: u32 = 11;
pub(crate) const ALIAS_POINTER: u32 = 12;
pub(crate) const DEVICE_POINTER: u32 = 13;
/// The distance from code to its second mapping, in the upper half of the address space.
pub(crate) const TO_OTHER_HALF: u32 = 4;
/// Counts accesses that cross a page boundary.
pub(crate) const ACROSS_COUNTER: u32 = 3;
const LOOP_COUNTER: u32 = 7;

const FENCE_I: u32 = 0x0000_100f;

const SUPERVISOR_CSRS: [u32; 11] = [SSTATUS, SSTATUS, STVEC, SATP, SIE, SIP, SEPC, SCAUSE, STVAL, SSCRATCH, CYCLE];
const MACHINE_CSRS: [u32; 11] = [MSTATUS, MSTATUS, MEDELEG, MIDELEG, MIE, MIP, MTVEC, MEPC, MCAUSE, MSCRATCH, SATP];
const FLOAT_CSRS: [u32; 3] = [0x001, 0x002, 0x003];

/// A sequence of random instructions under construction.
pub(crate) struct CodeWriter<'c, 'b> {
    choices: &'c mut Choices<'b>,
    halves: Vec<u16>,
    boot: BootMode,
}

impl<'c, 'b> CodeWriter<'c, 'b> {
    /// At least `halves` halfwords of code for a machine with this boot mode.
    pub(crate) fn code(choices: &'c mut Choices<'b>, boot: BootMode, halves: usize) -> Vec<u8> {
        let mut writer = Self { choices, halves: Vec::new(), boot };
        while writer.halves.len() < halves {
            writer.gadget();
        }
        writer.halves.iter().flat_map(|half| half.to_le_bytes()).collect()
    }

    fn put(&mut self, word: u32) {
        let [b0, b1, b2, b3] = word.to_le_bytes();
        self.halves.push(u16::from_le_bytes([b0, b1]));
        if word & 3 == 3 {
            self.halves.push(u16::from_le_bytes([b2, b3]));
        }
    }

    /// A register to write, seldom one that holds a pointer or a counter.
    fn target(&mut self) -> u32 {
        match self.choices.below(24) {
            0 => 0,
            1 => self.choices.word() % 32,
            2 => 1,
            _ => self.choices.pick(&[5, 6, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 28, 29, 30, 31]),
        }
    }

    fn source(&mut self) -> u32 {
        self.choices.word() % 32
    }

    fn pointer(&mut self) -> u32 {
        let usual =
            [DATA_POINTER, DATA_POINTER, DATA_POINTER, CODE_POINTER, TABLE_POINTER, PAGE_END_POINTER, ALIAS_POINTER];
        if self.choices.one_in(32) { self.source() } else { self.choices.pick(&usual) }
    }

    fn offset(&mut self) -> i32 {
        match self.choices.below(4) {
            0 => self.choices.within(-2048, 2048),
            1 => self.choices.within(-16, 16),
            _ => 8 * self.choices.within(-24, 24),
        }
    }

    fn gadget(&mut self) {
        match self.choices.below(64) {
            0..=9 => self.arithmetic(),
            10..=17 => self.compressed(),
            18..=24 => self.load_any(),
            25..=31 => self.store_any(),
            32..=34 => self.modify_code(),
            35..=37 => self.modify_table(),
            38 => self.access_across(),
            39..=42 => self.branch_any(),
            43 => self.counted_loop(),
            44..=46 => self.jump(),
            47..=49 => self.csr_any(),
            50..=52 => self.float(),
            53..=55 => self.atomic(),
            56 => {
                let back = if self.boot == BootMode::Bare { MRET } else { SRET };
                let word = self.choices.pick(&[ECALL, EBREAK, WFI, SRET, back, back]);
                self.put(word);
            }
            57 => self.put(SFENCE_VMA),
            58 => self.put(FENCE_I),
            59 => self.device(),
            60 if self.choices.one_in(3) => {
                let word = self.choices.word();
                self.put(word | 3);
            }
            61 if self.choices.one_in(4) => {
                let (rd, rs1) = (self.target(), 0);
                let word = self.choices.pick(&[csr(2, rd, TIME, rs1), csr(1, rd, SEED, rs1)]);
                self.put(word);
            }
            62 => self.go_on_elsewhere(),
            _ => {
                let (rd, upper) = (self.target(), self.choices.word() & 0xf_ffff);
                let word = self.choices.pick(&[lui(rd, upper), auipc(rd, upper & 3), auipc(rd, upper)]);
                self.put(word);
            }
        }
    }

    fn arithmetic(&mut self) {
        let (rd, rs1, rs2) = (self.target(), self.source(), self.source());
        let any = self.choices.word() % 8;
        let immediate = self.choices.within(-2048, 2048);
        let arithmetic_shift = self.choices.pick(&[0, 0x400]);
        let word = match self.choices.below(9) {
            8 => self.bit_manipulation(rd, rs1, rs2),
            0 => r_type(0x33, any, 0, rd, rs1, rs2),
            1 => r_type(0x33, any, 1, rd, rs1, rs2),
            2 => r_type(0x33, self.choices.pick(&[0, 5]), 0x20, rd, rs1, rs2),
            3 => r_type(0x3b, self.choices.pick(&[0, 1, 5]), 0, rd, rs1, rs2),
            4 => r_type(0x3b, self.choices.pick(&[0, 4, 5, 6, 7]), 1, rd, rs1, rs2),
            5 => match self.choices.pick(&[0, 1, 5]) {
                0 => i_type(0x1b, 0, rd, rs1, immediate),
                1 => i_type(0x1b, 1, rd, rs1, immediate & 0x1f),
                _ => i_type(0x1b, 5, rd, rs1, immediate & 0x1f | arithmetic_shift),
            },
            _ => match any {
                1 => i_type(0x13, 1, rd, rs1, immediate & 0x3f),
                5 => i_type(0x13, 5, rd, rs1, immediate & 0x3f | arithmetic_shift),
                _ => i_type(0x13, any, rd, rs1, immediate),
            },
        };
        self.put(word);
    }

    /// An instruction of Zba, Zbb or Zbs.
    fn bit_manipulation(&mut self, rd: u32, rs1: u32, rs2: u32) -> u32 {
        const REGISTERS: [(u32, u32, u32); 22] = [
            (0x33, 5, 4),
            (0x33, 5, 5),
            (0x33, 5, 6),
            (0x33, 5, 7),
            (0x33, 0x10, 2),
            (0x33, 0x10, 4),
            (0x33, 0x10, 6),
            (0x33, 0x14, 1),
            (0x33, 0x20, 4),
            (0x33, 0x20, 6),
            (0x33, 0x20, 7),
            (0x33, 0x24, 1),
            (0x33, 0x24, 5),
            (0x33, 0x30, 1),
            (0x33, 0x30, 5),
            (0x33, 0x34, 1),
            (0x3b, 4, 0),
            (0x3b, 0x10, 2),
            (0x3b, 0x10, 4),
            (0x3b, 0x10, 6),
            (0x3b, 0x30, 1),
            (0x3b, 0x30, 5),
        ];
        const UNARY: [(u32, u32, i32); 10] = [
            (0x13, 1, 0x600),
            (0x13, 1, 0x601),
            (0x13, 1, 0x602),
            (0x13, 1, 0x604),
            (0x13, 1, 0x605),
            (0x13, 5, 0x287),
            (0x13, 5, 0x6b8),
            (0x1b, 1, 0x600),
            (0x1b, 1, 0x601),
            (0x1b, 1, 0x602),
        ];
        const AMOUNTS: [(u32, u32, i32); 7] = [
            (0x13, 1, 0x280),
            (0x13, 1, 0x480),
            (0x13, 1, 0x680),
            (0x13, 5, 0x480),
            (0x13, 5, 0x600),
            (0x1b, 1, 0x080),
            (0x1b, 5, 0x600),
        ];
        match self.choices.below(4) {
            0 | 1 => {
                let (opcode, funct7, funct3) = self.choices.pick(&REGISTERS);
                r_type(opcode, funct3, funct7, rd, rs1, rs2)
            }
            2 => {
                let (opcode, funct3, immediate) = self.choices.pick(&UNARY);
                i_type(opcode, funct3, rd, rs1, immediate)
            }
            _ => {
                let (opcode, funct3, immediate) = self.choices.pick(&AMOUNTS);
                i_type(opcode, funct3, rd, rs1, immediate | self.choices.within(0, 64))
            }
        }
    }

    /// Any compressed instruction; jumps are rare, as most lead far away.
    fn compressed(&mut self) {
        let mut half = self.choices.word() & 0xffff;
        if half & 3 == 3 {
            half ^= 1 + self.choices.word() % 3;
        }
        // Loads and stores of quadrant 0 have x8 to x15 as base, of which only x8 to x12 are
        // pointers.
        if half & 3 == 0 {
            half &= !(1 << 9 | u32::from(half >> 7 & 3 == 3) << 7);
        }
        let jumps = half & 3 == 1 && half >> 13 >= 5 || half & 0xf003 == 0x8002;
        if !jumps || self.choices.one_in(4) {
            self.put(half);
        }
    }

    fn load_any(&mut self) {
        let word = load(self.choices.word() % 7, self.target(), self.pointer(), self.offset());
        self.put(word);
    }

    fn store_any(&mut self) {
        let word = store(self.choices.word() % 4, self.source(), self.pointer(), self.offset());
        self.put(word);
    }

    /// Overwrites an instruction, with another one or with a constant.
    fn modify_code(&mut self) {
        let (from, to) = (2 * self.choices.within(-1024, 1024), 2 * self.choices.within(-1024, 1024));
        let width = self.choices.pick(&[1, 2, 2, 3]);
        let rd = self.target();
        if self.choices.one_in(2) {
            self.put(load(width, rd, CODE_POINTER, from));
            self.put(store(width, rd, CODE_POINTER, to));
        } else {
            // An instruction that is executed soon.
            let distance = self.choices.within(4, 40) & !1;
            self.put(auipc(rd, 0));
            let rs2 = 28 + self.source() % 4;
            self.put(store(width, rs2, rd, distance));
        }
    }

    fn modify_table(&mut self) {
        let page = self.choices.pick(&[0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 0xf_ffff, 0xf_fffe]);
        let (entry, other) = (8 * self.choices.within(0, 16), 8 * self.choices.within(0, 16));
        let bits = self.choices.pick(&[1, 2, 4, 8, 16, 64, 128, 192, 0x400]);
        self.put(lui(21, page));
        self.put(r_type(0x33, 0, 0, 21, 21, TABLE_POINTER));
        self.put(load(3, 22, 21, entry));
        match self.choices.below(4) {
            0 => {
                // Swaps two entries.
                self.put(load(3, 23, 21, other));
                self.put(store(3, 22, 21, other));
                self.put(store(3, 23, 21, entry));
            }
            1 => {
                self.put(addi(23, 0, bits));
                self.put(r_type(0x33, 4, 0, 23, 23, 22));
                self.put(store(3, 23, 21, entry));
                // Restores the entry after a few accesses, so that the guest can go on.
                self.load_any();
                self.store_any();
                self.put(store(3, 22, 21, entry));
            }
            _ => {
                self.put(i_type(0x13, 4, 22, 22, bits));
                self.put(store(if bits < 0x100 { 0 } else { 3 }, 22, 21, entry));
            }
        }
    }

    fn access_across(&mut self) {
        let offset = -self.choices.within(1, 8);
        let (rd, rs2) = (self.target(), self.source());
        let word = self.choices.pick(&[load(3, rd, PAGE_END_POINTER, offset), store(3, rs2, PAGE_END_POINTER, offset)]);
        self.put(word);
        self.put(addi(ACROSS_COUNTER, ACROSS_COUNTER, 1));
    }

    fn branch_any(&mut self) {
        let (funct3, rs1, rs2) = (self.choices.pick(&[0, 1, 4, 5, 6, 7]), self.source(), self.source());
        let offset = match self.choices.below(12) {
            0 => self.choices.within(-4096, 4096),
            1 => self.choices.within(-64, 0),
            _ => self.choices.within(4, 64),
        };
        self.put(branch(funct3, rs1, rs2, offset & !1));
    }

    fn counted_loop(&mut self) {
        let turns = self.choices.within(2, 40);
        self.put(addi(LOOP_COUNTER, 0, turns));
        let start = self.halves.len();
        for _ in 0..self.choices.below(8) {
            match self.choices.below(6) {
                0 => self.load_any(),
                1 => self.store_any(),
                2 => self.compressed(),
                3 => self.modify_code(),
                4 => self.atomic(),
                _ => self.arithmetic(),
            }
        }
        self.loop_back(start);
    }

    fn jump(&mut self) {
        let link = self.choices.pick(&[0, 0, 1, 5]);
        let offset = self.choices.within(-2048, 2048);
        let word = match self.choices.below(5) {
            0 => jal(link, self.choices.within(-0x2000, 0x2000) & !1),
            1 => jal(link, self.choices.within(4, 0x100) & !1),
            2 if link != 1 => jalr(link, 1, 0),
            3 if self.choices.one_in(4) => jalr(link, self.pointer(), offset),
            _ => jalr(link, CODE_POINTER, offset),
        };
        self.put(word);
    }

    /// Jumps to the next instruction in its other mapping and back, a few times, and writes a table
    /// entry before and after each jump.
    fn go_on_elsewhere(&mut self) {
        let entry = 8 * self.choices.within(1, 5);
        let page = self.choices.pick(&[0, 4, 4]);
        let bits = self.choices.pick(&[1, 8, 16, 0x400]);
        let turns = self.choices.within(1, 6);
        self.put(addi(LOOP_COUNTER, 0, turns));
        let start = self.halves.len();
        self.put(lui(21, page));
        self.put(r_type(0x33, 0, 0, 21, 21, TABLE_POINTER));
        self.put(load(3, 22, 21, entry));
        self.put(store(3, 22, 21, entry));
        self.put(store(3, 22, 21, entry));
        self.put(auipc(23, 0));
        self.put(r_type(0x33, 0, 0, 23, 23, TO_OTHER_HALF));
        self.put(r_type(0x33, 0, 0x20, TO_OTHER_HALF, 0, TO_OTHER_HALF));
        self.put(jalr(0, 23, 16));
        self.put(i_type(0x13, 4, 23, 22, bits));
        self.put(store(3, 23, 21, entry));
        self.arithmetic();
        self.put(store(3, 22, 21, entry));
        self.loop_back(start);
    }

    fn loop_back(&mut self, start: usize) {
        self.put(addi(LOOP_COUNTER, LOOP_COUNTER, -1));
        let back = i32::try_from(2 * (self.halves.len() - start)).unwrap();
        self.put(branch(1, LOOP_COUNTER, 0, -back));
    }

    fn csr_any(&mut self) {
        let number = match self.choices.below(8) {
            0 if self.choices.one_in(4) => self.choices.word() & 0xfff,
            0 | 1 => self.choices.pick(&FLOAT_CSRS),
            2..=4 if self.boot == BootMode::Bare => self.choices.pick(&MACHINE_CSRS),
            _ => self.choices.pick(&SUPERVISOR_CSRS),
        };
        let funct3 = self.choices.pick(&[1, 2, 2, 2, 3, 3, 5, 6, 7]);
        // Random values in trap vectors, satp or the modes to return to end most guests, so they
        // are rare.
        let fragile = matches!(number, STVEC | MTVEC | SATP | SSTATUS | MSTATUS | MEDELEG) && !self.choices.one_in(8);
        let (funct3, rs1) = if fragile { (2, 0) } else { (funct3, self.source()) };
        let rd = self.target();
        if matches!(number, SSTATUS | MSTATUS) && fragile {
            // Changes SUM, MXR, SPP, MPP, MPRV or SPIE alone.
            let bit = self.choices.pick(&[18, 19, 8, 11, 17, 5]);
            self.put(addi(rd, 0, 1));
            self.put(i_type(0x13, 1, rd, rd, bit));
            let funct3 = self.choices.pick(&[2, 3]);
            self.put(csr(funct3, 0, number, rd));
        } else {
            self.put(csr(funct3, rd, number, rs1));
        }
    }

    fn float(&mut self) {
        let (rd, rs1, rs2) = (self.source(), self.source(), self.source());
        let word = match self.choices.below(4) {
            0 => i_type(0x07, self.choices.pick(&[2, 3]), rd, self.pointer(), self.offset()),
            1 => store(self.choices.pick(&[2, 3]), rs2, self.pointer(), self.offset()) | 4,
            2 => self.choices.word() & 0xf9ff_8f80 | self.choices.pick(&[0x43, 0x47, 0x4b, 0x4f]),
            _ => {
                let funct5 = self.choices.pick(&[0, 1, 2, 3, 4, 5, 8, 0xb, 0x14, 0x18, 0x1a, 0x1c, 0x1e]);
                let rs2 = if funct5 >= 0x18 || funct5 == 8 || funct5 == 0xb { rs2 % 4 } else { rs2 };
                let rounding = self.choices.pick(&[0, 0, 1, 2]);
                r_type(0x53, rounding, (funct5 << 2) | (self.choices.word() % 2), rd, rs1, rs2)
            }
        };
        self.put(word);
    }

    fn atomic(&mut self) {
        let pointer = self.choices.pick(&[DATA_POINTER, DATA_POINTER, CODE_POINTER, TABLE_POINTER, ALIAS_POINTER]);
        let (rd, rs2, width) = (self.target(), self.source(), 2 + self.choices.word() % 2);
        if self.choices.one_in(3) {
            self.put(amo(2, width, rd, pointer, 0));
            self.put(amo(3, width, rd, pointer, rs2));
        } else {
            let funct5 = self.choices.pick(&[0, 1, 4, 8, 12, 16, 20, 24, 28]);
            self.put(amo(funct5, width, rd, pointer, rs2));
        }
    }

    fn device(&mut self) {
        let (rd, rs2, width) = (self.target(), self.source(), self.choices.pick(&[0, 2, 2]));
        match self.choices.below(6) {
            0 | 1 => self.put(store(0, rs2, DEVICE_POINTER, 0)),
            2 => {
                // Notifies the network device's transmit queue.
                self.put(addi(21, 0, 1));
                self.put(lui(22, 0x1_0001));
                self.put(store(2, 21, 22, 0x50));
            }
            3 => {
                // Ends a line on the console.
                self.put(lui(22, 0x1_0000));
                self.put(addi(21, 0, 10));
                self.put(store(0, 21, 22, 0));
            }
            _ => {
                let offset = self.choices.within(0, 0x120);
                let access = [load(width, rd, DEVICE_POINTER, offset), store(width, rs2, DEVICE_POINTER, offset)];
                let word = self.choices.pick(&access);
                self.put(word);
            }
        }
    }
}
