//! A program: its code, and the state in which it begins.

use super::writer::Writer;
use super::{control, float, integer, memory, paging, registers, system, value};
use crate::qemu::assembler::{EBREAK, addi};
use crate::random::Random;

/// The program's memory: two MiB, of which it uses the first pages.
pub(super) const ARENA: u64 = 0x8020_0000;
/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// The used pages: four of code (the last one for the supervisor's trap handler), four of data,
/// eight of page tables, and one that only larger pages map.
pub(super) const ARENA_PAGES: u64 = 17;
/// The supervisor's trap handler: vectored entries with ECALL, and its return.
pub(super) const SUPERVISOR_VECTOR: u64 = ARENA + 3 * PAGE;
/// The SRET at the end of the supervisor's handler.
pub(super) const SUPERVISOR_RETURN: u64 = SUPERVISOR_VECTOR + 0x200;
/// The first page of data, with initial values.
pub(super) const DATA: u64 = ARENA + 4 * PAGE;
/// The first page of page tables.
pub(super) const TABLES: u64 = ARENA + 8 * PAGE;
/// An address that is unmapped on both machines.
pub(super) const NOWHERE: u64 = 0x0800_0000;

/// The stack pointer, which is set to the middle of the first page of data, so that an offset
/// reaches every word of it.
pub(super) const DATA_REGISTER: u32 = 2;
/// The register with the address of the program's next unit, for the trap handler.
pub(super) const RESUME_REGISTER: u32 = 3;
/// The register with the address of the runtime's variables.
pub(super) const RUNTIME_REGISTER: u32 = 4;

/// What a program exercises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// I and M.
    Integer,
    /// C.
    Compressed,
    /// A, and loads and stores of every alignment.
    Memory,
    /// F and D.
    Float,
    /// CSRs.
    Registers,
    /// Sv39.
    Paging,
    /// Branches, loops, calls, and self-modifying code.
    Control,
    /// Delegation, interrupts, and changes of mode.
    System,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 8] = [
        Self::Integer,
        Self::Compressed,
        Self::Memory,
        Self::Float,
        Self::Registers,
        Self::Paging,
        Self::Control,
        Self::System,
    ];

    /// Its name, as in `FT_CLASS`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Compressed => "compressed",
            Self::Memory => "memory",
            Self::Float => "float",
            Self::Registers => "registers",
            Self::Paging => "paging",
            Self::Control => "control",
            Self::System => "system",
        }
    }
}

/// The mode in which a program begins; the discriminant is its number in `mstatus.MPP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// U-mode.
    User = 0,
    /// S-mode.
    Supervisor = 1,
    /// M-mode.
    Machine = 3,
}

impl Mode {
    pub(super) fn random(random: &mut Random) -> Self {
        random.pick(&[Self::User, Self::Supervisor, Self::Machine])
    }
}

/// The state that the runtime sets before a program begins.
#[derive(Clone, Debug)]
pub(super) struct InitialState {
    pub(super) registers: [u64; 32],
    pub(super) floats: [u64; 32],
    /// `mstatus` without `MPP`.
    pub(super) status: u64,
    pub(super) satp: u64,
    /// `medeleg`, without the call from S-mode, by which the supervisor's handler reports.
    pub(super) delegated_exceptions: u64,
    /// `mideleg`.
    pub(super) delegated_interrupts: u64,
    /// `mie`.
    pub(super) enabled_interrupts: u64,
    /// `stvec`.
    pub(super) trap_vector: u64,
    /// `fcsr`.
    pub(super) float_status: u64,
    /// Words in memory, with their addresses.
    pub(super) memory: Vec<(u64, Vec<u64>)>,
}

/// A program and the state in which it begins.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it exercises.
    pub class: Class,
    /// The seed from which it was generated.
    pub seed: u64,
    /// The mode in which it begins.
    pub mode: Mode,
    pub(super) initial: InitialState,
    /// The address of the EBREAK that ends it.
    pub(super) end: u64,
    code: Vec<u8>,
}

/// `mstatus.FS`: Initial.
pub(super) const FLOAT_INITIAL: u64 = 1 << 13;

impl Program {
    /// Generates the program of a class and seed.
    ///
    /// # Panics
    /// If its code is longer than its pages, which is a bug of the generator.
    #[must_use]
    pub fn new(class: Class, seed: u64) -> Self {
        let mut random = Random::new(seed.rotate_left(32) ^ class as u64);
        let mode = Mode::random(&mut random);
        let mut initial = initial(&mut random);
        let mut writer = Writer::new(ARENA, random, mode);
        match class {
            Class::Integer => integer::write(&mut writer),
            Class::Compressed => integer::write_compressed(&mut writer),
            Class::Memory => memory::write(&mut writer),
            Class::Float => float::write(&mut writer, &mut initial),
            Class::Registers => registers::write(&mut writer, &mut initial),
            Class::Paging => paging::write(&mut writer, &mut initial),
            Class::Control => control::write(&mut writer, &mut initial),
            Class::System => system::write(&mut writer, &mut initial),
        }
        writer.unit(|writer| writer.code.word(addi(0, 0, 0)));
        let end = writer.code.here();
        writer.code.word(EBREAK);
        let mut code = writer.code.finish();
        assert!(code.len() as u64 <= 3 * PAGE, "{} bytes of code", code.len());
        code.resize(code.len().next_multiple_of(8), 0);
        initial.memory.push((ARENA, words_of(&code)));
        Self { class, seed, mode, initial, end, code }
    }

    /// The code, as words for a disassembler.
    #[must_use]
    pub fn listing(&self) -> String {
        let mut text = String::new();
        let mut at = 0;
        while let Some(half) = self.code.get(at..at + 2) {
            let address = ARENA + at as u64;
            if half[0] & 3 == 3 {
                let word = self
                    .code
                    .get(at..at + 4)
                    .map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
                text += &format!("  {address:#x}: {word:08x}\n");
                at += 4;
            } else {
                text += &format!("  {address:#x}: {:04x}\n", u16::from_le_bytes([half[0], half[1]]));
                at += 2;
            }
        }
        text
    }
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    bytes.chunks(8).map(word).collect()
}

fn initial(random: &mut Random) -> InitialState {
    let mut registers = [(); 32].map(|()| value::integer(random));
    registers[DATA_REGISTER as usize] = DATA + PAGE / 2;
    registers[RESUME_REGISTER as usize] = ARENA;
    let floats = [(); 32].map(|()| value::float(random));
    let data = (0..PAGE / 8).map(|_| value::integer(random)).collect();
    let enabled = random.pick(&[0, 1 << 1, 1 << 5, 1 << 9]);
    InitialState {
        registers,
        floats,
        status: FLOAT_INITIAL,
        satp: 0,
        delegated_exceptions: 0,
        delegated_interrupts: 0,
        enabled_interrupts: enabled,
        trap_vector: SUPERVISOR_VECTOR,
        float_status: 0,
        memory: vec![(DATA, data), (SUPERVISOR_VECTOR, supervisor_handler())],
    }
}

/// The supervisor's trap handler: calls the runtime, which records the trap and returns to the
/// handler's SRET.
fn supervisor_handler() -> Vec<u64> {
    use crate::qemu::assembler::{ECALL, SRET};
    let vector_words = (SUPERVISOR_RETURN - SUPERVISOR_VECTOR) / 8;
    let calls = u64::from(ECALL) << 32 | u64::from(ECALL);
    (0..vector_words).map(|_| calls).chain([u64::from(SRET)]).collect()
}
