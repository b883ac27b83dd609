//! Images with page tables, for guests that turn paging on.

use super::{
    LI, MCAUSE, MEPC, MTVAL, NOP, RAM, SATP, SCAUSE, SEPC, STVAL, STVEC, csrrs, csrrw, elf_of_bytes, jal, li,
    small_config,
};
use vm::{Machine, MachineConfig};

/// Address of the trap handler, which reads cause, epc and tval of S-mode into x20 to x22, those of
/// M-mode into x23 to x25, and then loops.
pub(crate) const HANDLER: u64 = RAM + 0x800;

/// The number of instructions before a test's code, which set `stvec` and `satp`.
pub(crate) const BEGIN: u64 = 2 * (LI + 1);

/// `satp` of [`Paged`]'s tables.
pub(crate) const PAGED_SATP: u64 = 8 << 60 | ROOT >> 12;

const ROOT: u64 = RAM + 0x4000;
const MIDDLE: u64 = RAM + 0x5000;
const LAST: u64 = RAM + 0x6000;

/// Flags of a supervisor's page with all permissions, and A and D set.
const ALL: u64 = 0xcf;

/// Page tables that map RAM to itself and to [`Self::UPPER`]; a test adds mappings below 4 MiB.
#[derive(Clone)]
pub(crate) struct Paged {
    memory: Vec<u8>,
}

impl Paged {
    /// The upper-half address at which RAM begins.
    pub(crate) const UPPER: u64 = 0xffff_ffc0_0000_0000;

    pub(crate) fn new() -> Self {
        let mut paged = Self { memory: vec![0; 2 << 20] };
        let leaf = RAM >> 2 | ALL;
        for (place, entry) in [(0, MIDDLE >> 2 | 1), (2, leaf), (256, leaf)] {
            paged.put(ROOT + 8 * place, entry);
        }
        paged.put(MIDDLE, LAST >> 2 | 1);
        paged
    }

    /// Address of the page-table entry of the 4 KiB page at `address`, below 2 MiB.
    pub(crate) const fn entry(address: u64) -> u64 {
        LAST + 8 * (address >> 12)
    }

    /// Maps a page of 4 KiB below 2 MiB.
    pub(crate) fn map(&mut self, from: u64, to: u64, flags: u64) {
        assert!(from < 2 << 20);
        self.put(Self::entry(from), to >> 2 | flags);
    }

    /// Maps a page of 2 MiB.
    pub(crate) fn map_mega(&mut self, from: u64, to: u64, flags: u64) {
        self.put(MIDDLE + 8 * (from >> 21), to >> 2 | flags);
    }

    /// Puts a doubleword into RAM.
    pub(crate) fn put(&mut self, address: u64, value: u64) {
        self.put_bytes(address, &value.to_le_bytes());
    }

    pub(crate) fn put_bytes(&mut self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address - RAM).unwrap();
        self.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// A machine in S-mode that turns paging on and then runs `code`.
    pub(crate) fn machine(&self, code: &[u32]) -> Machine {
        let set_up = [li(31, HANDLER), vec![csrrw(0, STVEC, 31)], li(31, PAGED_SATP), vec![csrrw(0, SATP, 31)]];
        self.plain_machine(&small_config(), &[set_up.concat(), code.to_vec()].concat())
    }

    /// A machine that runs `code` with these tables in memory. Code that reaches [`HANDLER`] has
    /// its own handler there.
    pub(crate) fn plain_machine(&self, config: &MachineConfig, code: &[u32]) -> Machine {
        let mut all = code.to_vec();
        if all.len() <= 0x200 {
            all.resize(0x200, NOP);
            all.extend([csrrs(20, SCAUSE, 0), csrrs(21, SEPC, 0), csrrs(22, STVAL, 0)]);
            all.extend([csrrs(23, MCAUSE, 0), csrrs(24, MEPC, 0), csrrs(25, MTVAL, 0), jal(0, 0)]);
        }
        let mut paged = self.clone();
        paged.put_bytes(RAM, &all.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
        Machine::new(config, &elf_of_bytes(&paged.memory)).unwrap()
    }
}
