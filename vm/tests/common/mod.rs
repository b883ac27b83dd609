//! A small assembler, machines for its code, and ways to run and copy them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub(crate) mod differential;
pub(crate) mod hostile;
pub(crate) mod paged;

use vm::{
    BootMode, Event, Exit, InstructionCount, Machine, MachineConfig, OutputId, OutputOperation, PAGE_BYTES, PageCopy,
    Restoration,
};

pub(crate) const RAM: u64 = 0x8000_0000;
pub(crate) const UART: u64 = 0x1000_0000;
pub(crate) const NET: u64 = 0x1000_1000;
pub(crate) const BLK: u64 = 0x1000_2000;
pub(crate) const RNG: u64 = 0x1000_3000;
pub(crate) const RTC: u64 = 0x10_1000;
pub(crate) const FINISHER: u64 = 0x10_0000;

pub(crate) const SSTATUS: u32 = 0x100;
pub(crate) const SIE: u32 = 0x104;
pub(crate) const STVEC: u32 = 0x105;
pub(crate) const SCOUNTEREN: u32 = 0x106;
pub(crate) const SSCRATCH: u32 = 0x140;
pub(crate) const SEPC: u32 = 0x141;
pub(crate) const SCAUSE: u32 = 0x142;
pub(crate) const STVAL: u32 = 0x143;
pub(crate) const SIP: u32 = 0x144;
pub(crate) const SATP: u32 = 0x180;
pub(crate) const CYCLE: u32 = 0xc00;
pub(crate) const TIME: u32 = 0xc01;
pub(crate) const SEED: u32 = 0x015;

pub(crate) const MSTATUS: u32 = 0x300;
pub(crate) const MEDELEG: u32 = 0x302;
pub(crate) const MIDELEG: u32 = 0x303;
pub(crate) const MIE: u32 = 0x304;
pub(crate) const MTVEC: u32 = 0x305;
pub(crate) const MCOUNTEREN: u32 = 0x306;
pub(crate) const MCOUNTINHIBIT: u32 = 0x320;
pub(crate) const MSCRATCH: u32 = 0x340;
pub(crate) const MEPC: u32 = 0x341;
pub(crate) const MCAUSE: u32 = 0x342;
pub(crate) const MTVAL: u32 = 0x343;
pub(crate) const MIP: u32 = 0x344;
pub(crate) const PMPCFG0: u32 = 0x3a0;
pub(crate) const PMPADDR0: u32 = 0x3b0;
pub(crate) const MCYCLE: u32 = 0xb00;
pub(crate) const MINSTRET: u32 = 0xb02;

/// Bits of `mstatus`.
pub(crate) const SIE_BIT: u64 = 1 << 1;
pub(crate) const MIE_BIT: u64 = 1 << 3;
pub(crate) const SPIE_BIT: u64 = 1 << 5;
pub(crate) const MPIE_BIT: u64 = 1 << 7;
pub(crate) const SPP_BIT: u64 = 1 << 8;
pub(crate) const MPP_SHIFT: u32 = 11;
pub(crate) const MPRV_BIT: u64 = 1 << 17;
pub(crate) const SUM_BIT: u64 = 1 << 18;
pub(crate) const MXR_BIT: u64 = 1 << 19;
pub(crate) const TVM_BIT: u64 = 1 << 20;
pub(crate) const TW_BIT: u64 = 1 << 21;
pub(crate) const TSR_BIT: u64 = 1 << 22;

/// Mode numbers.
pub(crate) const USER: u64 = 0;
pub(crate) const SUPERVISOR: u64 = 1;
pub(crate) const MACHINE: u64 = 3;

pub(crate) const MRET: u32 = 0x3020_0073;
pub(crate) const SFENCE_VMA: u32 = 0x1200_0073;
pub(crate) const ECALL: u32 = 0x0000_0073;
pub(crate) const EBREAK: u32 = 0x0010_0073;
pub(crate) const SRET: u32 = 0x1020_0073;
pub(crate) const WFI: u32 = 0x1050_0073;
pub(crate) const NOP: u32 = 0x0000_0013;

pub(crate) fn r_type(opcode: u32, funct3: u32, funct7: u32, rd: u32, rs1: u32, rs2: u32) -> u32 {
    funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

pub(crate) fn i_type(opcode: u32, funct3: u32, rd: u32, rs1: u32, immediate: i32) -> u32 {
    immediate.cast_unsigned() << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

pub(crate) fn addi(rd: u32, rs1: u32, immediate: i32) -> u32 {
    i_type(0x13, 0, rd, rs1, immediate)
}

pub(crate) fn load(funct3: u32, rd: u32, rs1: u32, offset: i32) -> u32 {
    i_type(0x03, funct3, rd, rs1, offset)
}

pub(crate) fn store(funct3: u32, rs2: u32, rs1: u32, offset: i32) -> u32 {
    let offset = offset.cast_unsigned();
    (offset >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (offset & 0x1f) << 7 | 0x23
}

pub(crate) fn branch(funct3: u32, rs1: u32, rs2: u32, offset: i32) -> u32 {
    let o = offset.cast_unsigned();
    (o >> 12 & 1) << 31
        | (o >> 5 & 0x3f) << 25
        | rs2 << 20
        | rs1 << 15
        | funct3 << 12
        | (o >> 1 & 0xf) << 8
        | (o >> 11 & 1) << 7
        | 0x63
}

pub(crate) fn jal(rd: u32, offset: i32) -> u32 {
    let o = offset.cast_unsigned();
    (o >> 20 & 1) << 31 | (o >> 1 & 0x3ff) << 21 | (o >> 11 & 1) << 20 | (o >> 12 & 0xff) << 12 | rd << 7 | 0x6f
}

pub(crate) fn jalr(rd: u32, rs1: u32, offset: i32) -> u32 {
    i_type(0x67, 0, rd, rs1, offset)
}

pub(crate) fn lui(rd: u32, upper: u32) -> u32 {
    upper << 12 | rd << 7 | 0x37
}

pub(crate) fn auipc(rd: u32, upper: u32) -> u32 {
    upper << 12 | rd << 7 | 0x17
}

pub(crate) fn amo(funct5: u32, funct3: u32, rd: u32, rs1: u32, rs2: u32) -> u32 {
    r_type(0x2f, funct3, funct5 << 2, rd, rs1, rs2)
}

pub(crate) fn csr(funct3: u32, rd: u32, csr: u32, rs1: u32) -> u32 {
    csr << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x73
}

pub(crate) fn csrrw(rd: u32, number: u32, rs1: u32) -> u32 {
    csr(1, rd, number, rs1)
}

pub(crate) fn csrrs(rd: u32, number: u32, rs1: u32) -> u32 {
    csr(2, rd, number, rs1)
}

/// Instructions that put `value` into `rd`. Their number is always [`LI`], so that offsets are easy
/// to compute.
pub(crate) fn li(rd: u32, value: u64) -> Vec<u32> {
    let chunk = |from: u32, width: u32| i32::try_from(value >> from & ((1 << width) - 1)).unwrap();
    let shift = |amount| i_type(0x13, 1, rd, rd, amount);
    let or = |immediate| i_type(0x13, 6, rd, rd, immediate);
    let mut code = vec![addi(rd, 0, chunk(55, 9))];
    for from in [44, 33, 22, 11] {
        code.extend([shift(11), or(chunk(from, 11))]);
    }
    code.extend([shift(11), or(chunk(0, 11))]);
    code
}

/// The number of instructions of [`li`].
pub(crate) const LI: u64 = 11;

/// An ELF executable with one segment of `code` at the start of RAM.
pub(crate) fn elf_of_bytes(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0_u8; 120];
    image[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes()); // ET_EXEC
    put(18, &243_u16.to_le_bytes()); // EM_RISCV
    put(20, &1_u32.to_le_bytes());
    put(24, &RAM.to_le_bytes()); // e_entry
    put(32, &64_u64.to_le_bytes()); // e_phoff
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes()); // e_phnum
    put(58, &64_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes()); // PT_LOAD
    put(72, &120_u64.to_le_bytes()); // p_offset
    put(80, &RAM.to_le_bytes());
    put(88, &RAM.to_le_bytes()); // p_paddr
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &(code.len() as u64).to_le_bytes());
    image.extend_from_slice(code);
    image
}

pub(crate) fn elf(code: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    elf_of_bytes(&bytes)
}

/// The number of RAM pages of [`small_config`].
pub(crate) const RAM_PAGES: u64 = (4 << 20) / PAGE_BYTES as u64;

pub(crate) fn small_config() -> MachineConfig {
    MachineConfig { ram_bytes: 4 << 20, ..MachineConfig::default() }
}

pub(crate) fn machine(code: &[u32]) -> Machine {
    machine_of(&elf(code))
}

pub(crate) fn machine_of(image: &[u8]) -> Machine {
    Machine::new(&small_config(), image).unwrap()
}

/// A machine without firmware.
pub(crate) fn bare_config() -> MachineConfig {
    MachineConfig { boot: BootMode::Bare, ..small_config() }
}

/// Instructions that store `value` at `address`, [`PUT`] of them. They use x5 and x6. `kind` is
/// the width: 2 for words.
pub(crate) fn put(address: u64, value: u64, kind: u32) -> Vec<u32> {
    [li(5, address), li(6, value), vec![store(kind, 6, 5, 0)]].concat()
}

/// The number of instructions of [`put`].
pub(crate) const PUT: u64 = 2 * LI + 1;

/// Instructions that clear the bits `clear` of a CSR and then set the bits `set`. They use x30.
pub(crate) fn change(number: u32, clear: u64, set: u64) -> Vec<u32> {
    [li(30, clear), vec![csr(3, 0, number, 30)], li(30, set), vec![csrrs(0, number, 30)]].concat()
}

/// The number of instructions of [`change`].
pub(crate) const CHANGE: u64 = 2 * (LI + 1);

/// Instructions of M-mode after which the following ones run in `mode`. They use x30.
pub(crate) fn go(mode: u64) -> Vec<u32> {
    let status = change(MSTATUS, 3 << MPP_SHIFT, mode << MPP_SHIFT);
    [status, vec![auipc(30, 0), addi(30, 30, 16), csrrw(0, MEPC, 30), MRET]].concat()
}

/// The number of instructions of [`go`].
pub(crate) const GO: u64 = CHANGE + 4;

/// The machine after `code`, which is executed once, one step per instruction.
pub(crate) fn ran(code: &[u32]) -> Machine {
    let mut machine = machine(code);
    assert_eq!(run_by(&mut machine, code.len() as u64), Exit::LimitReached);
    machine
}

/// Runs at most `steps` more steps.
pub(crate) fn run_by(machine: &mut Machine, steps: u64) -> Exit {
    let limit = machine.instruction_count().plus(steps);
    machine.run(limit)
}

/// Takes all pages of a copy; returns their indices in order.
pub(crate) fn take_pages(machine: &mut Machine, copy: PageCopy) -> Vec<u64> {
    let mut from = 0;
    core::iter::from_fn(|| {
        let (index, _) = machine.take_page(copy, from)?;
        from = index + 1;
        Some(index)
    })
    .collect()
}

/// A machine that is restored from a snapshot of `machine`, which has this configuration.
pub(crate) fn restored(config: &MachineConfig, machine: &mut Machine) -> Machine {
    let mut restoration = Restoration::new(config).unwrap();
    machine.begin_copy(PageCopy::Backup);
    while let Some((index, page)) = machine.take_page(PageCopy::Backup, 0) {
        restoration.put_pages(index, page).unwrap();
    }
    restoration.finish(&machine.state()).unwrap()
}

/// Calls `run` with every seed below `count`, or with the one in `FT_SEED` alone, and prints before
/// each the command that runs it again. Returns whether all seeds were run: a test's sightings
/// prove nothing otherwise.
pub(crate) fn for_each_seed(test: &str, count: u64, mut run: impl FnMut(u64)) -> bool {
    let only: Option<u64> = std::env::var("FT_SEED").ok().map(|text| text.parse().expect("FT_SEED is a number"));
    for seed in only.map_or(0..count, |seed| seed..seed + 1) {
        println!("seed {seed}; again with FT_SEED={seed} cargo test -p vm --test {test}");
        run(seed);
    }
    only.is_none()
}

/// Runs without a limit.
pub(crate) fn run_on(machine: &mut Machine) -> Exit {
    machine.run(InstructionCount(u64::MAX))
}

/// Gives the entropy device the bytes that it waits for.
pub(crate) fn give_random_bytes(machine: &mut Machine) {
    let bytes = vec![0x5e; machine.random_bytes_needed()];
    machine.apply(&Event::RandomBytes { bytes }).unwrap();
}

/// Runs in slices of `slice` steps until the guest stops or sleeps, or the count is `limit`. Clock
/// and entropy reads get answers that depend on the count alone; outputs are returned.
pub(crate) fn drive(
    machine: &mut Machine,
    limit: u64,
    slice: u64,
) -> (Exit, Vec<(InstructionCount, OutputId, OutputOperation)>) {
    let mut outputs = Vec::new();
    loop {
        let count = machine.instruction_count();
        match machine.run(InstructionCount(count.0.saturating_add(slice).min(limit))) {
            Exit::Output => {
                while let Some((id, output)) = machine.take_output() {
                    outputs.push((machine.instruction_count(), id, output));
                }
            }
            Exit::ClockRead => {
                let ticks = machine.instruction_count().0;
                machine.apply(&Event::ClockRead { ticks: ticks.max(machine.last_ticks()) }).unwrap();
            }
            Exit::SeedRead => machine.apply(&Event::Entropy { bits: 0x5eed }).unwrap(),
            Exit::WallClockNeeded => machine.apply(&Event::WallClock { ns: machine.last_wall_ns() + 1 }).unwrap(),
            Exit::RandomBytesNeeded => give_random_bytes(machine),
            Exit::LimitReached if machine.instruction_count().0 < limit => {}
            exit @ (Exit::LimitReached | Exit::WaitForInterrupt | Exit::Stopped(_)) => return (exit, outputs),
        }
    }
}
