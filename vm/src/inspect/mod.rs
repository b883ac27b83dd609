//! What a debugger shows of a machine. Nothing here changes it.

mod probing;

use crate::hart::mmu::{Access, Accessor};
use crate::isa::address::GuestVirtAddr;
use crate::isa::privilege::Privilege;
use crate::machine::Machine;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

impl Machine {
    /// The privilege mode of the next instruction: 0 user, 1 supervisor, 3 machine.
    #[must_use]
    pub const fn privilege_level(&self) -> u8 {
        self.hart.privilege().level()
    }

    /// `true` while the hart waits in WFI.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.hart.is_waiting()
    }

    /// Registers f0 to f31, as bits.
    #[must_use]
    pub const fn float_registers(&self) -> &[u64; 32] {
        self.hart.float_registers()
    }

    /// The value of the CSR with this number, in whatever mode the hart is; `None` if there is none
    /// that has a value of its own. `time` and `seed` have their values from outside.
    #[must_use]
    pub fn csr(&self, number: u16) -> Option<u64> {
        self.hart.csr(number)
    }

    /// The physical address that the virtual one has in the present address space, with all rights;
    /// `None` if it has none.
    #[must_use]
    pub fn physical_address(&self, address: u64) -> Option<u64> {
        let all = Accessor { privilege: Privilege::Supervisor, sum: true, mxr: true };
        let translation = self.hart.mmu().walk(&self.bus.ram, GuestVirtAddr(address), Access::Load, all);
        Some(translation.ok()?.physical.0)
    }

    /// The state of the devices in words, each under its name.
    #[must_use]
    pub fn devices(&self) -> Vec<(&'static str, String)> {
        let bus = &self.bus;
        let mut devices = vec![
            ("clint", format!("{:?}", bus.clint())),
            ("plic", format!("{:?}", bus.plic())),
            ("uart", format!("{:?}", bus.uart)),
            ("net", format!("{:?}", bus.net)),
        ];
        devices.extend(bus.blk().map(|blk| ("disk", format!("{blk:?}"))));
        devices
    }
}
