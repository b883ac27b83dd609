//! Random guests: set-up, trap handlers that let them go on, code, page tables and queues.
//!
//! ```text
//!   page   0         1 .. 4   5     6, 8, 10   7, 9, 11      12, 13  14     15
//!          set-up,   code     root  middle     tables of     data    rings  counters of traps,
//!          handlers                 tables     three windows                constants
//! ```
//!
//! RAM is mapped to itself for the supervisor, 1 GiB below for the user, and for the supervisor
//! again in the upper half; all but page 0 may be written, and is.

use super::super::{
    MCAUSE, MEDELEG, MEPC, MIDELEG, MIE, MRET, MSTATUS, MTVEC, NET, RAM, SATP, SCAUSE, SEPC, SIE, SRET, SSTATUS, STVEC,
    UART, addi, auipc, branch, csrrs, csrrw, elf_of_bytes, i_type, jal, jalr, li, load, lui, r_type, small_config,
    store,
};
use super::choices::Choices;
use super::code::{
    ALIAS_POINTER, CODE_POINTER, CodeWriter, DATA_POINTER, DEVICE_POINTER, PAGE_END_POINTER, STACK_POINTER,
    TABLE_POINTER, TO_OTHER_HALF,
};
use vm::{BootMode, MachineConfig};

const PAGE: u64 = 0x1000;
pub(crate) const CODE: u64 = RAM + PAGE;
pub(crate) const CODE_BYTES: u64 = 4 * PAGE;
pub(crate) const TABLES: u64 = RAM + 5 * PAGE;
pub(crate) const TABLES_BYTES: u64 = 7 * PAGE;
const ROOT: u64 = TABLES;
const MIDDLE: u64 = RAM + 6 * PAGE;
const LEAVES: u64 = RAM + 7 * PAGE;
const USER_MIDDLE: u64 = RAM + 8 * PAGE;
const USER_LEAVES: u64 = RAM + 9 * PAGE;
const UPPER_MIDDLE: u64 = RAM + 10 * PAGE;
const UPPER_LEAVES: u64 = RAM + 11 * PAGE;
const DATA: u64 = RAM + 12 * PAGE;
const RINGS: u64 = RAM + 14 * PAGE;
/// How often each exception was handled.
pub(crate) const COUNTERS: u64 = RAM + 15 * PAGE;
const CONSTANTS: u64 = COUNTERS + 0x800;
const SUPERVISOR_HANDLER: u64 = RAM + 0x100;
const MACHINE_HANDLER: u64 = RAM + 0x200;
const SET_UP: u64 = RAM + 0x300;
/// The distance from an address down to its mapping for U-mode.
const TO_USER: u64 = 1 << 30;
/// Flags of a supervisor's page with all permissions, and A and D set.
const ALL: u64 = 0xcf;
/// The address of RAM's mapping in the upper half.
const UPPER: u64 = 0xffff_ffc0_0000_0000;
const USER_BIT: u64 = 1 << 4;
const QUEUE_SIZE: u64 = 32;

/// (register, address) of the pointers that the trap handlers restore.
const POINTERS: [(u32, u64); 5] = [
    (STACK_POINTER, DATA + 0x900),
    (DATA_POINTER, DATA + 0x800),
    (CODE_POINTER, CODE + CODE_BYTES / 2),
    (TABLE_POINTER, LEAVES),
    (PAGE_END_POINTER, DATA + PAGE),
];

/// A guest's image and the configuration of its machine.
pub(crate) struct Program {
    pub(crate) config: MachineConfig,
    pub(crate) image: Vec<u8>,
}

/// Code under construction at an address.
struct Assembly {
    at: u64,
    words: Vec<u32>,
}

impl Assembly {
    fn put(&mut self, words: &[u32]) {
        self.words.extend(words);
    }

    /// Puts the address `target` into `rd`, relative to the pc: in the mapping that is in use.
    fn near(&mut self, rd: u32, target: u64) {
        let distance =
            i32::try_from((target - self.at).cast_signed()).unwrap() - 4 * i32::try_from(self.words.len()).unwrap();
        let low = (distance << 20) >> 20;
        let high = (distance - low).cast_unsigned() >> 12;
        self.put(&[auipc(rd, high), addi(rd, rd, low)]);
    }

    /// Writes a register of the device whose base is in x5. `value` is below 4 GiB.
    fn register(&mut self, register: i32, value: u64) {
        let value = u32::try_from(value).unwrap().cast_signed();
        let low = (value << 20) >> 20;
        let high = value.wrapping_sub(low).cast_unsigned() >> 12;
        self.put(&[lui(6, high), i_type(0x1b, 0, 6, 6, low), store(2, 6, 5, register)]);
    }
}

/// The CSRs of a mode that takes traps.
struct TrapRegisters {
    cause: u32,
    epc: u32,
    enable: u32,
    status: u32,
    /// The bit of `status` that is 0 if the trap came from U-mode.
    previous: i32,
    back: u32,
}

/// A trap handler: counts the trap, restores the pointers, and returns behind the instruction that
/// trapped, or to a random place of the code if that can't be fetched.
fn handler(at: u64, registers: &TrapRegisters) -> Vec<u32> {
    let shift_left = |rd, amount| i_type(0x13, 1, rd, rd, amount);
    let shift_right = |rd, amount| i_type(0x13, 5, rd, rd, amount);
    let add = |rd, a, b| r_type(0x33, 0, 0, rd, a, b);
    let mut code = Assembly { at, words: Vec::new() };
    code.put(&[csrrs(26, registers.cause, 0), i_type(0x13, 7, 25, 26, 31), shift_left(25, 3)]);
    code.near(27, COUNTERS);
    code.put(&[add(27, 27, 25), load(3, 25, 27, 0), addi(25, 25, 1), store(3, 25, 27, 0)]);
    // x24 is a sequence of random numbers. x27 is the distance to the mapping for U-mode if the
    // trap came from there, and sometimes if it didn't.
    code.put(&[addi(27, 24, 0), shift_left(24, 2), add(24, 24, 27), addi(24, 24, 0x2b7)]);
    code.put(&[csrrs(27, registers.status, 0), shift_right(27, registers.previous), i_type(0x13, 7, 27, 27, 1)]);
    code.put(&[i_type(0x13, 4, 27, 27, 1), i_type(0x13, 5, 25, 24, 14), i_type(0x13, 7, 25, 25, 7)]);
    code.put(&[i_type(0x13, 3, 25, 25, 1), r_type(0x33, 4, 0, 27, 27, 25), shift_left(27, 30)]);
    // An interrupt disables those of its mode, and skips no instruction.
    code.put(&[branch(5, 26, 0, 12), csrrw(0, registers.enable, 0)]);
    let pointers = jal(0, 0);
    code.put(&[pointers]);
    let from_interrupt = code.words.len() - 1;
    code.put(&[csrrs(25, registers.epc, 0), addi(25, 25, 4)]);
    // Instruction faults have causes 0, 1 and 12. Other traps lead to a random place sometimes too,
    // because the code may have been overwritten with zeros.
    code.put(&[i_type(0x13, 3, 28, 26, 2), addi(26, 26, -12), branch(0, 26, 0, 20), branch(1, 28, 0, 16)]);
    code.put(&[i_type(0x13, 5, 28, 24, 9), i_type(0x13, 7, 28, 28, 3), branch(1, 28, 0, 4 * 8)]);
    code.near(25, CODE);
    code.put(&[
        addi(26, 24, 0),
        shift_left(26, 51),
        shift_right(26, 50),
        add(25, 25, 26),
        r_type(0x33, 0, 0x20, 25, 25, 27),
    ]);
    code.put(&[csrrw(0, registers.epc, 25)]);
    let distance = i32::try_from(4 * (code.words.len() - from_interrupt)).unwrap();
    code.words[from_interrupt] = jal(0, distance);
    for (pointer, target) in POINTERS {
        code.near(pointer, target);
        code.put(&[r_type(0x33, 0, 0x20, pointer, pointer, 27)]);
    }
    code.put(&[registers.back]);
    assert!(code.words.len() <= 0x40, "handlers have 256 bytes each");
    code.words
}

/// The memory of a guest's image.
struct Memory(Vec<u8>);

impl Memory {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address - RAM).unwrap();
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put_words(&mut self, address: u64, words: &[u32]) {
        self.put(address, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    }

    fn put_double(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    fn tables(&mut self, choices: &mut Choices<'_>) {
        let identity = choices.pick(&[RAM >> 2 | ALL, MIDDLE >> 2 | 1, MIDDLE >> 2 | 1, MIDDLE >> 2 | 1]);
        let user = choices.pick(&[RAM >> 2 | ALL | USER_BIT, USER_MIDDLE >> 2 | 1, USER_MIDDLE >> 2 | 1]);
        for (place, entry) in [(0, ALL), (1, user), (2, identity), (256, UPPER_MIDDLE >> 2 | 1), (258, RAM >> 2 | ALL)]
        {
            self.put_double(ROOT + 8 * place, entry);
        }
        let windows = [(MIDDLE, LEAVES, 0), (USER_MIDDLE, USER_LEAVES, USER_BIT), (UPPER_MIDDLE, UPPER_LEAVES, 0)];
        for (middle, leaves, extra) in windows {
            let entry = choices.pick(&[leaves >> 2 | 1, leaves >> 2 | 1, leaves >> 2 | 1, RAM >> 2 | ALL | extra]);
            self.put_double(middle, entry);
            for page in 0..16 {
                let other = choices.one_in(12) && !matches!(page, 0 | 15);
                let target = RAM + PAGE * if other { choices.below(16) } else { page };
                let flags = match page {
                    0 | 15 => ALL,
                    _ => choices.pick(&[ALL, ALL, ALL, ALL, 0x4f, 0x0f, 0x4b, 0xc7, 0xc9, 0xce]),
                };
                self.put_double(leaves + 8 * page, target >> 2 | flags | extra);
            }
        }
    }

    /// Descriptors of the network queues; receive buffers lie in code and page tables too.
    fn rings(&mut self, choices: &mut Choices<'_>) {
        for index in 0..QUEUE_SIZE {
            let base =
                choices.pick(&[CODE, CODE + PAGE, CODE + 3 * PAGE, LEAVES, USER_LEAVES, UPPER_LEAVES, ROOT, DATA]);
            // The header of a packet is 12 bytes long.
            let address = base + 4 + 16 * choices.below(0x90);
            let (receive, transmit) = (RINGS + 16 * index, RINGS + 0x200 + 16 * index);
            self.put_double(receive, address);
            self.put_double(receive + 8, 1526 | 2 << 32);
            self.put_double(transmit, DATA + choices.below(0x1000));
            self.put_double(transmit + 8, 12 + 14 + choices.below(60));
            for available in [RINGS + 0x400, RINGS + 0x480] {
                self.put(available + 4 + 2 * index, &u16::try_from(index).unwrap().to_le_bytes());
            }
        }
        for available in [RINGS + 0x400, RINGS + 0x480] {
            self.put(available + 2, &u16::try_from(QUEUE_SIZE).unwrap().to_le_bytes());
        }
    }
}

/// Sets the network device up, as a correct driver would.
fn network(code: &mut Assembly) {
    code.put(&li(5, NET));
    for (register, value) in [(0x70, 0), (0x24, 1), (0x20, 1), (0x70, 11)] {
        code.register(register, value);
    }
    for (queue, [descriptors, available, used]) in [[0, 0x400, 0x600], [0x200, 0x480, 0x800]].into_iter().enumerate() {
        code.register(0x30, queue as u64);
        code.register(0x38, QUEUE_SIZE);
        for (register, part) in [(0x80, descriptors), (0x90, available), (0xa0, used)] {
            code.register(register, RINGS + part);
            code.register(register + 4, 0);
        }
        code.register(0x44, 1);
    }
    code.register(0x70, 15);
    // Enables its interrupt for S-mode.
    for (address, value) in [(0x0c00_0004, 1), (0x0c00_2080, 2), (0x0c20_1000, 0)] {
        code.put(&li(5, address));
        code.register(0, value);
    }
}

/// Set-up code: devices, CSRs and registers, and a jump into the random code in some mode.
fn set_up(choices: &mut Choices<'_>, boot: BootMode) -> Vec<u32> {
    let mut code = Assembly { at: SET_UP, words: Vec::new() };
    if choices.one_in(2) {
        network(&mut code);
    }
    code.near(5, CONSTANTS);
    let load_constant = |rd, index| load(3, rd, 5, 8 * index);
    let mut registers = vec![(STVEC, 0), (SIE, 1)];
    if boot == BootMode::Bare {
        registers.extend([(MTVEC, 2), (MEDELEG, 3), (MIDELEG, 4), (MIE, 5), (MSTATUS, 6), (MEPC, 7), (0x306, 8)]);
    } else {
        registers.extend([(SSTATUS, 6), (SEPC, 7)]);
    }
    if !choices.one_in(4) {
        registers.push((SATP, 9));
    }
    for (register, index) in registers {
        code.put(&[load_constant(6, index), csrrw(0, register, 6)]);
    }
    for (pointer, target) in POINTERS {
        code.near(pointer, target);
    }
    code.near(1, CODE + PAGE);
    code.put(&li(TO_OTHER_HALF, UPPER - RAM));
    for (index, register) in
        [ALIAS_POINTER, DEVICE_POINTER, 14, 15, 16, 17, 18, 19, 20, 24, 28, 29, 30, 31].into_iter().enumerate()
    {
        code.put(&[load_constant(register, 10 + i32::try_from(index).unwrap())]);
    }
    let stay = choices.one_in(2);
    code.put(&[match (stay, boot) {
        (true, _) => jalr(0, CODE_POINTER, 0),
        (false, BootMode::Firmware) => SRET,
        (false, BootMode::Bare) => MRET,
    }]);
    code.words
}

impl Program {
    pub(crate) fn random(choices: &mut Choices<'_>) -> Self {
        let boot = choices.pick(&[BootMode::Firmware, BootMode::Bare]);
        let mut memory = Memory(vec![0; 16 * usize::try_from(PAGE).unwrap()]);
        let supervisor =
            TrapRegisters { cause: SCAUSE, epc: SEPC, enable: SIE, status: SSTATUS, previous: 8, back: SRET };
        let machine =
            TrapRegisters { cause: MCAUSE, epc: MEPC, enable: MIE, status: MSTATUS, previous: 11, back: MRET };
        memory.put_words(RAM, &[jal(0, 0x300)]);
        memory.put_words(SUPERVISOR_HANDLER, &handler(SUPERVISOR_HANDLER, &supervisor));
        memory.put_words(MACHINE_HANDLER, &handler(MACHINE_HANDLER, &machine));
        let set_up = set_up(choices, boot);
        assert!(SET_UP + 4 * set_up.len() as u64 <= CODE, "set-up has to fit its page");
        memory.put_words(SET_UP, &set_up);
        memory.tables(choices);
        memory.rings(choices);
        memory.constants(choices, boot);
        // Short code is repeated, so that it is executed often.
        let length = usize::try_from(choices.pick(&[0x40, 0x200, 0x800, 0x2000])).unwrap();
        let code = CodeWriter::code(choices, boot, length);
        let all: Vec<u8> = code.iter().copied().cycle().take(usize::try_from(CODE_BYTES).unwrap()).collect();
        memory.put(CODE, &all);
        Self { config: MachineConfig { boot, ..small_config() }, image: elf_of_bytes(&memory.0) }
    }
}

impl Memory {
    /// Constants that the set-up code loads into CSRs and registers, and the data page.
    fn constants(&mut self, choices: &mut Choices<'_>, boot: BootMode) {
        let user = choices.one_in(2);
        let status = 3 << 13 // FS
            | (choices.any() & (3 << 18 | 1 << 5 | 1 << 7 | 1 << 1 | 1 << 3)) // SUM, MXR, SPIE, MPIE, SIE, MIE
            | if user { 0 } else { 1 << 8 | 1 << 11 }
            | if choices.one_in(4) { 3 << 11 | (choices.any() & 1 << 17) } else { 0 };
        let start = CODE + 2 * choices.below(CODE_BYTES / 2) - if user { TO_USER } else { 0 };
        let delegated = choices.any();
        let mut constants = vec![
            SUPERVISOR_HANDLER,
            choices.any() & 0x222,
            MACHINE_HANDLER,
            choices.pick(&[0, 0xb1ff, u64::MAX, delegated]),
            choices.pick(&[0, 0x222]),
            choices.any() & 0xaaa,
            status,
            start,
            7,
            8 << 60 | ROOT >> 12,
            choices.pick(&[DATA + 0x800 - TO_USER, UPPER + 0xc800, UPPER + 0x8000_b800, LEAVES - TO_USER]),
            choices.pick(&[UART, NET, 0x0c20_1000, 0x0c00_2080]),
        ];
        for _ in 0..6 {
            constants.push(choices.any());
        }
        // Instructions to overwrite others with.
        for _ in 0..8 {
            let [b0, b1, b2, b3, b4, b5, b6, b7] = *CodeWriter::code(choices, boot, 4).first_chunk().unwrap();
            constants.push(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]));
        }
        for (index, constant) in constants.into_iter().enumerate() {
            self.put_double(CONSTANTS + 8 * index as u64, constant);
        }
        for index in 0..0x400 {
            let value = if choices.one_in(4) { choices.any() } else { RAM + 8 * index };
            self.put_double(DATA + 8 * index, value);
        }
    }
}
