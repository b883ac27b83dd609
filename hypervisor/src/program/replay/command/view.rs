//! What of a machine is shown: registers by name, memory by virtual or physical address, and the
//! instruction that is next.

use riscv_isa::{Target, decode_le_bytes};
use std::str::FromStr;
use vm::{Machine, PAGE_BYTES};

/// The names of registers x0 to x31 in the calling convention.
pub(super) const REGISTERS: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "s2",
    "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

/// The CSRs that are shown.
pub(super) const CSRS: [(&str, u16); 26] = [
    ("sstatus", 0x100),
    ("sie", 0x104),
    ("stvec", 0x105),
    ("scounteren", 0x106),
    ("sscratch", 0x140),
    ("sepc", 0x141),
    ("scause", 0x142),
    ("stval", 0x143),
    ("sip", 0x144),
    ("stimecmp", 0x14d),
    ("satp", 0x180),
    ("mstatus", 0x300),
    ("misa", 0x301),
    ("medeleg", 0x302),
    ("mideleg", 0x303),
    ("mie", 0x304),
    ("mtvec", 0x305),
    ("menvcfg", 0x30a),
    ("mscratch", 0x340),
    ("mepc", 0x341),
    ("mcause", 0x342),
    ("mtval", 0x343),
    ("mip", 0x344),
    ("mcycle", 0xb00),
    ("minstret", 0xb02),
    ("fcsr", 0x003),
];

/// The name of a privilege mode.
pub(super) const fn mode_name(level: u8) -> &'static str {
    match level {
        0 => "user",
        1 => "supervisor",
        _ => "machine",
    }
}

/// The address space that CSR `satp` says.
pub(super) fn address_space(satp: u64) -> String {
    match satp >> 60 {
        0 => "physical".into(),
        8 => format!("Sv39, root table at {:#x}", (satp & ((1 << 44) - 1)) << 12),
        mode => format!("mode {mode}"),
    }
}

/// What an exception or interrupt is, of a cause as in `scause`.
pub(super) fn cause_name(cause: u64) -> String {
    let code = cause & !(1 << 63);
    let name = match (cause >> 63, code) {
        (1, 1) => "supervisor software interrupt",
        (1, 3) => "machine software interrupt",
        (1, 5) => "supervisor timer interrupt",
        (1, 7) => "machine timer interrupt",
        (1, 9) => "supervisor external interrupt",
        (1, 11) => "machine external interrupt",
        (0, 1) => "instruction access fault",
        (0, 2) => "illegal instruction",
        (0, 3) => "breakpoint",
        (0, 4) => "load address misaligned",
        (0, 5) => "load access fault",
        (0, 6) => "store address misaligned",
        (0, 7) => "store access fault",
        (0, 8) => "environment call from U-mode",
        (0, 9) => "environment call from S-mode",
        (0, 11) => "environment call from M-mode",
        (0, 12) => "instruction page fault",
        (0, 13) => "load page fault",
        (0, 15) => "store page fault",
        (1, _) => return format!("interrupt {code}"),
        _ => return format!("exception {code}"),
    };
    name.into()
}

/// Reads `length` bytes; `None` for those that can't be read. By physical address if that is said.
pub(super) fn read(machine: &Machine, address: u64, length: u64, is_physical: bool) -> Vec<Option<u8>> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < length {
        let from = address.wrapping_add(at);
        let page_bytes = PAGE_BYTES as u64;
        let in_page = (page_bytes - from % page_bytes).min(length - at);
        let place = if is_physical { Some(from) } else { machine.physical_address(from) };
        match place.and_then(|place| machine.memory(place, in_page)) {
            Some(found) => bytes.extend(found.iter().copied().map(Some)),
            None => bytes.extend((0..in_page).map(|_| None)),
        }
        at += in_page;
    }
    bytes
}

/// The instruction at `address`, in the assembler's words; what is known of it if that can't be
/// said.
pub(super) fn disassembled(machine: &Machine, address: u64) -> String {
    let bytes: Option<Vec<u8>> = read(machine, address, 4, false).into_iter().collect();
    let half: Option<Vec<u8>> = read(machine, address, 2, false).into_iter().collect();
    let Some(bytes) = bytes.or(half) else { return "(no memory there)".into() };
    let Some((instruction, length)) = decode_le_bytes(&bytes, &target()) else { return "(no memory there)".into() };
    let bits: String = bytes[..length.min(bytes.len())].iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("{bits:<8}  {}", with_names(&instruction.to_string()))
}

/// The machine's instruction set, for the disassembler.
fn target() -> Target {
    let mut target = Target::from_str("RV64IMAFDC").unwrap_or_default();
    target.supervisor_mode = true;
    (target.zicsr, target.zifencei) = (true, true);
    (target.zba, target.zbb, target.zbc, target.zbs) = (true, true, true, true);
    target
}

/// The same instruction with the names of the calling convention for registers.
fn with_names(text: &str) -> String {
    let mut named = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('x') {
        let (before, after) = rest.split_at(at);
        named.push_str(before);
        let digits = after[1..].len() - after[1..].trim_start_matches(|next: char| next.is_ascii_digit()).len();
        let is_word = !before.ends_with(|last: char| last.is_ascii_alphanumeric());
        let register = after[1..=digits].parse().ok().and_then(|number: usize| REGISTERS.get(number));
        named.push_str(register.filter(|_| is_word).copied().unwrap_or(&after[..=digits]));
        rest = &after[1 + digits..];
    }
    named + rest
}

#[cfg(test)]
mod tests {
    use super::{target, with_names};
    use riscv_isa::decode_le_bytes;

    #[test]
    fn instructions_have_the_names_of_the_calling_convention() {
        let shown = |bits: u32| with_names(&decode_le_bytes(&bits.to_le_bytes(), &target()).unwrap().0.to_string());
        assert_eq!(shown(0x0005_3503), "ld a0, 0(a0)");
        assert_eq!(shown(0x1020_0073), "sret");
        assert_eq!(shown(0x00b5_0533), "add a0, a0, a1");
    }

    /// A guest's memory may have anything.
    #[test]
    fn no_bits_make_the_disassembler_panic() {
        let target = target();
        for half in 0..=u16::MAX {
            let _ = decode_le_bytes(&half.to_le_bytes(), &target).map(|(instruction, _)| instruction.to_string());
            for high in [0_u32, 0xffff, 0x5a5a, 0x1234] {
                let bits = (high << 16 | u32::from(half)).to_le_bytes();
                let _ = decode_le_bytes(&bits, &target).map(|(instruction, _)| with_names(&instruction.to_string()));
            }
        }
        let mut state = 1_u32;
        for _ in 0..300_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = (state.rotate_left(7) | 3).to_le_bytes();
            let _ = decode_le_bytes(&bits, &target).map(|(instruction, _)| instruction.to_string());
        }
    }
}
