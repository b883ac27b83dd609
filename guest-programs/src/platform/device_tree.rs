//! The device tree, as far as the guests need it.

use crate::boot_arguments::BootArguments;
use core::fmt;
use core::ptr::NonNull;
use fdt::Fdt;
use fdt::node::FdtNode;

/// The device tree that the firmware passed.
pub struct DeviceTree(Fdt<'static>);

/// A device's registers and interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Address of its registers.
    pub registers: NonNull<u8>,
    /// Length of its registers in bytes.
    pub bytes: usize,
    /// The first of its interrupts, in its interrupt controller's numbering.
    pub interrupt: Option<u32>,
}

impl DeviceTree {
    /// Reads the device tree at `address`.
    ///
    /// # Panics
    /// If there is no device tree, which every guest needs.
    ///
    /// # Safety
    /// `address` is null, or that of a device tree which doesn't change while the guest runs.
    pub(super) unsafe fn from_ptr(address: *const u8) -> Self {
        // SAFETY: passed on to the caller.
        Self(unsafe { Fdt::from_ptr(address) }.expect("the firmware passes a device tree in a1"))
    }

    /// `/chosen/bootargs` as it is; empty if there is none.
    #[must_use]
    pub fn command_line(&self) -> &'static str {
        self.0.chosen().bootargs().unwrap_or_default()
    }

    /// `/chosen/bootargs`.
    #[must_use]
    pub fn boot_arguments(&self) -> BootArguments {
        BootArguments::parse(self.command_line())
    }

    /// `/chosen/rng-seed`, folded to 64 bits; `None` if there is none.
    #[must_use]
    pub fn random_seed(&self) -> Option<u64> {
        let seed = self.0.find_node("/chosen")?.property("rng-seed")?.value;
        Some(seed.iter().fold(0, |folded: u64, byte| folded.rotate_left(8) ^ u64::from(*byte)))
    }

    /// Ticks per second of CSR `time`.
    #[must_use]
    pub fn timebase_hz(&self) -> Option<u64> {
        let hz = self.0.find_node("/cpus")?.property("timebase-frequency")?.as_usize()?;
        u64::try_from(hz).ok().filter(|hz| *hz > 0)
    }

    /// The platform-level interrupt controller.
    #[must_use]
    pub fn interrupt_controller(&self) -> Option<Node> {
        self.0.find_compatible(&["sifive,plic-1.0.0", "riscv,plic0"]).and_then(node)
    }

    /// The virtio-mmio slots, empty ones too.
    pub fn virtio_slots(&self) -> impl Iterator<Item = Node> {
        self.0
            .all_nodes()
            .filter(|node| node.compatible().is_some_and(|names| names.all().any(|name| name == "virtio,mmio")))
            .filter_map(node)
    }
}

impl fmt::Debug for DeviceTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTree").field("bytes", &self.0.total_size()).finish_non_exhaustive()
    }
}

fn node(node: FdtNode<'_, '_>) -> Option<Node> {
    let registers = node.reg()?.next()?;
    Some(Node {
        registers: NonNull::new(registers.starting_address.cast_mut())?,
        bytes: registers.size?,
        interrupt: node.interrupts().and_then(|mut numbers| numbers.next()).and_then(|number| number.try_into().ok()),
    })
}
