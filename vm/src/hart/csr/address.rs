//! Addresses of the CSRs that exist.

pub(super) const FFLAGS: u16 = 0x001;
pub(super) const FRM: u16 = 0x002;
pub(super) const FCSR: u16 = 0x003;
pub(super) const SEED: u16 = 0x015;

pub(super) const SSTATUS: u16 = 0x100;
pub(super) const SIE: u16 = 0x104;
pub(super) const STVEC: u16 = 0x105;
pub(super) const SCOUNTEREN: u16 = 0x106;
pub(super) const SENVCFG: u16 = 0x10a;
pub(super) const SSCRATCH: u16 = 0x140;
pub(super) const SEPC: u16 = 0x141;
pub(super) const SCAUSE: u16 = 0x142;
pub(super) const STVAL: u16 = 0x143;
pub(super) const SIP: u16 = 0x144;
pub(super) const STIMECMP: u16 = 0x14d;
pub(super) const SATP: u16 = 0x180;

pub(super) const MSTATUS: u16 = 0x300;
pub(super) const MISA: u16 = 0x301;
pub(super) const MEDELEG: u16 = 0x302;
pub(super) const MIDELEG: u16 = 0x303;
pub(super) const MIE: u16 = 0x304;
pub(super) const MTVEC: u16 = 0x305;
pub(super) const MCOUNTEREN: u16 = 0x306;
pub(super) const MENVCFG: u16 = 0x30a;
pub(super) const MCOUNTINHIBIT: u16 = 0x320;
pub(super) const MHPMEVENT3: u16 = 0x323;
pub(super) const MHPMEVENT31: u16 = 0x33f;
pub(super) const MSCRATCH: u16 = 0x340;
pub(super) const MEPC: u16 = 0x341;
pub(super) const MCAUSE: u16 = 0x342;
pub(super) const MTVAL: u16 = 0x343;
pub(super) const MIP: u16 = 0x344;
/// The configuration of entries 0 to 7.
pub(super) const PMPCFG0: u16 = 0x3a0;
/// The configuration of entries 8 to 15; RV64 has no odd ones.
pub(super) const PMPCFG2: u16 = 0x3a2;
pub(super) const PMPADDR0: u16 = 0x3b0;
pub(super) const PMPADDR15: u16 = 0x3bf;

pub(super) const TSELECT: u16 = 0x7a0;
pub(super) const TDATA3: u16 = 0x7a3;

pub(super) const MCYCLE: u16 = 0xb00;
pub(super) const MINSTRET: u16 = 0xb02;
pub(super) const MHPMCOUNTER3: u16 = 0xb03;
pub(super) const MHPMCOUNTER31: u16 = 0xb1f;

pub(super) const CYCLE: u16 = 0xc00;
pub(super) const TIME: u16 = 0xc01;
pub(super) const INSTRET: u16 = 0xc02;
pub(super) const HPMCOUNTER3: u16 = 0xc03;
pub(super) const HPMCOUNTER31: u16 = 0xc1f;

pub(super) const MVENDORID: u16 = 0xf11;
/// The last of the identification CSRs: vendor, architecture, implementation, hart, configuration.
pub(super) const MCONFIGPTR: u16 = 0xf15;
